"""The sampler's keys and values, and the attention that reads them.

Prompts and responses have a buffer each: the rows of one prompt attend to its keys together, so that they are stored
and read once however many samples there are. A forward pass is one flat row of tokens, [1, N]; which token belongs
to which prompt is in the layout, never in a mask that the model makes. Knows nothing about logits, stop tokens or
which row runs when.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from karat.errors import CheckpointError
from karat.lm import tiled_attention
from karat.lm.dense_attention import MOST_KEYS
from karat.lm.final_block import rows_read
from karat.lm.trees import TreeLayout, TreeSpan

ATTENTION = "karat_decode"
GIVEN = "karat_cache"
"""Argument by which a model passes the cache on to its attention; without it that looks in the context, which no compiler follows."""


@dataclass(frozen=True)
class PrefillLayout:
    """Whole prompts side by side in one flat row."""

    slots: Int[Tensor, " P"]
    """Where each prompt's keys go in the prompt buffer."""
    index: Int[Tensor, "P L"]
    """Flat position of each prompt's tokens, right-padded with any valid position."""
    prompt_of: Int[Tensor, " N"]
    """Which of the P prompts each flat position belongs to."""
    column_of: Int[Tensor, " N"]
    """Its position within that prompt."""

    @cached_property
    def row(self) -> TreeLayout:
        """The same row as trees of one branch each; kept, as each layer of a model asks for it."""
        lengths = self.prompt_of.bincount().tolist()
        starts = accumulate(lengths, initial=0)
        spans = (TreeSpan(start, 0, (length,)) for start, length in zip(starts, lengths, strict=False))
        return TreeLayout(tuple(spans), sum(lengths))


@dataclass(frozen=True)
class RowLayout:
    """One token for each running row; made anew only when rows come or go."""

    prompt_lengths: Int[Tensor, " R"]
    """Tokens of each row's prompt."""
    rows: Int[Tensor, " R"]
    """0 … R − 1."""
    slots: Int[Tensor, " R"]
    """Where its prompt lies in the prompt buffer."""
    seats: Int[Tensor, " R"]
    """Its place among the rows of the same prompt."""
    row_at: Int[Tensor, "P K"]
    """Which row sits at each slot and seat; empty seats name row 0, and what they compute is dropped."""
    prompt_width: int
    """Tokens of the longest running prompt."""


@dataclass
class DecodeStep:
    """What the attention needs to know about one decode step."""

    layout: RowLayout
    """Which row reads which prompt."""
    offsets: Int[Tensor, " R"]
    """Position within the response of the token that is fed."""
    width: int
    """Longest response so far, this token included."""
    recorded: bool = False
    """True = the step is compiled or recorded: only PyTorch's operations leave a trace in it."""
    masks: dict[int | None, Tensor] = field(default_factory=dict)
    """Additive masks [R, 1, 1, prompt_width + width] by sliding window, made once a step."""

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """0 where the row's token may look, −∞ elsewhere; the prompt's columns first, then the response's."""
        if window not in self.masks:
            lengths, offsets = self.layout.prompt_lengths.unsqueeze(-1), self.offsets.unsqueeze(-1)
            columns = torch.arange(self.layout.prompt_width, device=offsets.device)
            answered = torch.arange(self.width, device=offsets.device)
            in_prompt, in_response = columns < lengths, answered <= offsets
            if window is not None:
                in_prompt = in_prompt & (lengths + offsets - columns < window)
                in_response = in_response & (offsets - answered < window)
            seen = torch.cat([in_prompt, in_response], dim=-1)
            zeros = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            self.masks[window] = zeros.masked_fill_(~seen, -torch.inf)[:, None, None, :]
        return self.masks[window]


class DecodeCache:
    """Preallocated keys and values of running prompts and responses, for every layer.

    Handed to the model as `past_key_values`; of that interface it needs `update` only, since positions are given and the
    masks that models make are not read.
    """

    def __init__(
        self, *, n_slots: int, prompt_tokens: int, n_rows: int, response_tokens: int, dtype: torch.dtype | None = None
    ) -> None:
        """Args: dtype: that keys and values are kept in; None = as they come."""
        self.dtype = dtype
        self.n_slots, self.n_rows = n_slots, n_rows
        self.prompt_tokens, self.response_tokens = prompt_tokens, max(response_tokens, 1)
        self.prompts: list[tuple[Tensor, Tensor]] = []
        """A layer's keys and values, [n_slots, kv heads, prompt_tokens, d] each."""
        self.responses: list[tuple[Tensor, Tensor]] = []
        """The same of responses, [n_rows, kv heads, response_tokens, d] each."""
        self.generation = 0
        """How often the buffers have been exchanged for larger ones."""
        self.of_layers: dict[int, Any] = {}
        """By layer, what its steps of one call share; whoever decodes a block puts it there."""
        self.now: PrefillLayout | DecodeStep | None = None
        """What the forward pass under way is."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Store what a layer has computed, [1, kv heads, N, d] each, and hand it back in the dtype it is kept in."""
        if self.dtype is not None:
            key_states, value_states = key_states.to(self.dtype), value_states.to(self.dtype)
        self.reserve_layer(layer_idx, key_states, value_states)
        if isinstance(self.now, PrefillLayout):
            width = self.now.index.shape[1]
            for buffer, states in zip(self.prompts[layer_idx], (key_states, value_states), strict=True):
                buffer[self.now.slots, :, :width] = states[0].transpose(0, 1)[self.now.index].transpose(1, 2)
        elif isinstance(self.now, DecodeStep):
            rows = self.now.layout.rows
            for buffer, states in zip(self.responses[layer_idx], (key_states, value_states), strict=True):
                buffer[rows, :, self.now.offsets] = states[0].transpose(0, 1)
        return key_states, value_states

    def reserve_layer(self, layer_idx: int, keys: Tensor, values: Tensor) -> None:
        """Make a layer's buffers, and those of the layers before it, unless they are there; of the kind of the given states."""
        while len(self.prompts) <= layer_idx:
            self.prompts.append(self._buffers(self.n_slots, self.prompt_tokens, keys, values))
            self.responses.append(self._buffers(self.n_rows, self.response_tokens, keys, values))

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - the interface of transformers
        """0: some models ask even where they are told positions, for a mask that is not read."""
        return 0

    def move_rows(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy the responses of some rows over those of others."""
        _move(self.responses, sources, targets)

    def move_slots(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy the prompts in some slots over those in others."""
        _move(self.prompts, sources, targets)

    def clear(self) -> None:
        """As if nothing had been stored: a masked key still enters a product, and 0 · NaN is NaN."""
        self.of_layers.clear()
        for pair in (*self.prompts, *self.responses):
            for buffer in pair:
                buffer.zero_()

    def reserve_slots(self, n_slots: int) -> None:
        """Make room for at least n_slots prompts, at least doubling when room must be made."""
        if n_slots <= self.n_slots:
            return
        n_more = max(n_slots, 2 * self.n_slots) - self.n_slots
        self.prompts = [
            tuple(torch.cat([buffer, buffer.new_zeros((n_more, *buffer.shape[1:]))]) for buffer in pair)
            for pair in self.prompts
        ]
        self.n_slots += n_more
        self.generation += 1

    @staticmethod
    def _buffers(n: int, n_tokens: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        # zeros, not empty: a masked key still enters a product, and 0 · NaN is NaN
        return tuple(states.new_zeros((n, states.shape[1], n_tokens, states.shape[3])) for states in (keys, values))


_CACHE: ContextVar[DecodeCache] = ContextVar("karat_decode_cache")


@contextmanager
def decoding(model: PreTrainedModel, cache: DecodeCache) -> Iterator[None]:
    """Have the model attend through the cache, dropout off; on leaving, it is as it was."""
    config = model.config
    attention, training = config._attn_implementation, model.training
    token = _CACHE.set(cache)
    try:
        config._attn_implementation = ATTENTION
        if training:
            model.eval()
        yield
    finally:
        config._attn_implementation = attention
        if training:
            model.train()
        _CACHE.reset(token)


@torch.no_grad()
def decoded_logits(
    model: PreTrainedModel, prompt: Sequence[int], response: Sequence[int], dtype: torch.dtype | None
) -> Float[Tensor, "T V"]:
    """The logits from which each token of one response would be drawn, as the sampler computes them.

    Args:
        dtype: that keys and values are kept in.
    """
    length, device = len(prompt), model.device
    cache = DecodeCache(n_slots=1, prompt_tokens=length, n_rows=1, response_tokens=len(response), dtype=dtype)
    columns, first = torch.arange(length, device=device), torch.zeros(1, dtype=torch.long, device=device)
    row = RowLayout(torch.full_like(first, length), first, first, first, first.unsqueeze(0), length)
    steps: list[tuple[PrefillLayout | DecodeStep, Tensor, Tensor]] = [
        (
            PrefillLayout(first, columns.unsqueeze(0), torch.zeros_like(columns), columns),
            torch.tensor(prompt, device=device),
            columns,
        )
    ]
    for i, token in enumerate(response[:-1]):
        steps.append((DecodeStep(row, first + i, i + 1), first + token, first + length + i))
    found = []
    with decoding(model, cache):
        for cache.now, token_ids, positions in steps:
            output = model(
                input_ids=token_ids.unsqueeze(0), position_ids=positions.unsqueeze(0), past_key_values=cache,
                use_cache=True, logits_to_keep=1,
            )  # fmt: skip
            found.append(output.logits[0, -1])
    return torch.stack(found)


def decode_attention(
    module: nn.Module,
    query: Float[Tensor, "1 H N d"],
    key: Float[Tensor, "1 G N d"],
    value: Float[Tensor, "1 G N e"],
    attention_mask: Tensor | None,  # noqa: ARG001 - the interface of transformers; the layout says more than a mask
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Attention of each flat position to its own prompt and response.

        softmax(cap · tanh(scaling · q·k / cap) + mask) · v

    Returns: ([1, N, H, e], None).
    Raises: CheckpointError for attention with a bias or sink term, which it does not compute.
    """
    for name in ("position_bias", "s_aux"):
        if others.get(name) is not None:
            raise CheckpointError(
                f"{type(module).__name__}: found attention with {name}; expected plain softmax attention, with or "
                "without a window and a soft cap; use another model"
            )
    cache, wide = others.get(GIVEN) or _CACHE.get(), query.dtype
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    query = query.to(key.dtype)  # keys and values are kept narrower where products are
    if isinstance(cache.now, PrefillLayout):
        mixed = _attend_prompts(query, key, value, cache.now, scale, sliding_window, softcap)
    else:
        mixed = _attend_rows(query * scale, cache, cache.now, module.layer_idx, sliding_window, softcap)
    return mixed.unsqueeze(0).to(wide), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, decode_attention)


def _attend_prompts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PrefillLayout,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Float[Tensor, "N H e"]:
    """Causal attention within each prompt, as a right-padded batch: padding comes last, so no real token sees it."""
    long = softcap is None and layout.index.shape[1] > MOST_KEYS
    if long and tiled_attention.suits(query, key, layout.row, window):
        return tiled_attention.TiledTreeAttention.apply(query, key, value, layout.row, scale, rows_read())[0]
    q, k, v = (states[0].transpose(0, 1)[layout.index].transpose(1, 2) for states in (query, key, value))
    n_tokens = q.shape[2]
    if softcap is None and (window is None or window >= n_tokens):
        mixed = nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
    else:
        column = torch.arange(n_tokens, device=q.device)
        distance = column.unsqueeze(-1) - column
        seen = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        shared = q.unflatten(1, (k.shape[1], -1))
        scores = torch.einsum("pghid,pgjd->pghij", shared * scale, k)
        weights = _softmax(_cap(scores, softcap).masked_fill(~seen, -torch.inf), q.dtype)
        mixed = torch.einsum("pghij,pgje->pghie", weights, v).flatten(1, 2)
    return mixed[layout.prompt_of, :, layout.column_of]


def _attend_rows(
    query: Tensor, cache: DecodeCache, step: DecodeStep, layer: int, window: int | None, softcap: float | None
) -> Float[Tensor, "R H e"]:
    """Each row's new token attends to its prompt, read once for all rows of the prompt, and to its own response."""
    layout = step.layout
    (n_slots, n_seats), width = layout.row_at.shape, layout.prompt_width
    prompt_keys, prompt_values = (buffer[:n_slots, :, :width] for buffer in cache.prompts[layer])
    n_rows, n_kv_heads = query.shape[2], prompt_keys.shape[1]
    keys, values = (buffer[:n_rows, :, : step.width] for buffer in cache.responses[layer])
    rows = query[0].transpose(0, 1).unflatten(1, (n_kv_heads, -1))  # [R, G, heads a group, d]
    n_heads = rows.shape[2]
    seated = rows[layout.row_at].transpose(1, 2).flatten(2, 3)  # [P, G, K · heads, d]
    over_prompt = (seated @ prompt_keys.transpose(-1, -2)).unflatten(2, (n_seats, n_heads))
    over_prompt = over_prompt.transpose(1, 2)[layout.slots, layout.seats]
    scores = torch.cat([over_prompt, rows @ keys.transpose(-1, -2)], dim=-1)
    weights = _softmax(_cap(scores, softcap).add_(step.mask(window, scores.dtype)), scores.dtype)
    on_prompt = weights[..., :width][layout.row_at].transpose(1, 2).flatten(2, 3)  # [P, G, K · heads, L]
    from_prompt = (on_prompt @ prompt_values).unflatten(2, (n_seats, n_heads)).transpose(1, 2)
    mixed = from_prompt[layout.slots, layout.seats] + weights[..., width:] @ values
    return mixed.flatten(1, 2)


def _cap(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


def _softmax(scores: Tensor, dtype: torch.dtype) -> Tensor:
    wide = dtype if dtype == torch.float64 else torch.float32
    return torch.softmax(scores, dim=-1, dtype=wide).to(dtype)


def _move(layers: list[tuple[Tensor, Tensor]], sources: Sequence[int], targets: Sequence[int]) -> None:
    if not sources:
        return
    device = layers[0][0].device
    read, write = torch.tensor(sources, device=device), torch.tensor(targets, device=device)
    for pair in layers:
        for buffer in pair:
            buffer[write] = buffer[read]
