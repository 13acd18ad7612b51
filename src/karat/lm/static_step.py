"""One decode step whose shapes and addresses are always the same, so that it can be compiled or recorded and replayed.

Everything that changes from token to token is a number in a tensor: tokens, positions, who still runs, which uniform
number is next. Rows that ended are computed on in their last place and advance no further; nothing is read on the
processor, until a segment of steps is over. Knows models and the sampler's cache; knows nothing about prompts that wait.

Dimension letters: R rows, P slots, K seats, S steps of a segment.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from karat.lm.cache import GIVEN, DecodeCache, DecodeStep, RowLayout

SEGMENT = 16
"""Steps between two looks at what was drawn: an ended row idles for 8 of them on average, a look waits for the device."""
LEAST_WIDTH = 64
"""Tokens that the narrowest buffer is read for."""


class Choose(Protocol):
    """How a token is drawn from logits."""

    @property
    def settings(self) -> Hashable:
        """Equal for what draws alike."""

    @property
    def draws(self) -> bool:
        """Whether it reads uniform numbers."""

    @property
    def counts(self) -> bool:
        """Whether it reads how many tokens a row has."""

    def __call__(
        self,
        logits: Float[Tensor, "R V"],
        uniforms: Float[Tensor, " R"] | None,
        n_drawn: Int[Tensor, " R"] | None,
        *,
        recorded: bool = False,
    ) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"]]:
        """Tokens and their log-probabilities; `recorded` = by PyTorch's operations alone, which can be compiled or recorded."""


@dataclass(frozen=True)
class StepShape:
    """What a compiled or recorded step is made for."""

    rows: int
    """R."""
    slots: int
    """P: prompts that are read."""
    seats: int
    """K: most rows of one prompt."""
    prompt_width: int
    """Tokens of a prompt that are read."""
    width: int
    """Tokens of a response that are read."""


@dataclass(frozen=True, eq=False)
class StepState:
    """The numbers of the rows under way, at addresses that stay; rows behind the running ones are idle."""

    layout: RowLayout
    """Which row reads which prompt."""
    width: int
    """Tokens of a response that are read."""
    tokens: Int[Tensor, " R"]
    """The token that is fed next."""
    offsets: Int[Tensor, " R"]
    """Its position within the response."""
    runs: Bool[Tensor, " R"]
    """True = advances with the next step."""
    uniforms: Float[Tensor, "R S"]
    """The numbers that draw the segment's tokens."""
    step: Int[Tensor, " 1"]
    """Which step of the segment is next."""
    drawn: Int[Tensor, "R S"]
    """What the segment has drawn."""
    logprobs: Float[Tensor, "R S"]
    """Its log-probabilities."""

    @property
    def changing(self) -> tuple[Tensor, ...]:
        """What a step writes to, beside the response's keys and values at its own offset: the same ones each time."""
        return self.tokens, self.offsets, self.runs, self.step, self.drawn, self.logprobs


def new_state(shape: StepShape, device: torch.device) -> StepState:
    """All rows idle."""
    whole = torch.zeros(shape.rows, dtype=torch.int64, device=device)
    segment = torch.zeros(shape.rows, SEGMENT, dtype=torch.float64, device=device)
    layout = RowLayout(
        prompt_lengths=torch.ones_like(whole),
        rows=torch.arange(shape.rows, device=device),
        slots=whole.clone(),
        seats=whole.clone(),
        row_at=torch.zeros(shape.slots, shape.seats, dtype=torch.int64, device=device),
        prompt_width=shape.prompt_width,
    )
    return StepState(
        layout, shape.width, whole.clone(), whole.clone(), whole.bool(), segment, whole[:1].clone(),
        segment.long(), segment.float(),
    )  # fmt: skip


def load_state(
    state: StepState, layout: RowLayout, tokens: Sequence[int], offsets: Sequence[int], runs: Sequence[bool],
    uniforms: Tensor | None,
) -> None:  # fmt: skip
    """Put a segment's rows into the state; `layout` and numbers are of the running rows and may be on the processor."""
    n = len(tokens)
    for target, source, idle in (
        (state.layout.prompt_lengths, layout.prompt_lengths, 1),
        (state.layout.slots, layout.slots, 0),
        (state.layout.seats, layout.seats, 0),
        (state.tokens, torch.tensor(tokens), 0),
        (state.offsets, torch.tensor(offsets), 0),
        (state.runs, torch.tensor(runs), False),
    ):
        target[n:] = idle
        target[:n].copy_(source)
    n_slots, n_seats = layout.row_at.shape
    state.layout.row_at.zero_()
    state.layout.row_at[:n_slots, :n_seats].copy_(layout.row_at)
    if uniforms is not None:
        state.uniforms[:n, : uniforms.shape[1]].copy_(uniforms)
    state.step.zero_()


def take_step(
    model: PreTrainedModel, cache: DecodeCache, state: StepState, choose: Choose, stops: Int[Tensor, " E"], limit: int
) -> None:
    """Draw one token for each row; rows that end with it stay where they are from now on.

    Args:
        stops: tokens that end a response.    limit: longest response in tokens.
    """
    # a function of its arguments alone: what a compiler made for one call of the sampler serves the next
    cache.now = DecodeStep(state.layout, state.offsets, width=state.width, recorded=True)
    output = model(
        input_ids=state.tokens.unsqueeze(0),
        position_ids=(state.layout.prompt_lengths + state.offsets).unsqueeze(0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=0,
        **{GIVEN: cache},
    )
    uniforms = state.uniforms.index_select(1, state.step).squeeze(1) if choose.draws else None
    n_drawn = state.offsets + 1 if choose.counts else None
    tokens, logprobs = choose(output.logits[0], uniforms, n_drawn, recorded=True)
    state.drawn.index_copy_(1, state.step, tokens.unsqueeze(1))
    state.logprobs.index_copy_(1, state.step, logprobs.unsqueeze(1))
    ends = (tokens.unsqueeze(1) == stops).any(1) | (state.offsets + 2 >= limit)
    state.runs.logical_and_(~ends)
    state.tokens.copy_(torch.where(state.runs, tokens, state.tokens))
    state.offsets.add_(state.runs)
    state.step.add_(1)


def bucket(n: int, most: int, *, least: int = 1, before: int = 0) -> int:
    """The size that a buffer for n is read in: a power of two ≥ least, at most `most`; shapes are to be few.

    Args: before: the size in use, which stays while it holds n and is at most four times as large as needed.

    >>> bucket(5, 100), bucket(70, 100), bucket(5, 100, least=64), bucket(3, 100, before=8), bucket(2, 100, before=16)
    (8, 100, 64, 8, 2)
    """
    size = min(most, max(least, 1 << (n - 1).bit_length()))
    return before if n <= before <= min(most, 4 * size) else size
