"""Attention over trees, through the attention interface of transformers.

Importing this module registers an attention function and a mask function under the name "karat_tree". Inside
`tree_layout(layout)` a flat row [1, L] is attended tree by tree: a prompt token sees the prompt up to itself, a branch
token sees the prompt and its own branch up to itself. Outside it the function is plain scaled-dot-product attention with
the standard masks, so that the same loaded model also runs padded batches and generation with a cache. Knows queries,
keys and layouts; knows nothing about models, tokens or losses.

Dimension letters: H query heads, K key heads, D head size, L flat positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from karat.errors import InvariantError
from karat.lm.trees import TreeLayout, TreeSpan

NAME = "karat_tree"
_LAYOUT: ContextVar[TreeLayout | None] = ContextVar("karat_tree_layout", default=None)
# Arguments some architectures pass that change the result and that are not implemented here.
UNSUPPORTED = ("s_aux", "position_bias", "head_mask", "alibi")


@contextmanager
def tree_layout(layout: TreeLayout) -> Iterator[None]:
    """Within the block, models loaded with the tree attention read their flat row by this layout."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


def tree_attention(
    module: nn.Module,
    query: Float[Tensor, "B H L D"],
    key: Float[Tensor, "B K S D"],
    value: Float[Tensor, "B K S D"],
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Float[Tensor, "B L H D"], None]:
    """softmax(q·kᵀ·scaling [soft-capped] + mask)·v, by trees where a layout is set and plain otherwise.

    Args:
        attention_mask: bool [B, 1, L, S], True = attend, or None = causal; unused where a layout is set.
        options: scaling, softcap, sliding_window, dropout and is_causal as transformers passes them.
    Returns: output [B, L, H, D], and None in place of attention weights.
    Raises: InvariantError for options this function would have to ignore.
    """
    for name in UNSUPPORTED:
        if options.get(name) is not None:
            raise InvariantError(f"tree attention: the model passes {name!r}, which is not implemented; load it padded")
    layout = _LAYOUT.get()
    softcap = options.get("softcap")
    scaling = options.get("scaling")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if layout is None:
        if softcap is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        if attention_mask is None and query.shape[2] > 1:
            attention_mask = _causal(query.shape[2], key.shape[2], query.device)
        return _eager(query, key, value, attention_mask, scale, softcap).transpose(1, 2).contiguous(), None
    if query.shape[0] != 1 or query.shape[2] != layout.n_positions or key.shape[2] != layout.n_positions:
        raise InvariantError(
            f"tree attention: found queries {tuple(query.shape)} and keys {tuple(key.shape)}; expected one row of "
            f"{layout.n_positions} positions without a cache"
        )
    if options.get("dropout"):
        raise InvariantError(f"tree attention: found dropout {options['dropout']}; expected 0 (karat.lm.load sets it)")
    window = options.get("sliding_window")
    if softcap is None and query.device.type == "cpu":
        return _TreeAttention.apply(query, key, value, layout, scale, window), None
    outputs = []
    sizes = [span.stop - span.start for span in layout.spans]
    filler = layout.n_positions - sum(sizes)
    parts = (t[:, :, : sum(sizes)].split(sizes, dim=2) for t in (query, key, value))
    for span, q, k, v in zip(layout.spans, *parts, strict=True):
        mask = _tree_mask(span, window, query.device)
        outputs.append((_sdpa if softcap is None else _eager)(q, k, v, mask, scale, softcap).transpose(1, 2))
    if filler:
        outputs.append(outputs[-1].new_zeros((1, filler, query.shape[1], value.shape[-1])))
    return torch.cat(outputs, dim=1), None


def tree_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """No mask where a layout is set (the attention function knows who sees whom), the standard one otherwise."""
    return sdpa_mask(*args, **kwargs) if _LAYOUT.get() is None else None


def _tree_mask(span: TreeSpan, window: int | None, device: torch.device) -> Bool[Tensor, "l l"]:
    """True = query (row) sees key (column): causal by position within the prompt and the query's own branch."""
    n = span.stop - span.start
    lengths = torch.tensor([span.n_prompt, *span.branch_lengths])
    part = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(device)
    begin = torch.tensor([0, *[span.n_prompt] * len(span.branch_lengths)])
    index = torch.arange(n)
    offset = index - (lengths.cumsum(0) - lengths)[part.cpu()]
    position = (offset + begin[part.cpu()]).to(device)
    same = (part[:, None] == part[None, :]) | (part[None, :] == 0)
    distance = position[:, None] - position[None, :]
    seen = same & (distance >= 0)
    if window is not None:
        seen &= distance < window
    return seen


class _TreeAttention(torch.autograd.Function):
    """Attention of a flat row by PyTorch's CPU flash kernel, piece by piece.

    A prompt and its first branch are one causal sequence; every further branch asks its own queries of the prompt's keys
    and its own. Only the pieces exist: no [L, L] scores, no repeated key heads, no gradient buffers per piece.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, scale: float, window: int | None
    ) -> Tensor:
        output = query.new_empty((1, layout.n_positions, query.shape[1], value.shape[-1]))
        output[:, layout.spans[-1].stop :] = 0
        normalisers = []
        pieces = _pieces(layout, window, query.dtype)
        for piece in pieces:
            found, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[:, :, piece.queries],
                piece.keys_of(key),
                piece.keys_of(value),
                0.0,
                piece.mask is None,
                attn_mask=piece.mask,
                scale=scale,
            )
            output[:, piece.queries] = found.transpose(1, 2)
            normalisers.append(normaliser)
        ctx.save_for_backward(query, key, value, output, *normalisers)
        ctx.pieces, ctx.scale = pieces, scale
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, *normalisers = ctx.saved_tensors
        # laid out as the projections are, [1, L, heads, size], so that what follows needs no copy
        grad_query, grad_key, grad_value = (torch.zeros_like(t.transpose(1, 2)) for t in (query, key, value))
        for piece, normaliser in zip(ctx.pieces, normalisers, strict=True):
            found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grads[0][:, piece.queries].transpose(1, 2),
                query[:, :, piece.queries],
                piece.keys_of(key),
                piece.keys_of(value),
                output[:, piece.queries].transpose(1, 2),
                normaliser,
                0.0,
                piece.mask is None,
                attn_mask=piece.mask,
                scale=ctx.scale,
            )
            by_position = [t.transpose(1, 2) for t in found]
            grad_query[:, piece.queries] = by_position[0]
            piece.add_to(grad_key, by_position[1])
            piece.add_to(grad_value, by_position[2])
        return *(t.transpose(1, 2) for t in (grad_query, grad_key, grad_value)), None, None, None


@dataclass(frozen=True)
class _Piece:
    """Queries of one kernel call and the keys they see."""

    queries: slice
    """Flat positions that ask."""
    prompt: slice
    """Flat positions of the prompt, seen by all of them; empty where prompt and branch are one causal sequence."""
    mask: Tensor | None
    """Additive [queries, keys]; None = causal."""

    def keys_of(self, tensor: Tensor) -> Tensor:
        own = tensor[:, :, self.queries]
        if self.prompt.start == self.prompt.stop:
            return own
        return torch.cat([tensor[:, :, self.prompt], own], dim=2)

    def add_to(self, total: Tensor, grad: Tensor) -> None:
        n_prompt = self.prompt.stop - self.prompt.start
        if n_prompt:
            total[:, self.prompt] += grad[:, :n_prompt]
        total[:, self.queries] += grad[:, n_prompt:]


def _pieces(layout: TreeLayout, window: int | None, dtype: torch.dtype) -> list[_Piece]:
    pieces = []
    for span in layout.spans:
        begin = span.start
        for number, length in enumerate(span.branch_lengths):
            if number == 0:
                n_prompt, queries, prompt = 0, slice(begin, begin + span.n_prompt + length), slice(begin, begin)
            else:
                n_prompt, queries, prompt = (
                    span.n_prompt,
                    slice(begin, begin + length),
                    slice(span.start, span.start + span.n_prompt),
                )
            n_queries = queries.stop - queries.start
            n_keys = n_prompt + n_queries
            mask = None
            if n_prompt or (window is not None and window < n_keys):
                mask = torch.full((n_queries, n_keys), -torch.inf, dtype=dtype).triu_(n_prompt + 1)
                if window is not None and window < n_keys:
                    mask += torch.full((n_queries, n_keys), -torch.inf, dtype=dtype).tril_(n_prompt - window)
            pieces.append(_Piece(queries, prompt, mask))
            begin = queries.stop
    return pieces


def _causal(n_query: int, n_key: int, device: torch.device) -> Bool[Tensor, "q k"]:
    return torch.ones((n_query, n_key), dtype=torch.bool, device=device).tril(n_key - n_query)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, _softcap: None) -> Tensor:
    gqa = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=gqa)


def _eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """The same in plain operations, with soft-capped logits; softmax in at least float32."""
    batch, heads, n_query, size = q.shape
    groups = q.reshape(batch, k.shape[1], heads // k.shape[1], n_query, size)
    logits = torch.matmul(groups, k.unsqueeze(2).transpose(-1, -2)) * scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if mask is not None:
        visible = mask if mask.ndim == 2 else mask.unsqueeze(2)
        if visible.dtype == torch.bool:
            logits = logits.masked_fill(~visible, torch.finfo(logits.dtype).min)
        else:
            logits = logits + visible
    wide = logits if logits.dtype == torch.float64 else logits.float()
    weights = wide.softmax(-1).to(q.dtype)
    return torch.matmul(weights, v.unsqueeze(2)).reshape(batch, heads, n_query, v.shape[-1])


ALL_ATTENTION_FUNCTIONS.register(NAME, tree_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, tree_mask)
