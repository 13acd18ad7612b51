"""The studies of real feedback: measures by slow loops, folds and fits that see no test row, tokens and their classes."""

from __future__ import annotations

import gzip
import json
import math

import numpy as np
import pytest
from bench.real.agreement import agreement
from bench.real.data import (
    MARKUP,
    SYSTEMS,
    final_answer,
    folds_of,
    inner_split,
    key_of,
    marked_answers,
    solutions,
    truths,
)
from bench.real.measures import (
    auroc_figures,
    grouped_auroc,
    majority_scores,
    members_of,
    pick_figures,
    picked,
    within_figures,
)
from bench.real.report import difference, figure
from bench.real.spans import Tokens, nearby_grams, position_features, sentence_starts, span_head, tokens_of
from bench.real.systems import (
    comparison_reward,
    fit_logistic,
    grams_of,
    label_reward,
    ngram_scores,
    right_over_wrong,
)
from scipy import sparse


def test_an_auroc_compares_rows_of_one_group_only_and_counts_ties_half():
    rng = np.random.default_rng(0)
    scores, outcomes = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.4
    groups, weights = rng.choice(["a", "b", "c"], 60), rng.integers(0, 3, (4, 60)).astype(float)
    found = grouped_auroc(scores, outcomes, groups, weights)
    for weight, value in zip(weights, found, strict=True):
        won = pairs = 0.0
        for i in range(60):
            for j in range(60):
                if outcomes[i] and not outcomes[j] and groups[i] == groups[j]:
                    pairs += weight[i] * weight[j]
                    won += weight[i] * weight[j] * (1.0 if scores[i] > scores[j] else 0.5 * (scores[i] == scores[j]))
        assert value == pytest.approx(won / pairs, abs=1e-12)
    assert math.isnan(grouped_auroc(scores, outcomes, outcomes.astype(str), weights)[0])


def test_intervals_hold_the_value_and_differences_are_paired():
    rng = np.random.default_rng(1)
    outcomes, clusters = rng.random(200) < 0.5, rng.integers(0, 40, 200)
    good = outcomes + rng.normal(0, 1, 200)
    found = auroc_figures({"a": good, "b": good, "c": -good}, outcomes, clusters % 2, clusters, [("a", "b")], 0)
    assert found["a − b"]["value"] == found["a − b"]["low"] == found["a − b"]["high"] == 0
    assert found["a"]["low"] < found["a"]["value"] < found["a"]["high"]
    assert found["a"]["value"] + found["c"]["value"] == pytest.approx(1, abs=2e-4)
    assert found["a"]["n"] == len(np.unique(clusters))


def test_pairs_within_a_cluster_by_a_slow_loop():
    rng = np.random.default_rng(2)
    scores, outcomes, clusters = rng.integers(0, 4, 80).astype(float), rng.random(80) < 0.5, rng.integers(0, 20, 80)
    won = pairs = 0.0
    for i in range(80):
        for j in range(80):
            if clusters[i] == clusters[j] and outcomes[i] and not outcomes[j]:
                pairs += 1
                won += 1.0 if scores[i] > scores[j] else 0.5 * (scores[i] == scores[j])
    found = within_figures({"a": scores}, outcomes, clusters, [], 0)
    assert found["a"]["value"] == pytest.approx(won / pairs, abs=1e-4)
    assert within_figures({"a": scores}, np.ones(80, bool), clusters, [], 0) == {}


def test_a_pick_among_four_by_a_slow_loop():
    rng = np.random.default_rng(3)
    key = np.repeat([f"q{i}" for i in range(30)], 4)[rng.permutation(120)]
    scores, right = rng.integers(0, 3, 120).astype(float), rng.random(120) < 0.5
    found = picked(scores, right, key)
    for question, value in zip(sorted(set(key)), found, strict=True):
        own = [i for i in range(120) if key[i] == question]
        best = max(scores[i] for i in own)
        top = [right[i] for i in own if scores[i] == best]
        assert value == pytest.approx(sum(top) / len(top))
    assert picked(np.zeros(120), right, key).mean() == pytest.approx(right.mean())
    figures = pick_figures({"a": found, "b": found}, [("a", "b")], 0)
    assert figures["a"]["value"] == pytest.approx(found.mean(), abs=1e-4)
    assert figures["a − b"]["value"] == 0


def test_the_majority_is_the_answer_given_most_often():
    key = np.array(["p"] * 4 + ["q"] * 4)
    answers = ["7", "8", "8", "9", "1", "2", "1", "2"]
    right = np.array([False, True, True, False, True, False, True, False])
    assert picked(majority_scores(answers, key), right, key).tolist() == [1.0, 0.5]
    assert final_answer("A: was 3 apples\nA: 12") == "12"
    assert MARKUP.sub("", "2*3 = <<2*3=6>>6 apples") == "2*3 = 6 apples"


def test_no_question_stands_on_both_sides():
    key = np.array([f"question {i % 37}" for i in range(150)])
    fold = folds_of(key, 5)
    assert set(fold) == set(range(5))
    assert all(len(set(fold[own])) == 1 for own in members_of(key))
    train = fold != 2
    fit, choose = inner_split(key, train)
    assert not set(key[fit]) & set(key[choose])
    assert (fit | choose == train).all()
    assert choose.any()
    assert key_of("Is it TRUE?") == key_of("is it true") != key_of("is it untrue")


def noisy(n: int = 90):
    """Answers of which more are right where the first feature, and the word "good", say so."""
    rng = np.random.default_rng(4)
    right = rng.random(n) < 0.5
    features = rng.normal(0, 1, (n, 4)) + np.outer(right, [1.5, 0, 0, 0])
    texts = [f"{'good' if r != (rng.random() < 0.2) else 'bad'} word{i % 7}" for i, r in enumerate(right)]
    key = np.array([f"q{i // 3}" for i in range(n)])
    return features, right, texts, key


def test_no_score_of_a_test_row_depends_on_a_test_outcome():
    features, right, texts, key = noisy()
    train = folds_of(key, 3) != 0
    turned = np.where(train, right, ~right)
    inner, ones, grams = inner_split(key, train), np.ones(len(right)), [grams_of(texts)]
    for scores in (
        lambda y: label_reward(features, y, train),
        lambda y: comparison_reward(features, y, key, train),
        lambda y: ngram_scores(grams, y[:, None], ones, *inner)[0][:, 0],
    ):
        found = scores(right)
        assert np.array_equal(found, scores(turned))
        assert grouped_auroc(found[~train], right[~train], np.zeros((~train).sum()), np.ones((1, (~train).sum()))) > 0.6


def test_comparisons_are_right_over_wrong_of_one_training_question():
    _, right, _, key = noisy()
    train = folds_of(key, 3) != 0
    found = set(zip(*(own.tolist() for own in right_over_wrong(right, key, train)), strict=True))
    n = range(len(key))
    assert found == {(i, j) for i in n for j in n if train[i] and key[i] == key[j] and right[i] and not right[j]}


def test_the_ngram_fit_is_the_maximum_of_the_slow_likelihood():
    rng = np.random.default_rng(5)
    matrix, rows = rng.random((6, 3)), rng.integers(0, 6, 20)
    outcomes, weight = rng.random((20, 2)) < 0.5, rng.random(20)
    which = sparse.csr_matrix((np.ones(20), (np.arange(20), rows)), (20, 6))
    (found,), threshold = fit_logistic([(sparse.csr_matrix(matrix), which)], outcomes, weight, 0.3)

    def loss(w, b):
        total = 0.3 / 2 * sum(float(x) ** 2 for x in w.ravel())
        for n in range(20):
            for k in range(2):
                eta = b[k] + sum(matrix[rows[n], f] * w[f, k] for f in range(3))
                total += weight[n] * math.log1p(math.exp(-eta if outcomes[n, k] else eta))
        return total

    best = loss(found, threshold)
    for _ in range(20):
        w, b = found + 1e-2 * rng.normal(size=found.shape), threshold + 1e-2 * rng.normal(size=2)
        assert loss(w, b) > best


def test_tokens_are_of_the_classes_that_touch_them_and_know_their_sentence(tmp_path):
    text = "One is so. Two, too! Three"
    error = {"error type": "Irrelevant", "start": 4, "end": 7}
    empty, beyond = error | {"start": 3, "end": 3}, error | {"end": 99}
    other = error | {"error type": "Redundant", "start": 11, "end": 20}
    write(
        tmp_path, "fine_grained_qa/feedback", [row(text, [error, empty, other]), row("Fine.", []), row(text, [beyond])]
    )
    found = marked_answers(tmp_path)
    assert (found.n_unusable, len(found.marks), found.passages[0]) == (2, 3, "T a b\nU c")
    spans = [np.array([[0, 3], [4, 6], [7, 10], [11, 14], [21, 26]]), np.array([[0, 4]]), np.array([[0, 3]])]
    tokens = tokens_of(spans, found.marks)
    assert tokens.names == ("Irrelevant", "Redundant")
    assert tokens.inside[:5].tolist() == [[False, False], [True, False], [False, False], [False, True], [False, False]]
    assert not tokens.inside[5:].any()
    assert tokens.weight.tolist() == [0.2] * 5 + [1, 1]
    assert sentence_starts(text).tolist() == [0, 11, 21]
    places = position_features(list(found.texts), tokens)
    assert places[:5, 3].tolist() == [1, 1, 1, 0, 0]
    assert places[:5, 4].tolist() == [0, 0, 0, 0, 1]
    windows, sentences = nearby_grams(list(found.texts), tokens)
    assert len(set(sentences.rows[:3].tolist())) == 1 != len(set(windows.rows[:3].tolist()))


def test_a_span_head_finds_planted_tokens_and_sees_no_other_answer():
    rng = np.random.default_rng(6)
    answer = np.repeat(np.arange(12), 10)
    inside = rng.random((120, 2)) < 0.4
    features = (rng.normal(0, 0.5, (120, 5)) + inside @ (3 * np.eye(2, 5))).astype(np.float32)
    tokens = Tokens(answer, np.zeros((120, 2), int), inside, ("a", "b"))
    train = answer % 3 > 0
    scores = span_head(features, tokens, train)
    turned = Tokens(answer, tokens.spans, np.where(train[:, None], inside, ~inside), tokens.names)
    assert np.array_equal(scores, span_head(features, turned, train))
    for k in range(2):
        own = ~train
        assert grouped_auroc(scores[own, k], inside[own, k], np.zeros(own.sum()), np.ones((1, own.sum())))[0] > 0.9


def write(folder, name, rows):
    path = folder / f"{name}.jsonl.gz"
    path.parent.mkdir()
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in rows)


def row(text, errors):
    return {
        "question": "what?",
        "passages": [["T", "a b"], ["U", "c"]],
        "prediction 1": text,
        "feedback": {"errors": errors},
    }


def test_sums_and_truths_are_read_as_they_stand(tmp_path):
    own = {name: {"is_correct": name == SYSTEMS[2], "solution": f"{name} <<1+1=2>>2\nA: 2"} for name in SYSTEMS}
    write(tmp_path, "gsm8k_solutions/solutions", [own | {"question": "1 + 1?"}])
    sums = solutions(tmp_path)
    assert sums.right.tolist() == [False, False, True, False]
    assert sums.texts[0] == "6b_finetuning 2\nA: 2"
    assert len(set(sums.key)) == 1
    said = [{"prompt": "Q: So?\nA: Yes:\nA: no\nTrue:", "completion": " yes"}]
    write(tmp_path, "truthfulqa_labels/labels", said)
    truth = truths(tmp_path)
    assert (truth.questions, truth.texts, truth.right.tolist()) == (("So?\nA: Yes:",), ("no",), [True])


def test_figures_are_written_without_leading_zeros():
    assert figure({"value": 0.5, "low": 0.25, "high": 1.0}) == ".500 [.250, 1.000]"
    assert difference({"value": -0.01, "low": None, "high": None}) == "−.010"
    assert difference({"value": 0.02, "low": -0.01, "high": 0.03}) == "+.020 [−.010, .030]"
    assert figure({"value": None, "low": None, "high": None}) == "not estimable"


def test_answers_to_one_question_agree_in_their_final_numbers_and_results():
    texts = ["2 + 3 = 5\nA: 5", "4 + 1 = 5\n5 * 2 = 10\nA: 10", "2 + 3 = 5\nA: 5", "A: 7", "9 - 2 = 7"]
    found = agreement(texts, np.array(["p", "p", "p", "p", "q"]))
    assert found[0].tolist() == pytest.approx([1 / 3, 1, 2 / 3, 1 / 2, 2 / 3, 2 / 3, 3 / 4, 1 / 3, 1 / 6])
    assert found[1, :2].tolist() == [0, 0]
    assert found[1, 7] == pytest.approx(2 / 3)  # two of three agree against it
    assert found[4].tolist() == [0] * 9  # without rivals
