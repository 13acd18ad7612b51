"""Beliefs: what survives a constant for each prompt and member, aggregators by hand, the optimiser's scale."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from karat import belief as beliefs
from karat.belief import Belief
from karat.errors import ConfigError, InputError

F64 = torch.float64
RELATIVE = {name: fn for name, fn in beliefs.AGGREGATORS.items() if name not in ("mean_score", "weighted_objectives")}


def some_belief(n_draws=5, n_objectives=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    draws = torch.randn(n_draws, 6, n_objectives, generator=g, dtype=F64)
    reference = torch.randn(n_draws, 3, n_objectives, generator=g, dtype=F64)
    unit = torch.tensor([0.5, 2.0], dtype=F64)[:n_objectives]
    return Belief(draws, reference, torch.tensor([0, 0, 1, 1, 2, 2]), tuple("ab"[:n_objectives]), unit)


def shifted(belief, seed=1):
    """The same belief after every member moved each prompt by a constant of its own, which no vote could notice."""
    g = torch.Generator().manual_seed(seed)
    constant = 10 * torch.randn(belief.reference.shape, generator=g, dtype=F64)
    return Belief(
        belief.draws + constant[:, belief.prompt_index],
        belief.reference + constant,
        belief.prompt_index,
        belief.objectives,
        belief.unit,
    )


@pytest.mark.parametrize("name", sorted(RELATIVE))
def test_aggregators_with_a_spread_ignore_what_votes_cannot_identify(name):
    belief = some_belief()
    assert torch.allclose(RELATIVE[name](belief), RELATIVE[name](shifted(belief)), atol=1e-12)


@pytest.mark.parametrize("name", sorted(beliefs.AGGREGATORS))
def test_aggregators_follow_the_order_of_responses_and_ignore_the_order_of_draws(name):
    belief, aggregate = some_belief(), beliefs.AGGREGATORS[name]
    order, members = torch.tensor([4, 2, 0, 5, 1, 3]), torch.tensor([3, 0, 4, 2, 1])
    moved = Belief(
        belief.draws[members][:, order], belief.reference[members], belief.prompt_index[order], belief.objectives,
        belief.unit,
    )  # fmt: skip
    assert torch.allclose(aggregate(moved), aggregate(belief)[order], atol=1e-13)


def test_aggregators_equal_hand_computed_values():
    draws = torch.tensor([[[1.0], [4.0]], [[3.0], [2.0]], [[5.0], [9.0]]], dtype=F64)
    reference = torch.tensor([[[0.0]], [[1.0]], [[5.0]]], dtype=F64)
    belief = Belief(draws, reference, torch.tensor([0, 0]))
    # differences to the reference: response 0: 1, 2, 0; response 1: 4, 1, 4
    assert beliefs.mean_score(belief).tolist() == [3.0, 5.0]
    assert beliefs.worst_member(belief).tolist() == [0.0, 1.0]
    assert beliefs.disagreement(belief).tolist() == pytest.approx([1.0, math.sqrt(3)])
    assert beliefs.mean_minus_sd(belief, n_sd=2).tolist() == pytest.approx([-1.0, 3 - 2 * math.sqrt(3)])
    assert beliefs.lower_bound(belief, quantile=0.25).tolist() == pytest.approx([0.5, 2.5])
    assert torch.equal(beliefs.lower_bound(belief, n_sd=2), beliefs.mean_minus_sd(belief, n_sd=2))


def test_a_configuration_sets_the_quantile_and_the_number_of_sd():
    belief = some_belief(n_draws=9)
    relative = beliefs.to_reference(belief)[..., 0]
    assert torch.equal(beliefs.aggregator_of("mean_minus_sd:2")(belief), relative.mean(0) - 2 * relative.std(0))
    assert torch.equal(beliefs.aggregator_of("lower_bound:0.25")(belief), torch.quantile(relative, 0.25, dim=0))
    for name, own in beliefs.AGGREGATORS.items():
        assert torch.equal(beliefs.aggregator_of(name)(belief), own(belief))
    for name in ("lower_bound:1", "lower_bound:", "mean_minus_sd:-1", "mean_minus_sd:much", "mean_minus_sd:inf"):
        with pytest.raises(ConfigError, match=f"aggregator: found '{name}'; expected .* after the colon"):
            beliefs.aggregator_of(name)
    for name in ("wisdom", "worst_member:2", "jury_median:0.5"):
        with pytest.raises(ConfigError, match=f"aggregator: found '{name}'; expected one of jury_median"):
            beliefs.aggregator_of(name)


def test_objectives_are_weighted_guarded_and_the_worst_group_found():
    draws = torch.tensor([[[2.0, -1.0], [0.0, 3.0]]], dtype=F64)
    belief = Belief(draws, torch.zeros(1, 1, 2, dtype=F64), torch.tensor([0, 0]), ("young", "old"))
    assert beliefs.weighted_objectives(belief).tolist() == [0.5, 1.5]
    assert beliefs.weighted_objectives(belief, weights=[1.0, 2.0]).tolist() == [0.0, 6.0]
    assert beliefs.worst_group(belief).tolist() == [-1.0, 0.0]
    assert beliefs.constrained(belief, floors={1: 0.5}, multiplier=4.0).tolist() == [2.0 - 4 * 1.5, 0.0]


def test_a_jury_is_read_on_a_common_scale_and_its_median_taken():
    # three jurors on two responses to one prompt, and two to another: the second shouts, the third disagrees
    draws = torch.tensor([[[1.0, 100.0, -2.0], [-1.0, -100.0, 2.0], [5.0, 900.0, 3.0], [7.0, 700.0, 7.0]]], dtype=F64)
    reference = torch.tensor([[[0.0, 0.0, 0.0], [6.0, 800.0, 5.0]]], dtype=F64)
    unit, index = torch.tensor([1.0, 100.0, 2.0], dtype=F64), torch.tensor([0, 0, 1, 1])
    belief = Belief(draws, reference, index, ("x", "y", "z"), unit)
    assert beliefs.jury_median(belief).tolist() == [1.0, -1.0, -1.0, 1.0]
    loud = torch.tensor([1.0, 50.0, 1.0], dtype=F64)
    louder = Belief(draws * loud, reference * loud, index, ("x", "y", "z"), unit * loud)
    assert torch.allclose(beliefs.jury_median(louder), beliefs.jury_median(belief))
    with pytest.raises(InputError, match="y score every response of a prompt alike"):
        beliefs.jury_median(Belief(draws, reference, index, ("x", "y", "z"), unit * torch.tensor([1.0, 0.0, 1.0])))
    with pytest.raises(InputError, match="found 3 jurors without a common scale"):
        beliefs.jury_median(Belief(draws, reference, index, ("x", "y", "z")))


def test_a_jury_says_the_same_of_a_response_in_any_company():
    draws = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
    reference, unit = torch.randn(3, 1, 5, dtype=F64), torch.rand(5, dtype=F64) + 0.5
    together = beliefs.jury_median(Belief(draws, reference, torch.zeros(6, dtype=torch.long), tuple("abcde"), unit))
    alone = [
        beliefs.jury_median(Belief(draws[:, i : i + 1], reference, torch.tensor([0]), tuple("abcde"), unit))
        for i in range(6)
    ]
    assert torch.allclose(together, torch.cat(alone))
    single = Belief(draws[..., :1], reference[..., :1], torch.zeros(6, dtype=torch.long), ("a",))
    assert torch.allclose(beliefs.jury_median(single), beliefs.to_reference(single).mean(0)[:, 0])


def test_reference_responses_without_company_still_give_a_scale():
    values = torch.tensor([1.0, 2.0, 4.0])
    assert beliefs.training_scale(values, torch.tensor([0, 1, 2])) == beliefs.fit_scale(values, torch.zeros(3))
    assert beliefs.training_scale(values, torch.tensor([0, 0, 2])) == beliefs.fit_scale(values, torch.tensor([0, 0, 2]))


def test_beliefs_about_the_same_responses_are_joined():
    one, two = some_belief(seed=0), some_belief(n_draws=3, seed=1)
    both = beliefs.joined([one, two])
    assert both.n_draws == 8
    assert torch.equal(beliefs.to_reference(both)[5:], beliefs.to_reference(two))
    with pytest.raises(InputError, match="expected the same in all"):
        beliefs.joined([one, some_belief(n_objectives=1)])


def test_bounds_lie_below_the_mean_difference():
    belief = some_belief(n_draws=40)
    mean = beliefs.to_reference(belief)[..., 0].mean(0)
    assert (beliefs.worst_member(belief) <= beliefs.lower_bound(belief, quantile=0.1)).all()
    assert (beliefs.lower_bound(belief, quantile=0.1) < mean).all()
    assert (beliefs.mean_minus_sd(belief) < mean).all()


def test_win_probability_is_the_mean_of_sigmoids_and_adds_to_one():
    belief, i, j = some_belief(), torch.tensor([0, 3]), torch.tensor([1, 2])
    delta = belief.draws[:, i, 0] - belief.draws[:, j, 0]
    found = beliefs.win_prob(belief, i, j)
    assert torch.allclose(found, (1 / (1 + (-delta).exp())).mean(0), atol=1e-14)
    assert torch.allclose(found + beliefs.win_prob(belief, j, i), torch.ones(2, dtype=F64))
    assert torch.allclose(beliefs.win_prob(shifted(belief), i, j), found, atol=1e-12)


def test_the_scale_is_the_pooled_within_prompt_spread():
    aggregate = torch.tensor([1.0, 3.0, 10.0, 11.0, 12.0, 7.0])
    scale = beliefs.fit_scale(aggregate, torch.tensor([4, 4, 9, 9, 9, 1]))
    assert scale.shift == pytest.approx(44 / 6)
    assert scale.scale == pytest.approx(math.sqrt((1 + 1 + 1 + 0 + 1) / (1 + 2 + 0)))
    assert beliefs.apply_scale(aggregate, scale)[0] == pytest.approx((1 - 44 / 6) / scale.scale, abs=1e-6)


def test_the_scale_does_not_see_differences_between_prompts_and_whitens_within_them():
    g = torch.Generator().manual_seed(0)
    prompt = torch.arange(400) // 4
    within = torch.randn(400, generator=g, dtype=F64)
    between = 50 * torch.randn(100, generator=g, dtype=F64)
    scale = beliefs.fit_scale(within + between[prompt], prompt)
    assert scale.scale == pytest.approx(beliefs.fit_scale(within, prompt).scale, rel=1e-9)
    scaled = beliefs.apply_scale(within + between[prompt], scale)
    assert beliefs.fit_scale(scaled, prompt).scale == pytest.approx(1, rel=1e-9)
    assert float(scaled.mean()) == pytest.approx(0, abs=1e-9)


def test_gradients_flow_through_the_aggregators():
    belief = some_belief(n_draws=4)
    for aggregate in beliefs.AGGREGATORS.values():
        inputs = belief.draws.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda d, f=aggregate: f(dataclasses.replace(belief, draws=d)), (inputs,))


def test_bad_input_is_one_clear_line():
    belief = some_belief()
    with pytest.raises(InputError, match=r"expected \[S, B, O\], \[S, P, O\], \[B\], O"):
        Belief(belief.draws, belief.reference[:2], belief.prompt_index, belief.objectives)
    with pytest.raises(InputError, match="pairs across prompts"):
        beliefs.difference(belief, torch.tensor([0]), torch.tensor([2]))
    with pytest.raises(InputError, match="found 1 draw; expected at least 2"):
        beliefs.disagreement(some_belief(n_draws=1))
    with pytest.raises(InputError, match=r"found quantile 1\.5"):
        beliefs.lower_bound(belief, quantile=1.5)
    with pytest.raises(InputError, match="found 1 weights; expected 2"):
        beliefs.weighted_objectives(belief, weights=[1.0])
    with pytest.raises(InputError, match="expected a prompt with two or more"):
        beliefs.fit_scale(torch.tensor([1.0, 2.0]), torch.tensor([0, 1]))
    with pytest.raises(InputError, match="all have the same score"):
        beliefs.fit_scale(torch.tensor([1.0, 1.0, 2.0, 2.0]), torch.tensor([0, 0, 1, 1]))
    with pytest.raises(InputError, match="scale > 0"):
        beliefs.ScoreScale(0.0, 0.0)
