"""Rewards of single tokens, from marks inside responses: steps called right or wrong, spans of named classes.

    r_tc = w_c·φ_t        step: P(mark ≤ k) = σ(c_k − mean of r over its tokens)        span: P(token t in class c) = σ(r_tc − θ_c)

φ_t is the decoder's hidden state after token t, held fixed, so that the fit is convex and exact. Knows marked
responses and a trunk; knows nothing about whole-response rewards or policies.

Dimension letters: T tokens of a response with its EOS, d features.

Source: spans as token rewards, Wu et al. 2023, arXiv:2306.01693; marks of steps, Lightman et al. 2023, arXiv:2305.20050.
Differs: linear on a frozen trunk; a step's score is the mean over its tokens, not the state at its last token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from karat.errors import CheckpointError, InputError
from karat.lm.headers import read_header_metadata, read_tensors, write_tensors
from karat.lm.logprobs import hidden_at
from karat.lm.trees import Tree, padded_batch
from karat.ratings import draw_level, ordinal_logprobs
from karat.records import DenseScoreFn, Prompt, Response
from karat.reward.raters import minimise
from karat.reward.token_side import TokenSideReward
from karat.reward.trunk import DecoderTrunk
from karat.segments import steps_of
from karat.statements import Marked

STEP = "step"
DENSE = "dense.safetensors"
StepPay = Literal["mean", "every"]
"""How steps are paid: by the mean mark of all tokens, or each step at its end by log P(it is not wrong)."""
RIDGE = 1.0
"""λ of λ/2·‖w‖²: features have variance of order 1, so a weight of 1 is one logit a standard deviation."""

DOUBLED_CELLS = 1 << 26
"""Features that are held in double precision during a fit (512 MB); more are converted response by response."""


@dataclass(frozen=True, eq=False)
class MarkedTokens:
    """One marked response as the fit reads it."""

    features: Float[Tensor, "T d"]
    """φ of each token."""
    steps: Bool[Tensor, "steps T"]
    """True = the token belongs to the step."""
    marks: Int[Tensor, " steps"]
    """0 wrong, 1 neutral, 2 right."""
    inside: Mapping[str, Bool[Tensor, " T"]]
    """Class on offer → which tokens are of it."""


class TokenHeads(NamedTuple):
    """What `fit_marks` finds; see `DenseReward`."""

    weight: Float[Tensor, "names d"]
    """w_c."""
    threshold: Float[Tensor, " names"]
    """θ_c; 0 for `step`."""
    cutpoints: Float[Tensor, " 2"]
    """c_1 < c_2 of steps."""


@dataclass(frozen=True, eq=False)
class DenseReward:
    """Token scores of a frozen decoder."""

    trunk: DecoderTrunk
    """Whose hidden states are scored."""
    names: tuple[str, ...]
    """`step`, `edited`, classes of spans, in the order of the rows of `weight`."""
    weight: Float[Tensor, "names d"]
    """w_c."""
    threshold: Float[Tensor, " names"]
    """θ_c; 0 for `step`."""
    cutpoints: Float[Tensor, " 2"]
    """c_1 < c_2 of steps."""
    side: TokenSideReward | None = None
    """What plain features of a token add; None = the trunk alone."""

    def token_scores(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Float[Tensor, "T names"]]:
        """Logits of each token: for a class log-odds of being of it, for `step` the score that its cutpoints read."""
        found = [features @ self.weight.T - self.threshold for features in token_features(self.trunk, prompts, texts)]
        if self.side is not None:
            for prompt, text, scores in zip(prompts, texts, found, strict=True):
                scores += self.side.scores(prompt.text, text, token_spans(self.trunk, text).numpy())
        return found

    def rewards(
        self,
        prompts: Sequence[Prompt],
        texts: Sequence[str],
        weights: Mapping[str, float],
        *,
        step_pay: StepPay = "mean",
    ) -> list[Float[Tensor, " T"]]:
        """One reward a token, for an optimiser: Σ_c weight_c·(P(of class c), or for steps the expected mark)/T.

            mean     the sum over a response is its mean mark, in [−1, 1]
            every    the last token of each step of `segments.steps_of` gets log P(mark of the step is not wrong) ≤ 0,
                     so that the sum is the log-probability that no step is wrong (product over steps, Lightman et al.)

        For classes of spans the sum is the weighted share of the response that is of each.

        Args:
            weights: class → weight; negative for what is wrong.
        Raises: InputError, with its name, for a class that was never marked.
        """
        if unknown := [name for name in weights if name not in self.names]:
            raise InputError(
                f"dense rewards: found no marks of {unknown[0]!r}; expected some of {', '.join(self.names)}"
            )
        found = []
        for text, scores in zip(texts, self.token_scores(prompts, texts), strict=True):
            total = torch.zeros(len(scores))
            for name, weight in weights.items():
                column = scores[:, self.names.index(name)]
                if name == STEP and step_pay == "every":
                    total += weight * self._at_ends(text, column)
                else:
                    total += weight * (self.expected_mark(column) if name == STEP else column.sigmoid()) / len(scores)
            found.append(total)
        return found

    def _at_ends(self, text: str, scores: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
        """log P(not wrong) of each step, from the mean of its tokens' scores as the marks were fitted, at its last token."""
        found, spans = torch.zeros(len(scores)), token_spans(self.trunk, text)
        for start, end in steps_of(text):
            inside = (spans[:, 0] < end) & (spans[:, 1] > start)
            logprobs = ordinal_logprobs(scores[inside].mean()[None], self.cutpoints)[0]
            found[int(inside.nonzero()[-1])] += logprobs[1:].logsumexp(0)
        return found

    def expected_mark(self, scores: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
        """P(right) − P(wrong)."""
        probs = ordinal_logprobs(scores, self.cutpoints).exp()
        return probs[:, 2] - probs[:, 0]


def dense_score_fn(dense: DenseReward, weights: Mapping[str, float], *, step_pay: StepPay = "mean") -> DenseScoreFn:
    """The `DenseScoreFn` that an optimiser gets: every token's reward, ending where the token ends in the text.

    Args:
        weights: class → weight, and how steps are paid, as `DenseReward.rewards` takes them.
    Raises: InputError, when it is called, for a class that was never marked.
    """

    def score(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[list[tuple[int, float]]]:
        found = []
        for text, rewards in zip(responses, dense.rewards(prompts, responses, weights, step_pay=step_pay), strict=True):
            ends = [max(1, end) for _, end in token_spans(dense.trunk, text)[:-1].tolist()]
            found.append(list(zip([*ends, len(text) + 1], rewards.tolist(), strict=True)))
        return found

    return score


def marks_loglik(
    scores: Float[Tensor, "T names"],
    marked: MarkedTokens,
    names: Sequence[str],
    threshold: Float[Tensor, " names"],
    cutpoints: Float[Tensor, " 2"],
) -> Float[Tensor, ""]:
    """Log-likelihood of the marks in one response: the mean over its steps plus, for each class, over its tokens."""
    total = scores.new_zeros(())
    if len(marked.steps):
        logprobs = _step_logprobs(scores, marked, names, cutpoints)
        total = total + logprobs.gather(1, marked.marks.unsqueeze(1)).mean()
    for name, inside in marked.inside.items():
        margin = scores[:, list(names).index(name)] - threshold[list(names).index(name)]
        total = total + functional.logsigmoid(torch.where(inside, margin, -margin)).mean()
    return total


def sample_marks(
    scores: Float[Tensor, "T names"],
    marked: MarkedTokens,
    names: Sequence[str],
    threshold: Float[Tensor, " names"],
    cutpoints: Float[Tensor, " 2"],
    *,
    generator: torch.Generator,
) -> MarkedTokens:
    """The same steps and classes of the same response with marks drawn anew, from one uniform number a step and a token.

    `marks_loglik` counts a judgement once, whatever its length; what is drawn is each step and each token by itself.
    """
    marks, inside = marked.marks, {}
    if len(marked.steps):
        marks = draw_level(_step_logprobs(scores, marked, names, cutpoints), generator)
    for name in marked.inside:
        margin = scores[:, list(names).index(name)] - threshold[list(names).index(name)]
        uniform = torch.rand(len(margin), generator=generator, dtype=torch.float64)
        inside[name] = uniform < margin.detach().double().sigmoid()
    return replace(marked, marks=marks, inside=inside)


def _step_logprobs(
    scores: Float[Tensor, "T names"], marked: MarkedTokens, names: Sequence[str], cutpoints: Float[Tensor, " 2"]
) -> Float[Tensor, "steps 3"]:
    """log P of each mark of each step, whose score is the mean over its tokens."""
    column = scores[:, list(names).index(STEP)]
    share = marked.steps.to(column) / marked.steps.sum(1, keepdim=True)
    return ordinal_logprobs(share @ column, cutpoints)


def fit_dense(
    trunk: DecoderTrunk, marks: Sequence[Marked], prompts: Mapping[str, Prompt], responses: Mapping[str, Response]
) -> DenseReward:
    """The most probable token scores for what raters marked.

        max Σ_judgements marks_loglik − λ/2·‖w‖²

    Raises: InputError for no marks, or a part that no token belongs to.
    """
    return fit_read(trunk, marks, [marked_tokens(trunk, mark, prompts, responses) for mark in marks])


def fit_read(trunk: DecoderTrunk, marks: Sequence[Marked], read: Sequence[MarkedTokens]) -> DenseReward:
    """The same where the marked responses have been read already (`marked_tokens`), which is most of the time it takes."""
    if not marks:
        raise InputError("dense rewards: found no span marks, step marks or corrections; expected at least one")
    names = tuple(sorted({name for mark in marks for name in mark.names}))
    return DenseReward(trunk, names, *fit_marks(read, names))


def fit_marks(
    read: Sequence[MarkedTokens], names: Sequence[str], *, ridge: Float[Tensor, "names d"] | float = RIDGE
) -> TokenHeads:
    """The same for tokens whose features are already there, of any model.

    Args:
        read: one entry a judgement.    names: all classes in them, in the order of the rows of the weights.
        ridge: λ, of each weight or of all.
    """
    width, every = read[0].features.shape[1], AllMarks(read, names)
    weight = torch.zeros(len(names), width, dtype=torch.float64, requires_grad=True)
    threshold = torch.zeros(len(names), dtype=torch.float64, requires_grad=True)
    raw = torch.tensor([-0.5, 0.0], dtype=torch.float64, requires_grad=True)
    free_mask = torch.tensor([name != STEP for name in names])
    held = sum(one.features.numel() for one in read) <= DOUBLED_CELLS
    doubled = [torch.cat([one.features for one in read]).double()] if held else [one.features for one in read]

    def objective() -> Tensor:
        cutpoints = torch.stack([raw[0], raw[0] + raw[1].exp()])
        own = threshold * free_mask
        scores = torch.cat([own.double() @ weight.T for own in doubled])
        total = every.loglik(scores, own, cutpoints)
        prior = (ridge * weight.square()).sum() + (threshold / 10).square().sum() + (raw / 10).square().sum()
        return (prior / 2 - total) / len(read)

    minimise(objective, [weight, threshold, raw], 60)
    with torch.no_grad():
        cutpoints = torch.stack([raw[0], raw[0] + raw[1].exp()])
        return TokenHeads(weight.float(), (threshold * free_mask).float(), cutpoints.float())


class AllMarks:
    """Σ_judgements `marks_loglik`, computed for the tokens of all judgements at once."""

    def __init__(self, read: Sequence[MarkedTokens], names: Sequence[str]) -> None:
        lengths = [len(one.features) for one in read]
        self.names = tuple(names)
        self.sign = torch.ones(sum(lengths), len(names), dtype=torch.float64)
        self.weight = torch.zeros_like(self.sign)
        shares, self.marks, step_weight = [], torch.cat([one.marks for one in read]), []
        begin = 0
        for one, length in zip(read, lengths, strict=True):
            own = slice(begin, begin + length)
            for name, inside in one.inside.items():
                column = self.names.index(name)
                self.sign[own, column] = inside.double() * 2 - 1
                self.weight[own, column] = 1 / length
            shares += [(begin + step.nonzero().squeeze(1), 1 / float(step.sum())) for step in one.steps]
            step_weight += [1 / max(1, len(one.steps))] * len(one.steps)
            begin += length
        self.step_of = torch.repeat_interleave(torch.tensor([len(tokens) for tokens, _ in shares], dtype=torch.long))
        self.step_tokens = torch.cat([tokens for tokens, _ in shares]) if shares else torch.zeros(0, dtype=torch.long)
        self.share = torch.tensor([share for _, share in shares], dtype=torch.float64)
        self.step_weight = torch.tensor(step_weight, dtype=torch.float64)

    def loglik(
        self, scores: Float[Tensor, "N names"], threshold: Float[Tensor, " names"], cutpoints: Float[Tensor, " 2"]
    ) -> Float[Tensor, ""]:
        """Of the tokens of all judgements, one after the other."""
        total = (self.weight * functional.logsigmoid(self.sign * (scores - threshold))).sum()
        if len(self.marks):
            column = scores[self.step_tokens, self.names.index(STEP)] * self.share[self.step_of]
            mean = torch.zeros(len(self.marks), dtype=scores.dtype).index_add(0, self.step_of, column)
            logprobs = ordinal_logprobs(mean, cutpoints)
            total = total + (self.step_weight * logprobs.gather(1, self.marks.unsqueeze(1)).squeeze(1)).sum()
        return total


@torch.no_grad()
def token_features(trunk: DecoderTrunk, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Float[Tensor, "T d"]]:
    """Hidden state after each token of each response, its EOS last, float32."""
    trunk.module.eval()
    found = []
    for item in trunk.encode(prompts, texts):
        batch = padded_batch([Tree(item.prompt, (item.response,))], trunk.lm.pad_id)
        batch = batch.to(trunk.lm.model.device)
        rows = torch.arange(len(item.prompt), item.n_tokens, device=trunk.lm.model.device)
        found.append(hidden_at(trunk.lm.model, batch, rows).float().cpu())
    return found


def token_spans(trunk: DecoderTrunk, text: str) -> Int[Tensor, "T 2"]:
    """First and behind-last code point of each token of a response; the EOS has none (0, 0)."""
    tokenizer = trunk.lm.tokenizer
    n_before = 0 if tokenizer.chat_template is not None or text[:1].isspace() else 1  # as `lm.chat.response_tokens`
    encoded = tokenizer(
        " " * n_before + text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
    spans = [(max(0, start - n_before), max(0, end - n_before)) for start, end in encoded["offset_mapping"]]
    return torch.tensor([*spans, (0, 0)])


def save_dense(dense: DenseReward, directory: Path, *, metadata: Mapping[str, str]) -> None:
    """Write the token scores beside the trunk that they belong to."""
    tensors = {name: getattr(dense, name).contiguous() for name in ("weight", "threshold", "cutpoints")}
    about = {**metadata, "names": "\n".join(dense.names)}
    if dense.side is not None:
        tensors, about = tensors | dense.side.tensors(), about | {"beside": "\n".join(dense.side.names)}
    write_tensors(tensors, directory / DENSE, about)


def load_dense(directory: Path, trunk: DecoderTrunk) -> DenseReward:
    """The token scores in a reward's directory.

    Raises: CheckpointError where there are none.
    """
    path = directory / DENSE
    if not path.is_file():
        raise CheckpointError(f"{directory}: found no {DENSE}; expected a reward trained on marks inside responses")
    about, tensors = read_header_metadata(path), read_tensors(path)
    heads = {name: tensors[name] for name in ("weight", "threshold", "cutpoints")}
    side = TokenSideReward.from_tensors(about["beside"].split("\n"), tensors) if about.get("beside") else None
    return DenseReward(trunk, tuple(about["names"].split("\n")), **heads, side=side)


def marked_tokens(
    trunk: DecoderTrunk, mark: Marked, prompts: Mapping[str, Prompt], responses: Mapping[str, Response]
) -> MarkedTokens:
    """A marked response as the fit reads it.

    Raises: InputError for a part that no token belongs to.
    """
    text = responses[mark.response_ids[0]].text
    (features,) = token_features(trunk, [prompts[mark.prompt_id]], [text])
    spans = token_spans(trunk, text)
    parts = [(spans[:, 0] < part.end) & (spans[:, 1] > part.start) for part in mark.parts]
    for part, inside in zip(mark.parts, parts, strict=True):
        if not bool(inside.any()):
            raise InputError(f"{mark.kind} {mark.judgement_id}: no token lies in {part.start}–{part.end}")
    steps = [inside for part, inside in zip(mark.parts, parts, strict=True) if part.name == STEP]
    nothing = torch.zeros(len(features), dtype=torch.bool)
    classes = {name: nothing.clone() for name in mark.names if name != STEP}
    for part, inside in zip(mark.parts, parts, strict=True):
        if part.name != STEP:
            classes[part.name] |= inside
    marks = torch.tensor([part.mark + 1 for part in mark.parts if part.name == STEP], dtype=torch.long)
    return MarkedTokens(features, torch.stack(steps) if steps else nothing.expand(0, -1), marks, classes)
