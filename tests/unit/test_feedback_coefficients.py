"""Coefficients of agreement of any answers: published examples, other libraries, degenerate cases, intervals."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from karat.errors import InputError
from karat.feedback.quality.agreement import agreement_by, agreement_table, coefficient, rater_agreement, time_windows
from karat.feedback.quality.answer_table import UNNAMED, AnswerTable, answer_table, judgement_table, vote_table
from karat.feedback.quality.coefficients import COEFFICIENTS
from karat.feedback.schema import UNKNOWN_ANNOTATOR
from karat.records import Judgement, Vote
from karat.stats import mean_estimate
from reference.slow_alpha import nominal_alpha, pairwise_agreement

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "agreement.json").read_text(encoding="utf-8"))


def table_of(matrix, *, domain=None):
    """matrix[rater][item], None = no answer."""
    rows = [(i, f"r{w}", v) for w, line in enumerate(matrix) for i, v in enumerate(line) if v is not None]
    return answer_table(rows, domain=domain)


def rng(seed=0):
    return np.random.default_rng(seed)


def value(table, name):
    return coefficient(table, name, rng(), n_draws=10).value


@pytest.mark.parametrize("case", ["binary", "two", "four"])
def test_krippendorffs_own_examples(case):
    published = GOLDEN["krippendorff_2011"][case]
    table = table_of(published["answers"])
    for name in set(published) - {"answers"}:
        digits = 5 if "AC1" in name or "Fleiss" in name else 3
        assert round(value(table, name), digits) == published[name], name


def test_fleiss_and_gwets_own_examples():
    counts = GOLDEN["fleiss_1971"]["counts"]
    rows = [
        (i, f"r{i}.{w}", c)
        for i, line in enumerate(counts)
        for w, c in enumerate(np.repeat(np.arange(5), line).tolist())
    ]
    assert round(value(answer_table(rows), "Fleiss' kappa"), 3) == GOLDEN["fleiss_1971"]["Fleiss' kappa"]
    (both, one), (other, neither) = GOLDEN["gwet_2002"]["cells"]
    first = [1] * (both + one) + [0] * (other + neither)
    second = [1] * both + [0] * one + [1] * other + [0] * neither
    table = table_of([first, second])
    for name in ("Gwet's AC1", "Cohen's kappa"):
        assert round(value(table, name), 4) == GOLDEN["gwet_2002"][name]


@pytest.mark.parametrize("place", range(len(GOLDEN["cases"])))
def test_equal_to_other_libraries(place):
    case = GOLDEN["cases"][place]
    table = table_of(case["answers"], domain=range(case["n_values"]))
    for name, expected in case["expected"].items():
        assert value(table, name) == pytest.approx(expected, abs=1e-9), name


def random_table(seed, n_items=30, n_raters=6, k=4, missing=0.3, noise=0.8):
    draw = rng(seed)
    truth = draw.integers(0, k, n_items)
    matrix = np.clip(np.rint(truth + noise * draw.standard_normal((n_raters, n_items))), 0, k - 1)
    return table_of([[None if draw.random() < missing else int(v) for v in line] for line in matrix], domain=range(k))


def test_weights_are_copies_of_items():
    """What a bootstrap draw means: an item of weight 2 is there twice, one of weight 0 is gone."""
    table = random_table(1, n_items=6, missing=0.0)
    weights = np.array([[2, 0, 1, 3, 0, 1]])
    copies = np.repeat(np.arange(6), weights[0])
    rows = [
        ((place, old), table.annotators[w], int(c))
        for place, old in enumerate(copies)
        for i, w, c in zip(table.item, table.annotator, table.code, strict=True)
        if i == old
    ]
    repeated = answer_table(rows, domain=range(4))
    for name, measure in COEFFICIENTS.items():
        if name == "Cohen's kappa":
            continue
        _, evaluate = measure(table)
        assert evaluate(weights)[0] == pytest.approx(value(repeated, name)), name


def test_order_of_rows_and_names_of_items_do_not_matter():
    table = random_table(2)
    order = rng().permutation(len(table))
    flipped = (len(table.items) - 1 - table.item)[order]
    other = AnswerTable(flipped, table.annotator[order], table.code[order], table.items, table.annotators, table.domain)
    for name in set(COEFFICIENTS) - {"Cohen's kappa"}:
        assert value(table, name) == pytest.approx(value(other, name))


def test_ordinal_alpha_sees_only_the_order_and_interval_alpha_the_distance():
    table = random_table(3)
    stretched = AnswerTable(table.item, table.annotator, table.code, table.items, table.annotators, (1, 2, 4, 100))
    assert value(table, "ordinal alpha") == pytest.approx(value(stretched, "ordinal alpha"))
    assert abs(value(table, "interval alpha") - value(stretched, "interval alpha")) > 0.01
    moved = AnswerTable(
        table.item, table.annotator, table.code, table.items, table.annotators, (7e5, 7e5 + 3, 7e5 + 6, 7e5 + 9)
    )
    assert value(moved, "interval alpha") == pytest.approx(value(table, "interval alpha"), abs=1e-9)


def test_both_intervals_hold_the_value_and_that_by_rater_is_wider_where_raters_differ():
    draw = rng(5)
    truth = draw.integers(0, 2, 200)
    careless = draw.random(40) < 0.4
    rows = []
    for item in range(200):
        for w in draw.choice(40, 4, replace=False):
            seen = draw.integers(0, 2) if careless[w] and draw.random() < 0.9 else truth[item]
            rows.append((item, f"r{w}", int(seen)))
    found = agreement_table(answer_table(rows), ["agreement", "nominal alpha", "Gwet's AC1"], rng())
    for by_item, by_rater in found.values():
        assert by_item.low < by_item.value < by_item.high
        assert by_rater.low < by_rater.value < by_rater.high
        assert (by_item.n, by_rater.n) == (200, 40)
        assert by_rater.high - by_rater.low > by_item.high - by_item.low


@pytest.mark.parametrize("name", sorted(COEFFICIENTS))
@pytest.mark.parametrize("over", ["item", "annotator"])
def test_no_number_where_there_is_none(name, over):
    same = table_of([[1, 1, 1], [1, 1, 1]], domain=(0, 1))
    alone = table_of([[1, None], [None, 0]], domain=(0, 1))
    assert coefficient(alone, name, rng(), over=over).method == "undefined: no item has two votes"
    found = coefficient(same, name, rng(), over=over)
    if name == "agreement":
        assert found.value == 1.0
    else:
        assert (found.value, found.low, found.method) == (None, None, "undefined: no variation")


def test_perfect_agreement_has_no_interval_of_width_nought():
    table = table_of([[1, 0, 1, 0] * 5] * 3)
    alpha = coefficient(table, "nominal alpha", rng())
    assert (alpha.value, alpha.low) == (1.0, None)
    assert "no interval: all items are alike" in alpha.method
    agreement = coefficient(table, "agreement", rng())
    assert agreement.low == pytest.approx(20 / (20 + 1.959964**2), abs=1e-4)
    assert "Wilson" in agreement.method
    two = coefficient(table_of([[1, 0, 1, 0], [1, 0, 1, 1]]), "nominal alpha", rng(), over="annotator")
    assert two.low is None
    assert "undefined without one of the 2 groups of raters" in two.method


@pytest.mark.parametrize("name", ["agreement", "nominal alpha", "Gwet's AC1"])
def test_no_interval_over_raters_goes_beyond_what_a_coefficient_can_be(name: str):
    table = table_of(
        [
            [1, 0, 1, 0, 1, 1, 0, 0, 1, 1, 0, 1],
            [1, 0, 1, 0, 1, 1, 0, 0, 1, 1, 0, 0],
            [0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 0, 1],
        ]
    )
    found = coefficient(table, name, rng(), over="annotator")
    assert found.value < found.high == 1.0
    assert name != "agreement" or found.low >= 0.0


def test_a_repeat_does_not_agree_with_itself_but_unnamed_raters_are_many():
    rows = [("x", "r0", 1), ("x", "r0", 1), ("x", "r1", 0), ("y", "r0", 1), ("y", "r1", 1)]
    table = answer_table(rows)
    assert (len(table), table.n_repeats) == (4, 1)
    assert value(table, "agreement") == 0.5
    assert UNNAMED == UNKNOWN_ANNOTATOR
    assert value(answer_table([("x", UNNAMED, 1), ("x", UNNAMED, 1)]), "agreement") == 1.0


def test_slices_compare_only_within_themselves():
    table = random_table(7, missing=0.0)
    topic = ["even" if i % 2 == 0 else "odd" for i in table.item]
    found = agreement_by(table, topic, "nominal alpha", rng(), n_draws=20)
    given = {
        t: [[int(c) for c in table.code[table.item == i]] for i in range(p, 30, 2)]
        for p, t in enumerate(["even", "odd"])
    }
    for key, units in given.items():
        assert found[key].value == pytest.approx(nominal_alpha(units))
        assert found[key].n == 15
    lonely = [None] * (len(table) - 1) + ["one"]
    alone = agreement_by(table, lonely, "nominal alpha", rng())
    assert list(alone) == ["one"]
    assert alone["one"].method == "undefined: no item has two votes"
    assert agreement_by(table, topic, "Cohen's kappa", rng())["odd"].value is None
    with pytest.raises(InputError, match="found 1 keys for"):
        agreement_by(table, ["x"], "agreement", rng())


def test_windows_of_time():
    assert time_windows([0, 59, 60, 3600.5, -1], 60) == [0, 0, 60, 3600, -60]
    with pytest.raises(InputError, match="a width above 0"):
        time_windows([1.0], 0)


def test_each_raters_agreement_with_the_others():
    table = table_of([[1, 0, 1], [1, 1, None], [1, 0, 0]])
    equal, pairs = rater_agreement(table)
    assert equal.tolist() == [3, 2, 3]
    assert pairs.tolist() == [5, 4, 5]
    units = [[1, 1, 1], [0, 1, 0], [1, 0]]
    assert equal.sum() / pairs.sum() == pytest.approx(pairwise_agreement(units))


def judgement(kind, value, rater, responses=("a", "b")):
    return Judgement("t", kind, "p", responses, value, rater, (), "v1", "2026-01-01T00:00:00Z")


def test_answers_of_every_kind():
    both = {
        "comparison": ({"level": 4, "n_levels": 5}, {"level": 0, "n_levels": 5}, ("b", "a"), 1.0),
        "ranking": ({"ranks": [1, 2]}, {"ranks": [2, 1]}, ("b", "a"), 1.0),
        "best_of": ({"best": 0}, {"best": 1}, ("b", "a"), 1.0),
        "label": ({"good": True}, {"good": False, "flags": []}, ("a", "b"), 0.0),
        "rating": ({"score": 3, "low": 1, "high": 5}, {"score": 3.0, "low": 1, "high": 5}, ("a", "b"), 1.0),
    }
    for kind, (one, other, order, agreement) in both.items():
        given = [
            judgement(kind, one, "r0"),
            judgement(kind, other, "r1", order),
            judgement(kind, {"missing": "no"}, "r2"),
        ]
        table = judgement_table(given, kind)
        assert value(table, "agreement") == agreement, kind
        assert len(table.annotators) == 2
    steps = [{"start": 0, "end": 4, "mark": 1}, {"start": 4, "end": 9, "mark": -1}]
    table = judgement_table([judgement("step_marks", {"steps": steps}, w, ("a",)) for w in ("r0", "r1")], "step_marks")
    assert (len(table.items), table.domain, value(table, "interval alpha")) == (2, (-1, 0, 1), 1.0)
    flags = [judgement("label", {"flags": f}, w, ("a",)) for w, f in (("r0", ["spam"]), ("r1", []))]
    assert value(judgement_table(flags, "label", about="spam"), "agreement") == 0.0
    assert len(judgement_table(flags, "label")) == 0
    spans = {"spans": [{"response": 1, "start": 0, "end": 3, "class": "wrong"}]}
    marked = [judgement("span_marks", spans, "r0"), judgement("span_marks", {"spans": []}, "r1")]
    assert value(judgement_table(marked, "span_marks"), "agreement") == 0.5
    assert value(judgement_table(marked, "span_marks", about="rude"), "agreement") == 1.0
    scores = {"scores": {"kind": 2, "true": 5}, "low": 1, "high": 5}
    assert judgement_table([judgement("rating", scores, "r0", ("a",))], "rating", about="true").domain == (5,)


def test_what_cannot_be_compared_is_said():
    with pytest.raises(InputError, match="found the kind 'critique'"):
        judgement_table([], "critique")
    mixed = [judgement("rating", {"score": 1, "low": 0, "high": h}, "r0", ("a",)) for h in (5, 7)]
    with pytest.raises(InputError, match="expected one scale"):
        judgement_table(mixed, "rating")
    with pytest.raises(InputError, match="found the value 'x'"):
        answer_table([("i", "r", "x")], domain=("y",))
    with pytest.raises(InputError, match="cannot be sorted"):
        answer_table([("i", "r", "x"), ("i", "s", 1)])
    with pytest.raises(InputError, match="expected numbers"):
        value(answer_table([("i", "r", "x"), ("i", "s", "y")]), "interval alpha")
    with pytest.raises(InputError, match="found 3 raters; expected 2"):
        value(table_of([[1, 0], [1, 0], [1, 1]]), "Cohen's kappa")
    with pytest.raises(InputError, match="expected one of agreement"):
        value(table_of([[1], [1]]), "kappa")
    with pytest.raises(InputError, match="an index below 1"):
        AnswerTable(np.array([0]), np.array([0]), np.array([1]), ("i",), ("r",), (0,))


def test_votes_become_directions_seen_from_one_side():
    votes = [
        Vote("1", "p", "a", "b", 4, 5, 0, "r0"),
        Vote("2", "p", "b", "a", 1, 5, 0, "r1"),
        Vote("3", "p", "b", "a", 2, 5, 0, "r2"),
    ]
    assert [vote_table(votes).domain[c] for c in vote_table(votes).code] == [1, 1, 0]
    assert len(vote_table(votes, ties=False)) == 2


def test_agreement_over_few_items_has_the_jackknifes_interval():
    """Of items with equally many answers the share is a mean, whose jackknife is Student's t."""
    matrix = [[1, 1, 0, 1, 0, 1], [1, 0, 0, 1, 1, 1], [1, 1, 0, 0, 1, 1]]
    found = coefficient(table_of(matrix), "agreement", rng())
    each = [np.mean([one[i] == two[i] for one, two in itertools.combinations(matrix, 2)]) for i in range(6)]
    wanted = mean_estimate(each)
    assert found.value == pytest.approx(wanted.value)
    assert (found.low, found.high) == (
        pytest.approx(wanted.low, abs=1e-12),
        pytest.approx(min(wanted.high, 1.0), abs=1e-12),
    )
    assert found.method == "agreement, jackknife over 6 clusters, t interval, 95 %"
    alike = coefficient(table_of([[1, 1, 0], [1, 1, 0]]), "agreement", rng())
    assert (alike.value, alike.high, "all are alike" in alike.method) == (1.0, 1.0, True)
