"""The decode loop: which rows run, which wait, and where their keys lie.

Each prompt is run through the model once for all its samples; rows that finish make room for the next, and are
compacted away when enough have. Positions are counted and given, never derived from token ids. Between two looks at what
was drawn lies one step (the plain way) or a segment of steps of static shapes. Knows token ids; knows nothing about how
a token is drawn from logits.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from karat.devices import CPU, has_float64
from karat.errors import InvariantError
from karat.lm.cache import DecodeCache, DecodeStep, PrefillLayout, RowLayout, decoding
from karat.lm.final_block import only_rows
from karat.lm.kernels import even_rows, for_few_rows
from karat.lm.logprobs import head_of, trunk_of
from karat.lm.narrow import products_of, weights_kept
from karat.lm.segments import Segments, capacity
from karat.lm.shapes import FEW_PARTS
from karat.lm.static_step import SEGMENT, Choose
from karat.process_settings import Decode
from karat.records import Sample

if TYPE_CHECKING:
    from karat.lm.load import LoadedLM

COMPACT_FRAC = 0.125  # of the rows: waiting longer computes idle rows, compacting oftener copies more than it saves
PREFILL_TOKENS = 8192  # of prompts in one forward pass: bounds the memory of its activations

Progress = Callable[[int, int, int], None]
"""progress(tokens drawn, responses finished, responses in all), called for every step."""
OnToken = Callable[[int, int, int], None]
"""on_token(prompt, sample, token), called for every token as it is drawn."""
Uniforms = Callable[[Sequence["Row"]], np.ndarray]
"""uniforms(rows): the numbers that draw some responses, [R, T] in [0, 1); asked for when their prompt is read."""


def drawing_device(model: PreTrainedModel) -> torch.device:
    """Where tokens are drawn from logits: cumulative sums are float64, and a device that has none hands its logits over."""
    return model.device if has_float64(model.device) else CPU


@dataclass(eq=False)
class Row:
    """One response in the making."""

    prompt: int
    """Which prompt it answers."""
    sample: int
    """Its number among the prompt's samples."""
    prompt_length: int
    """Tokens of the prompt."""
    uniforms: list[float] = field(default_factory=list)
    """The numbers that draw it, by position, while it runs; empty where nothing is drawn."""
    tokens: list[int] = field(default_factory=list)
    """What was drawn."""
    logprobs: list[float] = field(default_factory=list)
    """With which log-probabilities."""
    done: bool = False
    """True = nothing more is drawn."""
    stopped: bool = False
    """True = it ended by a stop token."""
    slot: int = -1
    """Where its prompt's keys are."""

    def result(self, prompt: Sequence[int]) -> Sample:
        """The finished response."""
        return Sample(tuple(prompt), tuple(self.tokens), tuple(self.logprobs), self.stopped, self.sample)


class Decoder:
    """The state of one call: which rows run, which wait, and where their keys lie."""

    def __init__(
        self,
        lm: LoadedLM,
        prompts: Sequence[Sequence[int]],
        groups: list[list[Row]],
        choose: Choose,
        max_new_tokens: int,
        batch_rows: int,
        progress: Progress | None,
        *,
        way: Decode = "plain",
        uniforms: Uniforms | None = None,
    ) -> None:
        self.model, self.device, self.stops = lm.model, lm.model.device, frozenset(lm.eos_ids)
        self.prompts, self.groups, self.choose, self.uniforms = prompts, groups, choose, uniforms
        self.draws_on = drawing_device(lm.model)
        self.on_token: OnToken | None = None
        self.max_new_tokens, self.batch_rows, self.progress = max_new_tokens, batch_rows, progress
        # longest first: prompts of like length run together, and the widest buffers are needed at the start only
        self.waiting = deque(sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index)))
        self.pending: deque[Row] = deque()  # their prompt is read, but there was no room for them yet
        self.running: list[Row] = []
        self.slots: list[int] = []  # the prompt in each slot of the prompt buffer
        self.layout: RowLayout | None = None
        self.n_tokens = self.n_finished = 0
        n_samples = len(groups[0]) if groups else 1
        self.n_total = n_samples * len(groups)
        prompt_tokens, n_rows = max(map(len, prompts), default=0), min(batch_rows, self.n_total)
        response_tokens = max_new_tokens - 1  # the last token is never fed back
        if way != "plain":
            # of prompts in powers of two for recorded steps as well: the next call's buffers are then to be as wide
            prompt_tokens = capacity(max(prompt_tokens, 1), powers=way in ("compiled", "graph"))
            response_tokens = capacity(max(response_tokens, 1), powers=way == "compiled")
        self.cache = DecodeCache(
            n_slots=min(len(prompts), -(-batch_rows // n_samples)),
            prompt_tokens=prompt_tokens,
            n_rows=n_rows,
            response_tokens=response_tokens,
            dtype=products_of(lm.model),
        )
        self.segments: Segments | None = None
        if way != "plain":
            self.segments = Segments(
                lm.model, self.cache, choose, way=way, seats=min(n_samples, n_rows),
                stops=torch.tensor(sorted(self.stops), device=self.device), limit=max_new_tokens,
            )  # fmt: skip
            self.cache = self.segments.cache

    def run(self, on_token: OnToken | None = None) -> None:
        """Draw until every row is done."""
        self.on_token = on_token
        with torch.inference_mode(), decoding(self.model, self.cache), self._layers():
            self._admit()
            while self.running:
                if self.segments is None:
                    self._step()
                else:
                    self._segment(self.segments)
                n_done = sum(row.done for row in self.running)
                if n_done == len(self.running) or n_done > COMPACT_FRAC * len(self.running):
                    self._compact()
                    self._admit()

    @contextmanager
    def _layers(self) -> Iterator[None]:
        """Within: the model's layers are as the way of drawing needs them."""
        if self.segments is not None:
            with self.segments.at_work():
                yield
            return
        with for_few_rows(head_of(self.model)[0]), weights_kept():
            yield

    def _admit(self) -> None:
        """Fill the free rows: first those whose prompt is read already, then the next prompts."""
        while len(self.running) < self.batch_rows and (self.pending or self.waiting):
            if not self.pending:
                n_free = self.batch_rows - len(self.running)
                self._prefill(max(1, n_free // len(self.groups[0])))
            while self.pending and len(self.running) < self.batch_rows:
                self.running.append(self.pending.popleft())
            self.layout = None

    def _prefill(self, n_prompts: int) -> None:
        """Read the next prompts, at most n_prompts and a budget of tokens, and draw their rows' first tokens."""
        taken, n_tokens = [], 0
        while self.waiting and len(taken) < n_prompts:
            n_tokens += len(self.prompts[self.waiting[0]])
            if taken and n_tokens > PREFILL_TOKENS:
                break
            taken.append(self.waiting.popleft())
        lengths = [len(self.prompts[index]) for index in taken]
        starts = np.cumsum([0, *lengths])
        columns = np.concatenate([np.arange(length) for length in lengths])
        first_slot = len(self.slots)
        self.slots.extend(taken)
        self.cache.reserve_slots(len(self.slots))
        flat_index = np.minimum(starts[:-1, None] + np.arange(max(lengths)), starts[-1] - 1)
        self.cache.now = PrefillLayout(
            slots=torch.arange(first_slot, len(self.slots), device=self.device),
            index=self._tensor(flat_index),
            prompt_of=self._tensor(np.repeat(np.arange(len(taken)), lengths)),
            column_of=self._tensor(columns),
        )
        token_ids = np.concatenate([np.asarray(self.prompts[index], dtype=np.int64) for index in taken])
        last = self._tensor(starts[1:] - 1)
        with only_rows(trunk_of(self.model), last, (1, len(token_ids))):
            logits = self._logits(self._tensor(token_ids), self._tensor(columns), last)
        rows = [row for index in taken for row in self.groups[index]]
        for number, index in enumerate(taken):
            for row in self.groups[index]:
                row.slot = first_slot + number
        if self.uniforms is not None:
            for row, own in zip(rows, self.uniforms(rows).tolist(), strict=True):
                row.uniforms = own
        n_samples = len(self.groups[0])
        self._draw(rows, logits.repeat_interleave(n_samples, dim=0))
        self.pending.extend(row for row in rows if not row.done)

    def _step(self) -> None:
        """Draw one token for every running row."""
        rows = self.running
        if self.layout is None:
            self.layout = self._make_layout()
        # a row that ended at full length waits for compaction in its last place; what it computes is thrown away
        offsets = [min(len(row.tokens), self.max_new_tokens - 1) - 1 for row in rows]
        self.cache.now = DecodeStep(self.layout, self._tensor(offsets), width=max(offsets) + 1)
        token_ids = self._tensor([row.tokens[-1] for row in rows])
        positions = self.layout.prompt_lengths + self.cache.now.offsets
        self._draw(rows, self._logits(token_ids, positions, 0))

    def _segment(self, segments: Segments) -> None:
        """Draw some tokens for every running row without looking at them in between."""
        rows = self.running
        if self.layout is None:
            self.layout = self._make_layout()
        n_steps = 1 if self.on_token is not None else SEGMENT  # whoever watches is shown each token as it comes
        n_steps = min(n_steps, self.max_new_tokens - min(len(row.tokens) for row in rows if not row.done))
        numbers = None
        if self.choose.draws:
            numbers = np.zeros((len(rows), n_steps))
            for own, row in zip(numbers, rows, strict=True):
                ahead = row.uniforms[len(row.tokens) : len(row.tokens) + n_steps]
                own[: len(ahead)] = ahead
        # a row that ended waits for compaction in its last place; what it computes is thrown away
        offsets = [min(len(row.tokens), self.max_new_tokens - 1) - 1 for row in rows]
        given = [row.tokens[-1] for row in rows], offsets, [not row.done for row in rows]
        tokens, logprobs = _read(*segments.draw(self.layout, *given, numbers, n_steps))
        for step in range(n_steps):
            self._record(rows, [own[step] for own in tokens], [own[step] for own in logprobs])
            if all(row.done for row in rows):
                return

    def _draw(self, rows: list[Row], logits: Tensor) -> None:
        """One token for each row."""
        logits = logits.to(self.draws_on)
        uniforms = n_drawn = None
        if self.choose.draws:
            # of a row that waits for compaction what is drawn is thrown away
            numbers = [0.0 if row.done else row.uniforms[len(row.tokens)] for row in rows]
            uniforms = torch.tensor(numbers, dtype=torch.float64, device=logits.device)
        if self.choose.counts:
            n_drawn = torch.tensor([len(row.tokens) for row in rows], device=logits.device)
        self._record(rows, *_read(*self.choose(logits, uniforms, n_drawn)))

    def _logits(self, token_ids: Tensor, positions: Tensor, keep: Tensor | int) -> Tensor:
        output = self.model(
            input_ids=token_ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        return output.logits[0]

    def _record(self, rows: list[Row], tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        """Append what was drawn; rows that were done before are left alone."""
        stops, most, on_token = self.stops, self.max_new_tokens, self.on_token
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            if row.done:
                continue
            if logprob != logprob:
                raise InvariantError(
                    f"sampling prompt {row.prompt}: the logits at position {len(row.tokens)} are not numbers; "
                    "expected finite logits; the model's weights are broken or overflow in this dtype"
                )
            row.tokens.append(token)
            row.logprobs.append(logprob)
            if on_token is not None:
                on_token(row.prompt, row.sample, token)
            self.n_tokens += 1
            if token in stops or len(row.tokens) == most:
                row.stopped, row.done, row.uniforms = token in stops, True, []
                self.n_finished += 1
        if self.progress is not None:
            self.progress(self.n_tokens, self.n_finished, self.n_total)

    def _compact(self) -> None:
        """Let the last rows take the places of finished ones, and the last prompts those that no row reads."""
        keep = [not row.done for row in self.running]
        if not (self.pending or self.waiting):  # else others take the places
            n_more = even_rows(sum(keep), self.device, products_of(self.model), FEW_PARTS) - sum(keep)
            for place in [place for place, kept in enumerate(keep) if not kept][:n_more]:
                keep[place] = True
        self.running, moves = _close_gaps(self.running, keep)
        self.cache.move_rows(*moves)
        needed = {row.slot for row in self.running} | {row.slot for row in self.pending}
        old = list(range(len(self.slots)))
        kept, moves = _close_gaps(old, [slot in needed for slot in old])
        self.cache.move_slots(*moves)
        new_slot = {slot: place for place, slot in enumerate(kept)}
        self.slots = [self.slots[slot] for slot in kept]
        for row in (*self.running, *self.pending):
            row.slot = new_slot[row.slot]
        self.layout = None

    def _make_layout(self) -> RowLayout:
        seats: Counter[int] = Counter()
        seat_of = []
        for row in self.running:
            seat_of.append(seats[row.slot])
            seats[row.slot] += 1
        row_at = np.zeros((len(self.slots), max(seats.values())), dtype=np.int64)
        for number, (row, seat) in enumerate(zip(self.running, seat_of, strict=True)):
            row_at[row.slot, seat] = number
        return RowLayout(
            prompt_lengths=self._tensor([row.prompt_length for row in self.running]),
            rows=torch.arange(len(self.running), device=self.device),
            slots=self._tensor([row.slot for row in self.running]),
            seats=self._tensor(seat_of),
            row_at=self._tensor(row_at),
            prompt_width=max(row.prompt_length for row in self.running),
        )

    def _tensor(self, numbers: np.ndarray | list[int]) -> Tensor:
        return torch.as_tensor(numbers, dtype=torch.int64).to(self.device)


def _read(tokens: Tensor, logprobs: Tensor) -> tuple[list, list]:
    """What was drawn, in one message: each one waits for the device."""
    together = torch.stack([tokens, logprobs.view(torch.int32).long()]).cpu()
    return together[0].tolist(), together[1].int().view(torch.float32).tolist()


def _close_gaps(items: list, keep: list[bool]) -> tuple[list, tuple[list[int], list[int]]]:
    """The kept items without gaps, moving as few as possible, and the (sources, targets) of the moves."""
    n_kept = sum(keep)
    targets = [place for place in range(n_kept) if not keep[place]]
    sources = [place for place in range(n_kept, len(items)) if keep[place]]
    closed = items[:n_kept]
    for source, target in zip(sources, targets, strict=True):
        closed[target] = items[source]
    return closed, (sources, targets)
