"""Token-level rewards: the likelihood by a slow loop, planted marks found, and what is refused."""

import math

import numpy as np
import pytest
import torch

from karat.errors import CheckpointError, InputError
from karat.lm.load import load_lm
from karat.records import Response, user_prompt
from karat.reward.dense import (
    AllMarks,
    MarkedTokens,
    dense_score_fn,
    fit_dense,
    fit_marks,
    load_dense,
    marked_tokens,
    marks_loglik,
    sample_marks,
    save_dense,
    token_spans,
)
from karat.reward.mark_quality import nll
from karat.reward.mark_ridges import fit_beside, rows_of, with_side
from karat.reward.trunk import DecoderTrunk
from karat.statements import Marked, Part
from tiny_models import tiny_checkpoint

PROMPT = user_prompt("mark it")


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    return DecoderTrunk(load_lm(tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))))


def marked(n: int, seed: int = 0):
    """Letters, of which x is wrong; two steps, each wrong where it holds a z."""
    rng = np.random.default_rng(seed)
    marks, responses = [], {}
    for number in range(n):
        text = "".join(rng.choice(list("abcxz"), size=10))
        one = Response(PROMPT.id, text, "policy", number)
        responses[one.id] = one
        spans = tuple(Part(i, i + 1, 1, "wrong") for i, letter in enumerate(text) if letter == "x")
        steps = tuple(Part(i, i + 5, -1 if "z" in text[i : i + 5] else 1, "step") for i in (0, 5))
        about = (PROMPT.id, (one.id,))
        marks.append(Marked(f"s{number}", *about, spans, ("wrong",), "ann", "span_marks"))
        marks.append(Marked(f"t{number}", *about, steps, ("step",), "ann", "step_marks"))
    return marks, responses


@pytest.fixture(scope="module")
def dense(trunk):
    marks, responses = marked(16)
    return fit_dense(trunk, marks, {PROMPT.id: PROMPT}, responses)


def test_the_likelihood_is_that_of_the_slow_loop_and_its_gradient_that_of_finite_differences():
    names = ("step", "wrong")
    threshold, cuts = torch.tensor([[0.0, 0.3], [-0.4, 0.9]], dtype=torch.float64)
    scores = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    steps = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 1, 0]], dtype=torch.bool)
    inside = torch.tensor([0, 1, 1, 0, 0], dtype=torch.bool)
    one = MarkedTokens(torch.zeros(5, 1), steps, torch.tensor([2, 1]), {"wrong": inside})

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    rows = scores.tolist()
    first, second = (rows[0][0] + rows[1][0]) / 2, (rows[2][0] + rows[3][0]) / 2
    expected = math.log(1 - sigmoid(0.9 - first)) / 2
    expected += math.log(sigmoid(0.9 - second) - sigmoid(-0.4 - second)) / 2
    for row, is_in in zip(rows, inside.tolist(), strict=True):
        p = sigmoid(row[1] - 0.3)
        expected += math.log(p if is_in else 1 - p) / 5
    assert float(marks_loglik(scores, one, names, threshold, cuts).detach()) == pytest.approx(expected, rel=1e-9)
    assert torch.autograd.gradcheck(lambda s: marks_loglik(s, one, names, threshold, cuts), (scores,))


def test_drawn_marks_have_the_frequencies_of_the_likelihood():
    """2,000 tokens, each a step of its own with the same score; 5 standard errors."""
    n, names = 2000, ("step", "rude", "wrong")
    threshold, cuts = (torch.tensor(x, dtype=torch.float64) for x in ([0.0, 0.4, -0.2], [-0.4, 0.9]))
    scores = torch.tensor([[0.3, 1.1, -1.5]], dtype=torch.float64).expand(n, 3)
    nothing = torch.zeros(n, dtype=torch.bool)
    asked = MarkedTokens(
        torch.zeros(n, 1), torch.eye(n, dtype=torch.bool), torch.zeros(n, dtype=torch.long), {"wrong": nothing}
    )
    drawn = sample_marks(scores, asked, names, threshold, cuts, generator=torch.Generator().manual_seed(0))
    assert (drawn.steps is asked.steps, list(drawn.inside)) == (True, ["wrong"])  # rude was not on offer
    upto = [1 / (1 + math.exp(0.3 - cut)) for cut in (-0.4, 0.9)]
    expected = [upto[0], upto[1] - upto[0], 1 - upto[1], 1 / (1 + math.exp(1.5 - 0.2))]
    found = [*((drawn.marks == mark).double().mean() for mark in range(3)), drawn.inside["wrong"].double().mean()]
    for share, p in zip(found, expected, strict=True):
        assert abs(float(share) - p) < 5 * math.sqrt(p * (1 - p) / n)
    again = sample_marks(scores, asked, names, threshold, cuts, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.marks, drawn.marks)
    spans = MarkedTokens(torch.zeros(n, 1), nothing.expand(0, -1), torch.zeros(0, dtype=torch.long), {"wrong": nothing})
    only = sample_marks(scores, spans, names, threshold, cuts, generator=torch.Generator().manual_seed(1))
    assert len(only.marks) == 0
    assert 0 < only.inside["wrong"].sum() < n


def test_all_judgements_at_once_are_as_likely_as_one_after_the_other():
    generator, names = torch.Generator().manual_seed(1), ("rude", "step", "wrong")
    read = []
    for length, n_steps, classes in ((5, 2, ("wrong",)), (3, 0, ("rude", "wrong")), (7, 3, ()), (4, 0, ("rude",))):
        steps = torch.rand(n_steps, length, generator=generator) < 0.5
        steps[:, 0] = True
        inside = {name: torch.rand(length, generator=generator) < 0.5 for name in classes}
        marks = torch.randint(0, 3, (n_steps,), generator=generator)
        read.append(MarkedTokens(torch.zeros(length, 1), steps, marks, inside))
    scores = torch.randn(19, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    threshold, cuts = (
        torch.tensor([0.2, 0.0, -0.3], dtype=torch.float64),
        torch.tensor([-0.4, 0.9], dtype=torch.float64),
    )
    parts = zip(scores.split([5, 3, 7, 4]), read, strict=True)
    slow = sum(marks_loglik(own, one, names, threshold, cuts) for own, one in parts)
    fast = AllMarks(read, names).loglik(scores, threshold, cuts)
    assert float(fast.detach()) == pytest.approx(float(slow.detach()), rel=1e-12)
    gradients = [torch.autograd.grad(total, scores)[0] for total in (slow, fast)]
    assert torch.allclose(*gradients, rtol=1e-12, atol=1e-14)


def test_planted_spans_and_steps_are_found_in_texts_never_marked(dense):
    marks, responses = marked(12, seed=9)
    texts = [one.text for one in responses.values()]
    scores = dense.token_scores([PROMPT] * len(texts), texts)
    column = dense.names.index("wrong")
    inside, outside = [], []
    for text, own in zip(texts, scores, strict=True):
        for (start, end), value in zip(token_spans(dense.trunk, text).tolist(), own[:, column].tolist(), strict=True):
            if end - start == 1:
                (inside if text[start] == "x" else outside).append(value)
    auroc = np.mean([[a > b for b in outside] for a in inside])
    assert auroc > 0.95
    rewards = dense.rewards([PROMPT] * len(texts), texts, {"step": 1.0})
    n_wrong = [sum(part.mark < 0 for part in mark.parts) for mark in marks if mark.kind == "step_marks"]
    totals = [float(reward.sum()) for reward in rewards]
    assert np.mean([t for t, n in zip(totals, n_wrong, strict=True) if n < 2]) > np.mean(
        [t for t, n in zip(totals, n_wrong, strict=True) if n == 2]
    )


def test_rewards_are_one_a_token_and_only_their_own_class_moves_them(dense):
    (plain,) = dense.rewards([PROMPT], ["abcx"], {"wrong": -1.0})
    assert plain.shape == (len(token_spans(dense.trunk, "abcx")),)
    assert -1 < float(plain.sum()) < 0
    (none,) = dense.rewards([PROMPT], ["abcx"], {"wrong": 0.0})
    assert float(none.abs().sum()) == 0
    with pytest.raises(InputError, match="found no marks of 'rude'; expected some of step, wrong"):
        dense.rewards([PROMPT], ["abcx"], {"rude": 1.0})


def test_every_step_is_paid_at_its_end_by_the_probability_that_it_is_not_wrong(dense):
    text = "abca zza.\nbbz\nabcab"
    (paid,) = dense.rewards([PROMPT], [text], {"step": 2.0}, step_pay="every")
    (scores,) = dense.token_scores([PROMPT], [text])
    column, spans = scores[:, dense.names.index("step")], token_spans(dense.trunk, text).tolist()
    expected = [0.0] * len(spans)
    for start, end in ((0, 9), (10, 13), (14, 19)):  # its lines
        inside = [t for t, (a, b) in enumerate(spans) if b > a and a < end and b > start]
        mean = sum(float(column[t]) for t in inside) / len(inside)
        wrong = 1 / (1 + math.exp(mean - float(dense.cutpoints[0])))
        expected[inside[-1]] = 2 * math.log(1 - wrong)
    assert paid.tolist() == pytest.approx(expected, rel=1e-5)
    assert sum(value != 0 for value in expected) == 3
    good, bad = dense.rewards(
        [PROMPT] * 2, ["abcab\ncbabc\nabcba", "abcab\nzzbzz\nabcba"], {"step": 1.0}, step_pay="every"
    )
    assert float(good.sum()) > float(bad.sum())
    (none,) = dense.rewards([PROMPT], [""], {"step": 1.0}, step_pay="every")
    assert not none.any()


@pytest.mark.parametrize("text", ["abc x", " led by a blank", "ünïcode, слова"])
def test_tokens_know_which_characters_they_are(trunk, text):
    spans = token_spans(trunk, text)
    assert len(spans) == len(trunk.encode([PROMPT], [text])[0].response)
    covered = {i for start, end in spans.tolist() for i in range(start, end)}
    assert covered == set(range(len(text)))


def test_what_an_optimiser_gets_ends_with_its_token_and_sums_to_the_reward_of_the_response(dense):
    texts = ["abcx", "zz xa", ""]
    weights = {"wrong": -1.0, "step": 0.5}
    marks = dense_score_fn(dense, weights)([PROMPT] * 3, texts)
    rewards = dense.rewards([PROMPT] * 3, texts, weights)
    for text, own, row in zip(texts, marks, rewards, strict=True):
        assert [reward for _, reward in own] == pytest.approx(row.tolist())
        ends = [end for end, _ in own]
        assert ends == sorted(ends)
        assert ends[-1] == len(text) + 1  # the end-of-sequence token
        assert all(1 <= end <= max(len(text), 1) for end in ends[:-1])
    with pytest.raises(InputError, match="found no marks of 'rude'"):
        dense_score_fn(dense, {"rude": 1.0})([PROMPT], ["abc"])


def test_it_is_saved_and_loaded_whole(dense, tmp_path):
    save_dense(dense, tmp_path, metadata={"run_id": "r"})
    again = load_dense(tmp_path, dense.trunk)
    assert again.names == dense.names
    for old, new in zip(*(one.token_scores([PROMPT], ["abx"]) for one in (dense, again)), strict=True):
        assert torch.equal(old, new)
    with pytest.raises(CheckpointError, match=r"found no dense\.safetensors"):
        load_dense(tmp_path / "none", dense.trunk)


def test_heads_that_read_words_and_places_find_what_stands_last_and_are_saved_whole(trunk, tmp_path):
    """A mark on the last word, whatever it is: the place says it, and no trunk with random weights does."""
    rng = np.random.default_rng(4)
    marks, responses = [], {}
    prompts = {}
    for number in range(24):
        prompt = user_prompt(f"mark {number}")
        prompts[prompt.id] = prompt
        text = " ".join("".join(rng.choice(list("abc"), size=3)) for _ in range(4)) + ". ab"
        one = Response(prompt.id, text, "policy", number)
        responses[one.id] = one
        last = (Part(len(text) - 2, len(text), 1, "last"),)
        marks.append(Marked(f"s{number}", prompt.id, (one.id,), last, ("last",), "ann", "span_marks"))
    read = [marked_tokens(trunk, mark, prompts, responses) for mark in marks]
    rows = rows_of(trunk, marks, prompts, responses)
    found, heads, side = fit_beside(trunk, marks[:18], read[:18], rows[:18], ("ngrams", "place", "overlap", "numbers"))
    alone = fit_dense(trunk, marks[:18], prompts, responses)
    kept = with_side(side, read[18:], rows[18:])
    ours = np.mean([nll(heads, one, ("last",)) for one in kept])
    theirs = np.mean([nll(alone, one, ("last",)) for one in read[18:]])
    assert ours < theirs
    texts, own = [responses[mark.response_ids[0]].text for mark in marks], [prompts[mark.prompt_id] for mark in marks]
    scores = found.token_scores(own[18:], texts[18:])
    for one, column in zip(kept, scores, strict=True):  # as saved: single n-grams and columns
        assert column[:, 0].numpy() == pytest.approx(
            (one.features @ heads.weight.T - heads.threshold)[:, 0].numpy(), abs=1e-3
        )
    save_dense(found, tmp_path, metadata={})
    again = load_dense(tmp_path, trunk).token_scores(own[18:], texts[18:])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(scores, again, strict=True))


def test_a_ridge_of_each_weight_is_the_plain_one_where_they_are_alike_and_shrinks_where_it_is_large():
    generator = torch.Generator().manual_seed(0)
    read = []
    for _ in range(12):
        features = torch.randn(9, 4, generator=generator)
        inside = {"x": features[:, 0] + features[:, 1] > 0.5}
        read.append(
            MarkedTokens(features, torch.zeros(0, 9, dtype=torch.bool), torch.zeros(0, dtype=torch.long), inside)
        )
    plain, alike = fit_marks(read, ("x",)), fit_marks(read, ("x",), ridge=torch.ones(1, 4))
    assert torch.allclose(plain.weight, alike.weight, atol=1e-4)
    uneven = fit_marks(read, ("x",), ridge=torch.tensor([[1.0, 1e4, 1.0, 1.0]]))
    assert abs(float(uneven.weight[0, 1])) < 0.01 < abs(float(plain.weight[0, 1]))


def test_nothing_marked_is_an_error(trunk):
    with pytest.raises(InputError, match="found no span marks, step marks or corrections"):
        fit_dense(trunk, [], {}, {})
