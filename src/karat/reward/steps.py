"""The steps of reward training: minibatch, loss, rater fit, held-out epoch, with all state that a checkpoint needs.

Knows a model, feedback as columns and an optimiser; knows nothing about splits, temperatures or reports.

Dimension letters: S heads, C statements, N texts, O objectives, A annotators.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from karat.errors import InvariantError
from karat.feedback_columns import FeedbackBatch, FeedbackParams, LabelParams
from karat.feedback_likelihood import channel_loglik
from karat.lm import parallel
from karat.lm.loop import TrainState, linear_warmup_decay, optimiser_step
from karat.lm.sharding import even_share, whole
from karat.ratings import RatingParams
from karat.reward.data import FeedbackData, Minibatch
from karat.reward.latents import fit_params
from karat.reward.model import RewardModel, log_lengths
from karat.reward.prediction import held_out_nll
from karat.reward.settings import RewardConfig
from karat.reward.trunk import Encoded, micro_batches
from karat.seeding import child_seed

Seen = tuple[Tensor, Tensor, float]
"""Of a micro-batch: which texts, their mean score over heads, the loss."""


class RaterTable(nn.Module):
    """Parameters of raters and channels, and the scores last seen, as buffers, so that a checkpoint holds them."""

    def __init__(self, start: FeedbackParams, n_texts: int, n_objectives: int) -> None:
        super().__init__()
        self.names = tuple(f"p{number}" for number in range(len(_flat(start))))
        self._shape = start
        for name, value in zip(self.names, _flat(start).values(), strict=True):
            self.register_buffer(name, value.clone())
        self.register_buffer("latest", torch.zeros(n_texts, n_objectives))
        self.register_buffer("seen", torch.zeros(n_texts, dtype=torch.bool))

    def params(self) -> FeedbackParams:
        """The current parameters."""
        return _unflat(self._shape, [getattr(self, name) for name in self.names])

    def take(self, params: FeedbackParams) -> None:
        """Replace the parameters."""
        for name, value in zip(self.names, _flat(params).values(), strict=True):
            getattr(self, name).copy_(value)


def _flat(params: FeedbackParams) -> dict[str, Tensor]:
    flat = {"competence": params.competence, "side_bias": params.side_bias, "lapse": params.lapse}
    if params.log_tie is not None:
        flat["log_tie"] = params.log_tie
    for name, cutpoints in params.cutpoints.items():
        flat[f"cutpoints of {name}"] = cutpoints
    for records in (params.ratings, params.labels):
        for name, own in records.items():
            flat |= {f"{key} of {name}": value for key, value in vars(own).items() if value is not None}
    return flat


def _unflat(like: FeedbackParams, values: Sequence[Tensor]) -> FeedbackParams:
    flat = dict(zip(_flat(like), values, strict=True))
    ratings, labels = (
        {
            name: {key: None if value is None else flat[f"{key} of {name}"] for key, value in vars(own).items()}
            for name, own in records.items()
        }
        for records in (like.ratings, like.labels)
    )
    return FeedbackParams(
        flat["competence"],
        flat["side_bias"],
        flat["lapse"],
        {name: flat[f"cutpoints of {name}"] for name in like.cutpoints},
        flat.get("log_tie"),
        {name: RatingParams(**own) for name, own in ratings.items()},
        {name: LabelParams(**own) for name, own in labels.items()},
    )


class BestEpoch:
    """Remembers the best epoch; its state is in the checkpoint, its weights in a module of buffers."""

    def __init__(self) -> None:
        self.nll = math.inf
        self.n_worse = 0
        self.epoch = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"nll": None if math.isinf(self.nll) else self.nll, "n_worse": self.n_worse, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the values of `state_dict`."""
        self.nll = math.inf if state["nll"] is None else state["nll"]
        self.n_worse, self.epoch = state["n_worse"], state["epoch"]


class WeightCopy(nn.Module):
    """The best epoch's trained weights, as buffers."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = tuple(tensors)
        for index, tensor in enumerate(tensors.values()):
            self.register_buffer(f"t{index}", tensor.detach().clone())

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors in."""
        for index, name in enumerate(self.names):
            getattr(self, f"t{index}").copy_(tensors[name].detach())

    def give(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors out."""
        for index, name in enumerate(self.names):
            tensors[name].data.copy_(getattr(self, f"t{index}"))


@dataclass(eq=False)
class TrainingRun:
    """One training run: what its step reads and writes. All that changes is in `state`."""

    model: RewardModel
    """The model in training."""
    data: FeedbackData
    """What is trained on, and its texts."""
    held: FeedbackData | None
    """Held-out feedback for early stopping; None = train for all epochs."""
    config: RewardConfig
    """What was asked for."""
    seed: int
    """Dropout follows from it and the step."""
    encoded: list[Encoded]
    """The texts of `data` as the trunk reads them."""
    log_length: Float[Tensor, " N"]
    """log(1 + characters) of each text."""
    weights: Float[Tensor, "S A"]
    """How much each rater counts in each head's bootstrap."""
    table: RaterTable
    """Rater parameters, and the last score of each text."""
    best: BestEpoch
    """Which epoch was best on the held-out votes."""
    copy: WeightCopy
    """The weights of that epoch."""
    state: TrainState
    """Weights, optimiser and the above, as a checkpoint holds them."""
    plans: list[list[Minibatch]]
    """The minibatches of each epoch."""
    one_rater: bool
    """True = one rater gave everything."""
    held_scores: Float[Tensor, "S N O"] | None = None
    """Scores of the held-out texts after the best epoch, in this process."""

    @property
    def n_steps(self) -> int:
        """Optimiser steps of all epochs."""
        return sum(map(len, self.plans))

    def place_of(self, index: int) -> tuple[int, int]:
        """Epoch and number within it of step `index`."""
        for epoch, plan in enumerate(self.plans):
            if index < len(plan):
                return epoch, index
            index -= len(plan)
        raise InvariantError(f"reward: found step {index} beyond the last epoch")

    def step(self, index: int) -> dict[str, float]:
        """One optimiser step; after some of them the raters are fitted, after an epoch it is held out."""
        config = self.config
        epoch, number = self.place_of(index)
        n_steps = len(self.plans[epoch])
        minibatch = self.plans[epoch][number]
        rate = linear_warmup_decay(
            index, n_steps=self.n_steps, peak=1.0, n_warmup=int(config.warmup_frac * self.n_steps)
        )
        seen: list[Seen] = []
        self.model.train(config.dropout > 0)
        with torch.random.fork_rng(devices=[]):
            # processes drop different units, each for its own texts
            own = [parallel.rank()] if parallel.rank() else []
            torch.manual_seed(child_seed(self.seed, "reward", "dropout", index, *own))
            norm = optimiser_step(
                self.state, "reward", self.losses(minibatch, seen), max_grad_norm=config.max_grad_norm,
                learning_rate=rate, shared=True,
            )  # fmt: skip
        self.model.eval()
        loss = self.note(seen)
        metrics = {"loss": loss, "grad_norm": norm, "learning_rate": rate * config.learning_rate}
        if config.n_refits and (number + 1) % max(1, n_steps // config.n_refits) == 0:
            self.refit_raters()
        if number + 1 == n_steps and self.held is not None:
            metrics["held_out_nll"] = self.hold_out(epoch)
        return metrics

    def losses(self, minibatch: Minibatch, seen: list[Seen]) -> Iterator[Tensor]:
        """The losses of this process's micro-batches, each divided by the judgements of the whole minibatch."""
        chosen = torch.zeros(len(self.data.statements), dtype=torch.bool)
        chosen[minibatch.statements] = True
        batch = self.data.batch.select(chosen)
        n_judgements = float(self.data.shares[minibatch.statements].sum())
        place = torch.full((len(self.encoded),), -1)
        for texts in even_share(self.micro_batches(minibatch.groups), list):
            if not texts:  # a pass for the other processes' sake
                first = minibatch.groups[0][:1]
                yield 0 * self.scores([self.encoded[i] for i in first], self.log_length[list(first)]).sum()
                continue
            index = torch.tensor(texts)
            place.fill_(-1)
            place[index] = torch.arange(len(texts))
            scores = self.scores([self.encoded[i] for i in texts], self.log_length[index])
            part = local_batch(batch, place)
            loss = feedback_loss(scores, part, self.table.params(), self.weights, n_judgements=n_judgements)
            seen.append((index, scores.detach().mean(0), float(loss.detach())))
            yield loss

    def micro_batches(self, groups: Sequence[Sequence[int]]) -> list[list[int]]:
        """The texts of a minibatch, cut so that there is something for every process."""
        n_tokens = sum(self.encoded[i].n_tokens for group in groups for i in group)
        budget = parallel.budget(self.config.token_budget, n_tokens)
        return micro_batches(groups, lambda i: self.encoded[i].n_tokens, token_budget=budget)

    def note(self, seen: list[Seen]) -> float:
        """Keep the scores that all processes saw in a minibatch; returns its loss."""
        everybody = [one for own in parallel.gathered(seen) for one in own]
        for index, scores, _ in everybody:
            self.table.latest[index] = scores.to(self.table.latest)
            self.table.seen[index] = True
        return sum(loss for _, _, loss in everybody)

    def scores(self, items: Sequence[Encoded], log_length: Tensor) -> Float[Tensor, "S n O"]:
        """Raw scores of some texts, with gradients."""
        features = self.model.features(items, token_budget=self.config.token_budget)
        return self.model.every(features, log_length).cpu()

    def refit_raters(self) -> None:
        """Fit raters and channels to the statements whose texts have been scored."""
        seen = self.table.seen.tolist()
        known = torch.tensor([all(seen[i] for i in texts) for texts in self.data.texts_of])
        if bool(known.any()):
            batch = self.data.batch.select(known)
            self.table.take(fit_params(self.table.latest, batch, self.table.params(), self.config.raters))

    def hold_out(self, epoch: int) -> float:
        """Held-out likelihood after an epoch; keeps the weights when it is the best so far."""
        assert self.held is not None
        with whole():
            return self._held_out(epoch)

    def _held_out(self, epoch: int) -> float:
        assert self.held is not None
        scores = score_data(self.model, self.held, token_budget=self.config.token_budget)
        nll = held_out_nll(
            scores, self.held.batch, self.table.params(), self.config.raters, n_judgements=self.held.n_judgements
        )
        nll = parallel.agreed(nll)
        if nll < self.best.nll:
            self.best.nll, self.best.n_worse, self.best.epoch = nll, 0, epoch
            self.copy.take(trained_weights(self.model))
            self.held_scores = scores
        else:
            self.best.n_worse += 1
        return nll

    def should_stop(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """A reason once the held-out likelihood has not improved for `patience` epochs."""
        if "held_out_nll" in metrics and self.best.n_worse >= self.config.patience and step < self.n_steps:
            return f"held-out likelihood best after epoch {self.best.epoch + 1}"
        return None


def feedback_loss(
    scores: Float[Tensor, "S N O"],
    batch: FeedbackBatch,
    params: FeedbackParams,
    weights: Float[Tensor, "S A"],
    *,
    n_judgements: float,
) -> Float[Tensor, ""]:
    """Negative log-likelihood a judgement, the mean over heads, each rater weighted by the head's bootstrap.

        −(1/(S·J))·Σ_s Σ_c ω_{s,w(c)}·share_c·log P(statement c | scores_s, rater w(c))

    Every kind enters by its own likelihood and by nothing else: a kind counts as much as it says.

    Args:
        scores: raw, of the texts that the batch's indices mean.    weights: ω, of people, never of virtual raters.
        n_judgements: J, of the whole minibatch.
    """
    total = scores.new_zeros(())
    for channel in batch.channels:
        loglik = channel_loglik(scores[..., channel.objective], channel, params)
        weighted = weights[:, channel.rater] * channel.weight * loglik
        total = total - weighted.mean() * (len(channel) / n_judgements)
    return total


def score_data(model: RewardModel, data: FeedbackData, *, token_budget: int) -> Float[Tensor, "S N O"]:
    """Raw scores of every text of some feedback, in eval mode."""
    encoded = model.trunk.encode(data.prompts, data.texts)
    return score_encoded(model, encoded, log_lengths(data.texts), data.groups, token_budget=token_budget)


@torch.no_grad()
def score_encoded(
    model: RewardModel,
    encoded: Sequence[Encoded],
    log_length: Float[Tensor, " N"],
    groups: Sequence[Sequence[int]],
    *,
    token_budget: int,
    with_length: bool = True,
) -> Float[Tensor, "S N O"]:
    """Raw scores of encoded texts, prompt by prompt, the processes sharing them; `with_length` = False leaves the length term out."""
    model.eval()
    scores = torch.zeros(model.n_heads, len(encoded), len(model.objectives))
    budget = parallel.budget(token_budget, sum(one.n_tokens for one in encoded))
    batches = micro_batches(groups, lambda i: encoded[i].n_tokens, token_budget=budget)

    def scored(texts: Sequence[int]) -> Tensor:
        features = model.features([encoded[i] for i in texts], token_budget=token_budget)
        return model.every(features, log_length[texts], with_length=with_length).float().cpu()

    for texts, found in zip(batches, parallel.each(batches, scored), strict=True):
        scores[:, texts] = found
    return scores


def local_batch(batch: FeedbackBatch, place: Int[Tensor, " N"]) -> FeedbackBatch:
    """The part of a minibatch whose texts are in this micro-batch, indexed by their place in it (−1 = not there)."""
    parts = (channel.select(place[channel.texts[:, 0]] >= 0) for channel in batch.channels)
    return FeedbackBatch(tuple(channel for channel in parts if len(channel))).renumbered(place)


def trained_weights(model: RewardModel) -> dict[str, Tensor]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
