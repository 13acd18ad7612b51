"""Attention over trees by loops over queries and keys, from its definition. Slow; never imports karat."""

from __future__ import annotations

import math

from torch import Tensor


def tree_attention_by_loops(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    trees: list[tuple[int, list[int]]],
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Outputs [L, H, D] for queries [H, L, D] and keys and values [K, L, D]; trees as (prompt, branch lengths)."""
    part: list[tuple[int, int]] = []
    position: list[int] = []
    for number, (n_prompt, branches) in enumerate(trees):
        part += [(number, 0)] * n_prompt
        position += range(n_prompt)
        for branch, n in enumerate(branches, start=1):
            part += [(number, branch)] * n
            position += range(n_prompt, n_prompt + n)
    heads, length, size = query.shape
    output = query.new_zeros(length, heads, size)
    for h in range(heads):
        k = h // (heads // key.shape[0])
        for i in range(length):
            weights = {}
            for j in range(length):
                same_tree = part[i][0] == part[j][0]
                visible = part[j][1] in (0, part[i][1]) and position[j] <= position[i]
                near = window is None or position[i] - position[j] < window
                if same_tree and visible and near:
                    logit = float(query[h, i] @ key[k, j]) * scale
                    if softcap is not None:
                        logit = softcap * math.tanh(logit / softcap)
                    weights[j] = math.exp(logit)
            total = sum(weights.values())
            for j, weight in weights.items():
                output[i, h] += value[k, j] * (weight / total)
    return output
