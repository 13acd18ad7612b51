"""Log-probabilities of response tokens: one trunk pass, logits only where a response token is predicted.

The logits are made in chunks of rows, in float32 whatever the model's dtype; what they leave behind is kept for the
gradient up to KEPT_NUMBERS and made again beyond, so that [n, V] numbers exist at once only where they are few. Where
the vocabulary is so wide that a chunk would be a few rows, they are made in tiles (`tiled_logprobs`). Knows causal
language models and batches; knows nothing of what the numbers are for.

Dimension letters: L flat positions, n response tokens of a batch, d hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from karat.errors import InputError
from karat.lm.attention import tree_layout
from karat.lm.final_block import only_rows
from karat.lm.kernels import even_rows, matmul, weight_gradient
from karat.lm.logits import cap_slope, chosen_logprobs, logits_of, pieces, softmax_
from karat.lm.memory import KEPT_NUMBERS, LEAST_ROWS, rows_at_a_time
from karat.lm.narrow import narrowed, products_of
from karat.lm.narrow_logprobs import NarrowLogprobs
from karat.lm.native import choose_of
from karat.lm.tiled_logprobs import TiledLogprobs
from karat.lm.trees import Batch, TreeBatch, filled


@dataclass(frozen=True)
class ResponseLogprobs:
    """What one pass says about the response tokens of a batch, in batch order."""

    logprobs: Float[Tensor, " n"]
    """log π(token | what came before), float32 (float64 for float64 models)."""
    entropy: Float[Tensor, " n"] | None
    """Entropy in nats of the distribution each token was drawn from, if asked for."""
    hidden: Float[Tensor, "n d"] | None
    """Hidden state each token was predicted from, if asked for (for a value head on the same trunk)."""


def trunk_of(model: nn.Module) -> nn.Module:
    """The part of a causal language model (with or without adapters) that turns tokens into hidden states."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    return inner.base_model


def head_of(model: nn.Module) -> tuple[nn.Module, float | None]:
    """The output layer, and the cap on its logits (cap·tanh(logit/cap)) if the model has one."""
    inner: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    return inner.get_output_embeddings(), getattr(inner.config.get_text_config(), "final_logit_softcapping", None)


def logit_scale_of(model: nn.Module) -> float:
    """By what a model multiplies its logits: Cohere's logit_scale, one over Granite's logits_scaling, 1 in most."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(inner, PreTrainedModel):  # an output layer alone
        return 1.0
    config = inner.config.get_text_config()
    times, over = (getattr(config, name, None) for name in ("logit_scale", "logits_scaling"))
    return float(times) if times else 1 / float(over) if over else 1.0


def hidden_states(model: nn.Module, batch: Batch) -> Float[Tensor, "L d"]:
    """Last hidden states of every position of a batch, flattened.

    Args:
        model: causal language model or bare trunk; loaded with the tree attention if `batch` is a TreeBatch.
    """
    trunk = trunk_of(model)
    if isinstance(batch, TreeBatch):
        n_positions, batch = batch.n_tokens, _evened(batch, model)
        with tree_layout(batch.layout):
            output = trunk(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
        return output.last_hidden_state[0, :n_positions]
    output = trunk(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids, use_cache=False
    )
    return output.last_hidden_state.flatten(0, 1)


def hidden_at(model: nn.Module, batch: Batch, rows: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
    """`hidden_states` at some flat positions, in the order given; the last block is computed only there.

    Args:
        rows: positions of the flattened batch; they may repeat.
    """
    if isinstance(batch, TreeBatch):
        batch = _evened(batch, model)
    with only_rows(trunk_of(model), rows, batch.input_ids.shape):
        hidden = hidden_states(model, batch)
    return hidden.index_select(0, rows.to(hidden.device))


def _evened(batch: TreeBatch, model: nn.Module) -> TreeBatch:
    return filled(batch, even_rows(batch.n_tokens, batch.input_ids.device, products_of(model)))


def response_logprobs(
    model: nn.Module,
    batch: Batch,
    *,
    temperature: float = 1.0,
    chunk_rows: int | None = None,
    with_entropy: bool = False,
    with_hidden: bool = False,
) -> ResponseLogprobs:
    """log softmax(logits/temperature)[token] for each response token of a batch.

    Args:
        temperature: divides the logits, > 0; the same as in sampling if the numbers are to match.
        chunk_rows: logit rows made at a time; None = `rows_at_a_time`. Changes memory, not results.
        with_entropy: also the entropy of each distribution.    with_hidden: also the hidden states behind them.
    """
    hidden = hidden_at(model, batch, batch.predict_index)
    logprobs, entropy = token_logprobs(
        model, hidden, batch.target_ids, temperature=temperature, chunk_rows=chunk_rows, with_entropy=with_entropy
    )
    return ResponseLogprobs(logprobs, entropy, hidden if with_hidden else None)


def response_logprobs_and_hidden(
    model: nn.Module, batch: Batch, *, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[ResponseLogprobs, Float[Tensor, "n d"]]:
    """`response_logprobs` and the hidden states it used, from one trunk pass."""
    result = response_logprobs(model, batch, temperature=temperature, with_entropy=with_entropy, with_hidden=True)
    assert result.hidden is not None
    return result, result.hidden


def token_logprobs(
    model: nn.Module,
    hidden: Float[Tensor, "n d"],
    token_ids: Int[Tensor, " n"],
    *,
    temperature: float = 1.0,
    chunk_rows: int | None = None,
    with_entropy: bool = False,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"] | None]:
    """Log-probabilities (and entropies) of tokens from the hidden states that predict them.

        logit = cap·tanh((W·h + b)/cap)·scale/temperature        log π = logit[token] − log Σ exp(logit)

    The scale is the model's own (`logit_scale_of`).

    Raises: InputError for a temperature ≤ 0 or an output layer that is not linear.
    """
    if temperature <= 0:
        raise InputError(f"token_logprobs: found temperature {temperature}; expected > 0 (greedy needs no logprobs)")
    temperature /= logit_scale_of(model)
    head, softcap = head_of(model)
    if not isinstance(head, nn.Linear):
        raise InputError(f"token_logprobs: found an output layer {type(head).__name__}; expected a linear one")
    n = len(hidden)
    n_more = even_rows(n, hidden.device, products_of(model)) - n
    if n_more:  # to fill up by nothing would be a copy
        hidden, token_ids = F.pad(hidden, (0, 0, 0, n_more)), F.pad(token_ids, (0, n_more))
    logprobs, entropy = _of_layer(head, softcap, hidden, token_ids, temperature, chunk_rows, with_entropy)
    return logprobs[:n], None if entropy is None else entropy[:n]


def _of_layer(
    head: nn.Linear,
    softcap: float | None,
    hidden: Float[Tensor, "n d"],
    token_ids: Int[Tensor, " n"],
    temperature: float,
    chunk_rows: int | None,
    with_entropy: bool,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"] | None]:
    """The same from an output layer, by the way that suits its width and dtype."""
    n_tokens, products = len(head.weight), products_of(head)
    rows = chunk_rows or rows_at_a_time(n_tokens)
    learns = torch.is_grad_enabled() and (hidden.requires_grad or head.weight.requires_grad)
    few = learns and len(hidden) * n_tokens <= KEPT_NUMBERS  # all is kept, nothing made again
    if hidden.device.type == "cpu" and rows == LEAST_ROWS and not (chunk_rows or with_entropy or few):
        tiled = (temperature, softcap, products)
        return TiledLogprobs.apply(hidden, head.weight, head.bias, token_ids, tiled), None
    if products is not None and softcap is None and not with_entropy:
        narrow = (temperature, products, learns, choose_of(products) if hidden.device.type == "cpu" else None)
        return NarrowLogprobs.apply(hidden, head.weight, head.bias, token_ids, narrow), None
    keeps = KEPT_NUMBERS if learns and softcap is None else 0
    logprobs, entropy = _ChunkedLogprobs.apply(
        hidden, head.weight, head.bias, token_ids, (temperature, softcap, rows, with_entropy, keeps), products
    )
    return logprobs, entropy if with_entropy else None


def vocabulary_logprobs(
    model: nn.Module, hidden: Float[Tensor, "n d"], *, temperature: float = 1.0
) -> Float[Tensor, "n V"]:
    """log softmax(logits/temperature) of every token, from the hidden states that predict them; float32 or wider.

    For a few rows at a time: the result has n·V numbers.
    """
    head, softcap = head_of(model)
    if not isinstance(head, nn.Linear):
        raise InputError(f"vocabulary_logprobs: found an output layer {type(head).__name__}; expected a linear one")
    products = products_of(head) or hidden.dtype
    factors = hidden.to(products), narrowed(head.weight, products)
    return logits_of(*factors, head.bias, temperature / logit_scale_of(model), softcap).log_softmax(1)


class _ChunkedLogprobs(torch.autograd.Function):
    """Linear, soft cap, temperature and log-softmax by row chunks; the backward pass makes again what was not kept."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        token_ids: Tensor,
        options: tuple[float, float | None, int, bool, int],
        products: torch.dtype | None,
    ) -> tuple[Tensor, Tensor]:
        temperature, softcap, rows, with_entropy, room = options
        ctx.of_weight = weight.dtype
        factor = hidden
        if products is not None:  # both factors are rounded once for all chunks and for the gradient
            factor, weight = hidden.to(products), narrowed(weight, products)
        kept: list[Tensor] = []  # of each of the first chunks: the logits, or without entropy the probabilities
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        n = hidden.shape[0]
        logprobs, normaliser = hidden.new_empty(n, dtype=wide), hidden.new_empty(n if with_entropy else 0, dtype=wide)
        entropy = torch.zeros_like(normaliser)
        for part in pieces(0, n, rows):
            tokens, own = token_ids[part], factor[part]
            logits = logits_of(own, weight, bias, temperature, softcap)
            if with_entropy:
                peak = logits.amax(1, keepdim=True)
                weights = (logits - peak).exp_()
                total = weights.sum(1)
                normaliser[part] = peak.squeeze(1) + total.log()
                entropy[part] = normaliser[part] - torch.linalg.vecdot(weights, logits) / total
                logprobs[part] = logits.gather(1, tokens[:, None]).squeeze(1) - normaliser[part]
            else:
                logits = softmax_(logits)

                def again(rows: Tensor, own: Tensor = own) -> Tensor:
                    return logits_of(own[rows], weight, bias, temperature, softcap)

                logprobs[part] = chosen_logprobs(logits, tokens, again)
            room -= logits.numel()
            if room >= 0:
                kept.append(logits)
        ctx.save_for_backward(hidden, weight, bias, token_ids, normaliser, entropy)
        ctx.options, ctx.kept = options, kept
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_logprob, grad_entropy = grads
        hidden, weight, bias, token_ids, normaliser, entropy = ctx.saved_tensors
        temperature, softcap, rows, with_entropy, _ = ctx.options
        factor = hidden.to(weight.dtype)
        # what each row's gradient is multiplied by: taken to the hidden states, which are fewer than logits
        scale = torch.full_like(grad_logprob, 1 / temperature) if with_entropy else grad_logprob / -temperature
        scaled = (hidden * scale[:, None]).to(weight.dtype)
        grad_hidden = torch.empty_like(hidden, dtype=grad_logprob.dtype) if ctx.needs_input_grad[0] else None
        of_weight: Tensor | None = None  # summed over chunks in float32 even where the weights are narrower
        kept, ctx.kept = ctx.kept, []  # overwritten below; a second pass through this graph makes them again
        grad_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for number, part in enumerate(pieces(0, hidden.shape[0], rows)):
            known, slope = kept[number] if number < len(kept) else None, None
            if known is not None and not with_entropy:
                grad = known
            else:
                grad = logits_of(factor[part], weight, bias, temperature, softcap) if known is None else known
                if softcap is not None:
                    slope = cap_slope(grad, temperature, softcap)
                grad = grad.sub_(normaliser[part, None]) if with_entropy else softmax_(grad)
            tokens = token_ids[part, None]
            if with_entropy:
                own = grad_logprob[part, None], grad_entropy[part, None], entropy[part, None]
                grad = _with_entropy(grad, *own).scatter_add_(1, tokens, own[0])
            else:
                grad = grad.scatter_add_(1, tokens, grad.new_full(tokens.shape, -1.0))
            if slope is not None:
                grad.mul_(slope)
            narrow = grad.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = matmul(narrow, weight)
            if ctx.needs_input_grad[1]:
                product = weight_gradient(narrow, scaled[part], wide=True).to(grad_logprob.dtype)
                of_weight = product if of_weight is None else of_weight.add_(product)
            if grad_bias is not None:
                grad_bias += (scale[part] @ grad).to(grad_bias.dtype)
        if grad_hidden is not None:
            grad_hidden = grad_hidden.mul_(scale[:, None]).to(hidden.dtype)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight) if of_weight is None else of_weight
            grad_weight = grad_weight.to(ctx.of_weight)
        return grad_hidden, grad_weight, grad_bias, None, None, None


def _with_entropy(log_probs: Tensor, grad_logprob: Tensor, grad_entropy: Tensor, entropy: Tensor) -> Tensor:
    """What each row asks of its logits, but for the chosen token's own share; in place."""
    probs = log_probs.exp()
    # dH/dlogit = −p·(log p + H)
    return log_probs.add_(entropy).mul_(-grad_entropy).sub_(grad_logprob).mul_(probs)
