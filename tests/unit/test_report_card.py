"""The card and summary.json: every figure with its interval or "not measured", unsafe options first."""

import json
from pathlib import Path

import pytest

from karat.errors import InputError
from karat.ledger.lineage import ArtifactRef, Manifest
from karat.records import Estimate, Finding
from karat.report.card import (
    CARD_FIELDS,
    CHALLENGES,
    CardInput,
    Fact,
    audit_card,
    challenge_rows,
    finding_of,
    summary,
    write_summary,
)
from karat.report.table import summary_lines

GOLD = Estimate(0.41, 0.35, 0.47, 200, "bootstrap over prompts, 95 %")
GATE = Finding("gate.length", "Better than length?", "pass", GOLD, "yes", "> 0")
REWARD = Manifest(
    "demo",
    "reward",
    (ArtifactRef("snapshot", "snapshots/main", "tree:1", "snapshot"),),
    (ArtifactRef("model", "models/reward", "tree:2", "model"),),
    {},
    {},
    {},
    "abc",
    "2026-01-01T00:00:00Z",
    "2026-01-01T00:01:00Z",
    60.0,
)


def test_every_field_is_a_figure_with_its_source_or_says_not_measured():
    figures = {"reward.accuracy": GOLD, "people.pay": Fact("none: simulated")}
    card = audit_card(CardInput("demo", (REWARD,), figures, {"reward.accuracy": "reward"}, (GATE,)))
    assert card["reward"]["accuracy"] == {
        "value": 0.41, "low": 0.35, "high": 0.47, "n": 200, "method": "bootstrap over prompts, 95 %",
        "meaning": "held-out accuracy", "stage": "reward", "inputs": ["tree:1"], "commit": "abc",
        "time": "2026-01-01T00:01:00Z",
    }  # fmt: skip
    assert card["people"]["pay"]["method"] == "declared"
    for section, fields in CARD_FIELDS.items():
        for name in fields:
            if f"{section}.{name}" not in figures:
                assert list(card[section][name]) == ["not measured"]
    assert [gate["status"] for gate in card["gates"]] == ["pass"]
    assert card["lineage"][0]["outputs"] == {"models/reward": "tree:2"}
    json.dumps(card, allow_nan=False)


def test_a_figure_that_the_card_does_not_know_is_refused():
    with pytest.raises(InputError, match=r"found the figure 'reward.acuracy'; expected one of"):
        audit_card(CardInput("demo", (), {"reward.acuracy": GOLD}))


def test_unsafe_options_come_first():
    unsafe = ("allow_ungated_reward: optimised although the gate failed",)
    card = audit_card(CardInput("demo", (), unsafe=unsafe))
    assert list(card)[:2] == ["format", "unsafe"]
    content = summary({}, ppo_minus_sft={}, gate=[], manifests=[], report="report.html", unsafe=unsafe)
    assert next(iter(content)) == "unsafe"
    assert summary_lines(content)[0].startswith("UNSAFE: allow_ungated_reward")


def test_challenges_are_not_measured_until_a_finding_of_that_very_name_is_there():
    rows = {row["id"]: row["status"] for row in challenge_rows([])}
    assert list(rows) == [f"D{k}" for k in range(1, 15)] == list(CHALLENGES)
    assert set(rows.values()) == {"not measured"}
    found = [
        Finding("challenge.D10.accuracy", "?", "info"),
        Finding("challenge.D2_policy", "?", "pass"),
        Finding("challenge.D2_reward", "?", "fail"),
    ]
    rows = {row["id"]: row["status"] for row in challenge_rows(found)}
    assert (rows["D1"], rows["D10"], rows["D2"]) == ("not measured", "info", "fail")


def test_what_the_gate_found_of_a_challenge_stands_with_it_and_nothing_passes_by_one_of_several():
    found = [Finding("challenge.D2.sycophancy", "?", "info"), Finding("gate.sycophancy", "?", "fail")]
    (row,) = [row for row in challenge_rows(found) if row["id"] == "D2"]
    assert (row["status"], [one["name"] for one in row["findings"]]) == ("fail", [one.name for one in found])
    passed = [found[0], Finding("gate.sycophancy", "?", "pass"), Finding("gate.matched_length", "?", "not measured")]
    rows = {row["id"]: row["status"] for row in challenge_rows(passed)}
    assert (rows["D2"], rows["D5"]) == ("info", "not measured")


def test_summary_has_every_column_of_every_policy_and_says_what_is_not_measured(tmp_path: Path):
    content = summary(
        {"sft": {"gold": GOLD}, "ppo": {"gold": GOLD, "agrees": GOLD}},
        ppo_minus_sft={"gold": GOLD},
        gate=[GATE],
        manifests=[REWARD],
        report="report.html",
        extra={"run": "demo"},
    )
    assert set(content["policies"]["sft"]) == {"gold", "proxy", "kl", "length", "distinct", "win_rate"}
    assert set(content["policies"]["ppo"]) == set(content["policies"]["sft"]) | {"agrees"}
    for policy in content["policies"].values():
        for figure in policy.values():
            assert set(figure) == {"value", "low", "high", "n", "method"}
    assert content["policies"]["sft"]["kl"] == {
        "value": None, "low": None, "high": None, "n": 0, "method": "not measured",
    }  # fmt: skip
    assert content["ppo_minus_sft"]["gold"]["value"] == 0.41
    assert content["gate"]["passed"] is True
    assert content["stages"]["reward"]["seconds"] == 60.0
    write_summary(tmp_path / "summary.json", content)
    assert list(json.loads((tmp_path / "summary.json").read_text())) == list(content)
    with pytest.raises(InputError, match="finite"):
        write_summary(tmp_path / "bad.json", {"gold": float("nan")})
    assert not (tmp_path / "bad.json").exists()


@pytest.mark.parametrize("beside", [[], [GATE]])
@pytest.mark.parametrize(
    ("status", "passed"), [("fail", False), ("pass", True), ("info", True), ("warn", True), ("not measured", False)]
)
def test_the_gate_passes_only_without_a_failure_and_with_every_check_measured(beside, status, passed: bool):
    gate = [*beside, Finding("gate.praise", "?", status)]
    content = summary({}, ppo_minus_sft={}, gate=gate, manifests=[], report="")
    assert content["gate"]["passed"] is passed
    nothing = summary({}, ppo_minus_sft={}, gate=[], manifests=[], report="")
    assert nothing["gate"]["passed"] is None


def test_a_finding_comes_back_from_its_plain_values():
    plain = json.loads(json.dumps({**GATE.__dict__, "estimate": GOLD.__dict__}))
    assert finding_of(plain) == GATE


def test_the_terminal_table_is_aligned_and_leaves_out_what_nobody_measured():
    content = summary(
        {"sft": {"gold": GOLD}, "best_of_16": {"gold": GOLD}},
        ppo_minus_sft={"gold": GOLD},
        gate=[GATE],
        manifests=[],
        report="report.html",
        extra={"directory": "runs/demo"},
    )
    lines = summary_lines(content)
    assert lines[0].split() == ["gold", "reward"]
    assert lines[1] == "sft         0.41 (0.35 to 0.47)"
    assert lines[2] == "best of 16  0.41 (0.35 to 0.47)"
    assert "PPO − SFT, gold reward: 0.41 (95 % interval 0.35 to 0.47, n = 200)" in lines
    assert lines[-1] == "report: runs/demo/report.html"


def test_the_terminal_says_what_the_watcher_did_and_how_to_ask_for_labels():
    raised = {"step": 2, "action": "raise_kl", "reason": "length: long", "kl_coef": 0.3}
    asked = {"step": 5, "action": "ask", "reason": "length: long"}
    watcher = {"kept_step": 4, "stop_reason": "fresh labels wanted: length: long", "n_iterations": 5}
    content = {"algorithm": "rloo", "watcher": {**watcher, "alarms": [raised, asked]}}
    kept = "watcher: kept the policy of step 4 of 5, the best that it saw; all figures are of that one"
    assert summary_lines(content) == [
        "watcher: raised β 1 time, last to 0.3",
        kept,
        "watcher: rloo ended after 5 steps, fresh labels wanted: length: long",
        "to ask raters about what it writes now: karat run CONFIG with one round more (--rounds)",
    ]
    quiet = {"kept_step": 4, "stop_reason": None, "n_iterations": 5, "alarms": []}
    assert summary_lines({"algorithm": "rloo", "watcher": quiet}) == [kept]
    assert summary_lines({"algorithm": "rloo", "watcher": {**quiet, "kept_step": 5}}) == []


def test_a_sweep_is_a_table_in_which_a_figure_may_be_missing():
    fields = {"value": 0.41, "low": 0.35, "high": 0.47, "n": 5, "method": "t"}
    table = [{"setting": "kl=1", "seeds": 5, "ppo gold": fields}, {"setting": "kl=20", "seeds": 1}]
    assert summary_lines({"table": table}) == [
        "setting  seeds  ppo gold reward",
        "kl=1     5      0.41 (0.35 to 0.47)",
        "kl=20    1      –",
    ]


def test_each_check_of_the_gate_is_said_once_however_many_policies_were_optimised():
    leash = Finding("gate.leash", "Is the policy held?", "pass")
    content = summary({}, ppo_minus_sft={}, gate=[GATE, leash, leash], manifests=[], report="report.html", unsafe=())
    assert "gate: passed length, leash" in summary_lines(content)


def test_the_gate_says_first_what_failed_and_counts_what_decides_nothing():
    said = {"a": "info", "b": "pass", "c": "fail", "d": "not measured", "e": "fail", "f": "info"}
    gate = [{"name": f"gate.{name}", "status": status} for name, status in said.items()]
    (line,) = summary_lines({"gate": {"findings": gate}})
    assert line == "gate: failed c, e; passed b; not measured d; 2 without a threshold, see the report"
