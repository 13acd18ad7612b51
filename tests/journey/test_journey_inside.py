"""Looking inside a finished run's reward model, scoring a suite with it, and a run with a reward model from elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from journeys import SANDBOX, karat, write_config, write_rows

from karat.records import user_prompt
from karat.reward.score import load_scorer

LOOK = ("audit", "runs/tiny", "--look-inside", "--attributed", "3", "--activations", "40")


@pytest.mark.usefixtures("copied")
def test_what_is_inside_is_found_kept_and_shown():
    outcome = karat(*LOOK, "--json")
    assert outcome.code == 0, outcome.err
    found = {finding["name"]: finding for finding in json.loads(outcome.out)["findings"]}
    assert found["inside.completeness"]["status"] == "pass"
    assert {"inside.randomisation", "inside.concept_length", "inside.concept_trigger", "inside.atlas"} <= set(found)
    run = Path("runs/tiny")
    cells = json.loads((run / "inside.json").read_text())["cells"]
    assert all(cell["gold"] is not None for cell in cells)
    assert {name for cell in cells for name, _ in cell["source_fracs"]} == {"sft", "ppo"}
    page = (run / "report.html").read_text()
    assert "Inside the reward model" in page
    assert 'class="word ' in page
    assert karat("verify", "runs/tiny").code == 0
    before = (run / "manifests" / "inside.json").read_bytes()
    again = karat(*LOOK)
    assert again.code == 0
    assert (run / "manifests" / "inside.json").read_bytes() == before
    (run / "inside.json").write_text("{}")
    assert "inside.json" in karat("verify", "runs/tiny").out


@pytest.mark.usefixtures("copied")
def test_the_policy_of_whichever_method_is_looked_at():
    few = {"n_iterations": 2, "rollout": {"n_prompts": 8, "n_samples": 2, "max_new_tokens": 24}}
    few["update"] = {"n_epochs": 1, "n_minibatches": 2, "learning_rate": 1.0e-3}
    assert karat("rloo", write_config(SANDBOX, group=few)).code == 0
    assert karat(*LOOK).code == 0
    cells = json.loads(Path("runs/tiny/inside.json").read_text())["cells"]
    assert {name for cell in cells for name, _ in cell["source_fracs"]} == {"sft", "rloo"}


@pytest.mark.usefixtures("copied")
def test_a_reward_fitted_anew_is_looked_at_without_the_policy_of_the_one_before():
    again = karat("reward", write_config(SANDBOX), "--set", "reward.weight_decay=0.02")
    assert "ppo: left out, stale" in again.out + again.err
    outcome = karat(*LOOK)
    assert "inside: left out" not in outcome.out + outcome.err
    cells = json.loads(Path("runs/tiny/inside.json").read_text())["cells"]
    assert {name for cell in cells for name, _ in cell["source_fracs"]} == {"sft"}
    assert "Inside the reward model" in Path("runs/tiny/report.html").read_text()


@pytest.mark.usefixtures("copied")
def test_questions_that_cannot_be_asked_are_said():
    assert "found no question; expected --look-inside" in karat("audit", "runs/tiny").complaint
    assert "found n_attributed=0" in karat("audit", "runs/tiny", "--look-inside", "--attributed", "0").complaint
    Path("runs/tiny/manifests/reward.json").unlink()
    assert "found no finished reward model" in karat("audit", "runs/tiny", "--look-inside").complaint


@pytest.mark.usefixtures("copied")
def test_a_suite_is_judged_by_its_own_rules():
    rows = [{"prompt": "who", "chosen": "it is red .", "rejected": "it is", "subset": "donotanswer", "id": 1}]
    path = write_rows(Path("suite.jsonl"), rows)
    outcome = karat("score", "runs/tiny/models/reward", path, "--suite", "rewardbench", "--out", "out.jsonl", "--json")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert result["subsets"]["donotanswer"]["n"] == 1
    assert result["overall"]["value"] is None
    shown = karat("score", "runs/tiny/models/reward", path, "--suite", "rewardbench", "--out", "out.jsonl")
    assert "donotanswer" in shown.out
    assert "nothing of Chat, Chat Hard, Reasoning" in shown.out


@pytest.mark.usefixtures("copied")
def test_a_run_takes_a_reward_model_from_elsewhere_and_optimises_against_it():
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = Path("runs/tiny/models/reward")
    # what AutoModelForSequenceClassification makes of it is a classifier like any other: no heads, no card
    AutoModelForSequenceClassification.from_pretrained(source).save_pretrained("given")
    AutoTokenizer.from_pretrained(source).save_pretrained("given")
    config = write_config(SANDBOX, Path("given.yaml"), reward_model="given")
    outcome = karat("run", config)
    assert outcome.code == 0, outcome.err
    card = json.loads(Path("runs/tiny/models/reward/reward_card.json").read_text())
    assert card["trunk"] == {"kind": "classifier"}
    assert card["heads"]["n_heads"] == 1
    manifest = json.loads(Path("runs/tiny/manifests/ppo.json").read_text())
    assert manifest["metrics"]["n_iterations"] == 3
    page = Path("runs/tiny/report.html").read_text()
    assert "one head, so the belief has no spread" in page


@pytest.mark.usefixtures("copied")
def test_length_can_be_taken_out_of_what_the_optimiser_sees():
    before = json.loads(Path("runs/tiny/models/reward/reward_card.json").read_text())
    outcome = karat("reward", write_config(SANDBOX), "--set", "gate.remove_length=true")
    assert outcome.code == 0, outcome.err
    card = json.loads(Path("runs/tiny/models/reward/reward_card.json").read_text())
    assert (before["length_removed"], before["temperature"]) == (0.0, card["temperature"])
    metrics = json.loads(Path("runs/tiny/manifests/reward.json").read_text())["metrics"]
    assert card["length_removed"] == metrics["length_removed"] != 0
    assert card["scale"] != before["scale"]


@pytest.mark.usefixtures("copied")
def test_a_run_with_an_ensemble_of_whole_models_judges_and_optimises_all_of_them_as_one():
    changes = ("reward.posterior=ensemble", "reward.ensemble.models=2", "reward.heads.n_heads=2")
    options = [part for change in (*changes, "aggregator=worst_member") for part in ("--set", change)]
    outcome = karat("run", write_config(SANDBOX), *options)
    assert outcome.code == 0, outcome.err
    run = Path("runs/tiny")
    card = json.loads((run / "models/reward/reward_card.json").read_text())
    assert card["posterior"] == {"kind": "ensemble", "members": ["member-0", "member-1"]}
    manifest = json.loads((run / "manifests/reward.json").read_text())
    assert [one["name"] for one in manifest["outputs"]] == ["model", "member-0", "member-1", "metrics"]
    assert len({one["hash"] for one in manifest["outputs"]}) == 4
    seeds = [one["seed"] for one in manifest["metrics"]["members"].values()]
    assert len(set(seeds)) == 2
    assert "reward.ensemble" in {finding["name"] for finding in manifest["findings"]}
    # the steps of both models are in one file, counted through
    steps = [json.loads(line)["step"] for line in (run / "metrics/reward.jsonl").read_text().splitlines()]
    assert steps == list(range(1, sum(int(one["n_steps"]) for one in manifest["metrics"]["members"].values()) + 1))
    # what is loaded is one belief of both models' draws, by which the gate, the watcher and karat score go
    scorer = load_scorer(run / "models/reward")
    row = {"prompt": "who is it?", "response": "it is red"}
    belief = scorer([user_prompt(row["prompt"])], [row["response"]])
    assert belief.n_draws == 4
    write_rows(Path("texts.jsonl"), [row])
    scored = karat("score", run / "models/reward", "texts.jsonl", "--out", "scores.jsonl")
    assert scored.code == 0, scored.err
    (told,) = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
    assert told["score"] == pytest.approx(float(belief.draws.mean()), abs=1e-4)
    assert told["score_sd"] == pytest.approx(float((belief.draws - belief.reference).std()), abs=1e-4)
    looks = [json.loads(line) for line in (run / "metrics/watch.jsonl").read_text().splitlines()]
    assert all(look["validation/disagreement"] > 0 for look in looks)
    assert karat("verify", run).code == 0
    assert "votes" in karat("trace", run, "models/reward/member-1").out
    # an ensemble that is given is taken whole
    shutil.copytree(run / "models/reward", "given")
    taken = karat("reward", write_config(SANDBOX, Path("given.yaml"), reward_model="given"))
    assert taken.code == 0, taken.err
    again = load_scorer(run / "models/reward")([user_prompt(row["prompt"])], [row["response"]])
    assert torch.allclose(again.draws, belief.draws, atol=1e-5)
