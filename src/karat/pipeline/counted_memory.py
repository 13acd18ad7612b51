"""What the counts of a configuration keep in memory, before anything is made of them: too many end in a line, not in a kill.

Rough on purpose, and from settings alone: a slip of a few zeros is to be seen, not a tight fit, which `karat doctor` counts
with the source at hand. Knows the configuration; nothing of a model but the sandbox's shape.
"""

from __future__ import annotations

from collections.abc import Iterator

from karat.devices import available_bytes
from karat.errors import ConfigError
from karat.pipeline.settings import RunConfig

TEXT_BYTES = 500
"""A text of the sandbox with its tokens, or a response beside these."""
TOKEN_BYTES = 100
"""A drawn token with its log-probabilities, values, rewards and advantages."""
VOTE_BYTES = 3_000
"""A judgement with its task, as it is asked, stored and read again."""
BLOCK_BYTES = 50_000
"""A block's modules, however small its weights."""
HELD_TIMES = 6
"""Weights, gradients, two moments, and two copies that are not trained."""


def kept_in_memory(config: RunConfig) -> Iterator[tuple[str, int, int]]:
    """(settings, how many they come to, about how many bytes are held at once for them), each taken alone."""
    sandbox, collect, watch, evaluate = config.sandbox, config.collect, config.watch, config.evaluate
    answer, judged = TEXT_BYTES + TOKEN_BYTES * config.policy_tokens, collect.n_prompts * collect.n_samples
    weights = 0
    if sandbox is not None:
        shape = sandbox.model
        widths = 2 * shape.head_size * (shape.heads + shape.kv_heads)
        weights = 4 * shape.layers * (shape.hidden * (widths + 3 * shape.mlp))
        yield "sandbox.model", weights // 4, HELD_TIMES * weights + BLOCK_BYTES * shape.layers
        yield "sandbox.n_base_texts", sandbox.n_base_texts, TEXT_BYTES * sandbox.n_base_texts
        yield "sandbox.n_demonstrations", sandbox.n_demonstrations, TEXT_BYTES * sandbox.n_demonstrations
    if config.preferences is None:
        written = TEXT_BYTES + TOKEN_BYTES * collect.max_new_tokens
        yield "collect.n_prompts · n_samples", judged, written * judged
        yield "collect.n_tasks · overlap", (votes := collect.n_tasks * collect.overlap), VOTE_BYTES * votes
    if (rollout := config.rollout) is not None:
        n = rollout.n_prompts * rollout.n_samples
        yield f"{config.section}.rollout.n_prompts · n_samples", n, answer * n
    n = watch.n_prompts * watch.n_samples
    yield "watch.n_prompts · n_samples", n, answer * n
    n = evaluate.n_prompts * max(evaluate.n_samples, evaluate.n_best_of)
    yield "evaluate.n_prompts · n_samples", n, answer * n
    reward, hidden = config.reward, 1 if sandbox is None else sandbox.model.hidden
    draws, key = reward.heads.n_heads, "reward.heads.n_heads"
    if reward.posterior == "laplace":
        draws, key = reward.laplace.n_draws, "reward.laplace.n_draws"
    yield key, draws, 4 * draws * (HELD_TIMES * hidden + 2 * judged)
    if reward.posterior == "ensemble":
        yield "reward.ensemble.models", reward.ensemble.models, 2 * reward.ensemble.models * weights


def memory_problems(config: RunConfig) -> Iterator[str]:
    """The counts that alone need more memory than is free, one line each; none where that is not known."""
    free = available_bytes()
    for key, n, wanted in kept_in_memory(config):
        if free is not None and wanted > free:
            yield (
                f"{key}: found {n:,}, for which about {wanted / (1 << 30):.1f} GiB of memory are wanted, and "
                f"{free / (1 << 30):.1f} GiB are free; expected fewer"
            )


def check_memory(config: RunConfig) -> None:
    """Raise ConfigError for the first of `memory_problems`."""
    for problem in memory_problems(config):
        raise ConfigError(problem)
