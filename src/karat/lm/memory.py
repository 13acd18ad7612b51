"""How much memory training and sampling take, from the size of a decoder alone.

What is counted is what a process takes beyond its imports: libraries at work, weights, gradients, Adam's moments, copies, the
activations kept for the backward pass, by compiled passes (`block_pass`) or by PyTorch's, chunks of logits, the decode cache.
Tests hold what a pass keeps against the tensors that it really saves; `bench/doctor_study.py` holds the whole against whole
runs. Knows sizes and counts; nothing about recipes.
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
LOGIT_COPIES = 2
"""Logits that are made, and their gradient as it enters a product."""
TILE_NUMBERS = 1 << 21
"""Of a tile of logits (`tiled_logprobs`)."""
LIBRARY_BYTES, LIBRARY_PREPARED_BYTES = 70 << 20, 70 << 20
"""Measured: what libraries take at work (data base, records) beyond what they take when imported, and where products are prepared for every shape."""
TOKEN_BYTES = 1300
"""Measured: of a tokenizer, for each token of its vocabulary (152,000 whole words)."""
LEFT_BYTES, LEFT_PREPARED_BYTES = 70 << 20, 100 << 20
"""Measured: what each earlier station of a run leaves behind, whatever the model's size: records and holes between blocks, and products prepared for its
shapes."""
HELD_APART = 1.1
"""What the allocator keeps beside what is in use: holes between blocks that differ from step to step."""
SAVED_WIDE, SAVED_HEADS, SAVED_MLP = 4, 3, 4
"""Tensors that a block keeps for the backward pass: as wide as the residual stream (two norms, before and after), as
the heads (before and after rotation, the attention's output), as the MLP (gate, up, activated, product)."""
NARROW_WIDE, NARROW_HEADS, NARROW_MLP = 4.5, 2.0, 4.0
"""The same where products are bfloat16: what goes into one is kept in half as many bytes, once for each product."""
UNDER_WAY_MLP = 3
"""Tensors as wide as the MLP that one block's gradient makes and drops: of gate and up, and of their product."""
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
    heads: int = 0
    """Query heads; 0 = attention keeps no probabilities."""
    compiled: bool = False
    """True = blocks are compiled passes (`block_pass`)."""
    tiled: bool = True
    """True = logits of a wide vocabulary come in tiles, as on a processor."""
    prepared: bool = False
    """True = products are prepared for every shape and kept (`kernels.prepares`)."""

    @property
    def product_bytes(self) -> int:
        """Bytes of a number that enters a product."""
        return ROUNDED_BYTES if self.narrow else self.bytes_per_number

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
    return ModelSize(
        parameters, text.hidden_size, mlp, text.num_hidden_layers, *widths, text.vocab_size, heads=heads
    )  # fmt: skip


def rows_at_a_time(vocabulary: int) -> int:
    """max(LEAST_ROWS, CHUNK_NUMBERS / vocabulary): logit rows that are made at once."""
    return max(LEAST_ROWS, CHUNK_NUMBERS // vocabulary)


def lora_parameters(size: ModelSize, rank: int) -> int:
    """Trained numbers of adapters on every linear layer of the blocks: rank × (inputs + outputs) each."""
    square = 2 * (size.hidden + size.query_width)
    narrow = 2 * (size.hidden + size.key_width)
    return rank * size.layers * (square + narrow + 3 * (size.hidden + size.mlp))


def activation_bytes(size: ModelSize, n_tokens: int, *, n_keys: int = 0) -> int:
    """Bytes kept between forward and backward pass for so many tokens.

        compiled   layers · tokens · (2·hidden·4 + (2·queries + 2·keys + 2·mlp)·bytes of products)
        PyTorch's  layers · tokens · (4·hidden + 3·(queries + keys) + 4·mlp + heads·n_keys) · bytes

    Args:
        n_keys: positions that one sees where probabilities are kept (PyTorch's way, texts short enough for dense
            attention); 0 = they are not.
    """
    if size.compiled:
        narrow = 2 * (size.query_width + size.key_width + size.mlp)
        return round(size.layers * n_tokens * (2 * size.hidden * size.bytes_per_number + narrow * size.product_bytes))
    wide, heads, mlp = (NARROW_WIDE, NARROW_HEADS, NARROW_MLP) if size.narrow else (SAVED_WIDE, SAVED_HEADS, SAVED_MLP)
    kept = wide * size.hidden + heads * (size.query_width + size.key_width) + mlp * size.mlp
    probs = size.heads * n_keys * size.product_bytes
    return round(size.layers * n_tokens * (kept * size.bytes_per_number + probs))


def rounded_bytes(size: ModelSize) -> int:
    """Of weights laid out for products, kept from forward to backward pass: rounded, or of a compiled block one above the other."""
    if size.narrow:
        return ROUNDED_BYTES * size.parameters
    stacked = size.hidden * (size.query_width + 2 * size.key_width) + 2 * size.hidden * size.mlp
    return size.compiled * size.layers * stacked * size.bytes_per_number


def logit_bytes(size: ModelSize, n_rows: int) -> int:
    """Of what is made of so many rows of logits at a time, and of what is kept of them."""
    numbers = n_rows * size.vocabulary
    tiled = size.tiled and rows_at_a_time(size.vocabulary) == LEAST_ROWS
    if size.narrow and not tiled:  # twice as many are kept in as many bytes, and enter the product as they are
        again = min(KEPT_NUMBERS, numbers) if numbers > 2 * KEPT_NUMBERS else 0
        return (min(2 * KEPT_NUMBERS, numbers) + again) * ROUNDED_BYTES
    made = TILE_NUMBERS if tiled else max(CHUNK_NUMBERS, LEAST_ROWS * size.vocabulary)
    made = min(made, numbers)
    kept = 0 if tiled else min(KEPT_NUMBERS, numbers)
    return (LOGIT_COPIES * made + kept) * 4


def gathered_bytes(size: ModelSize) -> int:
    """What of parted weights is there in a training pass: embeddings and output layer with their gradients, two blocks, and
    the gradients of one."""
    block = 2 * size.hidden * (size.query_width + size.key_width) + 3 * size.hidden * size.mlp
    outside = max(0, size.parameters - size.layers * block)
    return (2 * outside + min(3, size.layers) * block) * size.bytes_per_number


@dataclass(frozen=True)
class Work:
    """What one forward and backward pass goes over."""

    n_tokens: int
    """Positions of a micro-batch."""
    n_keys: int = 0
    """Of `activation_bytes`."""
    logits: bool = True
    """False = no token is predicted, as in a reward model."""


def training_bytes(
    size: ModelSize,
    *,
    n_trained: int,
    work: Work,
    n_copies: int = 0,
    n_shards: int = 1,
    n_beside: int = 0,
    n_kept: int = 0,
    n_before: int = 0,
) -> int:
    """Peak of a training step: libraries, weights and copies, gradients and two moments, activations, logits.

    Args:
        n_trained: numbers that get a gradient.    work: of a micro-batch.
        n_copies: further models in memory that are not trained (a reference policy, a reward model).
        n_shards: processes among which weights, gradients and moments are parted; of one of them, which also reads the
            whole weights between steps.
        n_beside: bytes of weights, gradients and moments of a further model that is trained with it.
        n_kept: times that what is trained is kept once more (the best epoch's weights).
        n_before: stations that this process has been through.
    """
    trained = size.weight_bytes + (3 + n_kept) * n_trained * size.bytes_per_number + n_beside
    held = trained if n_shards == 1 else trained // n_shards + gathered_bytes(size)
    outside = LIBRARY_BYTES + TOKEN_BYTES * size.vocabulary + n_before * LEFT_BYTES
    outside += size.prepared * (LIBRARY_PREPARED_BYTES + n_before * LEFT_PREPARED_BYTES)
    held += n_copies * size.weight_bytes + outside
    passing = activation_bytes(size, work.n_tokens, n_keys=work.n_keys) + rounded_bytes(size)
    passing += UNDER_WAY_MLP * work.n_tokens * size.mlp * size.product_bytes
    passing += logit_bytes(size, work.n_tokens) if work.logits else 0
    step = held + round(HELD_APART * passing)
    if n_shards == 1:
        return step
    return max(step, trained // n_shards + (1 + n_copies) * size.weight_bytes + n_beside // 4 + outside)


def cache_bytes(size: ModelSize, *, n_prompts: int, prompt_tokens: int, n_rows: int, response_tokens: int) -> int:
    """Keys and values of a decode cache: prompts held once, responses under way."""
    positions = n_prompts * prompt_tokens + n_rows * response_tokens
    return 2 * size.layers * size.key_width * positions * size.bytes_per_number
