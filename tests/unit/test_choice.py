"""The response models against slow oracles, their gradients, symmetries, and recovery of planted parameters."""

from __future__ import annotations

import itertools
import math

import choix
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as distributions

from karat import choice
from karat.errors import InputError, MaskError
from karat.records import Vote
from reference import choice_loops

F64 = torch.float64


def tensor(values, **options):
    return torch.tensor(values, dtype=F64, **options)


def raters_of(cutpoints, *, competence=(1.0,), side_bias=(0.0,), lapse=(0.0,), dtype=F64):
    return choice.RaterParams(
        *(torch.tensor(values, dtype=dtype) for values in (competence, side_bias, lapse, cutpoints))
    )


def one_rater(n):
    return torch.zeros(n, dtype=torch.long)


CUTPOINTS = {
    2: [0.0],
    3: [-0.7, 0.7],
    4: [-1.5, 0.0, 1.5],
    5: [-2.0, -0.4, 0.4, 2.0],
    7: [-3.0, -1.2, -0.3, 0.3, 1.2, 3.0],
}


@pytest.mark.parametrize("n_levels", [2, 3, 4, 5, 7])
@pytest.mark.parametrize("delta", [-80.0, -9.0, -0.3, 0.0, 2.5, 40.0, 80.0])
def test_comparison_logprobs_equal_sixty_digit_arithmetic_in_the_tails(n_levels, delta):
    raters = raters_of(CUTPOINTS[n_levels], competence=[0.8], side_bias=[0.3], lapse=[0.0])
    found = choice.comparison_logprobs(tensor([delta]), tensor([1.0]), one_rater(1), raters)[0]
    eta = 0.8 * delta + 0.3
    expected = [float(p.ln()) for p in choice_loops.ordinal_probs(eta, CUTPOINTS[n_levels])]
    assert found.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("n_levels", [2, 3, 4, 5, 7])
@pytest.mark.parametrize("eta", [-100.0, -9.0, 0.0, 2.5, 100.0])
def test_ordinal_probs_keep_their_digits_in_the_tails(n_levels, eta):
    found = choice.ordinal_probs(tensor([eta]), tensor(CUTPOINTS[n_levels]))[0]
    expected = [float(p) for p in choice_loops.ordinal_probs(eta, CUTPOINTS[n_levels])]
    assert found.tolist() == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("lapse", [0.0, 0.05])
def test_marginal_probs_and_their_logarithms_agree(lapse):
    options = {"competence_sd": 0.5, "side_bias_sd": 0.3, "lapse": lapse, "cutpoints": tensor(CUTPOINTS[3])}
    delta = tensor([-60.0, -3.0, 0.0, 1.0, 40.0])
    found = choice.marginal_probs(delta, **options)
    torch.testing.assert_close(found.log(), choice.marginal_logprobs(delta, **options), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("delta", [-80.0, 0.0, 80.0])
def test_comparison_logprobs_keep_their_digits_in_float32(delta):
    raters = raters_of(CUTPOINTS[5], dtype=torch.float32)
    found = choice.comparison_logprobs(torch.tensor([delta]), torch.zeros(1), one_rater(1), raters)[0]
    expected = [float(p.ln()) for p in choice_loops.ordinal_probs(delta, CUTPOINTS[5])]
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_two_levels_are_bradley_terry_to_the_bit():
    delta = torch.linspace(-90, 90, 181, dtype=F64)
    found = choice.comparison_logprobs(delta, torch.zeros_like(delta), one_rater(181), raters_of([0.0]))
    assert torch.equal(found[:, 1], torch.nn.functional.logsigmoid(delta))
    assert torch.equal(found[:, 0], torch.nn.functional.logsigmoid(-delta))


@pytest.mark.parametrize("theta", [1.05, 2.0, 8.0])
def test_three_levels_are_rao_kupper(theta):
    cut = math.log(theta)
    for delta in (-6.0, -1.0, 0.0, 0.4, 3.0):
        found = choice.comparison_probs(tensor([delta]), tensor([0.0]), one_rater(1), raters_of([-cut, cut]))[0]
        assert found.tolist() == pytest.approx(choice_loops.rao_kupper(delta, theta), abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(
    delta=st.floats(-60, 60), side=st.sampled_from([-1.0, 0.0, 1.0]), competence=st.floats(-2, 3),
    bias=st.floats(-2, 2), lapse=st.floats(0, 0.9), n_levels=st.sampled_from(sorted(CUTPOINTS)),
)  # fmt: skip
def test_probabilities_sum_to_one_and_swapping_a_and_b_mirrors_them(delta, side, competence, bias, lapse, n_levels):
    raters = raters_of(CUTPOINTS[n_levels], competence=[competence], side_bias=[bias], lapse=[lapse])
    probs = choice.comparison_probs(tensor([delta]), tensor([side]), one_rater(1), raters)
    swapped = choice.comparison_probs(tensor([-delta]), tensor([-side]), one_rater(1), raters)
    assert float(probs.sum()) == pytest.approx(1, abs=1e-12)
    assert torch.allclose(probs, swapped.flip(-1), atol=1e-13)
    expected = choice_loops.ordinal_probs(competence * delta + bias * side, CUTPOINTS[n_levels], lapse)
    assert probs[0].tolist() == pytest.approx([float(p) for p in expected], rel=1e-9)


def random_votes(n_votes, n_items, n_raters, n_levels, *, seed=0):
    g = torch.Generator().manual_seed(seed)
    a = torch.randint(0, n_items, (n_votes,), generator=g)
    b = (a + torch.randint(1, n_items, (n_votes,), generator=g)) % n_items
    level = torch.randint(0, n_levels, (n_votes,), generator=g)
    side = torch.randint(0, 2, (n_votes,), generator=g).to(F64) * 2 - 1
    return choice.VoteBatch(a, b, level, side, torch.randint(0, n_raters, (n_votes,), generator=g), n_levels)


@pytest.mark.parametrize("n_levels", [2, 3, 5])
def test_gradients_of_comparisons_by_finite_differences(n_levels):
    votes = random_votes(12, 4, 2, n_levels)
    g = torch.Generator().manual_seed(1)
    scores = (4 * torch.randn(4, generator=g, dtype=F64)).requires_grad_()
    competence, bias = (torch.randn(2, generator=g, dtype=F64).requires_grad_() for _ in range(2))
    lapse = tensor([0.05, 0.4], requires_grad=True)
    raw = torch.randn((n_levels - 1) // 2, generator=g, dtype=F64).requires_grad_()

    def loglik(scores, competence, bias, lapse, raw):
        raters = choice.RaterParams(competence, bias, lapse, choice.symmetric_cutpoints(raw, n_levels))
        prior = choice.rater_log_prior(raters, competence_sd=0.3, side_bias_sd=0.2)
        return choice.comparison_loglik(scores, votes, raters), prior

    assert torch.autograd.gradcheck(loglik, (scores, competence, bias, lapse, raw))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("delta", [-80.0, 80.0])
def test_gradients_in_the_tails_are_finite_and_right(dtype, delta):
    for level in range(5):
        x = torch.tensor([delta], dtype=dtype, requires_grad=True)
        raters = raters_of(CUTPOINTS[5], dtype=dtype)
        choice.comparison_logprobs(x, torch.zeros_like(x), one_rater(1), raters)[0, level].backward()
        # far out, log P falls by one for each logit away from the certain end level, on either side of it
        expected = {0: -1.0, 4: 0.0}.get(level, -1.0) if delta > 0 else {0: 0.0, 4: 1.0}.get(level, 1.0)
        assert float(x.grad) == pytest.approx(expected, abs=1e-6)


def test_a_constant_added_to_all_scores_changes_nothing_and_neither_does_the_order_of_votes_or_sides():
    votes = random_votes(50, 6, 3, 5)
    raters = raters_of(CUTPOINTS[5], competence=[1.2, 0.7, -0.2], side_bias=[0.1, 0.0, -0.4], lapse=[0.1, 0.0, 0.3])
    scores = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=F64)
    loglik = choice.comparison_loglik(scores, votes, raters)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(choice.comparison_loglik(scores + 7.25, votes, raters), loglik, atol=1e-12)
    assert torch.equal(choice.comparison_loglik(scores, votes.select(order), raters), loglik[order])
    assert torch.allclose(choice.comparison_loglik(scores, votes.swapped(), raters), loglik, atol=1e-13)


def minimise(loss, parameters, steps=60):
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=steps, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)


def test_planted_scores_competences_side_biases_and_cutpoints_are_recovered_within_their_posterior():
    n_items, n_raters, n_votes, n_levels = 9, 4, 5000, 5
    g = torch.Generator().manual_seed(3)
    planted = {
        "scores": 1.5 * torch.randn(n_items - 1, generator=g, dtype=F64),
        "competence": 1 + 0.4 * torch.randn(n_raters, generator=g, dtype=F64),
        "side_bias": 0.3 * torch.randn(n_raters, generator=g, dtype=F64),
        "raw": choice.raw_cutpoints(tensor(CUTPOINTS[5])),
    }
    lapse = torch.full((n_raters,), 0.05, dtype=F64)
    votes = random_votes(n_votes, n_items, n_raters, n_levels, seed=4)

    def unpack(flat):
        scores, competence, bias, raw = flat.split([n_items - 1, n_raters, n_raters, 2])
        cutpoints = choice.symmetric_cutpoints(raw, n_levels)
        return torch.cat([scores.new_zeros(1), scores]), choice.RaterParams(competence, bias, lapse, cutpoints)

    truth = torch.cat(list(planted.values()))
    scores, raters = unpack(truth)
    level = choice.sample_comparison(
        scores[votes.a] - scores[votes.b], votes.side, votes.annotator, raters, generator=g
    )
    votes = choice.VoteBatch(votes.a, votes.b, level, votes.side, votes.annotator, n_levels)

    def loss(flat):
        scores, raters = unpack(flat)
        prior = choice.rater_log_prior(raters, competence_sd=0.4, side_bias_sd=0.3)
        return 0.5 * (scores / 1.5).square().sum() - prior - choice.comparison_loglik(scores, votes, raters).sum()

    fitted = torch.zeros_like(truth)
    fitted[n_items - 1 : n_items - 1 + n_raters] = 1
    fitted.requires_grad_()
    minimise(lambda: loss(fitted), [fitted], steps=40)
    precision = torch.autograd.functional.hessian(loss, fitted.detach())
    error = fitted.detach() - truth
    low, high = distributions.chi2.ppf([0.001, 0.999], len(truth))
    assert low < float(error @ precision @ error) < high
    sd = precision.inverse().diagonal().sqrt()
    assert float((error / sd).abs().max()) < 3.9  # 18 parameters, two-sided: probability 0.002
    prior_sd = tensor([1.5] * (n_items - 1) + [0.4] * n_raters + [0.3] * n_raters)
    assert float((sd[:-2] / prior_sd).max()) < 0.6  # the data, not the prior, determine the parameters


def votes_of_pairs(pairs):
    winners, losers = (torch.tensor(column) for column in zip(*pairs, strict=True))
    n = len(pairs)
    return choice.VoteBatch(
        winners, losers, torch.ones(n, dtype=torch.long), torch.zeros(n, dtype=F64), one_rater(n), 2
    )


def test_bradley_terry_maximum_likelihood_equals_choix():
    rng = np.random.default_rng(0)
    true = rng.normal(size=6)
    pairs = []
    for i, j in itertools.permutations(range(6), 2):
        pairs += [(i, j)] * int(rng.binomial(9, 1 / (1 + math.exp(true[j] - true[i]))))
    scores = torch.zeros(6, dtype=F64, requires_grad=True)
    votes, raters = votes_of_pairs(pairs), raters_of([0.0])
    minimise(lambda: -choice.comparison_loglik(scores, votes, raters).sum(), [scores], steps=200)
    found = (scores - scores.mean()).detach().numpy()
    np.testing.assert_allclose(found, choix.opt_pairwise(6, pairs, tol=1e-10), atol=1e-6)
    np.testing.assert_allclose(found, choix.ilsr_pairwise(6, pairs, tol=1e-10), atol=1e-6)


def test_plackett_luce_maximum_likelihood_equals_choix():
    g = torch.Generator().manual_seed(5)
    true = torch.randn(5, generator=g, dtype=F64)
    orders = choice.sample_plackett_luce(true.expand(60, 5), generator=g)
    scores = torch.zeros(5, dtype=F64, requires_grad=True)
    minimise(lambda: -choice.plackett_luce_loglik(scores.expand(60, 5), orders).sum(), [scores], steps=200)
    found = (scores - scores.mean()).detach().numpy()
    np.testing.assert_allclose(found, choix.opt_rankings(5, orders.tolist(), tol=1e-10), atol=1e-6)


def test_plackett_luce_equals_the_loop_and_sums_to_one():
    scores = [0.3, -1.2, 2.0, 0.0]
    orders = list(itertools.permutations(range(4)))
    found = choice.plackett_luce_loglik(tensor(scores).expand(24, 4), torch.tensor(orders)).exp()
    assert found.tolist() == pytest.approx([choice_loops.plackett_luce(scores, list(o)) for o in orders], abs=1e-14)
    assert float(found.sum()) == pytest.approx(1, abs=1e-13)


def test_plackett_luce_of_two_is_bradley_terry_and_padding_changes_nothing():
    scores = tensor([[1.5, -0.2], [80.0, -80.0]], requires_grad=True)
    order = torch.tensor([[1, 0], [1, 0]])
    found = choice.plackett_luce_loglik(scores, order)
    assert torch.allclose(found, torch.nn.functional.logsigmoid(scores[:, 1] - scores[:, 0]), atol=1e-12)
    padded = torch.cat([scores.detach(), tensor([[9.0], [9.0]])], 1)
    mask = torch.tensor([[True, True, False]] * 2)
    for column in (0, 1, 2):
        wide = torch.cat([order[:, :column], torch.full((2, 1), 2), order[:, column:]], 1)
        assert torch.equal(choice.plackett_luce_loglik(padded, wide, mask), found)
    assert torch.autograd.gradcheck(
        lambda s: choice.plackett_luce_loglik(s, order[:1]), (scores[:1].detach().requires_grad_(),)
    )


def test_best_of_is_the_first_stage_of_plackett_luce():
    scores = [0.3, -1.2, 2.0, 0.0]
    found = choice.best_of_loglik(tensor([scores] * 4), torch.arange(4)).exp()
    for best in range(4):
        rest = [o for o in itertools.permutations(range(4)) if o[0] == best]
        assert float(found[best]) == pytest.approx(sum(choice_loops.plackett_luce(scores, list(o)) for o in rest))
    mask = torch.tensor([[True, True, False, True]])
    masked = choice.best_of_loglik(tensor([scores]), torch.tensor([0]), mask)
    assert torch.allclose(masked, choice.best_of_loglik(tensor([[0.3, -1.2, 0.0]]), torch.tensor([0])))


@pytest.mark.parametrize(("n", "log_tie"), [(3, [-0.4, -1.0]), (4, [0.2, -0.5, -2.0]), (4, [-0.3])])
def test_davidson_luce_equals_subset_enumeration_and_sums_to_one(n, log_tie):
    scores = [0.3, -1.2, 2.0, 0.0][:n]
    allowed = [r for r in choice_loops.weak_orders(n) if max(r.count(v) for v in r) <= len(log_tie) + 1]
    ranks = torch.tensor(allowed)
    found = choice.davidson_luce_loglik(tensor(scores).expand(len(ranks), n), ranks, tensor(log_tie)).exp()
    tie = [math.exp(x) for x in log_tie]
    assert found.tolist() == pytest.approx([choice_loops.davidson_luce(scores, r, tie) for r in allowed], abs=1e-14)
    assert float(found.sum()) == pytest.approx(1, abs=1e-12)


def test_davidson_luce_gradients_gaps_in_ranks_padding_and_shift():
    g = torch.Generator().manual_seed(2)
    scores, log_tie = torch.randn(3, 4, generator=g, dtype=F64), tensor([-0.3, -0.9, -2.0])
    ranks = torch.tensor([[1, 1, 3, 4], [2, 1, 2, 2], [1, 2, 3, 1]])
    mask = torch.tensor([[True] * 4, [True] * 4, [True, True, True, False]])
    inputs = (scores.clone().requires_grad_(), log_tie.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda s, t: choice.davidson_luce_loglik(s, ranks, t, mask), inputs)
    found = choice.davidson_luce_loglik(scores, ranks, log_tie, mask)
    assert torch.allclose(choice.davidson_luce_loglik(scores + 30, ranks, log_tie, mask), found, atol=1e-10)
    assert torch.equal(choice.davidson_luce_loglik(scores, ranks * 2, log_tie, mask), found)
    short = choice.davidson_luce_loglik(scores[2:, :3], ranks[2:, :3], log_tie)
    assert torch.allclose(short, found[2:], atol=1e-12)
    without_ties = choice.davidson_luce_loglik(scores, ranks.argsort(-1).argsort(-1) + 1, tensor([-80.0]))
    order = ranks.argsort(-1).argsort(-1).argsort(-1)
    assert torch.allclose(without_ties, choice.plackett_luce_loglik(scores, order), atol=1e-12)


def test_davidson_luce_stays_finite_at_extreme_scores():
    scores = torch.tensor([[80.0, -80.0, 0.0]], requires_grad=True)
    loglik = choice.davidson_luce_loglik(scores, torch.tensor([[3, 1, 1]]), torch.tensor([0.0, 0.0]))
    loglik.sum().backward()
    # the set {1, 2} weighs e^{−40} beside e^{80}; afterwards candidate 0 is alone
    assert float(loglik.detach()) == pytest.approx(-120, abs=1e-3)
    assert scores.grad[0].tolist() == pytest.approx([-1.0, 0.5, 0.5], abs=1e-6)


def chi_square_p(levels, probs):
    counts, shares = np.bincount(np.asarray(levels), minlength=len(probs)), np.array([float(p) for p in probs])
    return distributions.chisquare(counts, shares / shares.sum() * counts.sum()).pvalue


def test_sampled_comparisons_have_the_stated_frequencies():
    n = 20_000
    g = torch.Generator().manual_seed(11)
    raters = raters_of(CUTPOINTS[5], competence=[0.8], side_bias=[0.4], lapse=[0.1])
    delta, side = torch.full((n,), 0.9, dtype=F64), torch.ones(n, dtype=F64)
    levels = choice.sample_comparison(delta, side, one_rater(n), raters, generator=g)
    probs = choice.comparison_probs(delta[:1], side[:1], one_rater(1), raters)[0]
    assert chi_square_p(levels, probs) > 0.001


def test_sampled_rankings_best_ofs_and_tied_rankings_have_the_stated_frequencies():
    n, g = 8_000, torch.Generator().manual_seed(12)
    scores = tensor([0.5, -0.3, 0.1])
    orders = [list(o) for o in itertools.permutations(range(3))]
    drawn = choice.sample_plackett_luce(scores.expand(n, 3), generator=g).tolist()
    assert (
        chi_square_p([orders.index(o) for o in drawn], [choice_loops.plackett_luce(scores.tolist(), o) for o in orders])
        > 0.001
    )
    best = choice.sample_best_of(scores.expand(n, 3), generator=g)
    assert chi_square_p(best, scores.softmax(0)) > 0.001
    weak, log_tie = choice_loops.weak_orders(3), tensor([-0.2, -1.0])
    drawn = choice.sample_davidson_luce(scores.expand(n, 3), log_tie, generator=g).tolist()
    expected = [choice_loops.davidson_luce(scores.tolist(), r, log_tie.exp().tolist()) for r in weak]
    assert chi_square_p([weak.index(r) for r in drawn], expected) > 0.001


def test_masked_candidates_are_ranked_last_and_never_best():
    g = torch.Generator().manual_seed(13)
    scores, mask = torch.randn(200, 4, generator=g), torch.tensor([[True, False, True, True]]).expand(200, 4)
    orders = choice.sample_plackett_luce(scores, mask, generator=g)
    assert (orders[:, -1] == 1).all()
    assert torch.equal(orders.sort(-1).values, torch.arange(4).expand(200, 4))
    assert (choice.sample_best_of(scores, mask, generator=g) != 1).all()


def test_draws_use_one_uniform_a_judgement_and_repeat_to_the_bit():
    def draws(kind):
        g = torch.Generator().manual_seed(7)
        kind(g)
        return torch.rand(1, generator=g)

    reference = torch.Generator().manual_seed(7)
    torch.rand(9, generator=reference, dtype=F64)
    after = torch.rand(1, generator=reference)
    scores, nine = tensor([0.1, 0.2, 0.3]).expand(9, 3), tensor([0.4] * 9)
    ratings = choice.RatingParams(tensor([0.0]), tensor([1.0]), tensor([1.0]), tensor([-1.0, 2.0]))
    raters = raters_of(CUTPOINTS[3])
    for kind in (
        lambda g: choice.sample_comparison(nine, nine * 0, one_rater(9), raters, generator=g),
        lambda g: choice.sample_plackett_luce(scores, generator=g),
        lambda g: choice.sample_best_of(scores, generator=g),
        lambda g: choice.sample_davidson_luce(scores, tensor([0.0]), generator=g),
        lambda g: choice.sample_rating(nine, one_rater(9), ratings, generator=g),
        lambda g: choice.sample_ordinal_rating(nine, one_rater(9), ratings, generator=g),
        lambda g: choice.sample_label(nine, one_rater(9), tensor([0.0]), generator=g),
    ):
        assert torch.equal(draws(kind), after)


def test_ratings_have_the_stated_density_levels_and_recover_offset_and_gain():
    n, g = 5000, torch.Generator().manual_seed(14)
    params = choice.RatingParams(tensor([0.5, -1.0]), tensor([2.0, 0.5]), tensor([0.7, 1.5]), tensor([-1.0, 0.2, 2.0]))
    scores = torch.randn(n, generator=g, dtype=F64)
    annotator = torch.arange(n) % 2
    ratings = choice.sample_rating(scores, annotator, params, generator=g)
    for w in (0, 1):
        x, y = scores[annotator == w].numpy(), ratings[annotator == w].numpy()
        fit = distributions.linregress(x, y)
        assert abs(fit.slope - float(params.gain[w])) < 4 * fit.stderr
        assert abs(fit.intercept - float(params.offset[w])) < 4 * fit.intercept_stderr
        expected = distributions.norm.logpdf(
            y, float(params.offset[w]) + float(params.gain[w]) * x, float(params.sd[w])
        )
        np.testing.assert_allclose(
            choice.rating_loglik(scores, ratings, annotator, params)[annotator == w], expected, atol=1e-12
        )
    fixed = torch.full((n,), 0.3, dtype=F64)
    levels = choice.sample_ordinal_rating(fixed, one_rater(n), params, generator=g)
    probs = choice.ordinal_rating_loglik(fixed[:4], torch.arange(4), one_rater(4), params).exp()
    assert probs.tolist() == pytest.approx([float(p) for p in choice_loops.ordinal_probs(1.1, [-1.0, 0.2, 2.0])])
    assert chi_square_p(levels, probs) > 0.001


def test_labels_follow_the_raters_threshold():
    n, g = 5000, torch.Generator().manual_seed(15)
    scores, threshold = torch.full((n,), 0.3, dtype=F64), tensor([-0.5])
    good = choice.sample_label(scores, one_rater(n), threshold, generator=g)
    p = choice_loops.logistic(0.8)
    assert chi_square_p(good.long(), [1 - p, p]) > 0.001
    both = choice.label_loglik(scores[:2], torch.tensor([False, True]), one_rater(2), threshold).exp()
    assert both.tolist() == pytest.approx([1 - p, p], abs=1e-14)
    inputs = (scores[:2].clone().requires_grad_(), threshold.clone().requires_grad_())
    assert torch.autograd.gradcheck(
        lambda s, t: choice.label_loglik(s, torch.tensor([False, True]), one_rater(2), t), inputs
    )


@pytest.mark.parametrize("delta", [-7.0, -0.5, 0.0, 3.0])
def test_a_rater_without_votes_is_predicted_by_integrating_the_priors(delta):
    found = choice.marginal_probs(
        tensor([delta]),
        competence_sd=0.4,
        side_bias_sd=0.5,
        lapse=0.05,
        cutpoints=tensor(CUTPOINTS[3]),
        side=tensor([1.0]),
    )[0]

    def level_prob(k):
        def given_bias(bias):
            def given_competence(a):
                return float(choice_loops.ordinal_probs(a * delta + bias, CUTPOINTS[3])[k])

            return choice_loops.normal_average(given_competence, 1.0, 0.4, n_steps=60)

        return 0.95 * choice_loops.normal_average(given_bias, 0.0, 0.5, n_steps=60) + 0.05 / 3

    assert [float(found[k]) for k in (0, 2)] == pytest.approx([level_prob(0), level_prob(2)], abs=1e-8)
    assert float(found.sum()) == pytest.approx(1, abs=1e-12)


def test_without_spread_the_new_rater_is_the_ideal_one_and_gradients_hold_at_zero():
    delta = tensor([-2.0, 0.0, 5.0], requires_grad=True)
    ideal = choice.comparison_probs(delta, torch.zeros_like(delta), one_rater(3), raters_of(CUTPOINTS[5]))
    options = {"competence_sd": 0.0, "side_bias_sd": 0.0, "lapse": 0.0, "cutpoints": tensor(CUTPOINTS[5])}
    assert torch.allclose(choice.marginal_probs(delta, **options), ideal, atol=1e-11)
    options |= {"competence_sd": 0.3, "side_bias_sd": 0.2, "lapse": 0.05}
    assert torch.autograd.gradcheck(lambda d: choice.marginal_probs(d, **options), (delta,))


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (2.0, 0.01), (-3.0, 4.0), (0.5, 9.0), (1.0, 0.0)])
def test_bald_equals_fine_integration(mean, variance):
    found = float(choice.bald(tensor([mean]), tensor([variance]))[0])
    assert found == pytest.approx(choice_loops.bald_bits(mean, variance), abs=1e-6)


def test_bald_is_tiny_where_the_probit_closed_form_says_a_third_of_a_bit():
    assert float(choice.bald(tensor([2.0]), tensor([0.01]))[0]) < 0.001


def test_information_of_a_vote_equals_bald_for_many_normal_draws_and_is_zero_for_a_spammer():
    z = torch.special.ndtri((torch.arange(4000, dtype=F64) + 0.5) / 4000)
    draws = (0.4 + 1.3 * z).unsqueeze(-1).expand(-1, 2)
    raters = raters_of([0.0], competence=[1.0, 1.0], side_bias=[0.0, 0.0], lapse=[0.0, 1.0])
    found = choice.comparison_information(draws, torch.zeros(2, dtype=F64), torch.tensor([0, 1]), raters)
    assert float(found[0]) == pytest.approx(float(choice.bald(tensor([0.4]), tensor([1.69]))[0]), abs=1e-3)
    assert float(found[1]) == pytest.approx(0, abs=1e-12)


def test_the_prior_is_the_sum_of_its_densities():
    raters = raters_of([0.0], competence=[0.7, 1.4], side_bias=[0.2, -0.1], lapse=[0.03, 0.0])
    expected = sum(
        distributions.norm.logpdf(a, 1, 0.3)
        + distributions.norm.logpdf(b, 0, 0.2)
        + distributions.beta.logpdf(e, 1, 19)
        for a, b, e in ((0.7, 0.2, 0.03), (1.4, -0.1, 0.0))
    )
    assert float(choice.rater_log_prior(raters, competence_sd=0.3, side_bias_sd=0.2)) == pytest.approx(expected)
    general = choice.rater_log_prior(
        raters_of([0.0], lapse=[0.1]), competence_sd=1.0, side_bias_sd=1.0, lapse_a=2.0, lapse_b=5.0
    )
    assert float(general) == pytest.approx(-math.log(2 * math.pi) + distributions.beta.logpdf(0.1, 2, 5))


@pytest.mark.parametrize("n_levels", [2, 3, 4, 5, 6, 7])
def test_cutpoints_are_symmetric_ascending_and_invertible(n_levels):
    raw = torch.randn((n_levels - 1) // 2, generator=torch.Generator().manual_seed(n_levels), dtype=F64)
    cutpoints = choice.symmetric_cutpoints(raw, n_levels)
    assert cutpoints.shape == (n_levels - 1,)
    assert torch.equal(cutpoints, -cutpoints.flip(0))
    assert (cutpoints.diff() > 0).all()
    assert torch.allclose(choice.raw_cutpoints(cutpoints), raw, atol=1e-12)


def test_vote_batch_reads_votes_by_name():
    votes = [Vote("j1", "p", "x", "y", 2, 3, 1, "ann"), Vote("j2", "p", "y", "z", 0, 3, -1, "bob")]
    batch = choice.vote_batch(votes, {"x": 5, "y": 0, "z": 2}, {"bob": 0, "ann": 1})
    assert (batch.a.tolist(), batch.b.tolist(), batch.level.tolist()) == ([5, 0], [0, 2], [2, 0])
    assert (batch.side.tolist(), batch.annotator.tolist(), batch.n_levels) == ([1.0, -1.0], [1, 0], 3)


def test_bad_input_is_one_clear_line():
    vote = Vote("j1", "p", "x", "y", 2, 3, 1, "ann")
    with pytest.raises(InputError, match=r"response 'y' is not in the index of 1"):
        choice.vote_batch([vote], {"x": 0}, {"ann": 0})
    with pytest.raises(InputError, match=r"found scales of \[\] levels in 0 votes"):
        choice.vote_batch([], {}, {})
    with pytest.raises(InputError, match=r"found scales of \[3, 5\] levels"):
        choice.vote_batch([vote, Vote("j2", "p", "x", "y", 2, 5, 1, "ann")], {"x": 0, "y": 1}, {"ann": 0})
    with pytest.raises(InputError, match="votes on 3 levels, cutpoints for 2"):
        choice.comparison_loglik(tensor([0.0, 1.0]), random_votes(3, 2, 1, 3), raters_of([0.0]))
    with pytest.raises(InputError, match="expected ascending numbers"):
        raters_of([0.5, -0.5])
    with pytest.raises(InputError, match=r"found \(3,\) numbers for 5 levels; expected \(2,\)"):
        choice.symmetric_cutpoints(torch.zeros(3), 5)
    with pytest.raises(InputError, match="found a row of 2 candidates"):
        choice.davidson_luce_loglik(torch.zeros(1, 2), torch.tensor([[1, 1]]), torch.zeros(1))
    with pytest.raises(InputError, match="found a tie of 3 candidates"):
        choice.davidson_luce_loglik(torch.zeros(1, 3), torch.tensor([[1, 1, 1]]), torch.zeros(1))
    with pytest.raises(InputError, match="permutation"):
        choice.plackett_luce_loglik(torch.zeros(1, 3), torch.tensor([[0, 0, 1]]))
    with pytest.raises(MaskError, match="counts no candidate"):
        choice.best_of_loglik(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1, 2, dtype=torch.bool))
