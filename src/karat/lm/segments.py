"""Segments of decode steps between two looks at what was drawn: buffers of few shapes, and the way their steps are run.

Knows rows as numbers: tokens, offsets, where a prompt's keys lie. Knows nothing about which row waits or ends, or why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from karat.lm.cache import DecodeCache, RowLayout
from karat.lm.narrow import tolerance, weights_kept
from karat.lm.recordings import Recording, keep, recording
from karat.lm.static_step import (
    LEAST_WIDTH,
    Choose,
    StepShape,
    StepState,
    bucket,
    load_state,
    new_state,
    take_step,
)
from karat.lm.step_runs import (
    COMPILED_GAP,
    GRAPH_GAP,
    MOST_FLIPS,
    MOST_SHAPES,
    REFUSED,
    CudaGraphs,
    Step,
    StepRuns,
    compiled_step,
    plainly_written,
)
from karat.lm.ways import decode_on
from karat.process_settings import Decode


def capacity(n_tokens: int, *, powers: bool) -> int:
    """Tokens of a buffer that is to be of few sizes: a multiple of 64, or a power of two where each size is compiled for."""
    size = bucket(n_tokens, 1 << 62, least=LEAST_WIDTH)
    return size if powers else min(size, -(-n_tokens // LEAST_WIDTH) * LEAST_WIDTH)


class Segments:
    """The steps of one call of the sampler."""

    def __init__(
        self, model: PreTrainedModel, cache: DecodeCache, choose: Choose, *, way: Decode, seats: int,
        stops: Tensor, limit: int,
    ) -> None:  # fmt: skip
        """Args:
        cache: of the sizes wanted; what is then used is `self.cache`.    seats: most running rows of one prompt.
        stops: tokens that end a response.    limit: its most tokens.
        """
        self.model, self.way, self.seats = model, way, seats
        drawing = choose, stops, limit
        self.steps = recording(model, cache, drawing, seats) if way == "graph" else Recording(None, cache, drawing)
        self.cache = self.steps.cache
        self.runs = _runs(model, self.steps, way)
        self.shape = StepShape(0, 0, seats, 0, 0)
        self.generation = self.cache.generation

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within: layers are as this way of running needs them. What was recorded is kept, unless an error ends the block."""
        with (
            plainly_written(self.model) if self.way == "compiled" else nullcontext(),
            weights_kept(self.steps.rounded),
        ):
            self.cache.clear()
            yield
        if self.way == "graph":
            keep(self.model, self.steps)

    def draw(
        self, layout: RowLayout, tokens: Sequence[int], offsets: Sequence[int], runs: Sequence[bool],
        uniforms: np.ndarray | None, n_steps: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """n_steps tokens of each row, and their log-probabilities, [R, n_steps] on the device.

        Args:
            tokens: the last of each row, and at which `offsets` in its response.    runs: False = it has ended.
            uniforms: [R, n_steps]; None = none are needed.
        """
        if self.generation != self.cache.generation:  # its buffers are others: what was recorded reads the old ones
            self.steps.forget_steps()
            self.generation = self.cache.generation
        self.shape = self._shape(layout, max(offsets) + n_steps)
        state = self.steps.states.get(self.shape)
        if state is None:
            state = self.steps.states[self.shape] = new_state(self.shape, layout.slots.device)
        load_state(state, layout, tokens, offsets, runs, None if uniforms is None else torch.from_numpy(uniforms))
        for _ in range(n_steps):
            self.runs(state)
        n_rows = len(tokens)
        return state.drawn[:n_rows, :n_steps], state.logprobs[:n_rows, :n_steps]

    def _shape(self, layout: RowLayout, width: int) -> StepShape:
        cache, before = self.cache, self.shape
        most = StepShape(cache.n_rows, cache.n_slots, self.seats, cache.prompt_tokens, cache.response_tokens)
        if self.way == "compiled":  # compiling takes longer than what a narrower shape saves
            return most
        return replace(
            most,
            rows=bucket(len(layout.rows), most.rows, before=before.rows),
            slots=bucket(layout.row_at.shape[0], most.slots, before=before.slots),
            prompt_width=bucket(
                layout.prompt_width, most.prompt_width, least=LEAST_WIDTH, before=before.prompt_width
            ),
            width=bucket(min(width, most.width), most.width, least=LEAST_WIDTH, before=before.width),
        )  # fmt: skip


def _runs(model: PreTrainedModel, steps: Recording, way: Decode) -> StepRuns:
    def step(state: StepState) -> None:
        take_step(model, steps.cache, state, *steps.drawing)

    def compiled(_: Step, state: StepState) -> partial[None]:
        work = partial(compiled_step(), model, steps.cache, state, *steps.drawing)
        with torch._dynamo.config.patch(recompile_limit=MOST_SHAPES):
            work()
        return work

    if way == "graph":
        return StepRuns(model, step, CudaGraphs(model.device, steps.pool), steps.ready, tolerance(model, GRAPH_GAP))
    if way == "compiled":
        return StepRuns(model, step, compiled, steps.ready, tolerance(model, COMPILED_GAP), MOST_FLIPS)
    return StepRuns(model, step, None, steps.ready)


def way_for(model: PreTrainedModel) -> Decode:
    """How this model's responses are drawn: as was asked for, and plainly where that has failed with it before."""
    return "plain" if getattr(model, REFUSED, None) is not None else decode_on(model.device)
