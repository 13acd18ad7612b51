"""Sampling by several processes: each draws the responses to its share of the prompts, all get all of them.

A response is a function of (seed, prompt, sample), so that it does not matter which process draws it, beyond the model's
rounding. Knows sampling and processes; knows nothing about texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from karat.lm import parallel
from karat.lm.generate import Progress, SamplingConfig, default_keys, sample
from karat.records import Sample

if TYPE_CHECKING:
    from karat.lm.load import LoadedLM


def sample_together(
    lm: LoadedLM,
    prompts: Sequence[Sequence[int]],
    *,
    n_samples: int,
    config: SamplingConfig,
    seed: int,
    prompt_keys: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> list[list[Sample]]:
    """`generate.sample`, the prompts dealt out to the processes; alone it is that function.

    Args:
        progress: called in each process, with its own share's figures times the number of processes: an estimate of
            where all of them are.
    Raises: as `generate.sample`, where a prompt at fault is numbered within its process's share.
    """
    n = parallel.count()
    keys = list(default_keys(prompts) if prompt_keys is None else prompt_keys)
    n_total = n_samples * len(prompts)

    def of_all(n_tokens: int, n_done: int, n_own: int) -> None:
        del n_own
        if progress is not None:
            progress(n_tokens * n, min(n_done * n, n_total), n_total)

    mine = parallel.share(prompts)
    drawn: list[list[Sample]] = []
    if mine or n == 1:
        drawn = sample(
            lm, mine, n_samples=n_samples, config=config, seed=seed, prompt_keys=parallel.share(keys),
            progress=of_all if progress is not None else None,
        )  # fmt: skip
    return parallel.rejoined(drawn, len(prompts))
