"""The report's charts from evaluation.json."""

import json

from karat.ledger.manifest import Manifest
from karat.pipeline.reporting import report_input


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
