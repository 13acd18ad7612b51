"""In the environment of the libraries: coefficients of agreement and aggregated answers, as JSON.

Standard input has {"cases": [{"n_values", "answers": [rater][item] or null}], "planted": [[item, rater, answer]]}.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import krippendorff
import numpy as np
import pandas as pd
from crowdkit.aggregation import DawidSkene, OneCoinDawidSkene
from irrCAC.raw import CAC
from sklearn.metrics import cohen_kappa_score

LEVELS = ("nominal", "ordinal", "interval")


def agreement(case: dict[str, Any]) -> dict[str, float]:
    """What three libraries say of one table of answers."""
    table = np.array([[np.nan if one is None else one for one in line] for line in case["answers"]], dtype=float)
    domain = list(range(case["n_values"]))
    found = {
        f"{level} alpha": krippendorff.alpha(table, level_of_measurement=level, value_domain=domain) for level in LEVELS
    }
    chance = CAC(pd.DataFrame(table.T), categories=domain, digits=12)
    found["Gwet's AC1"] = chance.gwet()["est"]["coefficient_value"]
    found["Fleiss' kappa"] = chance.fleiss()["est"]["coefficient_value"]
    if len(table) == 2:
        both = table[:, ~np.isnan(table).any(axis=0)].astype(int)
        found["Cohen's kappa"] = cohen_kappa_score(*both, labels=domain)
    return {name: float(value) for name, value in found.items()}


def aggregated(answers: list[list[int]]) -> dict[str, dict[str, Any]]:
    """What crowd-kit makes of planted answers, without a prior and without its own stopping rule."""
    frame = pd.DataFrame(answers, columns=["task", "worker", "label"])
    full = DawidSkene(n_iter=1500, tol=-1).fit(frame)
    coin = OneCoinDawidSkene(n_iter=500, tol=-1).fit(frame)
    errors = full.errors_.sort_index()  # (worker, answer) × true class
    confusion = [errors.loc[worker].reindex(range(3)).fillna(0.0).to_numpy().T.tolist() for worker in range(10)]
    return {
        "dawid_skene": {"posterior": _rows(full.probas_), "confusion": confusion},
        "one_coin": {"posterior": _rows(coin.probas_), "accuracy": coin.skills_.sort_index().tolist()},
    }


def _rows(table: pd.DataFrame) -> list[list[float]]:
    return table.sort_index().reindex(columns=range(3)).fillna(0.0).to_numpy().tolist()


def main() -> None:
    """Answer what standard input asks."""
    asked = json.load(sys.stdin)
    found = {"cases": [agreement(case) for case in asked["cases"]], "planted": aggregated(asked["planted"])}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
