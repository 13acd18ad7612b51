"""Encoders trained on the votes about arguments, two ways: karat's reward, and a plain fine-tune on vote shares.

Both read the same texts in the same minibatches with the same optimiser; they differ in what is said of the votes. What a
fit leaves behind are features, scores without the length term, and the length term. Knows votes and texts; knows nothing
about consensus, folds or files.

Dimension letters: N texts, S heads, d features, P pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from karat.records import Prompt, Response, Vote
from karat.reward.data import feedback_data, plan_epoch
from karat.reward.model import log_lengths
from karat.reward.settings import ENCODER_CONFIG
from karat.reward.train import train_reward
from karat.reward.trunk import Encoded, EncoderTrunk, micro_batches
from karat.seeding import child_seed, numpy_generator

Say = Callable[[int, Mapping[str, float]], None]
"""Hears of every step."""


class HalfTrunk(EncoderTrunk):
    """An encoder whose products are taken in bfloat16, in training and in scoring alike: half the time of a step here."""

    def features(self, items: Sequence[Encoded], *, token_budget: int) -> Tensor:
        """As the trunk has them, float32."""
        with torch.autocast("cpu", torch.bfloat16):
            return super().features(items, token_budget=token_budget).float()


@dataclass(frozen=True)
class Setting:
    """What the inner folds choose between."""

    learning_rate: float
    """Of the trunk, at its peak."""
    n_epochs: int
    """Passes over the training texts."""

    @property
    def name(self) -> str:
        """As it stands in file names and tables."""
        return f"{self.learning_rate:g}x{self.n_epochs}"


GRID = (Setting(5e-5, 2), Setting(1e-4, 3))
"""The first is the one in `reward.study`; the second trains three times as much."""


@dataclass(frozen=True, eq=False)
class Known:
    """Votes to train on, and all texts, which are scored afterwards."""

    votes: Sequence[Vote]
    """Of the training folds."""
    prompts: Mapping[str, Prompt]
    """By id."""
    responses: Mapping[str, Response]
    """By id, of all folds, in the order of the columns of what is found."""


Found = dict[str, np.ndarray]
"""features [N, d], scores [S, N] without the length term, gamma [S]."""


class Way(Protocol):
    """A way to train."""

    def __call__(self, trunk: EncoderTrunk, known: Known, setting: Setting, seed: int, say: Say) -> Found: ...


@dataclass(frozen=True)
class _Reporter:
    say: Say

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.say(step, metrics)


def karat_fit(trunk: EncoderTrunk, known: Known, setting: Setting, seed: int, say: Say) -> Found:
    """`train_reward` as `reward.study` sets it, but for learning rate and epochs."""
    config = dataclasses.replace(ENCODER_CONFIG, learning_rate=setting.learning_rate, n_epochs=setting.n_epochs)
    fit = train_reward(
        trunk, known.votes, known.prompts, known.responses, config=config, seed=seed, reporters=[_Reporter(say)]
    )
    features = _features(trunk, known)
    model = fit.model
    scores = ((model.weight + model.prior).detach() @ features.T).numpy()
    return {"features": features.numpy(), "scores": scores, "gamma": model.length_coef.detach().numpy()}


def plain_fit(trunk: EncoderTrunk, known: Known, setting: Setting, seed: int, say: Say) -> Found:
    """Cross-entropy of σ(s_a − s_b) against the share of a pair's votes for a, a tie half for each; s = w·φ + γ·log length.

    No raters, no lapses, one head: every pair counts once, however many voted on it.
    """
    torch.manual_seed(child_seed(seed, "plain fine-tune"))
    data = feedback_data(known.votes, known.prompts, known.responses)
    a, b, share = vote_shares([(vote.a, vote.b, vote.level) for vote in known.votes], data.response_ids)
    length = log_lengths(data.texts)
    head = nn.Linear(trunk.width, 1, bias=False)
    nn.init.normal_(head.weight, std=0.1 / (trunk.width + 1) ** 0.5)
    gamma = nn.Parameter(_length_slope((length[a] - length[b]).double(), share.double()).float())
    for module in trunk.module.modules():
        if isinstance(module, nn.Dropout):
            module.p = ENCODER_CONFIG.dropout
    head_rate = ENCODER_CONFIG.head_learning_rate
    optimiser = torch.optim.AdamW(
        [{"params": trunk.module.parameters(), "peak": setting.learning_rate},
         {"params": head.parameters(), "peak": head_rate}, {"params": [gamma], "peak": head_rate, "weight_decay": 0.0}],
        weight_decay=ENCODER_CONFIG.weight_decay,
    )  # fmt: skip
    encoded = trunk.encode(data.prompts, data.texts)
    plans = [
        minibatch
        for epoch in range(setting.n_epochs)
        for minibatch in plan_epoch(
            data, batch_responses=ENCODER_CONFIG.batch_responses, rng=numpy_generator(seed, "plain", epoch)
        )
    ]
    n_warm = max(1, int(ENCODER_CONFIG.warmup_frac * len(plans)))
    place = torch.full((len(encoded),), -1)
    for step, minibatch in enumerate(plans):
        rate = min((step + 1) / n_warm, (len(plans) - step) / max(1, len(plans) - n_warm))
        for group in optimiser.param_groups:
            group["lr"] = rate * group["peak"]
        own = torch.tensor([i for group in minibatch.groups for i in group])
        in_batch = torch.isin(a, own)
        optimiser.zero_grad()
        total = 0.0
        trunk.module.train()
        for texts in micro_batches(
            minibatch.groups, lambda i: encoded[i].n_tokens, token_budget=ENCODER_CONFIG.token_budget
        ):
            index = torch.tensor(texts)
            place.fill_(-1)
            place[index] = torch.arange(len(texts))
            pairs = in_batch & (place[a] >= 0)
            scores = head(trunk.features([encoded[i] for i in texts], token_budget=ENCODER_CONFIG.token_budget))[:, 0]
            scores = scores + gamma * length[index]
            margin = scores[place[a[pairs]]] - scores[place[b[pairs]]]
            loss = functional.binary_cross_entropy_with_logits(margin, share[pairs], reduction="sum") / in_batch.sum()
            loss.backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_([*trunk.module.parameters(), *head.parameters(), gamma], ENCODER_CONFIG.max_grad_norm)
        optimiser.step()
        say(step + 1, {"loss": total})
    features = _features(trunk, known)
    scores = (features @ head.weight.detach().T).T.numpy()
    return {"features": features.numpy(), "scores": scores, "gamma": gamma.detach().view(1).numpy()}


WAYS: dict[str, Way] = {"plain": plain_fit, "karat": karat_fit}


def vote_shares(votes: Sequence[tuple[str, str, int]], ids: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of places in `ids`, and the share of votes for the first of each; levels are 0 b, 1 tie, 2 a."""
    index = {one: place for place, one in enumerate(ids)}
    sums: dict[tuple[int, int], list[float]] = {}
    for a, b, level in votes:
        i, j, won = index[a], index[b], level / 2
        if i > j:
            i, j, won = j, i, 1 - won
        own = sums.setdefault((i, j), [0.0, 0.0])
        own[0] += won
        own[1] += 1
    pairs = torch.tensor(list(sums), dtype=torch.long).view(-1, 2)
    share = torch.tensor([won / n for won, n in sums.values()])
    return pairs[:, 0], pairs[:, 1], share


def _length_slope(difference: Tensor, share: Tensor) -> Tensor:
    """The slope of the vote shares on the difference of log-lengths, where the training begins."""
    slope = torch.zeros(1, dtype=torch.float64)
    for _ in range(30):  # Newton's method on one number
        p = (slope * difference).sigmoid()
        slope = slope + ((share - p) * difference).sum() / (p * (1 - p) * difference**2).sum()
    return slope


@torch.no_grad()
def _features(trunk: EncoderTrunk, known: Known) -> Tensor:
    trunk.module.eval()
    own = list(known.responses.values())
    encoded = trunk.encode([known.prompts[one.prompt_id] for one in own], [one.text for one in own])
    return trunk.features(encoded, token_budget=ENCODER_CONFIG.token_budget).float()
