"""A store with judgements of every kind becomes a reward with an output for each objective, by one command."""

import dataclasses
import json

import numpy as np
import pytest

from every_kind import store_of_every_kind
from journeys_kinds import store_of_sandbox
from karat.cli import main
from karat.errors import InputError, LedgerError
from karat.feedback.snapshot import read_snapshot, write_snapshot
from karat.ledger.artifacts import file_hash
from karat.pipeline.mixture import said_findings, said_in
from karat.records import Estimate, Response, user_prompt
from karat.report.table import aligned
from karat.reward.contributions import Contribution, contribution_findings, contribution_table
from karat.reward.dense import load_dense
from karat.reward.objectives import ObjectivesConfig
from karat.reward.score import load_scorer
from karat.reward.settings import RewardConfig
from tiny_models import tiny_checkpoint


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    place = tmp_path_factory.mktemp("kinds")
    return write_snapshot(store_of_every_kind(place / "k.db"), place / "snap")


def test_every_kind_in_a_snapshot_says_something_or_is_counted(snapshot):
    said = said_in(snapshot, RewardConfig(), ObjectivesConfig())
    assert set(said.n_judgements) == {
        "comparison", "ranking", "best_of", "rating", "label", "correction", "demonstration", "critique", "span_marks",
        "step_marks",
    }  # fmt: skip
    assert said.silent == {"missing: cannot judge": 1}
    assert {one.objective for one in said.statements} == {"preference", "helpful", "honest", "not_spam", "length"}
    both = [one for one in said.statements if one.kind == "comparison" and not hasattr(one, "level")]
    assert [one.good for one in both] == [False, False]


def test_kinds_can_be_chosen_and_an_objective_without_data_is_an_error(snapshot):
    config = RewardConfig(kinds=("rating", "label"))
    said = said_in(snapshot, config, ObjectivesConfig(names={"honest": "preference"}))
    assert set(said.n_judgements) == {"rating", "label"}
    assert "honest" not in {one.objective for one in said.statements}
    with pytest.raises(InputError, match="objective 'kind': found no feedback about it"):
        said_in(snapshot, RewardConfig(), ObjectivesConfig(weights={"kind": 1.0}))
    with pytest.raises(InputError, match="of the kinds span_marks that says anything about whole responses"):
        said_in(snapshot, RewardConfig(kinds=("span_marks",)), ObjectivesConfig())


def test_a_name_for_something_that_no_judgement_gives_is_said(snapshot):
    names = {"honst": "kind", "zzz": "kind", "honest": "preference", "spam": "clean"}
    said = said_in(snapshot, RewardConfig(), ObjectivesConfig(names=names))
    (found,) = [one for one in said_findings(said, marks_train=False) if one.name == "reward.names"]
    assert found.status == "warn"
    assert "objectives.names: found 'honst' (did you mean 'honest'?), 'zzz', which no judgement gives" in found.detail


def test_demonstrations_are_held_against_the_newest_samples(snapshot):
    prompt_id = next(iter(snapshot.prompts))
    samples = {prompt_id: [Response(prompt_id, "of this round", "ppo-2")]}
    said = said_in(snapshot, RewardConfig(kinds=("demonstration",)), ObjectivesConfig(), samples=samples)
    (one,) = said.statements
    assert said.responses[one.response_ids[1]].text == "of this round"


def test_marks_that_train_nothing_are_said_to_train_nothing(snapshot):
    said = said_in(snapshot, RewardConfig(), ObjectivesConfig())
    told = {use: said_findings(said, marks_train=use)[-1].detail for use in (True, False)}
    assert f"marks inside {len(said.marks)} responses train token-level rewards" in told[True]
    assert "responses train nothing" in told[False]
    assert "dense.weights" in told[False]


def test_the_report_gets_what_each_kind_contributed_beside_its_gain():
    nll, gain, none = (Estimate(value, 0.1, 0.9, 7, "m") for value in (0.5, 0.2, None))
    rows = [Contribution("rating", "honest", 12, 3.0, 0.25, *pair) for pair in ((nll, gain), (none, none))]
    told = [finding.detail for finding in contribution_findings(rows)]
    trained = "12 judgements trained on, 25% of the information about it"
    assert told == [f"{trained}; −log P of a held-out one 0.500 [0.100, 0.900] nats", trained]


def test_a_snapshot_whose_other_kinds_were_altered_is_named(tmp_path):
    write_snapshot(store_of_every_kind(tmp_path / "k.db"), tmp_path / "snap")
    path = tmp_path / "snap" / "judgements.jsonl"
    path.write_text(path.read_text().replace('"helpful":4', '"helpful":5'))
    with pytest.raises(LedgerError, match=r"judgement .* was altered"):
        read_snapshot(tmp_path / "snap")


def test_the_first_format_of_a_snapshot_is_still_read(tmp_path):
    new = write_snapshot(store_of_every_kind(tmp_path / "k.db"), tmp_path / "snap")
    with np.load(tmp_path / "snap" / "votes.npz") as archive:
        columns = {name: archive[name] for name in archive if name != "both"}
    np.savez(tmp_path / "snap" / "votes.npz", **columns)
    head = json.loads((tmp_path / "snap" / "snapshot.json").read_text())
    head |= {"format": 1, "votes_hash": file_hash(tmp_path / "snap" / "votes.npz")}
    (tmp_path / "snap" / "snapshot.json").write_text(json.dumps(head))
    old = read_snapshot(tmp_path / "snap")
    assert old.votes == [dataclasses.replace(vote, both=None) for vote in new.votes]
    assert old.judgements == new.judgements


def test_the_command_trains_on_a_store_and_says_what_each_kind_contributed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    store_of_sandbox(tmp_path / "karat.db", n_prompts=6)
    tiny_checkpoint("qwen3", tmp_path / "model")
    small = {"reward.heads.n_heads": 2, "reward.batch_responses": 24, "reward.n_refits": 0, "reward.holdout_frac": 0.3,
             "objectives.weights.preference": 1.0, "objectives.floors.honest": 0.0}  # fmt: skip
    options = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    command = ["reward", "--store", "karat.db", "--model", "model", "--out", "reward", *options]
    assert main([*command, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["objectives"] == ["preference", "helpful", "honest", "not_harmful", "wordy"]
    rows = {(row["kind"], row["objective"]): row for row in done["contributions"]}
    for kind in ("comparison", "ranking", "best_of", "label", "correction", "demonstration", "rating"):
        assert rows[kind, "preference"]["n_judgements"] > 0
    assert sum(row["information_frac"] for (_, about), row in rows.items() if about == "preference") == pytest.approx(1)
    assert rows["comparison", "preference"]["nll"]["value"] is not None
    scorer = load_scorer(tmp_path / "reward")
    assert scorer.objectives.floors == {"honest": 0.0}
    assert load_dense(tmp_path / "reward", scorer.model.trunk).names == tuple(done["marked"])
    assert done["marked"] == ["edited", "step", "wrong"]
    assert [row["name"] for row in done["marks"]] == done["marked"]
    assert all(row["n_judgements"] > 0 for row in done["marks"])
    assert scorer.model.objectives == tuple(done["objectives"])
    assert scorer([user_prompt("a")] * 2, ["x", "y"]).objectives == ("combined",)
    shown = aligned(contribution_table(done["contributions"]))
    assert "share of information" in shown[0]
    assert any(line.startswith("preference") and "demonstration" in line for line in shown)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["reward"], "found both or neither of CONFIG and --model"),
        (["reward", "--model", "m"], "found both or neither of --store and --snapshot"),
        (["reward", "--model", "m", "--store", "s", "--set", "reward.kinds=[poem]"], "reward.kinds: found 'poem'"),
    ],
)
def test_a_wrong_command_is_one_line(arguments, expected, capsys):
    assert main(arguments) == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]
