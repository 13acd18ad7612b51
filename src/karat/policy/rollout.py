"""One rollout: sample, score, and record what the update will need, all from one version of the policy.

Token in, token out: what was drawn is what is scored by the policy, the reference and the critic; text is made from
the tokens only for the score function. Knows nothing about advantages or losses.

Dimension letters: B responses, T response tokens.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from karat.lm.chat import check_fits, prompt_tokens, response_text
from karat.lm.generate import SamplingConfig, sample
from karat.lm.trees import Tree, rows_of
from karat.policy.actor import ActorCritic, pack, reference_logprobs, token_scores
from karat.policy.scores import checked_scores
from karat.policy.settings import RolloutSettings
from karat.records import Prompt, Sample, ScoreFn


@dataclass(frozen=True)
class Rollout:
    """Responses of one version of the policy; rows run over prompts, then over samples."""

    prompts: tuple[Prompt, ...]
    """The prompts, one for each tree."""
    texts: tuple[str, ...]
    """B decoded responses, as they were scored."""
    trees: tuple[Tree, ...]
    """Token ids: one prompt with all its responses each."""
    logprobs: Float[Tensor, "B T"]
    """log π_old of the drawn tokens, by the function that the update uses."""
    ref_logprobs: Float[Tensor, "B T"]
    """log π_ref of the same tokens."""
    sampler_logprobs: Float[Tensor, "B T"]
    """What the sampler recorded for them."""
    values: Float[Tensor, "B T"]
    """Value before each token."""
    last_values: Float[Tensor, "B"] | None
    """Value after the last counted token, where it was asked for."""
    entropy: Float[Tensor, "B T"] | None
    """Full-vocabulary entropy, where it was asked for."""
    response_mask: Bool[Tensor, "B T"]
    """True = drawn by the policy, up to and including the stop token."""
    stopped_mask: Bool[Tensor, "B"]
    """True = ended by a stop token; False = truncated."""
    scores: Float[Tensor, "B"]
    """As the score function gave them."""
    seconds: dict[str, float]
    """Wall-clock seconds of sampling, scoring and the forward passes."""

    @property
    def n_samples(self) -> int:
        """Responses a prompt."""
        return len(self.texts) // len(self.prompts)

    @property
    def lengths(self) -> Tensor:
        """Counted tokens of each response."""
        return self.response_mask.sum(1)

    @property
    def sampler_gap(self) -> tuple[float, float]:
        """Largest and mean |log π(scorer) − log π(sampler)| over counted tokens."""
        gaps = (self.logprobs - self.sampler_logprobs)[self.response_mask].abs()
        return float(gaps.max()), float(gaps.mean())


def truncate_after_stop(tokens: Sequence[int], eos_ids: Collection[int]) -> tuple[int, ...]:
    """The tokens up to and including the first stop token; all of them if there is none.

    >>> truncate_after_stop([5, 2, 7, 2], {2})
    (5, 2)
    """
    for i, token in enumerate(tokens):
        if token in eos_ids:
            return tuple(tokens[: i + 1])
    return tuple(tokens)


def collect_rollout(
    actor: ActorCritic,
    prompts: Sequence[Prompt],
    score_fn: ScoreFn,
    *,
    settings: RolloutSettings,
    token_budget: int,
    seed: int,
    with_last_values: bool = False,
) -> Rollout:
    """Draw and score n_samples responses a prompt.

    Args:
        score_fn: one call for all responses, on decoded text up to the stop token.
        token_budget: positions in one forward pass.    seed: of this rollout alone.
        with_last_values: also the critic's value after each response (to bootstrap truncated ones).
    Raises: InputError for prompts that do not fit the context or scores that are missing or not finite.
    """
    started = time.perf_counter()
    samples = _sample(actor, prompts, settings, seed)
    sampled = time.perf_counter()
    lm = actor.lm
    trees = tuple(
        Tree(group[0].prompt_tokens, tuple(truncate_after_stop(s.response_tokens, lm.eos_ids) for s in group))
        for group in samples
    )
    texts = tuple(response_text(lm.tokenizer, branch, lm.eos_ids) for tree in trees for branch in tree.branches)
    flat_prompts = [prompt for prompt in prompts for _ in range(settings.n_samples)]
    scores = checked_scores(score_fn(flat_prompts, texts), flat_prompts, texts)
    scored = time.perf_counter()
    rows = _forward(actor, trees, settings, token_budget, with_last_values)
    device = rows["logprobs"].device
    drawn = [s for group in samples for s in group]
    return Rollout(
        prompts=tuple(prompts),
        texts=texts,
        trees=trees,
        logprobs=rows["logprobs"],
        ref_logprobs=rows["ref_logprobs"],
        sampler_logprobs=_sampler_rows(drawn, rows["response_mask"]).to(rows["logprobs"].dtype),
        values=rows["values"],
        last_values=rows.get("last_values"),
        entropy=rows.get("entropy"),
        response_mask=rows["response_mask"],
        stopped_mask=torch.tensor([s.stopped for s in drawn], device=device),
        scores=torch.tensor(scores, dtype=rows["values"].dtype, device=device),
        seconds={"sample": sampled - started, "score": scored - sampled, "forward": time.perf_counter() - scored},
    )


def _sample(actor: ActorCritic, prompts: Sequence[Prompt], settings: RolloutSettings, seed: int) -> list[list[Sample]]:
    tokens = [prompt_tokens(actor.lm.tokenizer, prompt.turns) for prompt in prompts]
    for ids in tokens:
        check_fits(ids, settings.max_new_tokens, actor.lm.context_length)
    config = SamplingConfig(
        max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, batch_rows=settings.decode_rows
    )
    return sample(actor.lm, tokens, n_samples=settings.n_samples, config=config, seed=seed)


def _forward(
    actor: ActorCritic, trees: Sequence[Tree], settings: RolloutSettings, token_budget: int, with_last: bool
) -> dict[str, Tensor]:
    """Log-probabilities, reference log-probabilities and values as rows; no gradient.

    no_grad rather than inference_mode: the rows are saved for the update's backward pass, which refuses inference
    tensors.
    """
    batches = pack(trees, token_budget, actor.lm.model.device)
    with torch.no_grad():
        scored = [
            token_scores(
                actor,
                batch,
                temperature=settings.temperature,
                with_entropy=settings.exact_entropy,
                with_last=with_last,
            )
            for batch in batches
        ]
        reference = [reference_logprobs(actor, batch, temperature=settings.temperature) for batch in batches]
    shape = {
        "n_branches": sum(len(tree.branches) for tree in trees),
        "max_len": max(len(branch) for tree in trees for branch in tree.branches),
    }
    logprobs, mask = rows_of([s.logprobs for s in scored], batches, **shape)
    rows = {
        "logprobs": logprobs,
        "response_mask": mask,
        "ref_logprobs": rows_of(reference, batches, **shape)[0],
        "values": rows_of([s.values for s in scored], batches, **shape)[0],
    }
    if settings.exact_entropy:
        rows["entropy"] = rows_of([s.entropy for s in scored if s.entropy is not None], batches, **shape)[0]
    if with_last:
        last = torch.cat([s.last_values for s in scored if s.last_values is not None])
        order = torch.cat([batch.branch_id for batch in batches])
        rows["last_values"] = torch.empty_like(last).index_copy(0, order, last)
    return rows


def _sampler_rows(samples: Sequence[Sample], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    rows = torch.zeros(mask.shape, dtype=torch.float64)
    for i, (drawn, n) in enumerate(zip(samples, mask.sum(1).tolist(), strict=True)):
        rows[i, :n] = torch.tensor(drawn.logprobs[:n], dtype=torch.float64)
    return rows.to(mask.device)
