"""The reward station: which of the policy's samples set the optimiser's scale."""

import pytest

from karat.pipeline.data import Texts
from karat.pipeline.rewarding import thinned
from karat.records import user_prompt


def samples(n_prompts: int) -> Texts:
    numbers = range(n_prompts)
    return Texts(
        tuple(user_prompt(f"q{i}") for i in numbers),
        tuple((f"a{i}", f"b{i}") for i in numbers),
        tuple((i, i + 1) for i in numbers),
        tuple((True, i % 2 == 0) for i in numbers),
    )


@pytest.mark.parametrize(("n_prompts", "most", "kept"), [(5, 8, 5), (8, 8, 8), (9, 8, 5), (2000, 512, 500), (1, 1, 1)])
def test_no_more_prompts_than_wanted_and_from_the_whole_file(n_prompts, most, kept):
    found = thinned(samples(n_prompts), most)
    assert len(found.prompts) == kept <= most
    step = -(-n_prompts // most)
    assert [prompt.text for prompt in found.prompts] == [f"q{i}" for i in range(0, n_prompts, step)]
    assert found.texts == tuple((f"a{i}", f"b{i}") for i in range(0, n_prompts, step))
    assert found.lengths == tuple((i, i + 1) for i in range(0, n_prompts, step))
    assert len(found.stopped) == kept
