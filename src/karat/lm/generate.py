"""Sampling responses: the decode loop.

Each prompt is run through the model once for all its samples; rows that finish make room for the next, and are
compacted away when enough have. Positions are counted and given, never derived from token ids. Knows nothing about
texts, templates or rewards: token ids in, token ids out.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from karat.devices import CPU, has_float64
from karat.errors import ConfigError, InputError, InvariantError
from karat.lm.cache import DecodeCache, DecodeStep, PrefillLayout, RowLayout, decoding
from karat.lm.final_block import only_rows
from karat.lm.kernels import for_few_rows
from karat.lm.logprobs import head_of, trunk_of
from karat.lm.narrow import products_of, weights_kept
from karat.lm.sampling import draw_tokens, forbid, likeliest_tokens, token_uniforms, truncate_logits
from karat.records import Sample

if TYPE_CHECKING:
    from karat.lm.load import LoadedLM

COMPACT_FRAC = 0.125  # of the rows: waiting longer computes idle rows, compacting oftener copies more than it saves
PREFILL_TOKENS = 8192  # of prompts in one forward pass: bounds the memory of its activations

Progress = Callable[[int, int, int], None]
"""progress(tokens drawn, responses finished, responses in all), called after every step."""
OnToken = Callable[[int, int, int], None]
"""on_token(prompt, sample, token), called for every token as it is drawn."""
Choose = Callable[[Tensor, list["_Row"]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SamplingConfig:
    """How responses are drawn."""

    max_new_tokens: int
    """Longest response in tokens, the stop token included."""
    temperature: float = 1.0
    """Logits are divided by it, > 0; recorded log-probabilities are those of the divided logits."""
    top_k: int = 0
    """Draw among the k likeliest tokens only; 0 = all. Log-probabilities are renormalised over what is left."""
    top_p: float = 1.0
    """Draw among the likeliest tokens of total probability p only; 1 = all. Renormalised likewise."""
    batch_rows: int = 128
    """Most responses under way at the same time."""
    min_new_tokens: int = 0
    """Stop tokens are impossible before this many others were drawn; renormalised likewise."""

    def __post_init__(self) -> None:
        for name, lowest in (("max_new_tokens", 1), ("top_k", 0), ("batch_rows", 1), ("min_new_tokens", 0)):
            if getattr(self, name) < lowest:
                raise ConfigError(f"SamplingConfig.{name}: found {getattr(self, name)}; expected ≥ {lowest}")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(
                f"SamplingConfig.temperature: found {self.temperature}; expected > 0; for the likeliest token use greedy"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"SamplingConfig.top_p: found {self.top_p}; expected a probability in (0, 1]")


def sample(
    lm: LoadedLM,
    prompts: Sequence[Sequence[int]],
    *,
    n_samples: int,
    config: SamplingConfig,
    seed: int,
    prompt_keys: Sequence[int] | None = None,
    progress: Progress | None = None,
    on_token: OnToken | None = None,
) -> list[list[Sample]]:
    """Draw n_samples responses to each prompt from the model's own distribution.

        token_t ~ softmax(logits_t / temperature), restricted by top_k, top_p and min_new_tokens

    Args:
        prompts: token ids, each at least one token.
        seed: with the prompt's key, the sample's number and the position it decides every draw; neither the order
            of the prompts nor batch_rows does, beyond the model's rounding.
        prompt_keys: an integer a prompt; prompts with equal keys share their random numbers. None = a hash of the
            token ids and of how often the same prompt came before in this call.
        progress: called after every step.    on_token: called with the indices of prompt and sample, and the token.
    Returns: the samples of each prompt, in the order given.
    Raises: InputError for a prompt that is empty, names an unknown token or leaves too little room in the context;
        InvariantError when the model's logits are not numbers.
    Differs: from `generate` of transformers: the prompt is read once for its samples, and the recorded
        log-probability is that of the distribution drawn from.
    """
    if n_samples < 1:
        raise ConfigError(f"sample: found n_samples {n_samples}; expected ≥ 1")
    _check_prompts(lm, prompts, config.max_new_tokens)
    keys = default_keys(prompts) if prompt_keys is None else list(prompt_keys)
    if len(keys) != len(prompts):
        raise InputError(f"sample: found {len(keys)} prompt keys for {len(prompts)} prompts; expected one each")
    # cumulative sums are float64: a device that has none hands its logits over
    device = lm.model.device if has_float64(lm.model.device) else CPU
    stops = torch.tensor(sorted(lm.eos_ids), device=device)

    def choose(logits: Tensor, rows: list[_Row]) -> tuple[Tensor, Tensor]:
        logits = logits.to(device)
        if config.temperature != 1:
            logits = logits / config.temperature
        if config.min_new_tokens:
            early = torch.tensor([len(row.tokens) < config.min_new_tokens for row in rows], device=logits.device)
            logits = forbid(logits, stops, early)
        if config.top_k or config.top_p < 1:
            logits = truncate_logits(logits, top_k=config.top_k, top_p=config.top_p)
        drawn = np.fromiter((row.uniforms[len(row.tokens) - row.done] for row in rows), np.float64, len(rows))
        return draw_tokens(logits, torch.from_numpy(drawn).to(logits.device))

    groups = [
        [
            _Row(index, number, len(prompt), token_uniforms(seed, key, number, config.max_new_tokens))
            for number in range(n_samples)
        ]
        for index, (prompt, key) in enumerate(zip(prompts, keys, strict=True))
    ]
    _Decoder(lm, prompts, groups, choose, config.max_new_tokens, config.batch_rows, progress).run(on_token)
    return [[row.result(prompts[row.prompt]) for row in rows] for rows in groups]


def greedy(
    lm: LoadedLM,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_rows: int = 128,
    progress: Progress | None = None,
    on_token: OnToken | None = None,
) -> list[Sample]:
    """The likeliest token at every position; log-probabilities under the model's own distribution.

    Raises: InputError, InvariantError as `sample` does.
    """
    SamplingConfig(max_new_tokens, batch_rows=batch_rows)
    _check_prompts(lm, prompts, max_new_tokens)
    groups = [[_Row(index, 0, len(prompt), np.empty(0))] for index, prompt in enumerate(prompts)]

    def choose(logits: Tensor, rows: list[_Row]) -> tuple[Tensor, Tensor]:  # noqa: ARG001 - the rows do not matter
        return likeliest_tokens(logits)

    _Decoder(lm, prompts, groups, choose, max_new_tokens, batch_rows, progress).run(on_token)
    return [rows[0].result(prompts[rows[0].prompt]) for rows in groups]


def default_keys(prompts: Sequence[Sequence[int]]) -> list[int]:
    """A 64-bit key for each prompt: SHA-256 of its token ids and of how many equal prompts came before it."""
    seen: Counter[tuple[int, ...]] = Counter()
    keys = []
    for prompt in map(tuple, prompts):
        text = " ".join(map(str, (seen[prompt], *prompt)))
        keys.append(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
        seen[prompt] += 1
    return keys


def _check_prompts(lm: LoadedLM, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    n_ids = lm.model.get_input_embeddings().weight.shape[0]
    for index, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise InputError(f"prompt {index} has no tokens; expected at least one; add a begin token or a template")
        if len(prompt) + max_new_tokens > lm.context_length:
            raise InputError(
                f"prompt {index} has {len(prompt)} tokens and up to {max_new_tokens} new ones; expected at most "
                f"{lm.context_length} together, the model's context; shorten the prompt or lower max_new_tokens"
            )
        foreign = next((token for token in prompt if not 0 <= token < n_ids), None)
        if foreign is not None:
            raise InputError(
                f"prompt {index} contains token {foreign}; expected ids from 0 to {n_ids - 1}, the model's "
                "vocabulary; use the model's own tokenizer"
            )


@dataclass(eq=False)
class _Row:
    """One response in the making."""

    prompt: int
    sample: int
    prompt_length: int
    uniforms: np.ndarray
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    done: bool = False
    stopped: bool = False
    slot: int = -1

    def result(self, prompt: Sequence[int]) -> Sample:
        return Sample(tuple(prompt), tuple(self.tokens), tuple(self.logprobs), self.stopped, self.sample)


class _Decoder:
    """The state of one call: which rows run, which wait, and where their keys lie."""

    def __init__(
        self,
        lm: LoadedLM,
        prompts: Sequence[Sequence[int]],
        groups: list[list[_Row]],
        choose: Choose,
        max_new_tokens: int,
        batch_rows: int,
        progress: Progress | None,
    ) -> None:
        self.model, self.device, self.stops = lm.model, lm.model.device, frozenset(lm.eos_ids)
        self.prompts, self.groups, self.choose = prompts, groups, choose
        self.on_token: OnToken | None = None
        self.max_new_tokens, self.batch_rows, self.progress = max_new_tokens, batch_rows, progress
        # longest first: prompts of like length run together, and the widest buffers are needed at the start only
        self.waiting = deque(sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index)))
        self.pending: deque[_Row] = deque()  # their prompt is read, but there was no room for them yet
        self.running: list[_Row] = []
        self.slots: list[int] = []  # the prompt in each slot of the prompt buffer
        self.layout: RowLayout | None = None
        self.n_tokens = self.n_finished = 0
        n_samples = len(groups[0]) if groups else 1
        self.n_total = n_samples * len(groups)
        self.cache = DecodeCache(
            n_slots=min(len(prompts), -(-batch_rows // n_samples)),
            prompt_tokens=max(map(len, prompts), default=0),
            n_rows=min(batch_rows, self.n_total),
            response_tokens=max_new_tokens - 1,  # the last token is never fed back
            dtype=products_of(lm.model),
        )

    def run(self, on_token: OnToken | None = None) -> None:
        """Draw until every row is done."""
        self.on_token = on_token
        head = head_of(self.model)[0]
        with torch.inference_mode(), decoding(self.model, self.cache), for_few_rows(head), weights_kept():
            self._admit()
            while self.running:
                self._step()
                n_done = sum(row.done for row in self.running)
                if n_done == len(self.running) or n_done > COMPACT_FRAC * len(self.running):
                    self._compact()
                    self._admit()

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
        n_samples = len(self.groups[0])
        self._record(rows, *self.choose(logits.repeat_interleave(n_samples, dim=0), rows))
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
        logits = self._logits(token_ids, positions, 0)
        self._record(rows, *self.choose(logits, rows))

    def _logits(self, token_ids: Tensor, positions: Tensor, keep: Tensor | int) -> Tensor:
        output = self.model(
            input_ids=token_ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        return output.logits[0]

    def _record(self, rows: list[_Row], tokens: Tensor, logprobs: Tensor) -> None:
        """Append what was drawn; rows that were done before are left alone."""
        for row, token, logprob in zip(rows, *_read(tokens, logprobs), strict=True):
            if row.done:
                continue
            if logprob != logprob:
                raise InvariantError(
                    f"sampling prompt {row.prompt}: the logits at position {len(row.tokens)} are not numbers; "
                    "expected finite logits; the model's weights are broken or overflow in this dtype"
                )
            row.tokens.append(token)
            row.logprobs.append(logprob)
            if self.on_token is not None:
                self.on_token(row.prompt, row.sample, token)
            self.n_tokens += 1
            row.stopped = token in self.stops
            row.done = row.stopped or len(row.tokens) == self.max_new_tokens
            self.n_finished += row.done
        if self.progress is not None:
            self.progress(self.n_tokens, self.n_finished, self.n_total)

    def _compact(self) -> None:
        """Let the last rows take the places of finished ones, and the last prompts those that no row reads."""
        self.running, moves = _close_gaps(self.running, [not row.done for row in self.running])
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


def _read(tokens: Tensor, logprobs: Tensor) -> tuple[list[int], list[float]]:
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
