"""The report's charts from evaluation.json."""

import json

from karat.ledger.manifest import Manifest
from karat.pipeline.current import last_findings
from karat.pipeline.reporting import report_input
from karat.pipeline.stages import jsonable
from karat.records import Finding


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
