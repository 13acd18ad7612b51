"""The report's charts from evaluation.json."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from karat.ledger.lineage import ArtifactRef
from karat.ledger.manifest import Manifest
from karat.pipeline.charts import at_equal_kl, curves, frontier
from karat.pipeline.current import current, last_findings
from karat.pipeline.reporting import card_figures, report_input
from karat.pipeline.stages import jsonable
from karat.records import Estimate, Finding
from karat.report.card import CardInput, Fact, audit_card
from karat.report.page import render_page


def test_the_path_of_ppo_is_a_line_in_the_colour_of_its_measure_and_best_of_n_are_labelled_points(tmp_path):
    row = {"name": "best of 4", "kl": -0.1, "gold": 1.0, "proxy": 2.0}
    path = [{"name": f"step {i}", "kl": float(i), "gold": None, "proxy": 2.0 + i} for i in range(2)]
    (tmp_path / "evaluation.json").write_text(json.dumps({"policies": {}, "frontier": [row], "training": path}))
    manifest = Manifest("r", "evaluate", (), (), {}, {}, {}, None, "", "", 1.0)
    gold, proxy = report_input(tmp_path, "t", (), [manifest]).frontier
    assert [(series.role, series.points, series.labels, series.x) for series in proxy.series] == [
        ("baseline", True, ("best of 4",), (0.0,)),
        ("proxy", False, ("step 0", "step 1"), (0.0, 1.0)),
    ]
    assert [series.role for series in gold.series] == ["baseline"]


def test_the_path_is_named_after_the_method_that_went_it_and_what_it_never_reached_is_said():
    point = {"name": "x", "kl": 1.0, "gold": 0.5, "proxy": 2.0}
    policies = {"best_of_4": {"gold": {"value": -0.25, "low": None, "high": None, "n": 9, "method": ""}}}
    content = {
        "optimised": "reinforce_pp", "policies": policies, "frontier": [point], "training": [point],
        "equal_kl": {"best_of_4": {"kl": 0.64, "reinforce_pp_gold": None}},
    }  # fmt: skip
    panels = frontier(content)
    assert [panel.title for panel in panels] == ["gold reward", "learned score"]
    assert panels[0].series[1].name == "REINFORCE++ along training, gold reward"
    assert at_equal_kl(content) == (
        "At equal KL (0.64 nats): best of 4 has gold −0.25; REINFORCE++ never went so far.",
    )
    content["equal_kl"]["best_of_4"]["reinforce_pp_gold"] = -0.125
    assert at_equal_kl(content)[0].endswith("REINFORCE++ −0.12, interpolated along its training.")


@pytest.mark.parametrize(
    ("kept", "at", "words"),
    [(15, 15.0, "after 15 of 60 rollouts"), (60, None, ""), (0, 0.0, "fine-tuned policy itself")],
)
def test_a_curve_says_which_policy_of_the_training_was_kept(tmp_path, kept: int, at: float | None, words: str):
    (tmp_path / "metrics").mkdir()
    row = {"step": 1, "validation/proxy": 0.5, "validation/gold": 0.25, "kl/k1_per_sequence": 0.5}
    (tmp_path / "metrics" / "ppo.jsonl").write_text(json.dumps(row) + "\n")
    metrics = {"kept_step": kept, "n_iterations": 60}
    manifest = Manifest("r", "ppo", (), (), {}, {}, {}, None, "", "", 1.0, metrics=metrics)
    (drawn,) = curves(tmp_path, {"ppo": manifest}, "ppo")
    assert drawn.kept_at == at
    assert words in drawn.caption
    assert ("dotted line" in drawn.caption) == (at is not None)
    assert [(one.name, one.role) for one in drawn.panels[0].series] == [
        ("learned score", "proxy"),
        ("gold reward", "gold"),
    ]


def test_findings_are_of_the_last_round_and_of_every_arena_even_where_its_name_is_a_number():
    found = {
        "reward": ["gate.x"], "reward-2": ["gate.x"], "collect": ["a"], "collect-2": ["a", "rounds.2.gap"],
        "arena-2": ["arena.2"], "arena-3": ["arena.3"],
    }  # fmt: skip
    by_stage = {}
    for stage, names in found.items():
        findings = [jsonable(Finding(name, f"of {stage}?", "info")) for name in names]
        by_stage[stage] = Manifest("r", stage, (), (), {}, {}, {}, None, "", "", 1.0, findings=findings)
    assert [(one.name, one.question) for one in last_findings(by_stage)] == [
        ("gate.x", "of reward-2?"),
        ("a", "of collect-2?"),
        ("rounds.2.gap", "of collect-2?"),
        ("arena.2", "of arena-2?"),
        ("arena.3", "of arena-3?"),
    ]


def test_a_check_of_several_policies_is_one_check_where_it_came_out_alike():
    by_stage = {}
    for stage, status in (("ppo", "pass"), ("rloo", "pass"), ("dpo", "fail")):
        finding = jsonable(Finding("gate.leash", "Is it held?", status, detail=f"{stage}: held"))
        by_stage[stage] = Manifest("r", stage, (), (), {}, {}, {}, None, "", "", 1.0, findings=[finding])
    assert [(one.status, one.detail) for one in last_findings(by_stage)] == [
        ("pass", "ppo: held; rloo: held"),
        ("fail", "dpo: held"),
    ]


def test_the_card_says_what_the_record_knows_of_the_policy_and_its_votes():
    model = ArtifactRef("model", "models/ppo", "tree:12", "model")
    agreement = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 9, "method": "m"}
    votes = {
        "n_votes": 12, "n_raters": 3, "n_prompts": 4, "origin": "person", "root": "r", "agreement": agreement,
        "alpha": agreement, "levels": {}, "n_missing": 2,
    }  # fmt: skip
    collect = Manifest("r", "collect", (), (), {}, {}, {}, None, "", "1", 1.0, metrics=votes)
    ppo = Manifest("r", "ppo", (), (model,), {}, {"run": 7}, {}, None, "", "2", 1.0, metrics={"kl_coef": 0.0})
    gold = Estimate(0.5, 0.4, 0.6, 9, "m")
    content = replace(report_input(Path("nowhere"), "t", (), [collect, ppo]), policies={"ppo": {"gold": gold}})
    figures = card_figures(content, [collect, ppo])
    said = {name: (fact.value, fact.method) for name, fact in figures.items() if isinstance(fact, Fact)}
    assert said["identity.weights"] == ("tree:12", "recorded")
    assert said["policy.seeds"] == ({"run": 7}, "recorded")
    assert said["policy.algorithm"][0].startswith("PPO without a KL penalty")
    assert said["feedback.n_missing"] == (2, "counted")
    assert said["people.n_raters"] == (3, "counted")


def test_the_card_has_the_accuracy_that_the_gate_measured():
    accuracy = Estimate(0.71, 0.64, 0.78, 120, "bootstrap over prompts")
    finding = jsonable(Finding("gate.accuracy", "How often?", "info", accuracy))
    reward = Manifest("r", "reward", (), (), {}, {}, {}, None, "", "1", 1.0, findings=[finding])
    figures = card_figures(report_input(Path("nowhere"), "t", (), [reward]), [reward])
    card = audit_card(CardInput("r", (reward,), figures))
    told = card["reward"]["accuracy"]
    assert (told["value"], told["low"], told["high"], told["n"]) == (0.71, 0.64, 0.78, 120)


def test_what_the_gate_found_stands_once_on_the_page_and_the_reward_refers_to_it():
    estimate = Estimate(0.71, 0.64, 0.78, 120, "bootstrap over prompts")
    asked = {"gate.accuracy": "Right of the gate's votes?", "held_out.rating.honest": "Right of the ratings?"}
    findings = [jsonable(Finding(name, question, "info", estimate)) for name, question in asked.items()]
    reward = Manifest("r", "reward", (), (), {}, {}, {}, None, "", "1", 1.0, findings=findings)
    page = render_page(report_input(Path("nowhere"), "t", (), [reward])).replace("&#39;", "'")
    assert [page.count(question) for question in asked.values()] == [1, 1]
    gate, own = page.split('<section id="reward">')
    assert asked["gate.accuracy"] in gate
    assert '<a href="#gate">' in own


def test_a_run_that_is_continued_with_fewer_rounds_is_reported_by_those():
    made = {name: ArtifactRef("model", f"models/{name}", f"tree:{name}", "model") for name in ("ppo", "ppo-2", "table")}

    def stage(name, reads, writes, at):
        return Manifest("r", name, tuple(made[one] for one in reads), tuple(made[one] for one in writes), {}, {}, {},
                        None, "", str(at), 1.0)  # fmt: skip

    done = [
        stage("ppo", (), ("ppo",), 1),
        stage("ppo-2", ("ppo",), ("ppo-2",), 2),
        stage("evaluate", ("ppo", "ppo-2"), ("table",), 3),
        *(stage(name, ("ppo",), (), 4) for name in ("arena-ours", "arena-ours-2")),
    ]
    for config in ({"rounds": 2}, {}):
        assert current(done, config) == (done, [])
    kept, told = current(done, {"rounds": 1})
    assert [one.stage for one in kept] == ["ppo", "arena-ours", "arena-ours-2"]
    more = "left out, of more rounds than the 1 that the run has now; `--rounds` brings it back"
    assert told == [f"ppo-2: {more}", f"evaluate: {more}"]
