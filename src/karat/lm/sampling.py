"""Drawing tokens: counter-based uniform numbers and the inverse of the cumulative distribution.

A number is a function of (seed, prompt key, sample, position) and of nothing else, so a response does not depend on
the batch it was drawn in, on the process, or on a restart. Knows nothing about models, caches or stop tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from karat.lm.logits import pieces

WIDENED = 1 << 18
"""Weights made and turned into float64 at a time: 3 MB, which stay in the cache until they are summed."""
BLOCK = 64  # √V for a vocabulary of a few thousand: as many sums between blocks as within one
_WORD = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))  # Salmon et al. 2011, Philox-4×32
_WEYL = (0x9E3779B9, 0xBB67AE85)  # the same: golden ratio and √3 − 1, 32 bits each
_ROUNDS = 10


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox-4×32-10: four pseudorandom 32-bit words for each 128-bit counter.

    Args:
        counter: [4, N] uint64, each entry below 2³², the low word first.
        key: two 32-bit words.
    Returns: [4, N] uint64, each entry below 2³².
    Source: Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", §3.2.
    """
    c0, c1, c2, c3 = counter.astype(np.uint64)
    k0, k1 = key
    for _ in range(_ROUNDS):
        left, right = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (right >> _HALF) ^ c1 ^ np.uint64(k0),
            right & _WORD,
            (left >> _HALF) ^ c3 ^ np.uint64(k1),
            left & _WORD,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def token_uniforms(
    seed: int, prompt_keys: Sequence[int], samples: Sequence[int], n_positions: int
) -> Float[np.ndarray, "N T"]:
    """The uniform numbers that draw some responses, position by position.

        u = (2²¹·w₀ + ⌊w₁ / 2¹¹⌋) / 2⁵³,   w = Philox(counter = (position, sample, key), key = seed)

    Args:
        seed: any integer; the low 64 bits count.
        prompt_keys: of each response, likewise.    samples: its number, 0 … 2³² − 1.
        n_positions: how many numbers of each, from position 0 on.
    Returns: float64 in [0, 1); a response's first n numbers are the same whatever n_positions is, and whoever is beside it.
    """
    counter = np.empty((4, len(prompt_keys), n_positions), dtype=np.uint64)
    counter[0] = np.arange(n_positions, dtype=np.uint64)
    columns = samples, [key & 0xFFFFFFFF for key in prompt_keys], [key >> 32 & 0xFFFFFFFF for key in prompt_keys]
    for words, given in zip(counter[1:], columns, strict=True):
        words[:] = np.array(given, dtype=np.uint64)[:, None]
    words = philox(counter.reshape(4, -1), (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    drawn = ((words[0] << np.uint64(21)) | (words[1] >> np.uint64(11))).astype(np.float64) * 2.0**-53
    return drawn.reshape(-1, n_positions)


def truncate_logits(logits: Float[Tensor, "R V"], *, top_k: int, top_p: float) -> Float[Tensor, "R V"]:
    """Logits with −∞ outside the k likeliest tokens and outside the likeliest tokens of total probability p.

    Args:
        top_k: 0 = all.    top_p: 1 = all; else the shortest head of the sorted tokens with Σ π ≥ p, after top_k.
    Returns: [R, V]; equally likely tokens at the edge all stay, so the result does not depend on a sort's tie-breaking.
    """
    if 0 < top_k < logits.shape[-1]:
        edge = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < edge, -torch.inf)
    if top_p < 1:
        ordered = logits.sort(dim=-1, descending=True).values
        probs = torch.softmax(ordered.double(), dim=-1)
        n_kept = ((probs.cumsum(-1) - probs) < top_p).sum(-1, keepdim=True)
        logits = logits.masked_fill(logits < ordered.gather(-1, n_kept - 1), -torch.inf)
    return logits


def draw_tokens(
    logits: Float[Tensor, "R V"], uniforms: Float[Tensor, " R"]
) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"]]:
    """One token a row by inverting the cumulative distribution, and its log-probability.

        token = min{ i : Σ_{j ≤ i} w_j > u · Σ_j w_j },   w = exp(ℓ − max ℓ)        log π = log w_token − log Σ_j w_j

    w is float32 (float64 for float64 logits) and its sums are float64. They run over blocks of 64 tokens; the running sum
    inside a block is taken for the chosen one only.

    Args:
        logits: −∞ = impossible; at least one finite entry a row.    uniforms: float64 in [0, 1).
    Returns: tokens (int64), never one of probability 0, and log π (float32; NaN where the logits were not numbers).
    """
    n_tokens = logits.shape[-1]
    # tokens first: that is how `kernels.for_few_rows` lays logits out, and in another order it is only slower
    wide = (logits if logits.dtype == torch.float64 else logits.float()).t()
    peak = wide.amax(0)
    edges = _block_sums(wide, peak).cumsum(0)
    total = edges[-1]
    target = uniforms * total
    block = torch.searchsorted(edges.t().contiguous(), target[:, None], right=True).squeeze(1)
    block = block.clamp_(max=edges.shape[0] - 1)
    before = torch.where(block > 0, edges.gather(0, (block - 1).clamp_(min=0)[None])[0], torch.zeros_like(target))
    index = block * BLOCK + torch.arange(BLOCK, device=logits.device)[:, None]
    inside = _weights(wide.gather(0, index.clamp(max=n_tokens - 1)), peak).double().masked_fill_(index >= n_tokens, 0.0)
    running = inside.cumsum(0).add_(before)
    # rounding may leave the last running sum a hair below the target: then the block's last possible token is meant
    last = (inside > 0).long().mul_(torch.arange(1, BLOCK + 1, device=logits.device)[:, None]).amax(0) - 1
    offset = torch.minimum((running <= target).sum(0), last)
    tokens = block * BLOCK + offset
    logprobs = (inside.gather(0, offset.clamp(min=0)[None])[0] / total).log()
    return tokens, logprobs.float()


def likeliest_tokens(logits: Float[Tensor, "R V"]) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"]]:
    """The likeliest token of each row (the first of equals) and its log-probability in float32."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    tokens = wide.argmax(-1)
    chosen = wide.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return tokens, (chosen - wide.logsumexp(-1)).float()


def forbid(logits: Float[Tensor, "R V"], token_ids: Int[Tensor, " E"], row_mask: Bool[Tensor, " R"]) -> None:
    """Put −∞ at the given tokens into the rows where the mask is True, in place: a copy of them all is no small work."""
    logits[:, token_ids] = logits[:, token_ids].masked_fill(row_mask.unsqueeze(-1), -torch.inf)


def _block_sums(logits: Float[Tensor, "V R"], peak: Float[Tensor, " R"]) -> Float[Tensor, "n R"]:
    """Float64 sums of exp(ℓ − peak) over consecutive blocks of 64 tokens; the last block may be shorter."""
    n_tokens, n_rows = logits.shape
    n_whole = n_tokens // BLOCK
    whole, rest = logits[: n_whole * BLOCK], logits[n_whole * BLOCK :]
    sums = logits.new_empty(-(-n_tokens // BLOCK), n_rows, dtype=torch.float64)
    # a few at a time, widened first and summed as they lie: a sum that widens as it goes takes 15 times as long, and
    # weights of all tokens at once would be as large as the logits (docs/LOG.md)
    if logits.device.type != "cpu" or torch.compiler.is_compiling():
        sums[:n_whole] = _weights(whole, peak).unflatten(0, (n_whole, BLOCK)).sum(1, dtype=torch.float64)
    elif logits.stride(0) == 1:
        for rows in pieces(0, n_rows, max(1, WIDENED // n_tokens)):
            weights = _weights(whole[:, rows], peak[rows]).t().double()
            sums[:n_whole, rows] = weights.unflatten(1, (n_whole, BLOCK)).sum(2).t()
    else:
        for blocks in pieces(0, n_whole, max(1, WIDENED // (BLOCK * n_rows))):
            weights = _weights(whole[blocks.start * BLOCK : blocks.stop * BLOCK], peak).double()
            sums[blocks] = weights.unflatten(0, (-1, BLOCK)).sum(1)
    if len(rest):
        sums[n_whole] = _weights(rest, peak).double().sum(0)
    return sums


def _weights(logits: Float[Tensor, "V R"], peak: Float[Tensor, " R"]) -> Float[Tensor, "V R"]:
    return (logits - peak).exp_()
