"""How much memory training and sampling take, from the size of a decoder alone.

What is counted is what karat holds beyond its libraries: weights, gradients, Adam's moments, copies, the activations
kept for the backward pass, chunks of logits, the decode cache. A test compares the estimate of a training step with
its measured peak and asks for agreement within a factor of 1.5. Compiled passes (`fused_block`) keep less, in bfloat16 about half: as a model
may lose them (adapters, long rows, no compiler), they are not counted on. Knows sizes and counts; nothing about recipes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CHUNK_NUMBERS = 1 << 22
"""Logits made at a time where no chunk size is given, 16 MB in float32, but at least LEAST_ROWS rows of them."""
LEAST_ROWS = 128
"""With fewer rows a product does little more than read the output layer: over 150,000 tokens 27 rows took three times as long a row.
On a processor a vocabulary of CHUNK_NUMBERS / LEAST_ROWS or more goes through tiles instead, which need less."""
KEPT_NUMBERS = 1 << 23
"""Numbers kept of a pass for its gradient, 32 MB in float32: each chunk that is kept saves one of its four products."""
LOGIT_COPIES = 3
"""Logits, their exponentials and their gradient."""
SAVED_WIDE, SAVED_HEADS, SAVED_MLP = 4, 3, 4
"""Tensors that a block keeps for the backward pass: as wide as the residual stream (two norms, before and after), as
the heads (before and after rotation, the attention's output), as the MLP (gate, up, activated, product)."""
NARROW_WIDE, NARROW_HEADS, NARROW_MLP = 4.5, 2.0, 4.0
"""The same where products are bfloat16: what goes into one is kept in half as many bytes, once for each product."""
ROUNDED_BYTES = 2
"""Of a weight's rounded copy, kept from forward to backward pass."""


@dataclass(frozen=True)
class ModelSize:
    """The size of a decoder."""

    parameters: int
    """Numbers in all weights, tied ones once."""
    hidden: int
    """Width of the residual stream."""
    mlp: int
    """Width of the feed-forward layers."""
    layers: int
    """Blocks."""
    query_width: int
    """Query heads × head size."""
    key_width: int
    """Key heads × head size."""
    vocabulary: int
    """Tokens."""
    bytes_per_number: int = 4
    """4 = float32."""
    narrow: bool = False
    """True = matrix products in training take bfloat16 (`narrow`): two bytes more a weight, fewer an activation."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return self.parameters * self.bytes_per_number


def size_of(config: Any, parameters: int) -> ModelSize:
    """The size in a configuration of transformers.

    Args:
        config: of a decoder.    parameters: numbers in its weights.
    """
    text = config.get_text_config()
    heads = text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    mlp = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * text.hidden_size
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    widths = (heads * head_size, key_heads * head_size)
    return ModelSize(parameters, text.hidden_size, mlp, text.num_hidden_layers, *widths, text.vocab_size)


def rows_at_a_time(vocabulary: int) -> int:
    """max(LEAST_ROWS, CHUNK_NUMBERS / vocabulary): logit rows that are made at once."""
    return max(LEAST_ROWS, CHUNK_NUMBERS // vocabulary)


def lora_parameters(size: ModelSize, rank: int) -> int:
    """Trained numbers of adapters on every linear layer of the blocks: rank × (inputs + outputs) each."""
    square = 2 * (size.hidden + size.query_width)
    narrow = 2 * (size.hidden + size.key_width)
    return rank * size.layers * (square + narrow + 3 * (size.hidden + size.mlp))


def activation_bytes(size: ModelSize, n_tokens: int) -> int:
    """Bytes kept between forward and backward pass for so many tokens.

    layers · tokens · (4·hidden + 3·(queries + keys) + 4·mlp) · bytes
    """
    wide, heads, mlp = (NARROW_WIDE, NARROW_HEADS, NARROW_MLP) if size.narrow else (SAVED_WIDE, SAVED_HEADS, SAVED_MLP)
    kept = wide * size.hidden + heads * (size.query_width + size.key_width) + mlp * size.mlp
    return round(size.layers * n_tokens * kept * size.bytes_per_number)


def gathered_bytes(size: ModelSize) -> int:
    """What of parted weights is there in a training pass: embeddings and output layer with their gradients, two blocks, and
    the gradients of one."""
    block = 2 * size.hidden * (size.query_width + size.key_width) + 3 * size.hidden * size.mlp
    outside = max(0, size.parameters - size.layers * block)
    return (2 * outside + min(3, size.layers) * block) * size.bytes_per_number


def training_bytes(
    size: ModelSize, *, n_trained: int, n_tokens: int, n_copies: int = 0, n_shards: int = 1, n_beside: int = 0
) -> int:
    """Peak of a training step: weights and copies, gradients and two moments, activations, logits.

    Args:
        n_trained: numbers that get a gradient.    n_tokens: in one micro-batch.
        n_copies: further models in memory that are not trained (a reference policy, a reward model).
        n_shards: processes among which weights, gradients and moments are parted; of one of them, which also reads the
            whole weights between steps.
        n_beside: bytes of weights, gradients and moments of a further model that is trained with it.
    """
    trained = size.weight_bytes + 3 * n_trained * size.bytes_per_number + n_beside
    held = trained if n_shards == 1 else trained // n_shards + gathered_bytes(size)
    held += n_copies * size.weight_bytes
    held += ROUNDED_BYTES * size.parameters * size.narrow
    logits = LOGIT_COPIES * max(CHUNK_NUMBERS, LEAST_ROWS * size.vocabulary) + KEPT_NUMBERS
    step = held + activation_bytes(size, n_tokens) + logits * 4
    if n_shards == 1:
        return step
    return max(step, trained // n_shards + (1 + n_copies) * size.weight_bytes + n_beside // 4)


def cache_bytes(size: ModelSize, *, n_prompts: int, prompt_tokens: int, n_rows: int, response_tokens: int) -> int:
    """Keys and values of a decode cache: prompts held once, responses under way."""
    positions = n_prompts * prompt_tokens + n_rows * response_tokens
    return 2 * size.layers * size.key_width * positions * size.bytes_per_number
