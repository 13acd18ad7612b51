"""The whole battery: who is named, who never is, and at what rate."""

import numpy as np
import pytest

from detector_crowds import crowd, names, replaced, ring, shown_first, with_levels
from karat.errors import InputError
from karat.feedback.detect.detectors import ALPHA, MIN_VOTES, battery, flippers, side_clickers
from karat.feedback.detect.habits import robust_habits


def run(record, **options):
    return battery(record, np.random.default_rng(0), **options)


def test_each_kind_is_named_by_its_own_detector():
    record = ring(crowd(1), [100, 101, 102, 103])
    record = with_levels(record, [1, 2], 2 - record.level)
    record = with_levels(record, [10, 11], shown_first(record))
    record = with_levels(record, [12], 2 - shown_first(record))
    flags = run(record)
    assert names(flags, "flipper") == {"r1", "r2"}
    assert names(flags, "side-clicker") == {"r10", "r11", "r12"}
    assert names(flags, "ring") == {"r100", "r101", "r102", "r103"}
    assert len(names(flags)) <= 11
    detail = next(flag.detail for flag in flags if flag.annotators == ("r12",) and flag.detector == "side-clicker")
    assert "decided votes for the text shown second" in detail


def test_honest_raters_are_flagged_at_the_stated_rate():
    n_named = n_judged = 0
    for seed in range(6):
        record = crowd(100 + seed, n_votes=16)
        n_named, n_judged = n_named + len(names(run(record))), n_judged + record.n_annotators
    # 720 raters at 1 %: 7.2 expected at most, and 2.7 the sd
    assert n_named <= 12, n_named / n_judged


def test_alpha_adds_up_to_one_percent():
    assert sum(ALPHA.values()) == pytest.approx(0.01)


def test_below_eight_votes_nobody_is_named():
    record = crowd(2, n_votes=MIN_VOTES - 1)
    record = with_levels(ring(record, range(20, 30)), range(10), shown_first(record))
    assert run(record) == ()
    mixed = crowd(3)
    few = np.flatnonzero(mixed.annotator == 0)[MIN_VOTES - 1 :]
    kept = np.setdiff1d(np.arange(len(mixed)), few)
    columns = ("item", "a", "b", "level", "n_levels", "side", "annotator")
    mixed = replaced(mixed, **{name: getattr(mixed, name)[kept] for name in columns})
    assert "r0" not in names(run(with_levels(mixed, [0], 2 - mixed.level)))


def test_a_rater_fond_of_ties_is_no_suspect():
    record = crowd(4)
    rng = np.random.default_rng(0)
    fond = np.where(rng.random(len(record)) < 0.8, 1, record.level)
    assert not {"r0", "r1", "r2"} & names(run(with_levels(record, [0, 1, 2], fond)))


def test_without_a_known_order_nobody_clicks_a_side():
    record = with_levels(crowd(5), [1, 2], shown_first(crowd(5)))
    unknown = replaced(record, side=np.zeros(len(record), dtype=int))
    assert names(run(record), "side-clicker") == {"r1", "r2"}
    assert names(run(unknown), "side-clicker") == set()


def test_naming_a_and_b_the_other_way_round_changes_nothing():
    record = with_levels(crowd(6), [1, 2], 2 - crowd(6).level)
    swapped = replaced(record, a=record.b, b=record.a, level=2 - record.level, side=-record.side)
    assert run(record) == run(swapped)


def test_the_order_of_votes_does_not_matter():
    record = with_levels(crowd(7), [1, 2], 2 - crowd(7).level)
    order = np.random.default_rng(0).permutation(len(record))
    columns = ("item", "a", "b", "level", "n_levels", "side", "annotator")
    shuffled = replaced(record, **{name: getattr(record, name)[order] for name in columns})
    assert names(run(record)) == names(run(shuffled))


def test_the_same_seed_gives_the_same_flags():
    record = with_levels(crowd(8), [1, 2], 2 - crowd(8).level)
    assert run(record) == run(record)


def test_a_flag_says_what_was_seen_and_what_is_usual():
    record = with_levels(crowd(9), [1], 2 - crowd(9).level)
    habits = robust_habits(record)[1]
    (flag,) = flippers(record, habits, np.random.default_rng(0), alpha=0.0015)
    assert flag.annotators == ("r1",)
    assert "decided votes agree with the others; an honest rater of these questions has about" in flag.detail
    assert flag.p_value < 0.0015
    assert side_clickers(record, habits, np.random.default_rng(0), alpha=0.002) == ()


def test_a_level_of_no_detector_is_refused():
    with pytest.raises(InputError, match="for 'mind reader'; expected"):
        run(crowd(1, n_raters=10), alpha={"mind reader": 0.1})
    with pytest.raises(InputError, match=r"found alpha 0 for 'ring'; expected \(0, 1\)"):
        run(crowd(1, n_raters=10), alpha={"ring": 0})


def test_an_empty_record_has_no_flags():
    record = crowd(1, n_raters=10)
    nothing = {name: getattr(record, name)[:0] for name in ("item", "a", "b", "level", "n_levels", "side", "annotator")}
    assert run(replaced(record, **nothing)) == ()
