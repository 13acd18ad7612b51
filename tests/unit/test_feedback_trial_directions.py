"""The choice model on trial reads a pair's votes in one direction, whichever response a file names first."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from karat.feedback.exchange.importers import import_votes
from karat.feedback.store import open_store
from karat.feedback.work.trial import Trial, trial

LEVELS = [(0, 4, 4), (1, 4, 4), (3, 2, 3), (5, 6, 5), (2, 2, 0), (0, 1, 1)]
"""What three raters said of the pairs of four responses; of the first the mean says b and the median a, the next two have no mean or median."""


def found_in(path: Path, *, turned: bool) -> Trial:
    """Fifteen prompts; where `turned`, every other vote names its responses the other way round."""
    rows = []
    for prompt in range(15):
        for pair, (said, (i, j)) in enumerate(zip(LEVELS, itertools.combinations("abcd", 2), strict=True)):
            for rater, level in enumerate(said):
                vote = {
                    "a": f"answer {i} of {prompt}",
                    "b": f"answer {j} of {prompt}",
                    "level": level,
                    "shown_first": "a",
                }
                if turned and (prompt + pair + rater) % 2:
                    vote = {"a": vote["b"], "b": vote["a"], "level": 6 - level, "shown_first": "b"}
                rows.append(vote | {"prompt": f"question {prompt}", "n_levels": 7, "annotator": f"r{rater}"})
    (votes := path / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with open_store(path / "judged.db") as store:
        import_votes(store, votes)
        return trial(store, np.random.default_rng(0))


def test_who_was_named_first_changes_nothing(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "both").mkdir()
    one, both = found_in(tmp_path / "one", turned=False), found_in(tmp_path / "both", turned=True)
    agree = "two raters agree on a pair"
    for found in (one, both):
        observed = {check.name: check.observed for check in found.checks}
        assert observed[agree] == pytest.approx((1 + 1 + 1 + 3 + 3 + 3) / 18)
        assert found.mean_not_median.value == pytest.approx(1 / 4)
    assert [check.name for check in both.checks] == [check.name for check in one.checks]
