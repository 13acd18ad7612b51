"""How many floating-point operations a step needs: the count that efficiency and growth are held against.

Matrix products only, two operations a multiply-add, the backward pass twice the forward one, nothing counted that is
computed again to save memory. A prompt counts once for all its responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from karat.lm.fresh import DecoderShape

TRAINING = 3  # forward, gradients of inputs, gradients of weights
OPS = 2  # a multiplication and an addition


@dataclass(frozen=True)
class TreeSize:
    """One prompt and its responses, in tokens."""

    n_prompt: int
    """Prompt tokens."""
    lengths: tuple[int, ...]
    """Tokens of each response."""

    @property
    def n_tokens(self) -> int:
        """Positions to compute."""
        return self.n_prompt + sum(self.lengths)

    @property
    def n_seen(self) -> int:
        """(query, key) pairs: each token sees what stands before it in its own sequence, and itself."""
        own = [self.n_prompt * length + length * (length + 1) // 2 for length in self.lengths]
        return self.n_prompt * (self.n_prompt + 1) // 2 + sum(own)


def trunk_flops(trees: Sequence[TreeSize], shape: DecoderShape) -> float:
    """One forward pass of all layers, without embeddings and head."""
    attention = shape.heads * shape.head_size
    width = 2 * attention + 2 * shape.kv_heads * shape.head_size + 3 * shape.mlp
    linear = OPS * shape.hidden * width * sum(tree.n_tokens for tree in trees)
    scores = 2 * OPS * attention * sum(tree.n_seen for tree in trees)
    return float(shape.layers * (linear + scores))


def head_flops(n_tokens: int, shape: DecoderShape, n_vocabulary: int) -> float:
    """One forward pass of the logits of n tokens."""
    return float(OPS * shape.hidden * n_vocabulary * n_tokens)


def sampling_flops(n_prompt: int, n_samples: int, n_new: int, shape: DecoderShape, n_vocabulary: int) -> float:
    """Drawing n_new tokens for each sample of one prompt: the prompt once, then one position and its keys a token.

    The last token is drawn and never read.
    """
    prompt = trunk_flops([TreeSize(n_prompt, ())], shape)
    read = trunk_flops([TreeSize(n_prompt, (n_new - 1,) * n_samples)], shape) - prompt
    return prompt + read + head_flops(1 + n_samples * (n_new - 1), shape, n_vocabulary)
