"""Heads of marks that read plain features beside the trunk's, with a ridge a block and class chosen on training prompts.

Knows marked responses, their texts and where tokens stand; knows nothing about files.

Dimension letters: T tokens of one response, d features, K classes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from karat.identity import content_id
from karat.records import Prompt, Response
from karat.reward.dense import DenseReward, MarkedTokens, TokenHeads, fit_marks, token_spans
from karat.reward.mark_quality import has, nll, only
from karat.reward.side import Beside
from karat.reward.token_side import Row, TokenSide, token_side, token_side_reward
from karat.reward.trunk import DecoderTrunk
from karat.statements import Marked

GRID = (1.0, 10.0, 100.0)
"""Ridges tried for the trunk's features and for n-grams; the other blocks are narrow and keep the first."""
N_INNER = 4
"""Of the training prompts one in so many chooses, the others fit."""


class MarkHeads(NamedTuple):
    """What was fitted, as the held-out marks are scored with it and as it is saved."""

    dense: DenseReward
    """Trunk, its weights, and the plain features' weights."""
    heads: TokenHeads
    """Weights on trunk's and plain features side by side."""
    side: TokenSide
    """The plain features."""


def rows_of(
    trunk: DecoderTrunk, marks: Sequence[Marked], prompts: Mapping[str, Prompt], responses: Mapping[str, Response]
) -> list[Row]:
    """Prompt, text and tokens of each marked response."""
    texts = [(prompts[mark.prompt_id].text, responses[mark.response_ids[0]].text) for mark in marks]
    return [(prompt, text, token_spans(trunk, text).numpy()) for prompt, text in texts]


def with_side(side: TokenSide, read: Sequence[MarkedTokens], rows: Sequence[Row]) -> list[MarkedTokens]:
    """The same responses with their tokens' plain features behind the trunk's."""
    return [
        dataclasses.replace(
            one, features=torch.cat([one.features, torch.from_numpy(side.of(*row)).to(one.features)], 1)
        )
        for one, row in zip(read, rows, strict=True)
    ]


def fit_beside(
    trunk: DecoderTrunk,
    marks: Sequence[Marked],
    read: Sequence[MarkedTokens],
    rows: Sequence[Row],
    blocks: Sequence[Beside],
) -> MarkHeads:
    """Heads of all marks that read these blocks beside the trunk."""
    names = tuple(sorted({name for mark in marks for name in mark.names}))
    side, width = token_side(blocks, rows), read[0].features.shape[1]
    both = with_side(side, read, rows)
    ridge, _ = chosen_ridges(both, names, [width, *side.widths.values()], blocks, [mark.prompt_id for mark in marks])
    heads = fit_marks(both, names, ridge=ridge)
    added = token_side_reward(side, heads.weight[:, width:].double().numpy())
    own = DenseReward(trunk, names, heads.weight[:, :width].contiguous(), heads.threshold, heads.cutpoints, added)
    return MarkHeads(own, heads, side)


def chosen_ridges(
    read: Sequence[MarkedTokens],
    names: Sequence[str],
    widths: Sequence[int],
    blocks: Sequence[Beside],
    keys: Sequence[str],
) -> tuple[Float[Tensor, "K d"], list[float]]:
    """For each class the ridges under which it is likeliest on a quarter of the prompts, fitted to the others.

    With them the −log P of the marks of that class there, a response counting once; ∞ where there is nothing to choose by.

    Args:
        widths: columns of the trunk's features and of each block.    keys: what must not be on both sides, one a response.
    """
    inner = [int(content_id("inner", [key]).split(":")[-1][:8], 16) % N_INNER == 0 for key in keys]
    fit, choose = ([one for one, held in zip(read, inner, strict=True) if held is side] for side in (False, True))
    second = GRID if "ngrams" in blocks else GRID[:1]
    best = torch.full((len(names), sum(widths)), GRID[1])
    least = [math.inf] * len(names)
    if not fit or not choose:
        return best, least
    for on_trunk, on_ngrams in itertools.product(GRID, second):
        own = [on_trunk, *(on_ngrams if block == "ngrams" else GRID[0] for block in blocks)]
        ridge = torch.cat([torch.full((width,), value) for width, value in zip(widths, own, strict=True)])
        heads = fit_marks(fit, names, ridge=ridge.expand(len(names), -1))
        for k, name in enumerate(names):
            loss = sum(nll(heads, only(one, name), names) for one in choose if has(one, name))
            if loss < least[k]:
                least[k], best[k] = loss, ridge
    return best, least
