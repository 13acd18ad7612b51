"""`karat reward --store` with raters of two groups: its population, what can be done with it, and what it was made from."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from journeys_kinds import store_of_sandbox
from karat.belief import Belief, lower_bound
from karat.cli import main
from karat.config import build
from karat.feedback.snapshot import read_snapshot, write_snapshot
from karat.feedback.store import open_store
from karat.ledger.manifest import read_manifests, write_manifest
from karat.lm.load import load_lm
from karat.pipeline.gating import gate_split
from karat.pipeline.optimise import lowest_bound
from karat.pipeline.populations import at_temperature, fit_population, judged_samples, open_scorer, scaled
from karat.pipeline.settings import RunConfig
from karat.prompts.splits import split
from karat.records import user_prompt
from karat.reward.people import GroupScorer, features_of, group_scorer, load_people
from karat.reward.people_fit import PluralismConfig
from karat.reward.score import aggregate, load_scorer
from tiny_models import tiny_checkpoint
from two_groups import GROUPS, vote_rows

SETTINGS = {
    "reward.heads.n_heads": 2, "reward.n_refits": 1, "reward.learning_rate": 3e-3, "reward.head_learning_rate": 1e-2,
    "pluralism.enabled": "true", "pluralism.n_features": 6, "pluralism.max_rank": 2, "pluralism.max_kinds": 2,
    "pluralism.n_starts": 1, "aggregator": "worst_group", "gate.min_votes": 10, "gate.attack_words": 0,
    "pluralism.target": "{group: {left: 0.2, right: 0.8}}",
}  # fmt: skip


def reward(place, out, *options, source=("--store", "votes.db"), **settings):
    pairs = [part for key, value in (SETTINGS | settings).items() for part in ("--set", f"{key}={value}")]
    where = (source[0], str(place / source[1]))
    return main(["reward", *where, "--model", str(place / "model"), "--out", str(out), *pairs, *options])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("two-groups")
    rows = "".join(json.dumps(row) + "\n" for row in vote_rows())
    (path / "votes.jsonl").write_text(rows, encoding="utf-8")
    assert main(["import", str(path / "votes.jsonl"), "--format", "votes", "--store", str(path / "votes.db")]) == 0
    tiny_checkpoint("qwen3", path / "model")
    return path


@pytest.fixture(scope="module")
def made(place, tmp_path_factory):
    import contextlib
    import io

    out, told = tmp_path_factory.mktemp("made") / "reward", io.StringIO()
    with contextlib.redirect_stdout(told):
        assert reward(place, out, "--json") == 0
    return out, json.loads(told.getvalue())


def test_both_groups_want_what_was_planted(made):
    out, done = made
    people, scorer = load_people(out), load_scorer(out)
    assert done["people"]["groups"] == list(people.users.groups) == ["left", "right"]
    assert {name: people.users.groups[g] for name, g in zip(people.annotators, people.group, strict=True)} == GROUPS
    belief = group_scorer(scorer, people)([user_prompt("q1")] * 2, ["aaa", "bbb"])
    left, right = (belief.draws[..., group].mean(0) for group in (0, 1))
    assert left[0] > left[1]
    assert right[1] > right[0]
    found = {one["name"]: one for one in done["findings"]}
    assert found["people.worst_group"]["status"] == "info"
    assert (
        found["people.jury_change"]["estimate"]["n"] == len({row["prompt"] for row in vote_rows()}) - 4
    )  # the gate keeps four
    assert people.scale.scale > 0


def test_the_pairs_that_flip_under_the_target_are_named(made):
    raking = made[1]["people"]["raking"]
    assert 0 < len(raking["flips"]) <= min(raking["n_flips"], 20)
    for one in raking["flips"]:
        assert one["unweighted"] * one["weighted"] < 0
        a, b = ([one[side].count(letter) for letter in "ab"] for side in ("a", "b"))
        assert one["prompt"].startswith("q")
        assert a != b or len(one["a"]) != len(one["b"])
    [told] = [one["detail"] for one in made[1]["findings"] if one["name"] == "people.raking_flips"]
    assert f"{raking['n_flips']} pairs flip" in told


def test_an_optimiser_of_groups_scores_with_it(place, made):
    config = build(RunConfig, {"sandbox": {}, "aggregator": "worst_group", "pluralism": {"enabled": True}})
    scorer = open_scorer(made[0], config, lambda: load_lm(place / "model"), 0)
    assert isinstance(scorer, GroupScorer)
    assert scorer.scale == load_people(made[0]).scale
    assert scorer([user_prompt("q1")] * 2, ["aaa", "ab"]).objectives == ("left", "right")


def test_references_are_as_long_as_the_method_s_responses(place, made, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "karat.pipeline.populations.sampled_references",
        lambda lm, *, max_new_tokens, seed: asked.append(max_new_tokens) or (lambda prompts: [["a"]] * len(prompts)),  # noqa: ARG005
    )
    for changes in ({"algorithm": "rloo", "group": {"rollout": {"max_new_tokens": 7}}}, {"algorithm": "dpo"}):
        given = {
            "sandbox": {},
            "aggregator": "worst_group",
            "pluralism": {"enabled": True},
            "collect": {"max_new_tokens": 5},
        }
        config = build(RunConfig, given | changes)
        open_scorer(made[0], config, lambda: load_lm(place / "model"), 0)
    assert asked == [7, 5]


def test_the_jury_of_an_optimiser_is_the_report_s_persons_drawn_to_the_composition(place, made):
    def opened(seed, **jury):
        asked = {"enabled": True, "n_jurors": 5} | jury
        config = build(RunConfig, {"sandbox": {}, "aggregator": "jury_median", "pluralism": asked})
        return open_scorer(made[0], config, lambda: load_lm(place / "model"), seed)

    prompts, texts = [user_prompt("q1")] * 3, ["aaa", "bbb", "ab"]
    model, scorer = load_people(made[0]), load_scorer(made[0])
    jury = opened(0, jury={"left": 0.2, "right": 0.8})
    assert [voice.partition(",")[0] for voice in jury.voices] == ["left"] + ["right"] * 4
    belief = jury(prompts, texts)
    assert belief.draws.shape == (16, 3, 5)
    psi = features_of(scorer, model.features, prompts, texts)
    own = psi @ (model.person_theta() * model.person_scale[:, None]).T
    for seat in range(5):  # each is a rater of the group that the seat is for
        gaps = np.abs(belief.draws[..., seat].mean(0).double().numpy()[:, None] - own).max(0)
        assert gaps.min() < 1e-3
        assert model.users.groups[model.group[gaps.argmin()]] == jury.voices[seat].partition(",")[0]
    right, left = (aggregate(opened(0, jury=one)(prompts, texts), "jury_median") for one in ({"right": 1}, {"left": 1}))
    assert right[1] > right[0]
    assert left[0] > left[1]
    again = opened(0, jury={"left": 0.2, "right": 0.8})
    assert np.array_equal(again.draws, jury.draws)
    assert not np.array_equal(opened(1, jury={"left": 0.2, "right": 0.8}).draws, jury.draws)


def test_a_jury_has_its_own_scale_and_a_bound_of_the_median(place, tmp_path):
    assert reward(place, tmp_path / "r", aggregator="jury_median") == 0
    model = load_people(tmp_path / "r")
    snapshot = read_snapshot(tmp_path / "r-snapshot")
    samples = judged_samples(gate_split(snapshot.votes)[0], snapshot)
    config = build(RunConfig, {"sandbox": {}, "aggregator": "jury_median", "pluralism": {"enabled": True}})
    again = scaled(model, load_scorer(tmp_path / "r"), samples, "jury_median", config.pluralism, seed=0)
    assert again.scale.scale == pytest.approx(model.scale.scale, rel=1e-3)
    assert again.scale.shift == pytest.approx(model.scale.shift, abs=1e-3)
    groups = scaled(model, load_scorer(tmp_path / "r"), samples, "worst_group", config.pluralism, seed=0)
    assert abs(groups.scale.shift - model.scale.shift) > 1e-3
    draws, reference = torch.randn(8, 4, 3), torch.randn(8, 1, 3)
    belief = Belief(draws, reference, torch.zeros(4, dtype=torch.long), ("a", "b", "c"), torch.ones(3))
    each = torch.stack([lower_bound(belief, objective=o) for o in range(3)])
    assert torch.equal(lowest_bound(belief, "jury_median"), each.median(0).values)
    assert torch.equal(lowest_bound(belief, "worst_group"), each.amin(0))


def test_a_run_that_fits_no_population_takes_the_given_reward_s(made, tmp_path):
    snapshot = read_snapshot(made[0].with_name("reward-snapshot"))
    samples = judged_samples(snapshot.votes, snapshot)
    (tmp_path / "r").mkdir()
    scorer = load_scorer(made[0])
    scorer.model.temperature.mul_(2.0)  # the run's votes on new prompts said so
    told, people = fit_population(
        scorer, None, snapshot.votes, [], snapshot, samples, pluralism=PluralismConfig(), aggregator="worst_group", seed=0,
        directory=tmp_path / "r", metadata={}, given=made[0],
    )  # fmt: skip
    assert [one.name for one in told] == ["people.given"]
    assert "none fitted here: pluralism.enabled is false" in told[0].detail
    assert people == {
        "n_people": 12,
        "groups": ["left", "right"],
        "rank": load_people(made[0]).users.rank,
        "given": True,
    }
    assert load_people(tmp_path / "r").annotators == load_people(made[0]).annotators
    nothing = {"pluralism": PluralismConfig(), "aggregator": "mean_score", "seed": 0, "metadata": {}}
    told, people = fit_population(scorer, None, [], [], snapshot, [], directory=tmp_path, given=tmp_path, **nothing)
    assert (told[0].status, people) == ("not measured", {})


def test_the_command_says_whom_it_serves_and_a_person_gets_a_reward_of_her_own(place, made, tmp_path, capsys):
    assert reward(place, tmp_path / "r") == 0
    told = capsys.readouterr().out
    assert "people.worst_group: 0." in told
    assert "people.raking_flips: 0." in told
    answers = tmp_path / "hers.jsonl"
    rows = [{"prompt": f"q{i}", "a": "bb" + "c" * i, "b": "aa" + "c" * i, "answer": "a"} for i in range(8)]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, more in (("new", ("--group", "right")), ("unknown", ())):
        assert main(["personalise", str(made[0]), "--out", str(tmp_path / name), "--answers", str(answers), *more]) == 0
    responses = tmp_path / "responses.jsonl"
    rows = [{"prompt": "q1", "response": text} for text in ("aaa", "bbb", "ab")]
    responses.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = ["--out", str(tmp_path / "sim"), "--simulate", "rater0", "--questions", "3"]
    assert main(["personalise", str(made[0]), str(responses), *asked]) == 0
    capsys.readouterr()
    person = ("--person", str(tmp_path / "new"))
    assert main(["score", str(made[0]), str(responses), *person, "--out", str(tmp_path / "s.jsonl")]) == 0
    scored = {row["response"]: row for row in map(json.loads, (tmp_path / "s.jsonl").read_text().splitlines())}
    assert scored["bbb"]["person_score"] > scored["aaa"]["person_score"]
    assert (
        main(["personalise", str(made[0]), "--out", str(tmp_path / "x"), "--answers", str(answers), "--group", "up"])
        == 2
    )
    assert "--group up: expected one of left, right" in capsys.readouterr().err


def test_groups_that_nobody_is_in_are_refused_before_training(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("karat.pipeline.mixture.fit_reward", lambda *_, **__: pytest.fail("trained"))
    assert reward(place, tmp_path / "r", **{"pluralism.jury": "{up: 1}"}) == 2
    assert "found no member of 'up' for its 12 seats" in capsys.readouterr().err
    assert reward(place, tmp_path / "r", **{"pluralism.target": "{group: {up: 0.5, left: 0.5}}"}) == 2
    assert "up" in capsys.readouterr().err
    assert reward(place, tmp_path / "r", **{"pluralism.floors": "{harmless: -1.0}"}) == 2
    said = "pluralism.floors: found 'harmless', which the reward will not score; expected one of preference"
    assert said in capsys.readouterr().err
    assert reward(place, tmp_path / "r", **{"pluralism.enabled": "false"}) == 2
    assert "aggregator: found worst_group without people; expected pluralism.enabled: true" in capsys.readouterr().err
    assert reward(place, tmp_path / "r", aggregator="median") == 2
    assert "aggregator: found 'median'" in capsys.readouterr().err


def test_a_rater_in_two_groups_is_named(place, made, tmp_path, capsys):
    snapshot = shutil.copytree(made[0].with_name("reward-snapshot"), tmp_path / "snap")
    lines = (snapshot / "annotators.jsonl").read_text().splitlines()
    twice = next(line for line in lines if '"rater3"' in line).replace("right", "left")
    (snapshot / "annotators.jsonl").write_text("\n".join([*lines, twice]) + "\n")
    capsys.readouterr()
    assert reward(place, tmp_path / "r", source=("--snapshot", snapshot)) == 2
    assert "rater 'rater3': found in two groups, 'right' and 'left'" in capsys.readouterr().err


def test_too_few_votes_make_a_reward_without_a_population(place, tmp_path, capsys):
    assert reward(place, tmp_path / "r", **{"pluralism.min_votes": 1000, "aggregator": "mean_score"}) == 0
    assert "not measured people.rank: a median of" in capsys.readouterr().out
    assert main(["personalise", str(tmp_path / "r"), "--out", str(tmp_path / "x"), "--answers", "none"]) == 2
    assert "expected a reward model with a population" in capsys.readouterr().err


def test_at_another_temperature_everybody_wants_the_same(made):
    people, before = load_people(made[0]), load_scorer(made[0])
    after = load_scorer(made[0])
    after.model.temperature.mul_(1.7)
    moved = at_temperature(people, before, after)
    prompts, texts = [user_prompt("q1")] * 3, ["aaa", "bbb", "ab"]
    psi = [features_of(scorer, one.features, prompts, texts) for scorer, one in ((before, people), (after, moved))]
    assert np.abs(psi[0][:, 0] - psi[1][:, 0]).max() > 1e-3
    assert psi[0] @ people.person_theta().T == pytest.approx(psi[1] @ moved.person_theta().T, abs=1e-4)
    assert psi[0] @ people.group_theta().T == pytest.approx(psi[1] @ moved.group_theta().T, abs=1e-4)


def test_it_can_be_traced_to_the_judgements_that_made_it_and_verified(place, made, capsys):
    out = made[0]
    capsys.readouterr()
    assert main(["verify", str(out)]) == 0
    assert "1 stages, 1 artefacts, every recorded byte as it was" in capsys.readouterr().out
    assert main(["trace", str(out), "--judgements", "--json"]) == 0
    [tree] = json.loads(capsys.readouterr().out)["trees"]
    base, votes = tree["fed_by"]
    assert votes["artefact"]["path"] == "../reward-snapshot"
    snapshot = read_snapshot(out / votes["artefact"]["path"])
    assert votes["facts"]["judgements"] == sorted(vote.judgement_id for vote in snapshot.votes)
    assert (votes["facts"]["votes"], votes["facts"]["raters"]) == (360, 12)
    assert base["artefact"]["path"] == str((place / "model").resolve())
    manifest = json.loads((out / "manifests" / "reward.json").read_text())
    assert manifest["config"]["settings"]["pluralism"]["enabled"] is True
    assert manifest["metrics"]["people"] == made[1]["people"]
    assert [one["name"] for one in manifest["findings"]] == [one["name"] for one in made[1]["findings"]]


def test_words_that_were_erased_on_request_are_said_to_be_and_nothing_else(place, tmp_path, capsys):
    store_of_sandbox(tmp_path / "kinds.db", n_prompts=5).close()
    kinds = {"pluralism.enabled": "false", "aggregator": "mean_score", "pluralism.target": "null"}
    assert reward(place, tmp_path / "r", source=("--store", tmp_path / "kinds.db"), **kinds) == 0
    again = ("--snapshot", tmp_path / "r-snapshot")
    assert reward(place, tmp_path / "second", source=again, **kinds) == 0
    asked = ["--reason", "asked by mail", "--runs", str(tmp_path), "--yes"]
    capsys.readouterr()
    assert main(["erase", str(tmp_path / "kinds.db"), "r0", *asked]) == 0
    assert f"taken out of {tmp_path / 'r-snapshot' / 'words.jsonl'}" in capsys.readouterr().out
    for out in ("r", "second"):
        assert main(["verify", str(tmp_path / out)]) == 0
        [first, last] = capsys.readouterr().out.splitlines()
        assert first.startswith("erased     ../r-snapshot/words.jsonl")
        assert "asked by mail" in first
        assert "every recorded byte as it was" in last


def test_the_panels_raters_might_as_well_never_have_judged(place, tmp_path, capsys):
    plainly = {"pluralism.enabled": "false", "aggregator": "mean_score", "pluralism.target": "null"}
    capsys.readouterr()
    kept = {"reward.panel_frac": 0.25}
    assert reward(place, tmp_path / "with", "--json", **plainly, **kept) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    panel = set(split({row["annotator"] for row in vote_rows()}, {"fit": 0.75, "panel": 0.25}, salt="panel")["panel"])
    assert 0 < len(panel) < 6
    assert found["panel.accuracy"]["estimate"]["n"] == len(panel)
    assert found["panel.accuracy"]["detail"].startswith(f"{30 * len(panel)} votes of {len(panel)} raters")
    with open_store(place / "votes.db", create=False) as store:
        others = [one.id for one in store.records() if one.judgement.annotator not in panel]
        write_snapshot(store, tmp_path / "others", only=others)
    assert reward(place, tmp_path / "without", source=("--snapshot", tmp_path / "others"), **plainly) == 0
    for name in ("heads.safetensors", "model.safetensors"):
        first, second = (load_file(tmp_path / out / name) for out in ("with", "without"))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_reward_is_moved_with_its_snapshot_and_old_records_still_hold(made, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(made[0].parent, moved)
    capsys.readouterr()
    assert main(["verify", str(moved / "reward")]) == 0
    assert "unchecked  ../reward-snapshot" not in capsys.readouterr().out
    (moved / "reward-snapshot" / "annotators.jsonl").write_text("{}")
    assert main(["verify", str(moved / "reward")]) == 1  # it is this one that was checked, not the first
    # a record of an earlier version names its snapshot by an absolute path
    [manifest] = read_manifests(made[0])
    inputs = tuple(dataclasses.replace(one, path=str((made[0] / one.path).resolve())) for one in manifest.inputs)
    other = shutil.copytree(made[0], tmp_path / "old" / "reward")
    write_manifest(other, dataclasses.replace(manifest, inputs=inputs))
    capsys.readouterr()
    assert main(["verify", str(other)]) == 0
    assert main(["trace", str(other), "--judgements", "--json"]) == 0
    [tree] = json.loads(capsys.readouterr().out.split("\n", 1)[1])["trees"]
    assert len(tree["fed_by"][1]["facts"]["judgements"]) == 360


def test_the_judgements_of_a_reward_are_those_of_the_kinds_it_was_fitted_to(place, tmp_path, capsys):
    store_of_sandbox(tmp_path / "kinds.db", n_prompts=5).close()
    only = {"pluralism.enabled": "false", "aggregator": "mean_score", "pluralism.target": "null"}
    only["reward.kinds"] = "[comparison, label]"
    assert reward(place, tmp_path / "r", source=("--store", tmp_path / "kinds.db"), **only) == 0
    snapshot = read_snapshot(tmp_path / "r-snapshot")
    capsys.readouterr()
    assert main(["trace", str(tmp_path / "r"), "--judgements", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["trees"][0]["fed_by"][1]["facts"]
    labels = [one.id for one in snapshot.judgements if one.kind == "label"]
    assert facts["judgements"] == sorted([*(vote.judgement_id for vote in snapshot.votes), *labels])
    n = len(snapshot.votes) + len(snapshot.judgements)
    assert facts["used"] == f"{len(facts['judgements'])} of {n} judgements: comparison, label"


def test_a_stores_reward_can_be_looked_into_and_stays_as_it_was(place, tmp_path, capsys):
    store_of_sandbox(tmp_path / "kinds.db", n_prompts=12).close()
    plainly = {"pluralism.enabled": "false", "aggregator": "mean_score", "pluralism.target": "null"}
    out = tmp_path / "r"
    assert reward(place, out, source=("--store", tmp_path / "kinds.db"), **plainly) == 0
    look = ["audit", str(out), "--look-inside", "--attributed", "2", "--activations", "20"]
    capsys.readouterr()
    assert main([*look, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"inside.completeness", "inside.concept_length", "inside.atlas"} <= {
        one["name"] for one in found["findings"]
    }
    beside = tmp_path / "r-inside"
    assert found["directory"] == str(beside)
    cells = json.loads((beside / "inside.json").read_text())["cells"]
    assert {name for cell in cells for name, _ in cell["source_fracs"]} == {"policy"}
    assert {cell["gold"] for cell in cells} == {None}
    assert "Inside the reward model" in (beside / "report.html").read_text()
    for place_ in (out, beside):
        assert main(["verify", str(place_)]) == 0
    before = (beside / "manifests" / "inside.json").read_bytes()
    assert main(look) == 0
    assert (beside / "manifests" / "inside.json").read_bytes() == before


@pytest.mark.parametrize(
    "altered", ["reward/people.safetensors", "reward-snapshot/votes.npz", "reward-snapshot/annotators.jsonl"]
)
def test_what_was_altered_is_named(made, altered, capsys):
    path = made[0].parent / altered
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        capsys.readouterr()
        assert main(["verify", str(made[0])]) == 1
        [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("altered")]
        assert altered.split("/")[1] in line
    finally:
        path.write_bytes(before)


def test_the_same_command_after_more_votes_leaves_the_earlier_snapshot(place, tmp_path):
    shutil.copy(place / "votes.db", tmp_path / "more.db")
    quick = {"pluralism.enabled": "false", "aggregator": "mean_score", "pluralism.target": "null"}
    shutil.copytree(place / "model", tmp_path / "model")
    assert reward(tmp_path, tmp_path / "r", source=("--store", "more.db"), **quick) == 0
    row = vote_rows()[0] | {"prompt": "another?", "annotator": "rater99"}
    (tmp_path / "one.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["import", str(tmp_path / "one.jsonl"), "--format", "votes", "--store", str(tmp_path / "more.db")]) == 0
    assert reward(tmp_path, tmp_path / "r", source=("--store", "more.db"), **quick) == 0
    assert len(list(tmp_path.glob("r-snapshot*"))) == 2
    assert main(["verify", str(tmp_path / "r")]) == 0
