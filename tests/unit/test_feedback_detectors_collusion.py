"""Rings are found by what their members share, honest crowds have none, and one device alone is a family."""

import math

import numpy as np
import pytest

from detector_crowds import crowd, names, replaced, ring
from karat.feedback.detect.collusion import FOLLOWING, KEY, rings
from karat.feedback.detect.habits import robust_habits
from karat.feedback.detect.marks import crowd_p_values, fit_crowd
from karat.feedback.detect.sketches import NO_SKETCH, near_copies, sketches
from karat.feedback.detect.sybils import sybil_flags

ALPHA = 0.001


def rings_of(record, **options):
    return rings(record, *robust_habits(record), alpha=ALPHA, **options)


def sybils_of(record):
    return sybil_flags(record, *robust_habits(record), alpha=ALPHA)


def test_two_rings_are_found_whole_and_apart():
    record = ring(ring(crowd(1), [3, 30, 60, 90, 110]), [5, 50, 100, 115], seed=6)
    found = {flag.annotators for flag in rings_of(record)}
    assert found == {("r3", "r30", "r60", "r90", "r110"), ("r5", "r50", "r100", "r115")}


def test_an_honest_crowd_has_no_ring_even_where_all_answer_the_same_questions():
    for seed in range(3):
        assert rings_of(crowd(seed, n_raters=60, n_prompts=12)) == ()


def test_honest_pairs_have_evidence_of_mean_one():
    # P(any group found) ≤ α is Markov's inequality on this mean
    from karat.feedback.detect import collusion

    ratios = []
    for seed in range(4):
        record = crowd(20 + seed, n_raters=60, n_prompts=12)
        votes = collusion._eligible(record, *robust_habits(record))
        _, log_odds, n_pairs = collusion._pairs(votes, record.n_annotators, None)
        assert len(log_odds) == n_pairs == 60 * 59 / 2
        ratios.append(np.exp(log_odds).mean())
    assert np.mean(ratios) < 1.1


def test_the_evidence_of_a_pair_is_that_of_the_two_models_written_out():
    from karat.feedback.detect import collusion

    record = ring(crowd(2, n_raters=40), [0, 1])
    pool, habits = robust_habits(record)
    votes = collusion._eligible(record, pool, habits)
    ours = collusion._group_evidence(votes, [0, 1])
    total = 0.0
    for i in votes.of(0):
        partner = [j for j in votes.of(1) if votes.item[j] == votes.item[i]]
        if not partner:
            continue
        (j,) = partner
        hidden = votes.pool.weight[j] * (votes.answer[j] == np.arange(3))
        first, key = (table[0] for table in votes.probs(np.array([i]), hidden[None]))
        second = votes.probs(np.array([j]))[0][0]
        x, y = votes.answer[i], votes.answer[j]
        joint = sum(
            key[k] * (FOLLOWING * (x == k) + (1 - FOLLOWING) * first[x])
            * (FOLLOWING * (y == k) + (1 - FOLLOWING) * second[y])
            for k in range(3)
        )  # fmt: skip
        alone = sum(key[k] * (FOLLOWING * (x == k) + (1 - FOLLOWING) * first[x]) for k in range(3))
        total += math.log(joint / alone / second[y])
    assert ours == pytest.approx(total)
    assert KEY.sum() == pytest.approx(1)


def test_a_member_with_too_few_votes_is_not_named():
    record = ring(crowd(3), [3, 30, 60, 90, 110])
    rows = np.flatnonzero(record.annotator == 110)[7:]
    kept = np.setdiff1d(np.arange(len(record)), rows)
    columns = ("item", "a", "b", "level", "n_levels", "side", "annotator")
    fewer = replaced(record, **{name: getattr(record, name)[kept] for name in columns})
    assert names(rings_of(fewer)) == {"r3", "r30", "r60", "r90"}


def test_a_flag_says_what_was_seen_and_what_is_usual():
    (flag,) = rings_of(ring(crowd(1), [3, 30, 60, 90]))
    assert flag.detector == "ring"
    assert flag.detail.startswith("4 raters gave the same answer in ")
    assert 0 < flag.p_value <= 0.06
    assert flag.n_votes == 120


def test_a_shared_device_alone_is_no_flag_and_spares_the_search():
    record = crowd(4)
    family = np.where(np.isin(record.annotator, [1, 2]), 7, 100 + record.annotator)
    assert sybils_of(replaced(record, device=family)) == ()
    pair = ring(record, [1, 2])
    found = sybils_of(replaced(pair, device=family))
    assert names(found) == {"r1", "r2"}
    assert found[0].detail.startswith("one device, and 2 raters")
    crowded = np.where(record.annotator < 30, 7, 100 + record.annotator)
    assert sybils_of(replaced(record, device=crowded)) == ()


def words(rng, n=10):
    return " ".join(f"word{i}" for i in rng.integers(0, 3000, n))


def test_copied_rationales_link_accounts_and_stock_phrases_do_not():
    rng = np.random.default_rng(0)
    record = crowd(5)
    own = [words(rng) for _ in range(len(record))]
    usual = [words(rng, 12) for _ in range(4)]
    stock = [usual[rng.integers(4)] if rng.random() < 0.5 else one for one in own]
    assert sybils_of(replaced(record, rationales=tuple(stock))) == ()
    copied = list(stock)
    rows = [np.flatnonzero(record.annotator == w)[:8] for w in (7, 70, 77)]
    for same in zip(*rows, strict=True):
        text = words(rng, 14)
        for row in same:
            copied[row] = text.upper() + "!"
    (flag,) = sybils_of(replaced(record, rationales=tuple(copied)))
    assert flag.annotators == ("r7", "r70", "r77")
    assert " different rationales in nearly the same words (usual: " in flag.detail


def test_answers_in_the_same_moments_link_accounts():
    rng = np.random.default_rng(1)
    record = ring(crowd(6, n_prompts=30), [1, 2])
    at = rng.uniform(0, 1e6, len(record))
    assert not any("within 20 s" in flag.detail for flag in sybils_of(replaced(record, submitted_at=at)))
    one, two = (np.flatnonzero(record.annotator == w) for w in (1, 2))
    at[two] = at[one] + rng.uniform(1, 15, len(one))
    (flag,) = sybils_of(replaced(record, submitted_at=at))
    assert flag.annotators == ("r1", "r2")
    assert "30 of 30 shared sittings sent within 20 s" in flag.detail


def test_questions_sent_together_are_one_moment():
    rng = np.random.default_rng(1)
    record = ring(crowd(6, n_prompts=30), [1, 2])
    at = np.round(rng.uniform(0, 1e6, len(record)))
    one, two = (np.flatnonzero(record.annotator == w) for w in (1, 2))
    at[one] = at[one[np.arange(30) // 5 * 5]]  # six sittings of five questions
    at[two] = at[one]
    at[two] += np.where(np.arange(30) < 10, 5, 500)
    assert not any("within 20 s" in flag.detail for flag in sybils_of(replaced(record, submitted_at=at)))


def test_sketches_estimate_the_jaccard_similarity():
    rng = np.random.default_rng(2)
    found = []
    for _ in range(200):
        shared, left, right = words(rng, 22), words(rng, 7), words(rng, 7)
        a, b = f"{shared} {left}", f"{shared} {right}"
        sets = [{tuple(text.split()[i : i + 3]) for i in range(len(text.split()) - 2)} for text in (a, b)]
        one, two = sketches([a, b])
        found.append(((one == two).mean(), len(sets[0] & sets[1]) / len(sets[0] | sets[1])))
    estimate, truth = np.array(found).T
    # 200 sketches of 32 hashes: standard error of the mean 0.006
    assert abs((estimate - truth).mean()) < 0.025


def test_near_copies_are_grouped_and_short_or_empty_texts_are_nobodys():
    rng = np.random.default_rng(3)
    long = words(rng, 30)
    texts = [long, long + " indeed", words(rng, 30), "a is better", "", "\u202e\U0001f600 💥", long.title()]
    group = near_copies(sketches(texts))
    assert group[0] == group[1] == group[6] != group[2]
    assert group[3:6].tolist() == [-1, -1, -1]
    assert (sketches([""]) == NO_SKETCH).all()


def test_the_crowd_of_marks_is_recovered_beside_a_tenth_of_outsiders():
    rng = np.random.default_rng(4)
    n = np.full(2000, 30)
    k = rng.binomial(n, rng.beta(0.2 * 9, 0.8 * 9, 2000))
    k[:200] = 30
    found = fit_crowd(k, n)
    assert found.mean == pytest.approx(0.2)
    assert found.correlation == pytest.approx(0.1)
    p = crowd_p_values(k, n, found)
    assert (p[200:] <= 0.01).mean() <= 0.01 + 4 * (0.01 / 1800) ** 0.5
    assert (p[:200] < 1e-4).all()
