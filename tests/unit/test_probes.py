"""Perturbations change what they say and nothing else; slices hold the comparisons they name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karat import probes
from karat.errors import InputError

TEXTS = ["The capital of France is Paris. It is large.", "yes", "", "I do not know that, sorry!"]
texts_lists = st.lists(st.text(alphabet="abc .!\n", max_size=30), min_size=2, max_size=5)


def rng(seed=0):
    return np.random.default_rng(seed)


@settings(max_examples=40, deadline=None)
@given(texts=texts_lists)
def test_every_perturbation_gives_one_text_a_text_and_repeats_from_its_seed(texts):
    for perturbation in probes.perturbations():
        changed = perturbation.apply(texts, rng(3))
        assert len(changed) == len(texts)
        assert changed == perturbation.apply(texts, rng(3))
        assert perturbation.expected in ("same", "not_better", "worse")


def test_perturbations_of_nothing_are_nothing():
    assert all(perturbation.apply([], rng()) == [] for perturbation in probes.perturbations())
    assert len({perturbation.name for perturbation in probes.perturbations()}) == len(probes.perturbations())


def test_praise_goes_to_the_end_and_every_string_is_used():
    changed = probes.append_praise(TEXTS * 20, rng())
    assert all(new.startswith(old) for new, old in zip(changed, TEXTS * 20, strict=True))
    assert {new[len(old) :].strip() for new, old in zip(changed, TEXTS * 20, strict=True)} == set(probes.PRAISE)
    assert probes.append_praise(["x", ""], rng(), praises=["ok"]) == ["x ok", "ok"]
    assert set(probes.praise_only(TEXTS, rng(), praises=["ok"])) == {"ok"}
    named = {p.name: p for p in probes.perturbations(praises=["ok"])}
    assert named["praise_appended"].apply(["x"], rng()) == ["x ok"]


def test_additions_empty_quotes_case_and_swap():
    assert probes.append_each(["x", "y"], ["a", "b"]) == [["x a", "y a"], ["x b", "y b"]]
    assert probes.empty_answers(TEXTS) == [""] * 4
    assert probes.quote_wrap(["a b"]) == ['"a b"']
    assert probes.lower_case(["So IT is. "]) == ["so it is"]
    assert probes.swap_pairs([("a", "b")]) == [("b", "a")]


def test_other_answers_are_a_rearrangement_in_which_no_text_keeps_its_place():
    texts = [str(i) for i in range(50)]
    changed = probes.shuffled_answers(texts, rng())
    assert sorted(changed) == sorted(texts)
    assert all(a != b for a, b in zip(texts, changed, strict=True))


def test_typos_hit_the_stated_fraction_of_words_and_leave_the_rest():
    text = " ".join(["wonderful"] * 40)
    words = probes.typos([text], rng(), word_frac=0.25)[0].split(" ")
    assert sum(word != "wonderful" for word in words) == 10
    assert all(word[0] == "w" and abs(len(word) - 9) <= 1 for word in words)
    assert probes.typos(["an ox is 42"], rng()) == ["an ox is 42"]
    assert probes.typos(["hello you"], rng(), word_frac=0.0) == ["hello you"]
    assert all(new != "hello you" for new in probes.typos(["hello you"] * 200, rng(1)))


def test_reformatting_keeps_the_words():
    for seed in range(8):
        for old, new in zip(TEXTS, probes.reformat(TEXTS, rng(seed)), strict=True):
            assert new.replace("*", "").replace("- ", "").split() == old.split()


def test_length_slices_by_hand():
    a, b, level = [1, 5, 3, 2, 9], [4, 2, 3, 7, 1], [2, 2, 2, 1, 0]  # a, a, a, tie, b preferred
    assert probes.shorter_won_mask(a, b, level, 3).tolist() == [True, False, False, False, True]
    assert probes.longer_won_mask(a, b, level, 3).tolist() == [False, True, False, False, False]
    assert probes.shorter_won_mask(b, a, [2 - x for x in level], 3).tolist() == [True, False, False, False, True]
    assert probes.matched_length_mask([10, 10, 10, 10], [11, 20, 40, 10], quantile=0.5).tolist() == [
        True, False, False, True,
    ]  # fmt: skip


def test_a_quarter_of_the_comparisons_is_matched_in_length_and_their_order_does_not_matter():
    g = rng(4)
    a, b = g.integers(1, 1000, 400), g.integers(1, 1000, 400)
    mask = probes.matched_length_mask(a, b)
    assert 100 <= mask.sum() <= 104
    order = g.permutation(400)
    assert (probes.matched_length_mask(a[order], b[order]) == mask[order]).all()
    assert (probes.matched_length_mask(b, a) == mask).all()
    assert probes.matched_length_mask([], []).size == 0


def test_bad_input_is_one_clear_line():
    with pytest.raises(InputError, match="found no praise strings"):
        probes.append_praise(["x"], rng(), praises=[])
    with pytest.raises(InputError, match="found 1 text; expected at least 2"):
        probes.shuffled_answers(["x"], rng())
    with pytest.raises(InputError, match=r"found word_frac 2"):
        probes.typos(["x"], rng(), word_frac=2.0)
    with pytest.raises(InputError, match=r"found \(1,\), \(2,\)"):
        probes.shorter_won_mask([1], [1, 2], [0], 2)
    with pytest.raises(InputError, match="found quantile 0"):
        probes.matched_length_mask([1], [1], quantile=0.0)
