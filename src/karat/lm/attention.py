"""Attention over trees, through the attention interface of transformers.

Importing this module registers an attention function and a mask function under the name "karat_tree". Inside
`tree_layout(layout)` a flat row [1, L] is attended tree by tree: a prompt token sees the prompt up to itself, a branch
token sees the prompt and its own branch up to itself. Outside it the function is plain scaled-dot-product attention with
the standard masks, so that the same loaded model also runs padded batches and generation with a cache. Knows queries,
keys and layouts; knows nothing about models, tokens or losses.

Dimension letters: H query heads, K key heads, D head size, L flat positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from karat.errors import InvariantError
from karat.lm import flex_trees, tiled_attention, ways
from karat.lm.dense_attention import DenseTreeAttention, Piece, is_short, pieces_of
from karat.lm.final_block import rows_read
from karat.lm.flex_trees import flex_tree_attention
from karat.lm.narrow import products_of
from karat.lm.tiled_attention import TiledTreeAttention
from karat.lm.trees import TreeLayout, TreeSpan

NAME = "karat_tree"
_LAYOUT: ContextVar[TreeLayout | None] = ContextVar("karat_tree_layout", default=None)
DENSE = (torch.float64, torch.float32, torch.bfloat16)  # what `DenseTreeAttention` takes
FLEX_GAP = {torch.float64: 1e-6, torch.float32: 1e-3}  # relative; narrower dtypes are allowed 3e-2
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


def current_layout() -> TreeLayout | None:
    """The layout that flat rows are read by, within `tree_layout`."""
    return _LAYOUT.get()


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
    if query.device.type in flex_trees.DEVICES and ways.current().attention == "auto":
        products = products_of(module) or query.dtype
        if _flex_works(query.device, products, (query.shape[1], key.shape[1], query.shape[3]), softcap):
            narrow = (states.to(products) for states in (query, key, value))
            found = flex_tree_attention(*narrow, layout, scale=scale, window=window, softcap=softcap)
            return found.to(query.dtype), None
    if softcap is None and query.device.type == "cpu":
        products = products_of(module) or query.dtype
        if products in DENSE and is_short(layout, products):
            narrow = (states.to(products) for states in (query, key, value))
            return DenseTreeAttention.apply(*narrow, layout, scale, window).to(query.dtype), None
        if tiled_attention.suits(query, key, layout, window):
            return TiledTreeAttention.apply(query, key, value, layout, scale, rows_read()), None
        return _TreeAttention.apply(query, key, value, layout, scale, window), None
    return _by_tree(query, key, value, layout, scale=scale, window=window, softcap=softcap), None


def _by_tree(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: TreeLayout,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Float[Tensor, "1 L H D"]:
    """The same tree by tree, each under a mask of its own: on any device, with any head size."""
    outputs = []
    sizes = [span.stop - span.start for span in layout.spans]
    filler = layout.n_positions - sum(sizes)
    parts = (t[:, :, : sum(sizes)].split(sizes, dim=2) for t in (query, key, value))
    for mask, q, k, v in zip(_tree_masks(layout, window, query.device), *parts, strict=True):
        outputs.append((_sdpa if softcap is None else _eager)(q, k, v, mask, scale, softcap).transpose(1, 2))
    if filler:
        outputs.append(outputs[-1].new_zeros((1, filler, query.shape[1], value.shape[-1])))
    return torch.cat(outputs, dim=1)


@cache
def _flex_works(device: torch.device, dtype: torch.dtype, sizes: tuple[int, int, int], softcap: float | None) -> bool:
    """Whether FlexAttention runs here for such heads and gives, with its gradients, what `_by_tree` gives.

    Tried once: which head sizes, dtypes and devices it takes differs between releases, and it needs a compiler.
    """
    n_heads, n_key_heads, size = sizes
    layout = TreeLayout((TreeSpan(0, 90, (30, 41)), TreeSpan(161, 3, (5,))), 180)
    shapes = [(1, heads, layout.n_positions, size) for heads in (n_heads, n_key_heads, n_key_heads)]
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]

    def tried(attend: Callable[..., Tensor]) -> list[Tensor]:
        states = [one.clone().requires_grad_() for one in drawn]
        found = attend(*states, layout, scale=size**-0.5, window=64, softcap=softcap)[:, : layout.spans[-1].stop]
        return [found.detach(), *torch.autograd.grad(found.square().sum(), states)]

    try:
        with torch.inference_mode(False), torch.enable_grad():
            pairs = list(zip(tried(flex_tree_attention), tried(_by_tree), strict=True))
    except Exception:  # whatever a compiler or a kernel raises: then each tree is attended by itself
        return False
    most = FLEX_GAP.get(dtype, 3e-2)
    return all(float((one - other).abs().max()) <= most * float(other.abs().max()) for one, other in pairs)


def tree_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """No mask where a layout is set (the attention function knows who sees whom), the standard one otherwise."""
    return sdpa_mask(*args, **kwargs) if _LAYOUT.get() is None else None


@lru_cache(maxsize=4)
def _tree_masks(layout: TreeLayout, window: int | None, device: torch.device) -> tuple[Bool[Tensor, "l l"], ...]:
    """The mask of each tree; kept, as each layer of a model asks for the same."""
    with torch.inference_mode(False):  # else a pass without gradients would leave masks that no other pass can keep
        return tuple(_tree_mask(span, window).to(device) for span in layout.spans)


def _tree_mask(span: TreeSpan, window: int | None) -> Bool[Tensor, "l l"]:
    """True = query (row) sees key (column): causal by position within the prompt and the query's own branch."""
    n = span.stop - span.start
    lengths = torch.tensor([span.n_prompt, *span.branch_lengths])
    part = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    begin = torch.tensor([0, *[span.n_prompt] * len(span.branch_lengths)])
    index = torch.arange(n)
    offset = index - (lengths.cumsum(0) - lengths)[part]
    position = offset + begin[part]
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
        masks = [_mask_of(piece, window, query.dtype) for piece in pieces_of(layout)]
        for piece, mask in zip(pieces_of(layout), masks, strict=True):
            own = slice(piece.start, piece.stop)
            found, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[:, :, own],
                _keys_of(key, piece),
                _keys_of(value, piece),
                0.0,
                mask is None,
                attn_mask=mask,
                scale=scale,
            )
            output[:, own] = found.transpose(1, 2)
            normalisers.append(normaliser)
        ctx.save_for_backward(query, key, value, output, *normalisers)
        ctx.layout, ctx.masks, ctx.scale = layout, masks, scale
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, *normalisers = ctx.saved_tensors
        # laid out as the projections are, [1, L, heads, size], so that what follows needs no copy
        grad_query, grad_key, grad_value = (torch.zeros_like(t.transpose(1, 2)) for t in (query, key, value))
        for piece, mask, normaliser in zip(pieces_of(ctx.layout), ctx.masks, normalisers, strict=True):
            own = slice(piece.start, piece.stop)
            found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grads[0][:, own].transpose(1, 2),
                query[:, :, own],
                _keys_of(key, piece),
                _keys_of(value, piece),
                output[:, own].transpose(1, 2),
                normaliser,
                0.0,
                mask is None,
                attn_mask=mask,
                scale=ctx.scale,
            )
            by_position = [t.transpose(1, 2) for t in found]
            grad_query[:, own] = by_position[0]
            _add_keys(grad_key, piece, by_position[1])
            _add_keys(grad_value, piece, by_position[2])
        return *(t.transpose(1, 2) for t in (grad_query, grad_key, grad_value)), None, None, None


def _keys_of(tensor: Tensor, piece: Piece) -> Tensor:
    own = tensor[:, :, piece.start : piece.stop]
    if not piece.n_prompt:
        return own
    return torch.cat([tensor[:, :, piece.prompt_start : piece.prompt_start + piece.n_prompt], own], dim=2)


def _add_keys(total: Tensor, piece: Piece, grad: Tensor) -> None:
    if piece.n_prompt:
        total[:, piece.prompt_start : piece.prompt_start + piece.n_prompt] += grad[:, : piece.n_prompt]
    total[:, piece.start : piece.stop] += grad[:, piece.n_prompt :]


def _mask_of(piece: Piece, window: int | None, dtype: torch.dtype) -> Float[Tensor, "q k"] | None:
    """Additive; None = causal."""
    cut = window is not None and window < piece.n_keys
    if not piece.n_prompt and not cut:
        return None
    nothing = torch.full((piece.n_queries, piece.n_keys), -torch.inf, dtype=dtype)
    mask = nothing.triu(piece.n_prompt + 1)
    if cut:
        assert window is not None
        mask += nothing.tril(piece.n_prompt - window)
    return mask


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
