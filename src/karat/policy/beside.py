"""What may be optimised beside the score: a cost kept below a limit, rewards inside a response, data to stay close to.

Knows rollouts, functions that judge texts, and the loss of demonstrations. Knows nothing about how a policy is updated.

Dimension letters: B responses, T response tokens.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from karat.errors import ConfigError, InputError, KaratError
from karat.lm.chat import check_fits, prompt_tokens, response_text, response_tokens
from karat.lm.load import LoadedLM
from karat.lm.logprobs import response_logprobs
from karat.lm.loop import TrainState
from karat.lm.losses import total_nll
from karat.lm.trees import Tree
from karat.policy.controllers import LagrangeMultiplier
from karat.policy.epochs import UpdateStats, my_batches
from karat.policy.rollout import Rollout
from karat.policy.scores import score_responses
from karat.policy.settings import ConstraintSettings
from karat.records import Demonstration, DenseScoreFn, ScoreFn
from karat.seeding import torch_generator


class PtxSettings(Protocol):
    """What `data_losses` needs to know of a method's settings."""

    @property
    def ptx_coef(self) -> float:
        """Weight of the loss."""
        ...

    @property
    def ptx_batch(self) -> int:
        """Demonstrations a minibatch."""
        ...

    @property
    def token_budget(self) -> int:
        """Positions in one forward pass."""
        ...


@dataclass(frozen=True)
class Beside:
    """Functions and data beside the score function; all optional."""

    cost_fn: ScoreFn | None = None
    """The cost of each response, for `constraint`."""
    dense_fn: DenseScoreFn | None = None
    """Rewards inside responses; their sum is added to the score, and each is paid where it was earned."""
    demonstrations: Sequence[Demonstration] = ()
    """Data whose likelihood `ptx_coef` weighs."""
    paid_by: Mapping[str, Any] = field(default_factory=dict)
    """What decides scores, costs and rewards inside responses, as plain values by name: names and hashes of functions and
    models, weights. A checkpoint of an optimiser that was paid by something else is refused; {} = nobody knows."""

    @property
    def inputs(self) -> dict[str, Any]:
        """What a checkpoint must agree with, as plain values by name."""
        return {
            **({"paid by": dict(self.paid_by)} if self.paid_by else {}),
            "demonstrations": [[one.prompt.id, one.text] for one in self.demonstrations],
            "cost function": self.cost_fn is not None,
            "dense rewards": self.dense_fn is not None,
        }


def check_beside(beside: Beside, *, ptx_coef: float, constraint: ConstraintSettings | None) -> None:
    """Raise ConfigError where a setting lacks its function or data, or the other way round."""
    if constraint is not None and beside.cost_fn is None:
        raise ConfigError("constraint: found a limit without a cost function; expected one: a constraint needs costs")
    if constraint is None and beside.cost_fn is not None:
        raise ConfigError("constraint: found a cost function without a limit; expected the section `constraint`")
    if ptx_coef > 0 and not beside.demonstrations:
        raise ConfigError(f"update.ptx_coef: found {ptx_coef} without demonstrations; expected at least one")


@dataclass(frozen=True)
class Costs:
    """The costs of a rollout and the price they were charged at."""

    values: Float[Tensor, "B"] | None
    """Cost of each response; None = there is no constraint."""
    price: float
    """λ."""

    def charged(self, scores: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """score − λ·cost."""
        return scores if self.values is None else scores - self.price * self.values

    def settle(self, state: TrainState) -> dict[str, float]:
        """Let λ follow the mean cost; returns what is logged."""
        if self.values is None:
            return {}
        multiplier, mean = state.controllers["cost"], float(self.values.mean())
        assert isinstance(multiplier, LagrangeMultiplier)
        multiplier.update(mean)
        return {"cost/mean": mean, "cost/coef": self.price}


def response_costs(state: TrainState, rollout: Rollout, beside: Beside) -> Costs:
    """What each response costs, and λ as it stands.

    Raises: InputError for a cost function that raises or does not give one finite number each.
    """
    if beside.cost_fn is None:
        return Costs(None, 0.0)
    multiplier = state.controllers["cost"]
    assert isinstance(multiplier, LagrangeMultiplier)
    asked = [prompt for prompt in rollout.prompts for _ in range(rollout.n_samples)]
    costs = score_responses(beside.cost_fn, asked, rollout.texts, what="cost function")
    return Costs(torch.tensor(costs, dtype=rollout.scores.dtype, device=rollout.scores.device), multiplier.coef)


def dense_rewards(rollout: Rollout, beside: Beside, *, lm: LoadedLM) -> Float[Tensor, "B T"] | None:
    """Each piece's reward at the token that completes it; None where there is no such function.

    A piece that ends behind the text ends with the response's last token, which is the stop token where one was drawn.

    Raises: InputError for a function that raises, another count, an end outside the text or a reward that is not finite.
    """
    if beside.dense_fn is None:
        return None
    asked = [prompt for prompt in rollout.prompts for _ in range(rollout.n_samples)]
    try:
        marks = [list(row) for row in beside.dense_fn(asked, rollout.texts)]
    except KaratError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f"dense rewards: raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
    if len(marks) != len(rollout.texts):
        raise InputError(
            f"dense rewards: found {len(marks)} rows for {len(rollout.texts)} responses; expected one each"
        )
    rewards = torch.zeros_like(rollout.logprobs)
    branches = [branch for tree in rollout.trees for branch in tree.branches]
    for row, (text, branch) in enumerate(zip(rollout.texts, branches, strict=True)):
        if not marks[row]:
            continue
        ends = token_ends(lm, branch)
        for end, reward in marks[row]:
            if not (0 < end <= len(text) + 1 and math.isfinite(reward)):
                raise InputError(
                    f"dense rewards: found ({end}, {reward}) for a response of {len(text)} characters; expected an end "
                    "in 1 … that (+ 1 for the end of the response) and a finite reward"
                )
            rewards[row, min(bisect.bisect_left(ends, end), len(ends) - 1)] += reward
    return rewards


def dense_metrics(inside: Float[Tensor, "B T"] | None) -> dict[str, float]:
    """What is logged of rewards inside responses."""
    return {} if inside is None else {"score/inside_mean": float(inside.sum(1).mean())}


def token_ends(lm: LoadedLM, branch: Sequence[int]) -> list[int]:
    """Most code points of text that the first 1, 2, … tokens of a response decode to; never falling."""
    lengths = [len(response_text(lm.tokenizer, branch[: n + 1], lm.eos_ids)) for n in range(len(branch))]
    return list(itertools.accumulate(lengths, max))


def data_losses(
    lm: LoadedLM, beside: Beside, settings: PtxSettings, *, iteration: int, seed: int
) -> Callable[[UpdateStats], Iterator[Tensor]] | None:
    """ptx_coef times the negative log-likelihood per token of some demonstrations, drawn anew for each minibatch.

    Returns: what `update_on_rollout` takes as `extra`; None where the coefficient is 0.
    Source: Ouyang et al. 2022, arXiv:2203.02155 eq. 2 (PPO-ptx).
    """
    if settings.ptx_coef == 0:
        return None
    generator = torch_generator(seed, "ptx", iteration)
    known = beside.demonstrations

    def extra(stats: UpdateStats) -> Iterator[Tensor]:
        chosen = torch.randint(len(known), (settings.ptx_batch,), generator=generator).tolist()
        trees = [_tree(lm, known[i]) for i in chosen]
        n_tokens = sum(len(tree.branches[0]) for tree in trees)
        stats.n_data_tokens += n_tokens
        for batch in my_batches(trees, settings.token_budget, lm.model.device):
            total = total_nll(response_logprobs(lm.model, batch).logprobs)
            stats.data_loss += float(total.detach())
            yield settings.ptx_coef * total / n_tokens

    return extra


def _tree(lm: LoadedLM, demonstration: Demonstration) -> Tree:
    prompt = prompt_tokens(lm.tokenizer, demonstration.prompt.turns)
    response = response_tokens(lm.tokenizer, demonstration.text, lm.eos_ids[0])
    check_fits(prompt, len(response), lm.context_length)
    return Tree(tuple(prompt), (tuple(response),))
