"""The graph of who fed on whom, without a disk."""

from dataclasses import replace

import pytest

from karat.errors import LedgerError
from karat.ledger.lineage import (
    ArtifactRef,
    Manifest,
    affected,
    compare,
    stage_key,
    stale_stages,
    trace,
    trace_lines,
    tree_hash,
    verify_manifests,
)


def ref(name: str, digest: str = "", **changes) -> ArtifactRef:
    return ArtifactRef(name, changes.pop("path", f"models/{name}"), f"sha256:{digest or name * 8}", "file", **changes)


def stage(name: str, inputs: list[ArtifactRef], outputs: list[ArtifactRef]) -> Manifest:
    return Manifest("demo", name, tuple(inputs), tuple(outputs), {}, {}, {}, None, "", "", 0.0)


VOTES = ref("votes", path="/data/votes")
BASE, SFT, RM, PPO = ref("base"), ref("sft"), ref("rm"), ref("ppo")
RUN = [
    stage("base", [], [BASE]),
    stage("sft", [BASE], [SFT]),
    stage("reward", [VOTES, SFT], [RM]),
    stage("ppo", [SFT, RM], [PPO]),
]


def found(**changes) -> dict:
    return {reference.path: reference for reference in (VOTES, BASE, SFT, RM, PPO)} | changes


def test_trace_goes_down_to_what_came_from_outside_and_shows_shared_things_once():
    (policy,) = trace(RUN)
    assert policy.stage == "ppo"
    sft, reward = policy.fed_by
    assert [node.artefact.name for node in sft.fed_by] == ["base"]
    votes, again = reward.fed_by
    assert (votes.stage, votes.fed_by) == (None, ())
    assert again.repeated
    assert again.fed_by == ()
    lines = trace_lines([policy])
    assert lines[0].startswith("models/ppo  [sha256:ppoppoppoppo] written by ppo")
    assert lines[-1].endswith("; see above")
    assert "from outside" in lines[4]


@pytest.mark.parametrize("name", ["models/rm", "reward", "reward/rm", "sha256:rmrmrm", "rmrmrm"])
def test_an_artefact_may_be_named_by_path_stage_or_hash(name: str):
    (node,) = trace(RUN, name)
    assert node.artefact == RM


def test_an_unknown_artefact_says_what_there_is():
    with pytest.raises(LedgerError, match=r"found no artefact 'gold'; expected .* models/base, models/sft"):
        trace(RUN, "gold")


def test_affected_is_everything_downstream_in_order():
    assert [name for name, _ in affected(RUN, "/data/votes")] == ["reward", "ppo"]
    assert [name for name, _ in affected(list(reversed(RUN)), "models/base")] == ["ppo", "reward", "sft"]
    assert affected(RUN, "models/ppo") == ()


def test_what_a_stage_asked_for_on_its_way_fed_its_other_outputs():
    asked = replace(ref("panel"), kind="asked")
    report = ref("report")
    run = [*RUN[:3], stage("ppo", [SFT, RM], [PPO, asked]), stage("evaluate", [PPO], [report])]
    (tree,) = trace(run)  # the votes are shown below the policy, not as an end of their own
    (policy,) = tree.fed_by
    assert [node.artefact.name for node in policy.fed_by] == ["sft", "rm", "panel"]
    assert policy.fed_by[-1].stage == "ppo"
    assert all(node.repeated for node in policy.fed_by[-1].fed_by)  # made from the same, and never from itself
    assert [(name, one.name) for name, one in affected(run, "models/panel")] == [("ppo", "ppo"), ("evaluate", "report")]
    assert [one.name for _, one in affected(run, "models/rm")] == ["ppo", "panel", "report"]


def test_stage_key_knows_contents_not_paths_nor_order():
    moved = replace(SFT, path="elsewhere")
    key = stage_key("ppo", [SFT, RM], {"a": 1}, {"s": 0})
    assert key == stage_key("ppo", [RM, moved], {"a": 1}, {"s": 0})
    others = [("sft", [SFT, RM], {"a": 1}, {"s": 0}), ("ppo", [SFT, replace(RM, hash="x")], {"a": 1}, {"s": 0})]
    others += [("ppo", [SFT, RM], {"a": 2}, {"s": 0}), ("ppo", [SFT, RM], {"a": 1}, {"s": 1})]
    assert key not in [stage_key(*other) for other in others]


def test_verify_links_stages_and_compares_with_what_was_found():
    assert verify_manifests(RUN, found()) == []
    (problem,) = verify_manifests(RUN, found(**{"models/rm": replace(RM, hash="sha256:other")}))
    assert (problem.path, problem.kind, problem.stage) == ("models/rm", "altered", "reward")
    stale = [*RUN[:3], stage("ppo", [SFT, replace(RM, hash="sha256:old")], [PPO])]
    (problem,) = verify_manifests(stale, found())
    assert (problem.path, problem.kind) == ("models/rm", "stale")


def test_a_stage_is_stale_where_what_it_read_or_what_that_was_made_from_was_made_anew():
    measured = stage("evaluate", [SFT, PPO], [ref("table")])
    assert stale_stages([*RUN, measured]) == {}
    anew = stage("ppo", [SFT, RM], [replace(PPO, hash="sha256:anew")])
    assert stale_stages([*RUN[:3], anew, measured]) == {"evaluate": "it read models/ppo as it was before ppo"}
    # the reward was fitted anew: the policy is of the old one, and so is what was measured on it
    reward = stage("reward", [VOTES, SFT], [replace(RM, hash="sha256:anew")])
    assert list(stale_stages([*RUN[:2], reward, RUN[3], measured])) == ["ppo", "evaluate"]
    # another method beside it changes nothing
    assert stale_stages([*RUN, stage("dpo", [SFT], [ref("dpo")]), measured]) == {}


def test_a_file_list_that_does_not_give_its_hash_is_a_damaged_manifest():
    files = (("a", "sha256:1"),)
    now = ArtifactRef("m", "m", tree_hash(files), "directory", files)
    assert compare(now, now, "sft") == []
    (problem,) = compare(replace(now, hash="tree:forged"), now, "sft")
    assert (problem.kind, problem.path) == ("manifest", "m")
