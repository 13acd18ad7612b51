"""Benchmarks of reward models: the worked examples of tests/golden, intervals, and files that do not fit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from karat.errors import InputError
from karat.evaluate.suite_files import read_suite, score_items
from karat.evaluate.suites import SECTIONS, SUITES, SuiteItem, combined, suite_result
from karat.records import Estimate, user_prompt

GOLDEN = Path(__file__).parent.parent / "golden"
FILES = {"rewardbench": "rewardbench1.json", "rewardbench2": "rewardbench2.json", "rmbench": "rmbench.json"}


def number_in(_prompts, texts):
    """The score that the worked examples write into each response."""
    return [float(text.removeprefix("score ")) for text in texts]


def written(tmp_path, rows, *, array=False):
    path = tmp_path / ("suite.json" if array else "suite.jsonl")
    path.write_text(json.dumps(rows) if array else "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("array", [False, True])
def test_the_worked_examples_come_out_as_by_hand(suite, array, tmp_path):
    golden = json.loads((GOLDEN / FILES[suite]).read_text(encoding="utf-8"))
    items = read_suite(written(tmp_path, golden["rows"], array=array), suite)
    seen = []
    result = suite_result(suite, items, score_items(number_in, items, progress=lambda *counts: seen.append(counts)))
    assert seen[-1] == (len(items), len(items))
    expected = golden["expected"]
    assert result.overall.value == pytest.approx(expected["overall"], abs=1e-6)
    for part in ("sections", "subsets"):
        found = getattr(result, part)
        assert {name: found[name].value for name in expected[part]} == pytest.approx(expected[part], abs=1e-6)
    shares = [*result.sections.values(), *(e for name, e in result.subsets.items() if not name.startswith("Ties: "))]
    for estimate in shares:
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.high > estimate.low


def test_the_published_weights_are_those_of_the_benchmark():
    assert sum(SECTIONS["Reasoning"].values()) == 984 + 6 * 164
    assert {name: sum(counts.values()) for name, counts in SECTIONS.items()} == {
        "Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968,
    }  # fmt: skip


def item(subset, n=2, *, name="1", n_correct=1):
    return SuiteItem(name, subset, user_prompt("q"), tuple("abcdef"[:n]), n_correct)


def test_without_prior_sets_the_sections_are_averaged_and_missing_parts_are_said():
    items = [item("alpacaeval-easy"), item("mt-bench-hard"), item("donotanswer"), item("hep-go"), item("mine")]
    result = suite_result("rewardbench", items, [[1, 0], [1, 0], [0, 1], [0, 1], [1, 0]])
    assert result.overall.value == 0.5
    assert "overall is the mean of the four sections: no prior sets were given" in result.notes
    assert "in no section: mine" in result.notes
    assert any(note.startswith("Chat is without alpacaeval-length") for note in result.notes)
    part = suite_result("rewardbench", items[:1], [[1, 0]])
    assert part.overall.value is None
    assert "nothing of Chat Hard, Safety, Reasoning" in part.overall.method
    two = suite_result("rewardbench2", [item("Math", 4)], [[1, 0, 0, 0]])
    assert (two.sections["Math"].value, two.overall.value) == (1.0, None)
    one = suite_result("rmbench", [item("chat", 6, n_correct=3)], [[1, 1, 1, 0, 0, 0]])
    assert one.overall.value == 1.0
    assert one.notes == ("without math, code, safety: averages are over 1 of 4 domains",)


def test_undefined_margins_of_ties_count_as_published():
    rows = [item("Ties", 2, name="ref:0"), item("Ties", 3, name="tied:0", n_correct=2)]
    flat = suite_result("rewardbench2", rows, [[1, 1], [1, 1, 1]])
    assert flat.subsets["Ties: margin"].value == 0.0  # 0/0
    apart = suite_result("rewardbench2", rows, [[2, 1], [2, 2, 1]])
    assert apart.subsets["Ties: margin"].value == 1.0  # 1/0
    assert apart.sections["Ties"].value == pytest.approx(1.01, abs=1e-12)
    against = suite_result("rewardbench2", rows, [[1, 2], [2, 2, 1]])
    assert against.subsets["Ties: margin"].value == -1.0
    alone = suite_result("rewardbench2", rows[:1], [[2, 1]])
    assert alone.sections["Ties"].value is None
    assert alone.subsets["Ties: ref accuracy"].value == 1.0


def test_few_ties_have_an_interval_within_what_the_score_can_be():
    rows = [
        item("Ties", n, name=f"{kind}:{k}", n_correct=n - 1) for k in range(3) for kind, n in (("ref", 2), ("tied", 3))
    ]
    scores = [[2, 1], [2, 2, 1], [2, 1], [2, 2, 1], [1, 2], [2, 2, 1]]
    found = suite_result("rewardbench2", rows, scores).sections["Ties"]
    assert -0.01 <= found.low < found.value < found.high <= 1.01


def test_an_interval_of_a_weighted_mean_covers_it():
    rng = np.random.default_rng(0)
    truth, sizes, weights = np.array([0.6, 0.9, 0.75]), np.array([40, 25, 60]), [100.0, 37.0, 984.0]
    mean = float(np.dot(truth, weights) / sum(weights))
    covered = 0
    from karat.stats import wilson

    for _ in range(400):
        parts = [wilson(float(rng.binomial(n, p)), int(n)) for n, p in zip(sizes, truth, strict=True)]
        estimate = combined(parts, weights, "")
        covered += estimate.low <= mean <= estimate.high
    # 95 % nominal; 400 draws leave a standard error of 0.011, three of them on either side
    assert 0.95 - 0.033 < covered / 400 < 0.95 + 0.033
    gap = combined([Estimate(0.5, None, None, 3, "")], [1.0], "")
    assert (gap.value, gap.low) == (0.5, None)


BAD = [
    ("rewardbench", {"prompt": "q", "chosen": "a", "rejected": "b"}, "suite.jsonl:1: found no field 'subset'"),
    ("rewardbench", {"prompt": "q", "chosen": ["a", "b"], "rejected": "b", "subset": "s"}, "found 2 texts in the field 'chosen'"),
    ("rewardbench", {"prompt": [{"text": "q"}], "chosen": "a", "rejected": "b", "subset": "s"}, "found the prompt"),
    ("rewardbench2", {"prompt": "q", "chosen": ["a", "b"], "rejected": ["c"], "subset": "Math"}, "only Ties has more"),
    ("rewardbench2", {"prompt": "q", "chosen": ["a"], "rejected": ["c"], "subset": "Math", "num_correct": 2}, "found num_correct 2"),
    ("rmbench", {"prompt": "q", "chosen": ["a"], "rejected": ["b"], "domain": "chat"}, "expected 3 of each"),
]  # fmt: skip


@pytest.mark.parametrize(("suite", "row", "says"), BAD)
def test_rows_that_do_not_fit_are_named(suite, row, says, tmp_path):
    with pytest.raises(InputError, match=r"suite\.jsonl:1") as caught:
        read_suite(written(tmp_path, [row]), suite)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_and_scores_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_suite(tmp_path / "none.json", "rmbench")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InputError, match="found no array of objects"):
        read_suite(tmp_path / "x.json", "rmbench")
    with pytest.raises(InputError, match="found 'rb3'; expected one of rewardbench, rewardbench2, rmbench"):
        read_suite(tmp_path / "x.json", "rb3")
    with pytest.raises(InputError, match="item 1: found scores"):
        suite_result("rewardbench", [item("hep-go")], [[1.0, float("nan")]])
    with pytest.raises(InputError, match="found no items"):
        suite_result("rewardbench", [], [])
    with pytest.raises(InputError, match="expected a name that begins with one of chat"):
        suite_result("rmbench", [item("poems", 6, n_correct=3)], [[1] * 6])
    with pytest.raises(InputError, match="expected an id `ref:n` or `tied:n`"):
        suite_result("rewardbench2", [item("Ties", 2, name="7")], [[1, 0]])
    with pytest.raises(InputError, match="expected an id `ref:n` or `tied:n`"):
        suite_result("rewardbench2", [item("Ties", 2, name="tied:7")], [[1, 0]])


def test_a_file_of_another_suite_is_refused_and_the_right_one_named(tmp_path):
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "subset": "alpacaeval-easy"}
    with pytest.raises(
        InputError, match=r"found the subsets 'alpacaeval-easy', none .*expected Factuality.*--suite rewardbench$"
    ):
        read_suite(written(tmp_path, [row]), "rewardbench2")
    with pytest.raises(
        InputError, match=r"found the subsets 'Math', none .*expected alpacaeval-easy.*--suite rewardbench2$"
    ):
        read_suite(written(tmp_path, [row | {"subset": "Math"}]), "rewardbench")
    with pytest.raises(InputError, match=r"found the subsets 'a', 'b', 'c', 'd', 'e', 'f', …, none of them .*, Ties$"):
        read_suite(written(tmp_path, [row | {"subset": name} for name in "abcdefg"]), "rewardbench2")
    assert len(read_suite(written(tmp_path, [row, row | {"subset": "mine"}]), "rewardbench")) == 2


def test_a_text_that_cannot_be_scored_is_named_by_its_item():
    items = [item("hep-go"), dataclasses.replace(item("hep-go", name="the long one"), texts=("long", "b"))]

    def score(_prompts, texts):
        if "long" in texts:
            raise InputError("does not fit the context")
        return [0.0] * len(texts)

    with pytest.raises(InputError, match="item the long one: does not fit the context"):
        score_items(score, items)
