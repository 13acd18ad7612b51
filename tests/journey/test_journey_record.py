"""What a finished run leaves: bytes that can be checked, a trace to the votes, a report, one JSON object."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from journeys import SANDBOX, STAGES, inside, karat, manifests, weights, write_config
from transformers import AutoModelForCausalLM

from karat.reward import trunk_files


def test_a_finished_run_has_every_stage_its_summary_and_its_report(finished: Path):
    run = finished / "runs" / "tiny"
    assert set(manifests(run)) == set(STAGES)
    summary = json.loads((run / "summary.json").read_text())
    for policy in ("sft", "best_of_2", "ppo"):
        for figure in ("gold", "proxy", "kl", "length", "distinct", "win_rate"):
            assert {"value", "low", "high", "n", "method"} <= set(summary["policies"][policy][figure])
    assert {"value", "low", "high", "n", "method"} <= set(summary["ppo_minus_sft"]["gold"])
    # a run of seconds holds back too few votes for its gate, which therefore was not passed
    assert summary["gate"]["passed"] is False
    assert "reward.held_out" in {finding["name"] for finding in summary["gate"]["findings"]}
    assert summary["unsafe"][0].startswith("allow_ungated_reward is set")
    assert next(iter(summary)) == "unsafe"
    assert (finished / "output.txt").read_text().startswith("UNSAFE: allow_ungated_reward is set")
    page = (run / "report.html").read_text()
    assert "allow_ungated_reward is set" in page
    assert "not measured" in page
    for outside in ('src="http', "@import", "url(http"):
        assert outside not in page
    slices = json.loads(manifests(run)["reward"])["metrics"]["calibration_slices"]
    assert slices["kind"]["comparison/3"]["n"] > 0
    assert slices["kind"]["comparison/3"]["temperature"] is None  # a run of seconds holds back too few votes
    assert "Are probabilities right for the kind comparison with 3 levels?" in page
    assert "How much too sure is it of prompts that it never saw?" in page


@pytest.mark.usefixtures("copied")
def test_verify_is_clean_and_then_names_the_flipped_byte():
    clean = karat("verify", "runs/tiny")
    assert (clean.code, clean.err) == (0, "")
    assert "every recorded byte as it was" in clean.out
    for file in ("models/ppo/model.safetensors", "data/demonstrations.jsonl", "models/reward/config.json"):
        _flipped_is_named(Path("runs/tiny") / file, file)
    for path in sorted(Path("runs/tiny/snapshots/votes").rglob("*")):
        if path.is_file() and path.stat().st_size:
            _flipped_is_named(path, path.relative_to("runs/tiny").as_posix())


def _flipped_is_named(path: Path, shown: str) -> None:
    before = path.read_bytes()
    middle = len(before) // 2
    path.write_bytes(before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :])
    found = karat("verify", "runs/tiny")
    assert found.code == 1
    assert shown in found.out
    answer = json.loads(karat("verify", "runs/tiny", "--json").out)
    assert not answer["ok"]
    assert {problem["path"] for problem in answer["problems"]} == {shown}
    path.write_bytes(before)


def test_trace_reaches_the_votes_with_their_number_and_raters(finished: Path):
    with inside(finished):
        found = karat("trace", "runs/tiny", "models/ppo")
        assert (found.code, found.err) == (0, "")
        collected = json.loads(Path("runs/tiny/manifests/collect.json").read_text())["metrics"]
        assert f"votes {collected['n_votes']}" in found.out
        assert f"raters {collected['n_raters']}" in found.out
        listed = json.loads(karat("trace", "runs/tiny", "snapshots/votes", "--judgements", "--json").out)
        assert len(listed["trees"][0]["facts"]["judgements"]) == collected["n_votes"]


@pytest.mark.usefixtures("copied")
def test_report_writes_the_page_again_and_computes_nothing():
    run = Path("runs/tiny")
    before = manifests(run)
    page, summary = (run / "report.html").read_bytes(), (run / "summary.json").read_bytes()
    for name in ("report.html", "summary.json", "card.json"):
        (run / name).unlink()
    assert karat("report", run).code == 0
    assert ((run / "report.html").read_bytes(), (run / "summary.json").read_bytes()) == (page, summary)
    assert (run / "card.json").exists()
    assert manifests(run) == before


@pytest.mark.usefixtures("copied")
def test_the_same_command_again_repeats_nothing():
    run = Path("runs/tiny")
    before = manifests(run)
    again = karat("run", "tiny.yaml", "--json")
    assert again.code == 0
    assert manifests(run) == before
    assert all(f"{stage}: done before, kept" in again.err for stage in STAGES)
    answer = json.loads(again.out)
    assert answer["directory"] == str(run)
    assert again.out.count("\n") == 1


@pytest.mark.parametrize("command", ["verify", "trace", "report"])
@pytest.mark.usefixtures("copied")
def test_json_is_one_object_on_standard_output(command: str):
    found = karat(command, "runs/tiny", "--json")
    assert found.code == 0
    assert isinstance(json.loads(found.out), dict)


def test_two_seeded_runs_in_different_directories_are_equal_to_the_bit(finished: Path, here: Path):
    assert karat("ppo", write_config(SANDBOX, name="elsewhere")).code == 0
    assert weights(here / "runs/elsewhere/models/ppo") == weights(finished / "runs/tiny/models/ppo")
    assert weights(here / "runs/elsewhere/models/reward") == weights(finished / "runs/tiny/models/reward")


def test_replicates_give_a_table_with_intervals_and_reuse_what_is_done(here: Path):
    small = {
        **SANDBOX,
        "ppo": {**SANDBOX["ppo"], "n_iterations": 2, "checkpoint_every": 0},
        "watch": {**SANDBOX["watch"], "keep": "last"},
    }
    command = ("run", write_config(small), "--seeds", "0-1", "--sweep", "ppo.update.learning_rate=0.001,0.01", "--json")
    first = karat(*command)
    assert first.code == 0, first.err
    answer = json.loads(first.out)
    assert len(set(answer["runs"])) == 4
    assert [row["setting"] for row in answer["table"]] == [
        "ppo.update.learning_rate=0.001",
        "ppo.update.learning_rate=0.01",
    ]
    for row in answer["table"]:
        assert row["seeds"] == 2
        assert row["ppo gold"]["n"] == 2
        assert row["ppo gold"]["low"] <= row["ppo gold"]["value"] <= row["ppo gold"]["high"]
        assert "ppo − sft gold" in row
    assert len(answer["unsafe"]) == 1
    for n, run in enumerate(answer["runs"], 1):
        assert f"run {n} of 4: {run}" in first.err
    # the second value's runs take over what the first value's have done, each from the one of its own seed
    lent = [line.partition(": taken over from ")[2] for line in first.err.splitlines() if ": taken over from " in line]
    names = [Path(run).name for run in answer["runs"][:2]]
    assert [line.partition(",")[0] for line in lent] == [name for name in names for _ in STAGES[:5]]
    before = {run: manifests(here / run) for run in answer["runs"]}
    again = karat(*command)
    assert json.loads(again.out) == answer
    assert {run: manifests(here / run) for run in answer["runs"]} == before
    seeds = [weights(here / run / "models/ppo") for run in answer["runs"]]
    assert len(set(seeds)) == 4
    plain = karat("run", "tiny.yaml", "--seeds", "0-1", "--sweep", "ppo.update.learning_rate=0.001,0.01")
    assert plain.code == 0
    assert "ppo.update.learning_rate=0.001" in plain.out
    assert plain.out.startswith("UNSAFE: allow_ungated_reward")
    assert all(f"{run}/report.html" in plain.out for run in answer["runs"])


def test_with_adapters_the_reference_is_the_adapter_off_and_what_is_saved_is_merged(
    here: Path, monkeypatch: pytest.MonkeyPatch
):
    lent, lend = [], trunk_files.borrowed_trunk
    monkeypatch.setattr(trunk_files, "borrowed_trunk", lambda *given: lent.append(lend(*given)) or lent[-1])
    adapted = write_config({**SANDBOX, "lora": {"rank": 4, "alpha": 8.0}}, name="adapted")
    assert karat("run", adapted).code == 0
    assert [trunk is not None for trunk in lent] == [True]  # the reward stood on the policy's frozen weights
    model = AutoModelForCausalLM.from_pretrained(here / "runs/adapted/models/ppo")
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    rows = [json.loads(line) for line in (here / "runs/adapted/metrics/ppo.jsonl").read_text().splitlines()]
    first = next(row for row in rows if "kl/k1_per_sequence" in row)
    assert abs(first["kl/k1_per_sequence"]) < 1e-3  # before the first update the policy is its reference
    assert weights(here / "runs/adapted/models/ppo") != weights(here / "runs/adapted/models/sft")
