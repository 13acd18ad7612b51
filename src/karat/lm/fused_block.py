"""Which decoder blocks are computed as one operation (`block_pass`), and when.

Blocks of Llama's kind (RMS norms, rotary angles, a gated MLP, no biases), with peft's LoRA on any of their linear layers or
without. Rows of trees only; all else takes the block's own way, as does a block whose numbers differ from its own on a small
example. Knows modules of transformers and layouts; knows nothing of what is learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from karat.lm.attention import NAME, current_layout, tree_attention, tree_layout
from karat.lm.block_pass import fused
from karat.lm.cache import DecodeCache
from karat.lm.final_block import block_lists, rows_wanted
from karat.lm.fused_attention import Sizes
from karat.lm.fused_decode import LayerWeights, decoded, decodes, layer_weights
from karat.lm.low_rank import base_of, low_rank_of, trained_low_ranks
from karat.lm.narrow import products_of, use_narrow_products
from karat.lm.native import library
from karat.lm.trees import TreeLayout, TreeSpan

NORMS = ("input_layernorm", "post_attention_layernorm")
SIZES, KNOWN, FORWARDS = "karat_sizes", "karat_fused", "karat_forwards"
"""Attributes of a block: its `Sizes`; by dtype of its products, whether the fused way gives its own numbers; what its parts did then."""
LARGEST_GAP = {torch.float32: 1e-4, torch.bfloat16: 4e-2}
"""Relative to the largest number of what the block's own way adds to x, or to a gradient."""
NOTING = "karat_noting"
"""Name of the attention that also notes which windows it is asked for."""
_WINDOWS: ContextVar[list[int | None]] = ContextVar("karat_windows_asked")
PROBE = TreeLayout((TreeSpan(0, 4, (3, 2)), TreeSpan(9, 3, (4,))), 16)


def use_fused_blocks(model: nn.Module) -> int:
    """Let the decoder blocks of a model be computed as one operation where that gives their own numbers.

    Both for the products that the model takes and for those in float32, which it may be told to take later.

    Returns: number of blocks that may be.
    """
    n_found = 0
    for blocks in block_lists(model):
        for block in blocks:
            sizes, weights = sizes_of(block), weights_of(block)
            if sizes is None or weights is None or weights[0] is None or weights[0].device.type != "cpu":
                continue
            own = products_of(block)
            # what float32 tells apart is lost in bfloat16's rounding: there both must agree
            known = {torch.float32: _agrees(block, torch.float32, sizes, weights)}
            if known[torch.float32] and own is not None:
                known[own] = _agrees(block, own, sizes, weights)
            use_narrow_products(block, own)
            if known[torch.float32]:
                setattr(block, FORWARDS, _forwards(block, linear_layers_of(block)))
                setattr(block, SIZES, sizes)
                setattr(block, KNOWN, known)
                block.forward = MethodType(_forward, block)
                n_found += 1
    return n_found


def may_be_fused(model: nn.Module) -> bool:
    """Whether any block of a loaded model may be computed as one operation."""
    return any(hasattr(module, KNOWN) for module in model.modules())


def sizes_of(block: nn.Module) -> Sizes | None:
    """The sizes of a block whose parts are named as Llama's; None for any other."""
    attention, norms = getattr(block, "self_attn", None), [getattr(block, name, None) for name in NORMS]
    if attention is None or None in norms or not isinstance(size := getattr(attention, "head_dim", None), int):
        return None
    own = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    if (own[0] is None) != (own[1] is None) or size % 2 or not hasattr(attention, "scaling"):
        return None
    rows = [
        getattr(getattr(attention, name, None), "weight", None) for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    ]
    if not all(isinstance(weight, Tensor) and weight.ndim == 2 for weight in rows):
        return None
    if len(rows[2]) != len(rows[1]) or rows[3].shape[1] != len(rows[0]) or any(len(w) % size for w in rows[:2]):
        return None  # values of another size than keys
    eps = [0.0 if norm is None else _eps(norm) for norm in (norms[0], *own, norms[1])]
    if not all(isinstance(number, float) for number in eps):
        return None
    heads, key_heads = (len(weight) // size for weight in rows[:2])
    # Mistral's attention reads the window from its configuration; `_agrees` sees which one is asked for
    window = getattr(attention, "sliding_window", getattr(getattr(attention, "config", None), "sliding_window", None))
    return Sizes(heads, key_heads, size, float(attention.scaling), tuple(eps), window)


def linear_layers_of(block: nn.Module) -> list[nn.Module | None]:
    """Queries, keys, values, output; gate, up, down: a block's layers that multiply; None where one is missing."""
    # dictionaries instead of attributes: this is asked of every block in every pass
    attention, mlp = (block._modules.get(name) for name in ("self_attn", "mlp"))
    if attention is None or mlp is None:
        return [None] * 7
    found = [attention._modules.get(name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    return found + [mlp._modules.get(name) for name in ("gate_proj", "up_proj", "down_proj")]


def weights_of(
    block: nn.Module, *, bare: Callable[[nn.Module | None], nn.Module | None] | None = None
) -> tuple[Tensor | None, ...] | None:
    """Weights of a block in the order of `_Block`; None where a part has more than a weight, or something watches it.

    Norms of queries and keys may be missing.

    Args: bare: what stands for a layer that multiplies, as `low_rank.base_of`; None = the layer itself.
    """
    layers = linear_layers_of(block)
    linear = layers if bare is None else [bare(layer) for layer in layers]
    if not all(type(layer) is nn.Linear and layer._parameters.get("bias") is None for layer in linear):
        return None
    attention, mlp = block._modules["self_attn"], block._modules["mlp"]
    norms = [block._modules.get(name) for name in NORMS]
    norms += [norm for name in ("q_norm", "k_norm") if (norm := attention._modules.get(name)) is not None]
    if None in norms:
        return None
    if getattr(block, FORWARDS, None) not in (None, _forwards(block, linear)):
        return None
    # `only_rows` hooks these four, once before and once behind; what it does is done here without
    hooked = () if rows_wanted(block) is None else (attention, mlp, layers[0], layers[3])
    for part in (attention, mlp, *layers, *norms):
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks:
            n_hooks = len(part._forward_hooks) + len(part._forward_pre_hooks) + len(part._backward_hooks)
            if n_hooks > 2 * (part in hooked):
                return None
    own = [part._parameters.get("weight") for part in (*norms[:1], *linear[:4], norms[1], *linear[4:], *norms[2:])]
    ready = all(type(w) is nn.Parameter and w.dtype == torch.float32 and w.is_contiguous() for w in own)
    return (*own, *((None,) * (11 - len(own)))) if ready else None


def _forwards(block: nn.Module, linear: list[nn.Module | None]) -> list[Any]:
    """The functions that were put before those of the parts' classes."""
    attention, mlp = block._modules["self_attn"], block._modules["mlp"]
    norms = [block._modules[name] for name in NORMS] + [attention._modules.get(name) for name in ("q_norm", "k_norm")]
    own = (None if part is None else vars(part).get("forward") for part in (attention, mlp, *linear, *norms))
    return [getattr(one, "__func__", one) for one in own]


def _eps(norm: nn.Module) -> Any:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


def _forward(self: nn.Module, hidden_states: Tensor, *args: Any, **options: Any) -> Any:
    """The block's forward function: fused where that is possible here and now."""
    layout, products = current_layout(), products_of(self) or torch.float32
    angles = options.get("position_embeddings")
    if angles is not None and angles[0].shape != (*hidden_states.shape[:2], getattr(self, SIZES).size):
        angles = None  # part of a head is turned
    if (
        not args
        and layout is not None
        and angles is not None
        and _suits(self, hidden_states, layout, products, options)
    ):
        weights, adapters = weights_of(self, bare=base_of), trained_low_ranks(linear_layers_of(self))
        if weights is not None and adapters is not None:
            frame = (layout, products, getattr(self, SIZES))
            return fused(hidden_states, angles, frame, weights, adapters, rows_wanted(self))
    elif not args and angles is not None and not self.training and getattr(self, KNOWN).get(products, False):
        cache = options.get("past_key_values")
        if decodes(hidden_states, cache, products):
            own = _of_layer(self, cache, products)
            if own is not None:
                return decoded(hidden_states, angles, own, cache, self.self_attn.layer_idx, rows_wanted(self))
    return type(self).forward(self, hidden_states, *args, **options)


def _of_layer(block: nn.Module, cache: DecodeCache, products: torch.dtype) -> LayerWeights | None:
    """A block's weights for the sampler's steps, looked at once in a call: within it no weight changes."""
    layer = block.self_attn.layer_idx
    if layer not in cache.of_layers:
        weights, found = weights_of(block, bare=base_of), None
        if weights is not None:
            adapters = [low_rank_of(one, products) for one in linear_layers_of(block)]
            found = layer_weights(getattr(block, SIZES), weights, adapters, products)
        cache.of_layers[layer] = found
    return cache.of_layers[layer]


def _suits(block: nn.Module, x: Tensor, layout: TreeLayout, products: torch.dtype, options: dict[str, Any]) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.shape[:2] == (1, layout.n_positions)
        and layout.spans[-1].stop == layout.n_positions
        and options.get("past_key_values") is None
        and not block.training
        and not (torch.is_grad_enabled() and getattr(block, "gradient_checkpointing", False))
        and not torch.is_autocast_enabled("cpu")
        and getattr(block, KNOWN).get(products, False)
    )


def _noting(module: nn.Module, *given: Any, **options: Any) -> Any:
    _WINDOWS.get().append(options.get("sliding_window"))
    return tree_attention(module, *given, **options)


ALL_ATTENTION_FUNCTIONS.register(NOTING, _noting)


@contextmanager
def _probed(block: nn.Module, leaves: list[Tensor]) -> Iterator[list[int | None]]:
    """Within: the block's weights have gradients, and the windows that its attention is asked for are noted."""
    config, wanted = block.self_attn.config, [leaf.requires_grad for leaf in leaves]
    windows, before = [], config._attn_implementation
    token = _WINDOWS.set(windows)
    try:
        config._attn_implementation = NOTING if before == NAME else before
        for leaf in leaves:
            leaf.requires_grad_()
        with torch.inference_mode(False), torch.enable_grad(), tree_layout(PROBE):
            yield windows
    finally:
        config._attn_implementation = before
        for leaf, learns in zip(leaves, wanted, strict=True):
            leaf.requires_grad_(learns)
        _WINDOWS.reset(token)


def _agrees(block: nn.Module, products: torch.dtype, sizes: Sizes, weights: tuple[Tensor | None, ...]) -> bool:
    """Whether the fused way gives a block's own output and gradients on a small example; leaves its mark changed.

    Of the output what the block adds to x is compared, and of x's gradient likewise: x alone would hide it.
    """
    if library(products) is None or weights[0] is None:
        return False
    use_narrow_products(block, None if products == torch.float32 else products)
    generator = torch.Generator().manual_seed(0)
    x, given = (torch.randn(1, PROBE.n_positions, len(weights[0]), generator=generator) for _ in range(2))
    positions = torch.arange(PROBE.n_positions)
    turn = positions[:, None] * torch.linspace(1, 0.1, sizes.size // 2).repeat(2)
    angles = (turn.cos()[None], turn.sin()[None])
    options = {"attention_mask": None, "position_ids": positions[None], "past_key_values": None, "use_cache": False}
    leaves = [w for w in weights if w is not None]

    def tried(way: Callable[[Tensor], Tensor]) -> list[Tensor]:
        own = x.clone().requires_grad_()
        found = way(own)
        of_x, *others = torch.autograd.grad(found, [own, *leaves], given)
        return [found.detach() - x, of_x - given, *others]

    try:
        with _probed(block, leaves) as windows:
            plain = tried(lambda own: type(block).forward(block, own, position_embeddings=angles, **options))
            quick = tried(lambda own: fused(own, angles, (PROBE, products, sizes), weights))
    except Exception:  # whatever a foreign block raises or returns: then it keeps its own way
        return False
    most = LARGEST_GAP[products]
    return windows == [sizes.window] and all(
        float((a - b).abs().max()) <= most * float(b.abs().max()) for a, b in zip(quick, plain, strict=True)
    )
