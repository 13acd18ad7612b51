"""Child seeds: a function of the purpose alone."""

import torch

from karat.seeding import child_seed, numpy_generator, torch_generator


def test_a_purpose_always_draws_the_same_and_another_draws_otherwise():
    assert torch.equal(
        torch.rand(5, generator=torch_generator(1, "a")), torch.rand(5, generator=torch_generator(1, "a"))
    )
    assert numpy_generator(1, "a").random() != numpy_generator(1, "b").random()
    assert child_seed(1, "a", 2) != child_seed(1, "a", "2")
    assert child_seed(1, "ab") != child_seed(1, "a", "b")


def test_seeds_are_spread_over_63_bits():
    seeds = [child_seed(0, "x", i) for i in range(2000)]
    assert len(set(seeds)) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert 0.45 < sum(seed >> 62 for seed in seeds) / 2000 < 0.55
