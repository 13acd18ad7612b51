"""Every kind's likelihood against slow loops, by finite differences, by draws, and under what must not change it."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from karat.choice import VoteBatch
from karat.errors import InputError
from karat.feedback_columns import Channel, FeedbackParams, LabelBatch, LabelParams, RankBatch, RatingBatch
from karat.feedback_likelihood import channel_information, channel_loglik, local_loglik, n_weak_orders, sample_channel
from karat.ratings import RatingParams
from reference import feedback_loops

RATERS = [(1.3, 0.4, 0.05), (0.6, -0.2, 0.2)]
COMPETENCE, SIDE_BIAS, LAPSE = (torch.tensor(column, dtype=torch.float64) for column in zip(*RATERS, strict=True))
SCORES = torch.tensor([0.3, -1.1, 2.0, 0.0, 0.7], dtype=torch.float64)
CUTS = [-1.2, -0.4, 0.4, 1.2]
TIES = [0.5, 0.2]


def params(**more) -> FeedbackParams:
    return FeedbackParams(COMPETENCE, SIDE_BIAS, LAPSE, **more)


def channel(columns, kind, name=None) -> Channel:
    rater = columns.annotator
    return Channel(name or kind, kind, 0, columns, rater, torch.ones(len(rater)), torch.arange(len(rater)))


def ranks_of(rows, raters) -> RankBatch:
    """Rows of (responses, ranks), padded to the longest."""
    width = max(len(responses) for responses, _ in rows)
    responses, ranks, mask = [], [], []
    for own, order in rows:
        fill = width - len(own)
        responses.append([*own, *[own[0]] * fill])
        ranks.append([*order, *[2] * fill])
        mask.append([True] * len(own) + [False] * fill)
    return RankBatch(torch.tensor(responses), torch.tensor(mask), torch.tensor(ranks), torch.tensor(raters))


def comparison_case():
    votes = VoteBatch(
        torch.tensor([0, 1, 2]), torch.tensor([1, 3, 4]), torch.tensor([4, 0, 2]),
        torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64), torch.tensor([0, 1, 0]), 5,
    )  # fmt: skip
    expected = [
        feedback_loops.comparison(SCORES.tolist(), a, b, level, side, RATERS[rater], CUTS)
        for a, b, level, side, rater in ((0, 1, 4, 1, 0), (1, 3, 0, -1, 1), (2, 4, 2, 0, 0))
    ]
    cuts = torch.tensor(CUTS, dtype=torch.float64)
    return channel(votes, "comparison"), params(cutpoints={"comparison": cuts}), expected


def ranking_case(ties):
    rows = [([0, 1, 2], [2, 3, 1]), ([4, 3, 1, 0], [1, 2, 4, 3] if not ties else [1, 1, 2, 2])]
    expected = [
        feedback_loops.ranking([float(SCORES[i]) for i in own], order, RATERS[rater], ties)
        for (own, order), rater in zip(rows, (0, 1), strict=True)
    ]
    log_tie = torch.tensor(ties, dtype=torch.float64).log() if ties else None
    return channel(ranks_of(rows, [0, 1]), "ranking"), params(log_tie=log_tie), expected


def best_of_case():
    rows = [([0, 1, 2], [2, 2, 1]), ([4, 3, 1, 0], [2, 1, 2, 2])]
    own = [[float(SCORES[i]) for i in responses] for responses, _ in rows]
    expected = [feedback_loops.best_of(own[0], 2, RATERS[0]), feedback_loops.best_of(own[1], 1, RATERS[1])]
    return channel(ranks_of(rows, [0, 1]), "best_of"), params(), expected


def rating_case():
    rated = [(0, 0.75, 0), (2, 0.5, 1)]
    own = RatingParams(*(torch.tensor(v, dtype=torch.float64) for v in ([0.5, 0.3], [0.2, 0.1], [0.2, 0.4])))
    response, value, rater = (torch.tensor(column) for column in zip(*rated, strict=True))
    expected = [
        feedback_loops.gaussian_rating(float(SCORES[i]), y, float(own.offset[w]), float(own.gain[w]), float(own.sd[w]))
        for i, y, w in rated
    ]
    return channel(RatingBatch(response, value.double(), rater), "rating"), params(ratings={"rating": own}), expected


def ordinal_case():
    rated = [(0, 3, 0), (2, 0, 1), (1, 1, 1)]
    cuts = [-1.0, 0.1, 0.9]
    own = RatingParams(*(torch.tensor(v, dtype=torch.float64) for v in ([0.5, -0.3], [0.8, 1.1], [1.0, 1.0], cuts)))
    response, level, rater = (torch.tensor(column) for column in zip(*rated, strict=True))
    expected = [
        feedback_loops.ordinal_rating(float(SCORES[i]), k, float(own.offset[w]), float(own.gain[w]), cuts)
        for i, k, w in rated
    ]
    columns = RatingBatch(response, level.double(), rater, 4)
    return channel(columns, "rating"), params(ratings={"rating": own}), expected


def label_case():
    labelled = [(0, True, 0), (2, False, 1)]
    own = LabelParams(torch.tensor([0.5, -0.7], dtype=torch.float64), torch.tensor(1.4, dtype=torch.float64))
    response, good, rater = (torch.tensor(column) for column in zip(*labelled, strict=True))
    expected = [feedback_loops.label(float(SCORES[i]), g, float(own.threshold[w]), 1.4) for i, g, w in labelled]
    return channel(LabelBatch(response, good, rater), "label"), params(labels={"label": own}), expected


CASES = {
    "comparison": comparison_case,
    "ranking": lambda: ranking_case([]),
    "ranking with ties": lambda: ranking_case(TIES),
    "best_of": best_of_case,
    "rating": rating_case,
    "ordinal rating": ordinal_case,
    "label": label_case,
}


@pytest.mark.parametrize("kind", CASES)
def test_the_likelihood_is_that_of_the_slow_loop(kind):
    one, own, expected = CASES[kind]()
    assert channel_loglik(SCORES, one, own).exp().tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", CASES)
def test_the_gradient_is_that_of_finite_differences(kind):
    one, own, _ = CASES[kind]()
    scores = SCORES.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: channel_loglik(s, one, own), (scores,))


@pytest.mark.parametrize("kind", CASES)
def test_draws_of_the_scores_are_scored_one_by_one(kind):
    one, own, _ = CASES[kind]()
    draws = torch.stack([SCORES, SCORES.flip(0), 0 * SCORES])
    together = channel_loglik(draws, one, own)
    assert torch.allclose(together, torch.stack([channel_loglik(row, one, own) for row in draws]), atol=1e-12)


@pytest.mark.parametrize("kind", CASES)
def test_order_and_numbering_of_statements_and_texts_change_nothing(kind):
    one, own, _ = CASES[kind]()
    loglik = channel_loglik(SCORES, one, own)
    back = torch.arange(len(one)).flip(0)
    assert torch.equal(channel_loglik(SCORES, one.select(back), own), loglik.flip(0))
    place = torch.tensor([3, 0, 4, 1, 2])
    moved = torch.empty_like(SCORES)
    moved[place] = SCORES
    assert torch.equal(channel_loglik(moved, one.renumbered(place), own), loglik)


@pytest.mark.parametrize("kind", ["comparison", "ranking", "ranking with ties", "best_of"])
def test_a_constant_added_to_all_scores_changes_no_choice(kind):
    one, own, _ = CASES[kind]()
    assert torch.allclose(channel_loglik(SCORES + 5, one, own), channel_loglik(SCORES, one, own), atol=1e-9)


@pytest.mark.parametrize("kind", ["ranking", "ranking with ties", "best_of"])
def test_padding_changes_nothing(kind):
    one, own, _ = CASES[kind]()
    columns = one.columns
    wider = RankBatch(
        torch.cat([columns.responses, torch.full((2, 1), 4)], 1),
        torch.cat([columns.mask, torch.zeros(2, 1, dtype=torch.bool)], 1),
        torch.cat([columns.ranks, torch.full((2, 1), 1)], 1),
        columns.annotator,
    )
    other = dataclasses.replace(one, columns=wider)
    assert torch.allclose(channel_loglik(SCORES, other, own), channel_loglik(SCORES, one, own), atol=1e-12)


def test_a_ranking_of_two_is_bradley_terry():
    one = channel(ranks_of([([0, 1], [1, 2]), ([2, 3], [2, 1])], [0, 0]), "ranking")
    none = torch.zeros(1, dtype=torch.float64)
    own = FeedbackParams(torch.ones(1, dtype=torch.float64), none, none)
    expected = torch.nn.functional.logsigmoid(torch.stack([SCORES[0] - SCORES[1], SCORES[3] - SCORES[2]]))
    assert torch.allclose(channel_loglik(SCORES, one, own), expected, atol=1e-12)


@pytest.mark.parametrize("kind", CASES)
def test_drawn_answers_have_the_frequencies_of_the_likelihood(kind):
    """20,000 draws of the first statement; 5 standard errors."""
    one, own, _ = CASES[kind]()
    n = 20_000
    many = one.select(torch.zeros(n, dtype=torch.long))
    drawn = sample_channel(SCORES, many, own, generator=torch.Generator().manual_seed(0))
    columns = drawn.columns
    if kind == "rating":
        mean, sd = 0.5 + 0.2 * 0.3, 0.2
        assert abs(float(columns.value.mean()) - mean) < 5 * sd / math.sqrt(n)
        assert abs(float(columns.value.std()) - sd) < 5 * sd / math.sqrt(2 * n)
        return
    outcome = {VoteBatch: "level", RankBatch: "ranks", RatingBatch: "value", LabelBatch: "good"}[type(columns)]
    given = getattr(columns, outcome)
    given = given[:, :3] if given.ndim == 2 else given.unsqueeze(1)
    distinct, first = np.unique(given.numpy(), axis=0, return_index=True)
    probs = channel_loglik(SCORES, drawn, own).exp()
    total = 0.0
    for row, index in zip(distinct, first, strict=True):
        p = float(probs[int(index)])
        share = float((given == torch.tensor(row)).all(1).double().mean())
        assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / n) + 1e-9
        total += p
    assert total == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("n", "largest"), [(3, 1), (3, 2), (4, 2), (4, 4), (5, 3)])
def test_the_number_of_rankings_is_that_of_the_list(n, largest):
    assert n_weak_orders(n, largest)[n] == len(feedback_loops.all_rankings(n, largest))


def test_information_of_a_comparison_and_of_a_rating_is_the_closed_form():
    none = torch.zeros(1, dtype=torch.float64)
    own = FeedbackParams(
        torch.ones(1, dtype=torch.float64), none, none, {"comparison": none},
        ratings={"rating": RatingParams(none + 0.5, torch.full((1,), 0.03).double(), torch.full((1,), 0.06).double())},
    )  # fmt: skip
    first, zeros = torch.zeros(1, dtype=torch.long), torch.zeros(1)
    vote = channel(VoteBatch(first, first + 1, first, zeros.double(), first, 2), "comparison")
    rating = channel(RatingBatch(first, zeros, first), "rating")
    sizes = torch.full((5,), 4)
    many = torch.zeros(4000, dtype=torch.long)
    found = [
        channel_information(SCORES, one.select(many), own, sizes, generator=torch.Generator().manual_seed(0), n_draws=1)
        for one in (vote, rating)
    ]
    expected = feedback_loops.comparison_information(float(SCORES[0] - SCORES[1]), 4)
    assert abs(float(found[0].mean()) / expected - 1) < 0.06  # 4,000 draws, about 5 standard errors
    assert abs(float(found[1].mean()) / ((1 - 1 / 4) * 0.3**2 / 0.6**2) - 1) < 0.12


def test_parameters_that_do_not_fit_are_named():
    one, own, _ = comparison_case()
    with pytest.raises(InputError, match="found no cutpoints for comparison"):
        channel_loglik(SCORES, one, dataclasses.replace(own, cutpoints={}))
    with pytest.raises(InputError, match="votes on 5 levels, cutpoints for 2"):
        local_loglik(SCORES[one.texts], one, dataclasses.replace(own, cutpoints={"comparison": torch.zeros(1)}))
