"""The numbers of other libraries that tests hold karat's coefficients and aggregations against, asked for again.

    python -m bench.oracle_study

Installs krippendorff, irrCAC, scikit-learn and crowd-kit in an environment of their own and compares what they say of the
tables in `tests/golden/agreement.json` and `consensus.json` with what is stored there. Standard output has one JSON object:
the largest difference by number, and the versions; exit 1 where one is larger than the tests allow.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from bench.environments import python_with

LIBRARIES = {
    "krippendorff": "0.9.0",
    "irrCAC": "0.4.4",
    "scikit-learn": "1.9.1",
    "crowd-kit": "1.4.2",
    "torch": "2.13.0",  # crowd-kit asks for any
}
GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
ALLOWED = {"agreement": 1e-9, "consensus": 1e-3}
"""Largest difference, as in the tests: crowd-kit's posteriors are stored to seven digits or so, the others in full."""


def gaps(stored: Any, found: Any) -> dict[str, float]:
    """The largest difference under each name, of numbers nested in lists."""
    return {name: float(np.abs(np.array(value) - np.array(found[name])).max()) for name, value in stored.items()}


def main() -> None:
    """Ask, compare, print."""
    agreement, consensus = (
        json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8")) for name in ("agreement", "consensus")
    )
    python = python_with("oracles", LIBRARIES)
    asked = json.dumps({"cases": agreement["cases"], "planted": consensus["planted"]["answers"]})
    script = Path(__file__).parent / "peers" / "oracle_numbers.py"
    told = subprocess.run([str(python), str(script)], input=asked, capture_output=True, text=True, check=False)
    if told.returncode:
        raise SystemExit(f"oracles: {script.name} failed: {told.stderr.strip().splitlines()[-1:]}")
    found = json.loads(told.stdout)
    row: dict[str, Any] = {"agreement": {}, "consensus": {}}
    for case, numbers in zip(agreement["cases"], found["cases"], strict=True):
        for name, gap in gaps(case["expected"], numbers).items():
            row["agreement"][name] = max(gap, row["agreement"].get(name, 0.0))
    for method, numbers in found["planted"].items():
        for name, gap in gaps(consensus["planted"][method], numbers).items():
            row["consensus"][f"{method} {name}"] = gap
    print(json.dumps(row | {"versions": LIBRARIES}), flush=True)
    if any(gap > ALLOWED[part] for part in ALLOWED for gap in row[part].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
