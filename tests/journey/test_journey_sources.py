"""Real input of three kinds, tiny: preferences with a decoder, votes with an encoder, and the gate on the way."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from journeys import SANDBOX, karat, manifests, write_config, write_rows

from karat.feedback.quality.agreement import pairwise_agreement
from karat.feedback.snapshot import read_snapshot
from karat.ledger.artifacts import directory_hash
from karat.ledger.manifest import read_manifests
from karat.lm.adapters import add_lora, save_adapter
from karat.lm.load import load_lm
from karat.pipeline import gating
from karat.pipeline.configured import FAULTS
from karat.pipeline.reporting import report_input
from karat.pipeline.stages import findings_of, jsonable
from karat.prompts.splits import split
from karat.records import Finding
from karat.seeding import numpy_generator
from tiny_models import tiny_checkpoint

WORDS = ["yes", "no", "perhaps", "never", "always", "good", "bad", "red", "blue", "green"]


def preferences(n: int) -> list[dict[str, str]]:
    """Rows of whole conversations whose preferred ends say one word more often."""
    draws = random.Random(0)
    rows = []
    for i in range(n):
        start = f"\n\nHuman: {i} or {draws.choice(WORDS)}?\n\nAssistant: "
        rows.append({"chosen": f"{start}good {draws.choice(WORDS)}", "rejected": f"{start}bad {draws.choice(WORDS)}"})
    return rows


def test_preferences_and_a_checkpoint_reach_a_policy_that_plain_transformers_loads(here: Path):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    tiny_checkpoint("qwen3", here / "model")
    write_rows(Path("rows.jsonl"), preferences(80))
    small = {key: SANDBOX[key] for key in ("ppo", "watch", "evaluate", "allow_ungated_reward")}
    limits = {"max_prompt_tokens": 80, "max_response_tokens": 24}
    config = {"preferences": {"path": "rows.jsonl", "model": "model", **limits}, **small}
    config["collect"] = {"n_prompts": 16, "n_samples": 2, "max_new_tokens": 16}
    config["evaluate"] = {**SANDBOX["evaluate"], "n_prompts": 8}
    outcome = karat("run", write_config(config))
    assert outcome.code == 0, outcome.err
    run = here / "runs" / "run"
    assert set(manifests(run)) == {"source", "sft", "collect", "reward", "ppo", "evaluate"}
    summary = json.loads((run / "summary.json").read_text())
    gold = summary["policies"]["ppo"]["gold"]
    assert gold["value"] is None
    assert "no gold reward is known" in gold["method"]
    assert "not measured" in (run / "report.html").read_text()
    assert summary["unsafe"]
    assert outcome.out.startswith("UNSAFE: ")
    assert karat("verify", run).code == 0
    assert "votes 80" in karat("trace", run, "models/ppo").out
    for stage in ("sft", "ppo"):
        model = AutoModelForCausalLM.from_pretrained(run / "models" / stage)
        tokens = AutoTokenizer.from_pretrained(run / "models" / stage)("Which?", return_tensors="pt")
        assert torch.isfinite(model(**tokens).logits).all()
    head = AutoModelForSequenceClassification.from_pretrained(run / "models" / "reward")
    assert head.config.num_labels == 1
    assert head.config.pad_token_id is not None
    # a file with other content under the same name is another run's input
    before = manifests(run)
    write_rows(Path("rows.jsonl"), [*preferences(80), *preferences(90)[80:]])
    assert karat("sft", "tiny.yaml").code == 0
    assert manifests(run)["source"] != before["source"]
    # adapters are a model to start from, and what they stand on is an input too
    base = load_lm(here / "model")
    save_adapter(add_lora(base.model, 2, 4.0), here / "left", metadata={})
    assert karat("sft", "tiny.yaml", "--set", "preferences.model=left").code == 0
    inputs = [one["name"] for one in json.loads(manifests(run)["sft"])["inputs"]]
    assert inputs[:2] == ["adapted", "base"]


def votes(n: int, raters: int = 6) -> list[dict[str, Any]]:
    """Votes on four topics by raters who like one word."""
    draws = random.Random(1)
    rows = []
    for i in range(n):
        good, bad = f"good {draws.choice(WORDS)} {i}", f"bad {draws.choice(WORDS)} {i}"
        for rater in draws.sample(range(raters), 3):
            choice = draws.choices(["a", "b", "tie"], [7, 2, 1])[0]
            rows.append(
                {"prompt": f"Topic {i % 4}?", "topic": f"t{i % 4}", "a": good, "b": bad, "choice": choice,
                 "annotator": f"rater {rater}", "reason": "I like it", "accepted_at": "2026-01-31T16:53:19Z",
                 "submitted_at": "2026-01-31T16:54:02Z", "session": f"s{rater}-{i}"}
            )  # fmt: skip
    return rows


def encoder(directory: Path) -> None:
    """A BERT with random weights and a tokenizer of the words of these votes."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *map(str, range(60)), "Topic", "?"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=64,
    )  # fmt: skip
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(BertConfig(hidden_size=32, vocab_size=len(words), **shape)).save_pretrained(directory)
    fast.save_pretrained(directory)


def test_votes_of_four_topics_and_an_encoder_reach_a_report(here: Path):
    encoder(here / "encoder")
    rows = votes(40)
    write_rows(Path("votes.jsonl"), rows)
    config = {
        "name": "opinions", "votes": {"path": "votes.jsonl"}, "encoder": "encoder", "max_tokens": 32, "n_folds": 4,
        "reward": {"n_epochs": 1, "batch_responses": 32, "heads": {"n_heads": 2}},
    }  # fmt: skip
    outcome = karat("run", write_config(config), "--json")
    assert outcome.code == 0, outcome.err
    run = here / "runs" / "opinions"
    assert set(manifests(run)) == {"collect", "fold-0", "fold-1", "fold-2", "fold-3", "reward"}
    collected = json.loads(manifests(run)["collect"])["metrics"]
    assert (collected["n_votes"], collected["n_raters"]) == (len(rows), 6)
    assert (collected["n_reasons"], collected["n_timed"]) == (len(rows), len(rows))
    systems = json.loads(manifests(run)["reward"])["metrics"]["systems"]
    assert {"length", "ngram", "reward_model"} <= set(systems)
    for system in ("length", "ngram", "reward_model"):
        assert systems[system]["accuracy"]["n"] > 0
    page = (run / "report.html").read_text()
    assert "reward model" in page
    assert "not measured" in page
    assert karat("verify", run).code == 0
    assert f"votes {len(rows)}" in karat("trace", run, "models/reward").out
    for stage in ("fold-0", "reward"):  # another encoder in the same place is another input
        read = {one["name"]: one["hash"] for one in json.loads(manifests(run)[stage])["inputs"]}
        assert read["encoder"] == directory_hash(here / "encoder")
    before = manifests(run)
    assert json.loads(karat("run", "tiny.yaml", "--json").out) == json.loads(outcome.out)
    assert manifests(run) == before


FAILED = Finding("gate.calibration", "Are its probabilities right on average?", "fail", detail="ECE 0.4")


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_a_reward_that_fails_its_gate_stops_before_the_policy(copied: Path, monkeypatch, fault: str | None):
    """The finding is set, because a run of seconds holds back too few votes to fail honestly; the rest is real."""
    run = copied / "runs" / "tiny"
    for stage in ("ppo", "evaluate"):
        (run / "manifests" / f"{stage}.json").unlink()
    before = manifests(run)
    monkeypatch.setattr(gating, "run_gate", lambda *_, **__: [FAILED])
    switched = [change for change in FAULTS.get(fault or "", ()) if not change.startswith("allow_ungated_reward")]
    options = [
        part for change in [*switched, "allow_ungated_reward=false", "reward.n_epochs=2"] for part in ("--set", change)
    ]
    complaint = karat("run", "tiny.yaml", *options).complaint
    assert "gate" in complaint
    assert "calibration" in complaint
    assert "allow_ungated_reward" in complaint
    assert complaint.endswith("runs/tiny/report.html")
    assert "ECE 0.4" in (run / "report.html").read_text(encoding="utf-8")
    refused = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert (refused["gate"]["passed"], refused["policies"]) == (False, {})
    assert not {"ppo", "evaluate"} & set(manifests(run))
    assert set(manifests(run)) == set(before)
    # what was recorded of the failure stays, and with the option the run ends and says so first
    allowed = karat("run", "tiny.yaml", *options, "--set", "allow_ungated_reward=true")
    assert allowed.code == 0, allowed.err
    assert allowed.out.startswith("UNSAFE: allow_ungated_reward")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["unsafe"]
    assert summary["gate"]["passed"] is False
    assert "gate: failed calibration" in allowed.out
    # refusing it afterwards does not wash the policy that is there
    assert "gate" in karat("run", "tiny.yaml", *options).complaint
    assert karat("report", run).out.startswith("UNSAFE: allow_ungated_reward")


PASSED = [
    Finding(f"gate.{name}", "?", "pass")
    for name in (
        "likelihood",
        "calibration",
        "praise",
        "empty_answer",
        "swap",
        "edit_slips",
        "suffix",
        "matched_length",
    )
]


def test_a_run_whose_reward_passes_its_gate_needs_no_permission(copied: Path, monkeypatch):
    """The gate's own measurements are set, because the votes of seconds teach a tiny model too little to pass them.

    So this tests what follows from a pass: what was held out, the temperature, the leash and everything that is merely
    reported are the run's own, and none of them refuses it.
    """
    run = copied / "runs" / "tiny"
    monkeypatch.setattr(gating, "run_gate", lambda *_, **__: list(PASSED))
    config = {name: section for name, section in SANDBOX.items() if name != "allow_ungated_reward"}
    done = karat("run", write_config(config), "--set", "reward.n_epochs=2")
    assert done.code == 0, done.err
    assert "UNSAFE" not in done.out
    summary = json.loads((run / "summary.json").read_text())
    assert not summary["unsafe"]
    assert summary["gate"]["passed"] is True
    assert {"sft", "ppo"} <= set(summary["policies"])
    assert "allow_ungated_reward" not in (run / "report.html").read_text()
    found = {one["name"]: one["status"] for one in json.loads(manifests(run)["reward"])["findings"]}
    assert {found["reward.held_out"], found["reward.temperature"]} <= {"info", "warn"}
    # what was not measured beside the gate is in the record, and refused nothing
    assert "not measured" in {status for name, status in found.items() if name.startswith("people.")}
    # without its leash the same reward is refused: the gate is not switched off
    loose = ("--set", "reward.n_epochs=2", "--set", "ppo.reward.kl_coef=0.0", "--set", "watch.kl_budget=null")
    assert "gate.leash" in karat("run", "tiny.yaml", *loose).complaint


def test_every_fault_of_the_demo_allows_what_it_is_there_to_show():
    for fault, changes in FAULTS.items():
        assert "allow_ungated_reward=true" in changes, fault


def test_votes_on_another_policys_samples_do_not_slip_into_a_run(copied: Path):
    """A policy changed under the same name is asked about anew; the votes on the old one stay, in their own snapshot."""
    run = copied / "runs/tiny"
    old = directory_hash(run / "snapshots/votes")
    before = json.loads((run / "manifests/collect.json").read_text())
    assert karat("collect", "tiny.yaml", "--set", "sft.epochs=1").code == 0
    assert directory_hash(run / "snapshots/votes") == old
    (new,) = [path for path in (run / "snapshots").iterdir() if path.name != "votes"]
    first, second = read_snapshot(run / "snapshots/votes"), read_snapshot(new)
    assert len(first.votes) == before["metrics"]["n_votes"]
    assert len(second.votes) > 0
    assert not {vote.judgement_id for vote in first.votes} & {vote.judgement_id for vote in second.votes}


def test_a_second_round_asks_about_the_policy_and_says_how_well_its_reward_did(here: Path):
    collect = {**SANDBOX["collect"], "acquisition": "bald", "random_frac": 0.5}
    config = {**SANDBOX, "name": "rounds", "collect": collect}
    outcome = karat("run", write_config(config), "--rounds", 2)
    assert outcome.code == 0, outcome.err
    run = here / "runs" / "rounds"
    found = manifests(run)
    assert {"collect-2", "reward-2", "ppo-2"} <= set(found)
    assert f"policy: {Path('runs/rounds')}/models/ppo-2" in outcome.out  # not the first round's
    assert json.loads((run / "summary.json").read_text())["policy"] == "models/ppo-2"
    first, replay = (read_snapshot(run / "snapshots" / name) for name in ("votes", "replay-2"))
    assert {vote.judgement_id for vote in first.votes} < {vote.judgement_id for vote in replay.votes}
    manifest = json.loads(found["collect-2"])
    metrics = manifest["metrics"]
    # the first round had no reward to choose with; in the second half of the questions are chosen, with propensities
    assert {vote.strategy for vote in first.votes} == {"random"}
    new = [vote for vote in replay.votes if vote.judgement_id not in {one.judgement_id for one in first.votes}]
    assert {vote.strategy for vote in new} == {"random", "bald"}
    assert all(0 < vote.propensity < 1 for vote in new if vote.strategy == "bald")
    drawn = [vote for vote in new if vote.strategy == "random"]
    assert metrics["n_votes_random"] == len(drawn) == len(new) / 2
    assert metrics["agreement"] == jsonable(pairwise_agreement(drawn, numpy_generator(0, "agreement"), ties=False))
    assert metrics["agreement"] != jsonable(pairwise_agreement(new, numpy_generator(0, "agreement"), ties=False))
    (gain,) = [one for one in manifest["findings"] if one["name"] == "collect.gain"]
    assert gain["estimate"]["n"] == 60
    # held-out figures are of the random arm, on the prompts that no gradient saw
    decided = [vote for vote in drawn if 2 * vote.level != vote.n_levels - 1]
    kept = split(decided, {"fit": 0.85, "gate": 0.15}, key=lambda vote: vote.prompt_id, salt="gate")["gate"]
    assert metrics["online_accuracy"]["n"] == len({vote.prompt_id for vote in kept})
    for name in ("online_accuracy", "offline_accuracy"):
        assert 0 <= metrics[name]["value"] <= 1
        assert metrics[name]["n"] > 0
    assert metrics["gap"]["n"] > 0
    assert metrics["all_rounds"]["n_votes"] == len(replay.votes)
    assert f"<td>{len(replay.votes)} (simulated)</td>" in (run / "report.html").read_text()
    assert {"sft", "ppo_round_1", "ppo"} <= set(json.loads((run / "summary.json").read_text())["policies"])
    assert (
        "rounds.2.gap" in (run / "report.html").read_text()
        or "How much better was it there" in (run / "report.html").read_text()
    )
    assert "50% of the votes of collect-2" in (run / "report.html").read_text() + (run / "card.json").read_text()
    # what the report says of the reward and of training is the last round's
    by_stage = {one.stage: one for one in read_manifests(run)}
    content = report_input(run, "", (), list(by_stage.values()))
    shown_findings = {one.name: one for one in content.findings}
    assert all(shown_findings[one.name] == one for one in findings_of(by_stage["reward-2"]))
    assert len({one.name for one in content.findings}) == len(content.findings)
    rows = [json.loads(line) for line in (run / "metrics" / "ppo-2.jsonl").read_text().splitlines()]
    (curve,) = [one for one in content.curves if one.title == "PPO"]
    shown = {series.name: list(series.y) for panel in curve.panels for series in panel.series}
    proxies = [row["validation/proxy"] for row in rows if "validation/proxy" in row]
    assert shown["learned score"] == proxies
    assert [one["proxy"] for one in json.loads((run / "evaluation.json").read_text())["training"]] == proxies
    assert karat("verify", run).code == 0
    again = karat("run", write_config(config), "--rounds", 2)
    assert again.err.count("done before, kept") == len(found)
