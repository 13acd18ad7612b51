"""One rollout: sample, score, and record what the update will need, all from one version of the policy.

Token in, token out: what was drawn is what is scored by the policy, the reference and the critic; text is made from
the tokens only for the score function. Knows nothing about advantages or losses.

Dimension letters: B responses, T response tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from karat.errors import InvariantError
from karat.lm import parallel
from karat.lm.chat import check_fits, prompt_tokens, response_text
from karat.lm.generate import SamplingConfig
from karat.lm.load import LoadedLM
from karat.lm.logprobs import response_logprobs
from karat.lm.sharding import whole
from karat.lm.together import sample_together
from karat.lm.trees import Tree, TreeBatch, rows_of
from karat.policy.actor import ActorCritic, Policy, exact_kl, pack, reference_logprobs, token_scores
from karat.policy.scores import score_responses
from karat.policy.settings import RewardSettings, RolloutSettings
from karat.policy.shaping import final_scores
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
    """log π_old of the drawn tokens, by the function that the update uses; NaN where they are left to the update."""
    ref_logprobs: Float[Tensor, "B T"]
    """log π_ref of the same tokens."""
    sampler_logprobs: Float[Tensor, "B T"]
    """What the sampler recorded for them."""
    values: Float[Tensor, "B T"] | None
    """Value before each token; None = there is no critic."""
    last_values: Float[Tensor, "B"] | None
    """Value after the last counted token, where it was asked for."""
    entropy: Float[Tensor, "B T"] | None
    """Full-vocabulary entropy, where it was asked for."""
    exact_kl: Float[Tensor, "B T"] | None
    """KL of each next token over the whole vocabulary, where it was asked for."""
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


@dataclass(frozen=True)
class Drawn:
    """Responses of one version of the policy, before anything was computed about them."""

    prompts: tuple[Prompt, ...]
    """The prompts, one for each tree."""
    trees: tuple[Tree, ...]
    """Token ids: one prompt with all its responses each, cut behind the first stop token."""
    texts: tuple[str, ...]
    """B decoded responses; rows run over prompts, then over samples."""
    samples: tuple[Sample, ...]
    """What the sampler noted for each."""

    @property
    def flat_prompts(self) -> list[Prompt]:
        """The prompt of each response."""
        n_samples = len(self.texts) // len(self.prompts)
        return [prompt for prompt in self.prompts for _ in range(n_samples)]


def draw_responses(lm: LoadedLM, prompts: Sequence[Prompt], settings: RolloutSettings, seed: int) -> Drawn:
    """n_samples responses a prompt, as token ids and as text up to the stop token.

    Raises: InputError for prompts that do not fit the context.
    """
    samples = _sample(lm, prompts, settings, seed)
    trees = tuple(
        Tree(group[0].prompt_tokens, tuple(truncate_after_stop(s.response_tokens, lm.eos_ids) for s in group))
        for group in samples
    )
    texts = tuple(response_text(lm.tokenizer, branch, lm.eos_ids) for tree in trees for branch in tree.branches)
    return Drawn(tuple(prompts), trees, texts, tuple(one for group in samples for one in group))


def collect_rollout(
    actor: ActorCritic | Policy,
    prompts: Sequence[Prompt],
    score_fn: ScoreFn,
    *,
    settings: RolloutSettings,
    token_budget: int,
    seed: int,
    with_last_values: bool = False,
    with_logprobs: bool = True,
) -> Rollout:
    """Draw and score n_samples responses a prompt.

    Args:
        actor: without a critic (`Policy`) the rollout has no values.
        score_fn: one call for all responses, on decoded text up to the stop token.
        token_budget: positions in one forward pass.    seed: of this rollout alone.
        with_last_values: also the critic's value after each response (to bootstrap truncated ones).
        with_logprobs: False = without a pass of the policy, where the update will make the same one.
    Raises: InputError for prompts that do not fit the context or scores that are missing or not finite.
    """
    started = time.perf_counter()
    with whole():
        drawn = draw_responses(actor.lm, prompts, settings, seed)
        sampled = time.perf_counter()
        scores = score_responses(score_fn, drawn.flat_prompts, drawn.texts)
        scored = time.perf_counter()
        wanted = partial(_scored, actor, settings=settings, with_last=with_last_values, with_policy=with_logprobs)
        rows = _forward(wanted, drawn.trees, token_budget, actor.lm.model.device)
    ref_logprobs = rows["ref_logprobs"]
    device, dtype = ref_logprobs.device, ref_logprobs.dtype
    return Rollout(
        prompts=tuple(prompts),
        texts=drawn.texts,
        trees=drawn.trees,
        logprobs=rows["logprobs"] if with_logprobs else torch.full_like(ref_logprobs, torch.nan),
        ref_logprobs=ref_logprobs,
        sampler_logprobs=_sampler_rows(drawn.samples, rows["response_mask"]).to(device, dtype),
        values=rows.get("values"),
        last_values=rows.get("last_values"),
        entropy=rows.get("entropy"),
        exact_kl=rows.get("exact_kl"),
        response_mask=rows["response_mask"],
        stopped_mask=torch.tensor([s.stopped for s in drawn.samples], device=device),
        scores=torch.tensor(scores, dtype=dtype, device=device),
        seconds={"sample": sampled - started, "score": scored - sampled, "forward": time.perf_counter() - scored},
    )


def paid_scores(
    rollout: Rollout, settings: RewardSettings, inside: Float[Tensor, "B T"] | None = None
) -> Float[Tensor, "B"]:
    """The scores, with what was earned inside the responses, after clipping and the rule for truncated responses."""
    return final_scores(
        rollout.scores if inside is None else rollout.scores + inside.sum(1),
        rollout.stopped_mask,
        score_clip=settings.score_clip,
        missing_eos_penalty=settings.missing_eos_penalty,
        missing_eos_score=settings.missing_eos_score,
    )


def check_start_at_reference(rollout: Rollout, tolerance: float) -> None:
    """Raise InvariantError unless the untrained policy is its reference, token by token."""
    gap = float((rollout.logprobs - rollout.ref_logprobs)[rollout.response_mask].abs().max())
    if not gap <= tolerance:
        raise InvariantError(
            f"policy: before the first update log π and log π_ref differ by {gap} at some token; expected at most "
            f"{tolerance}. The policy was trained before (a LoRA adapter that is not new?), or dropout is on"
        )


def _sample(lm: LoadedLM, prompts: Sequence[Prompt], settings: RolloutSettings, seed: int) -> list[list[Sample]]:
    tokens = [prompt_tokens(lm.tokenizer, prompt.turns) for prompt in prompts]
    for ids in tokens:
        check_fits(ids, settings.max_new_tokens, lm.context_length)
    config = SamplingConfig(
        max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, batch_rows=settings.decode_rows
    )
    return sample_together(lm, tokens, n_samples=settings.n_samples, config=config, seed=seed)


def _forward(
    scored: Callable[[TreeBatch], dict[str, Tensor | None]],
    trees: Sequence[Tree],
    token_budget: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """What is recorded about each token as rows, the processes sharing the passes; no gradient.

    no_grad rather than inference_mode: the rows are saved for the update's backward pass, which refuses inference
    tensors.
    """
    batches = pack(trees, parallel.budget(token_budget, sum(tree.n_tokens for tree in trees)), device)
    with torch.no_grad():
        found = parallel.each(batches, scored)
    flat = {name: [one[name].to(device) for one in found if one[name] is not None] for name in found[0]}
    shape = {
        "n_branches": sum(len(tree.branches) for tree in trees),
        "max_len": max(len(branch) for tree in trees for branch in tree.branches),
    }
    last = flat.pop("last_values")
    rows = {name: rows_of(parts, batches, **shape)[0] for name, parts in flat.items() if parts}
    rows["response_mask"] = rows_of(flat["ref_logprobs"], batches, **shape)[1]
    if last:
        order = torch.cat([batch.branch_id for batch in batches])
        rows["last_values"] = torch.empty_like(torch.cat(last)).index_copy(0, order, torch.cat(last))
    return rows


def _scored(
    actor: ActorCritic | Policy, batch: TreeBatch, *, settings: RolloutSettings, with_last: bool, with_policy: bool
) -> dict[str, Tensor | None]:
    """What is recorded about the tokens of one micro-batch; None = not asked for."""
    options = {"temperature": settings.temperature, "with_entropy": settings.exact_entropy}
    flat: dict[str, Tensor | None] = dict.fromkeys(("values", "last_values", "logprobs", "entropy"))
    if isinstance(actor, ActorCritic):
        scored = token_scores(actor, batch, with_last=with_last, **options)
        flat |= {"values": scored.values, "last_values": scored.last_values}
        flat |= {"logprobs": scored.logprobs, "entropy": scored.entropy}
    elif with_policy:
        found = response_logprobs(actor.lm.model, batch, **options)
        flat |= {"logprobs": found.logprobs, "entropy": found.entropy}
    flat["ref_logprobs"] = reference_logprobs(actor, batch, temperature=settings.temperature)
    flat["exact_kl"] = exact_kl(actor, batch, temperature=settings.temperature) if settings.exact_kl else None
    return flat


def _sampler_rows(samples: Sequence[Sample], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    rows = torch.zeros(mask.shape, dtype=torch.float64)
    for i, (drawn, n) in enumerate(zip(samples, mask.sum(1).tolist(), strict=True)):
        rows[i, :n] = torch.tensor(drawn.logprobs[:n], dtype=torch.float64)
    return rows
