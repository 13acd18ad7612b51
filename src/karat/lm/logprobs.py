"""Log-probabilities of response tokens: one trunk pass, logits only where a response token is predicted.

The logits are made in chunks of rows, in float32 whatever the model's dtype; what they leave behind is kept for the
gradient up to KEPT_NUMBERS and made again beyond, so that [n, V] numbers exist at once only where they are few. Knows
causal language models and batches; knows nothing of what the numbers are for.

Dimension letters: L flat positions, n response tokens of a batch, d hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from karat.errors import InputError
from karat.lm.attention import tree_layout
from karat.lm.final_block import only_rows
from karat.lm.kernels import linear, matmul
from karat.lm.memory import KEPT_NUMBERS, rows_at_a_time
from karat.lm.narrow import narrowed, products_of
from karat.lm.narrow_logprobs import NarrowLogprobs
from karat.lm.trees import Batch, TreeBatch


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


def hidden_states(model: nn.Module, batch: Batch) -> Float[Tensor, "L d"]:
    """Last hidden states of every position of a batch, flattened.

    Args:
        model: causal language model or bare trunk; loaded with the tree attention if `batch` is a TreeBatch.
    """
    trunk = trunk_of(model)
    if isinstance(batch, TreeBatch):
        with tree_layout(batch.layout):
            output = trunk(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
    else:
        output = trunk(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
        )
    return output.last_hidden_state.flatten(0, 1)


def hidden_at(model: nn.Module, batch: Batch, rows: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
    """`hidden_states` at some flat positions, in the order given; the last block is computed only there.

    Args:
        rows: positions of the flattened batch; they may repeat.
    """
    with only_rows(trunk_of(model), rows, batch.input_ids.shape):
        hidden = hidden_states(model, batch)
    return hidden.index_select(0, rows.to(hidden.device))


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

        logit = cap·tanh((W·h + b)/cap)/temperature        log π = logit[token] − log Σ exp(logit)

    Raises: InputError for a temperature ≤ 0 or an output layer that is not linear.
    """
    if temperature <= 0:
        raise InputError(f"token_logprobs: found temperature {temperature}; expected > 0 (greedy needs no logprobs)")
    head, softcap = head_of(model)
    if not isinstance(head, nn.Linear):
        raise InputError(f"token_logprobs: found an output layer {type(head).__name__}; expected a linear one")
    rows = chunk_rows or rows_at_a_time(head.weight.shape[0])
    learns = torch.is_grad_enabled() and (hidden.requires_grad or head.weight.requires_grad)
    products = products_of(head)
    if products is not None and softcap is None and not with_entropy:
        narrow = (temperature, products, learns)
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
    return _logits(*factors, head.bias, (temperature, softcap, 0, False, 0)).log_softmax(1)


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
        rows, with_entropy, room = options[2:]
        ctx.dtypes = hidden.dtype, weight.dtype
        if products is not None:  # both factors are rounded once for all chunks and for the gradient
            hidden, weight = hidden.to(products), narrowed(weight, products)
        kept: list[Tensor] = []  # of each of the first chunks: the logits, or without entropy exp(logit − peak)
        totals: list[Tensor] = []
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        n = hidden.shape[0]
        chosen, normaliser = hidden.new_empty(n, dtype=wide), hidden.new_empty(n, dtype=wide)
        entropy = hidden.new_zeros(n if with_entropy else 0, dtype=wide)
        for start in range(0, n, rows):
            part = slice(start, min(start + rows, n))
            logits = _logits(hidden[part], weight, bias, options)
            chosen[part] = logits.gather(1, token_ids[part, None]).squeeze(1)
            peak = logits.amax(1, keepdim=True)
            if with_entropy:
                weights = (logits - peak).exp_()
                total = weights.sum(1)
                normaliser[part] = peak.squeeze(1) + total.log()
                entropy[part] = normaliser[part] - torch.linalg.vecdot(weights, logits) / total
            else:
                total = logits.sub_(peak).exp_().sum(1)
                normaliser[part] = peak.squeeze(1) + total.log()
            room -= logits.numel()
            if room >= 0:
                kept.append(logits)
                totals.append(total)
        ctx.save_for_backward(hidden, weight, bias, token_ids, normaliser, entropy)
        ctx.options, ctx.kept, ctx.totals = options, kept, totals
        return chosen - normaliser, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_logprob, grad_entropy = grads
        hidden, weight, bias, token_ids, normaliser, entropy = ctx.saved_tensors
        temperature, softcap, rows, with_entropy, _ = ctx.options
        of_hidden, of_weight = ctx.dtypes
        grad_hidden = torch.empty_like(hidden, dtype=of_hidden) if ctx.needs_input_grad[0] else None
        # the weight's gradient as [d, V]: hidden states are less to turn round than logits; summed over chunks in float32
        # even where the weights are narrower
        turned: Tensor | None = None
        kept, ctx.kept = ctx.kept, []  # overwritten below; a second pass through this graph makes them again
        grad_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, min(start + rows, hidden.shape[0]))
            known = kept[start // rows] if start // rows < len(kept) else None
            slope = None
            if known is not None and not with_entropy:
                grad = known.mul_((-grad_logprob[part] / ctx.totals[start // rows])[:, None])
            else:
                logits = _logits(hidden[part], weight, bias, ctx.options) if known is None else known
                if softcap is not None:
                    slope = 1 - (logits * (temperature / softcap)).square_()
                logits.sub_(normaliser[part, None])
                uncertain = (grad_entropy[part, None], entropy[part, None]) if with_entropy else None
                grad = _logit_gradient(logits, grad_logprob[part, None], uncertain)
            grad.scatter_add_(1, token_ids[part, None], grad_logprob[part, None])
            if slope is not None:
                grad.mul_(slope)
            if temperature != 1.0:
                grad.div_(temperature)
            narrow = grad.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = matmul(narrow, weight)
            if ctx.needs_input_grad[1]:
                product = matmul(hidden[part].t(), narrow).to(normaliser.dtype)
                turned = product if turned is None else turned.add_(product)
            if grad_bias is not None:
                grad_bias += grad.sum(0).to(grad_bias.dtype)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight, dtype=of_weight) if turned is None else turned.t().to(of_weight)
        return grad_hidden, grad_weight, grad_bias, None, None, None


def _logit_gradient(log_probs: Tensor, grad_logprob: Tensor, uncertain: tuple[Tensor, Tensor] | None) -> Tensor:
    """What each row asks of its logits, but for the chosen token's own share; in place.

    Args:
        uncertain: the gradient of each row's entropy, and the entropy; None = nobody asked for it.
    """
    if uncertain is None:
        return log_probs.exp_().mul_(-grad_logprob)
    grad_entropy, entropy = uncertain
    probs = log_probs.exp()
    # dH/dlogit = −p·(log p + H)
    return log_probs.add_(entropy).mul_(-grad_entropy).sub_(grad_logprob).mul_(probs)


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[float, float | None, int, bool, int]
) -> Tensor:
    temperature, softcap = options[:2]
    narrow = bias is not None and bias.dtype != weight.dtype  # products narrower than the weights: the sum is not
    logits = linear(hidden, weight, None if narrow else bias)
    if logits.dtype != torch.float64:
        logits = logits.float()
    if narrow:
        logits = logits.add_(bias)
    if softcap is not None:
        logits = logits.div_(softcap).tanh_().mul_(softcap)
    return logits.div_(temperature) if temperature != 1.0 else logits
