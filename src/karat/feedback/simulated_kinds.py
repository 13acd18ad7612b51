"""Simulated raters who answer every kind of question about whole responses, by the likelihood that rewards are fitted with.

Rankings by Davidson–Luce with ties, the best of some by softmax, ratings by the ordinal link with the rater's own offset,
gain and noise, labels by a threshold of her own. What raters write is handed over. As in `feedback.simulated`, who answers
and every number drawn follow from the seed, the task and the rater. Knows no world and no gold reward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from karat.answers import missing
from karat.edits import edited_spans
from karat.errors import InputError
from karat.feedback.simulated import (
    CHUNK,
    YEAR_S,
    Desk,
    Traits,
    Work,
    carry_out,
    moment_of,
    open_work,
    seconds_read,
    task_generator,
)
from karat.feedback.tasks import answer
from karat.questions import plain_question
from karat.records import Annotator, Judgement, Prompt, Response, Task, Utilities

KINDS_SIMULATED = ("ranking", "best_of", "rating", "label", "correction", "demonstration", "critique")
"""Kinds answered here; comparisons and marks are in `feedback.simulated`."""
SECONDS_PER_WRITTEN = 60 / 19
"""19 words a minute, composing at a keyboard (Karat, Halverson, Horn & Karat 1999, doi:10.1145/302979.303160)."""
NO_CHANGE = "nothing to correct"
"""Why a rater gives no correction: she likes none of her edits better than what is there."""


class Anchors(Protocol):
    """How one rater uses scales, in logits of her utility."""

    @property
    def middle(self) -> float:
        """The utility that she puts in the middle of a scale."""
        ...

    @property
    def spread(self) -> float:
        """Logits from the middle to two thirds of the way to an end."""
        ...

    @property
    def gain(self) -> float:
        """How far she spreads her ratings; 1 = as most do."""
        ...

    @property
    def offset(self) -> float:
        """How kind she is: logits added to what she rates."""
        ...

    @property
    def noise(self) -> float:
        """sd of a rating's noise, logits."""
        ...

    @property
    def threshold(self) -> float:
        """Logits above the middle from which half her labels are "good"."""
        ...


@dataclass(frozen=True)
class Minds:
    """What simulated raters perceive, how they answer, and what they write."""

    utilities: Utilities
    """utilities(annotator, prompt, texts, rng, time=) → one logit a text."""
    traits: Callable[[Annotator], Traits]
    """Competence and lapse; nothing here has two sides."""
    anchors: Callable[[Annotator], Anchors]
    """Their scales."""
    corrected: Callable[..., str | None]
    """corrected(annotator, prompt, text, rng, time=) → the text edited for the better; None = she changes nothing."""
    demonstrated: Callable[..., str]
    """demonstrated(annotator, prompt, rng, time=) → what she would answer."""


def collect_simulated_kinds(
    store: Desk, annotators: Sequence[Annotator], minds: Minds, *, seed: int, batch: str | None = None,
    tie_width: float = 0.4,
) -> dict[str, int]:  # fmt: skip
    """Let simulated raters answer open rankings, choices, ratings, labels, corrections, demonstrations and critiques.

    Args:
        batch: only tasks of this batch.    tie_width: half-width of ties in logits, as in comparisons.
    Returns: by kind, how many of the planned answers are in the store; a repeated call adds none.
    Raises: ConfigError where a task needs more raters than there are.
    """
    _, todo = open_work(store, annotators, KINDS_SIMULATED, seed=seed, batch=batch)
    rater = _Rater(minds, store.prompts(), store.responses(), seed, tie_width)
    for begin in range(0, len(todo), CHUNK):
        carry_out(store, todo[begin : begin + CHUNK], rater.judge)
    kinds = {task.id: task.kind for task in store.tasks(batch=batch)}
    given = [kinds[task_id] for (task_id, _), state in store.assignments(batch=batch).items() if state != "leased"]
    return {kind: given.count(kind) for kind in KINDS_SIMULATED if kind in given}


def n_written(kind: str, value: Mapping[str, Any], original: str) -> int:
    """Words that an answer had to be typed: all of a demonstration, what an edit added, what a critique says.

    >>> n_written("correction", {"text": "the tower is dark red"}, "the tower is red")
    1
    """
    text, revision = str(value.get("text") or ""), str(value.get("revision") or "")
    if kind == "correction":
        return _n_added(original, text)
    if kind == "critique":
        return len(text.split()) + (_n_added(original, revision) if revision else 0)
    return len(text.split()) if kind == "demonstration" else 0


def _n_added(original: str, text: str) -> int:
    return sum(len(text[start:end].split()) for start, end in edited_spans(original, text).added)


class _Rater:
    """What simulated raters make of one question each."""

    def __init__(
        self,
        minds: Minds,
        prompts: Mapping[str, Prompt],
        responses: Mapping[str, Response],
        seed: int,
        tie_width: float,
    ) -> None:
        self._minds, self._prompts, self._responses = minds, prompts, responses
        self._seed, self._tie_width = seed, tie_width

    def judge(self, work: Sequence[Work]) -> list[Judgement]:
        """Their answers."""
        return [self._one(*each) for each in work]

    def _one(self, task_id: str, task: Task, who: Annotator) -> Judgement:
        rng = task_generator(self._seed, task.kind, task_id, who.id)
        haste, moment = float(np.exp(0.35 * rng.standard_normal())), int(rng.integers(YEAR_S))
        order = tuple(int(i) for i in rng.permutation(len(task.response_ids)))
        prompt = self._prompts[task.prompt_id]
        texts = [self._responses[one].text for one in task.response_ids]
        value = self._value(task.kind, who, prompt, texts, rng, moment / YEAR_S)
        written = SECONDS_PER_WRITTEN * n_written(task.kind, value, texts[0] if texts else "")
        return answer(
            task, value, annotator=who.id, shown_order=order, origin="simulated", created_at=moment_of(moment),
            submission=f"simulated:{self._seed}:{task_id}:{who.id}",
            active_s=round(haste * (seconds_read(prompt, texts) + written), 1),
        )  # fmt: skip

    def _value(
        self, kind: str, who: Annotator, prompt: Prompt, texts: list[str], rng: np.random.Generator, time: float
    ) -> dict[str, Any]:
        if kind == "demonstration":
            return {"text": self._minds.demonstrated(who, prompt, rng, time=time)}
        if kind in ("correction", "critique"):
            edited = self._minds.corrected(who, prompt, texts[0], rng, time=time)
            if kind == "correction":
                return missing(NO_CHANGE) if edited is None else {"text": edited}
            return {"text": "good as it is ."} if edited is None else {"text": "not so .", "revision": edited}
        perceived = np.asarray(self._minds.utilities(who, prompt, texts, rng, time=time), dtype=np.float64)
        seed = int(rng.integers(2**62))
        lapsed, uniform = bool(rng.random() < self._minds.traits(who).lapse), float(rng.random())
        if kind in ("ranking", "best_of"):
            return _ordered(kind, perceived, self._minds.traits(who), self._tie_width, seed)
        if kind == "label":
            return {"good": uniform < 0.5 if lapsed else self._label(who, float(perceived[0]), seed)}
        question = plain_question("rating")
        n_levels = question.high - question.low + 1
        level = int(uniform * n_levels) if lapsed else self._rating(who, float(perceived[0]), n_levels, seed)
        return {"score": question.low + level, "low": question.low, "high": question.high}

    def _rating(self, who: Annotator, utility: float, n_levels: int, seed: int) -> int:
        own = self._minds.anchors(who)
        unit = own.noise * math.sqrt(3) / math.pi  # a logistic of scale 1 has the sd π/√3
        gain = self._minds.traits(who).competence * own.gain
        cuts = np.linspace(-1.5, 1.5, n_levels - 1) * own.spread / unit
        return _rated((gain * (utility - own.middle) + own.offset) / unit, cuts, seed)

    def _label(self, who: Annotator, utility: float, seed: int) -> bool:
        own = self._minds.anchors(who)
        return _labelled(self._minds.traits(who).competence * (utility - own.middle), own.threshold, seed)


def _ordered(kind: str, utility: np.ndarray, traits: Traits, tie_width: float, seed: int) -> dict[str, Any]:
    """A ranking, or the best, drawn from the likelihood; two responses are ranked by the link of a comparison."""
    import torch

    from karat.choice import RaterParams, comparison_probs
    from karat.feedback_columns import Channel, FeedbackParams, RankBatch
    from karat.feedback_likelihood import sample_channel

    generator, n, one = torch.Generator().manual_seed(seed), len(utility), torch.zeros(1, dtype=torch.long)
    scores = torch.as_tensor(utility)
    a, zero, lapse = (torch.tensor([x], dtype=torch.float64) for x in (traits.competence, 0.0, traits.lapse))
    if kind == "ranking" and n < 3:
        if n < 2:
            raise InputError(f"ranking: found {n} response; expected at least 2")
        cuts = torch.tensor([-tie_width, tie_width], dtype=torch.float64)
        probs = comparison_probs(scores[:1] - scores[1:], zero, one, RaterParams(a, zero, lapse, cuts))
        level = int(torch.multinomial(probs[0], 1, generator=generator))
        return {"ranks": [[2, 1], [1, 1], [1, 2]][level]}
    # two equals tie as often in a ranking as in a comparison: δ/(2 + δ) = 2σ(c) − 1
    tied = math.tanh(tie_width / 2)
    columns = RankBatch(torch.arange(n)[None], torch.ones(1, n, dtype=torch.bool), 1 + torch.arange(n)[None], one)
    channel = Channel(kind, kind, 0, columns, one, torch.ones(1), one)
    log_tie = torch.tensor([math.log(2 * tied / (1 - tied))], dtype=torch.float64)
    drawn = sample_channel(scores, channel, FeedbackParams(a, zero, lapse, log_tie=log_tie), generator=generator)
    assert isinstance(drawn.columns, RankBatch)
    ranks = drawn.columns.ranks[0].tolist()
    return {"best": ranks.index(1)} if kind == "best_of" else {"ranks": ranks}


def _rated(x: float, cutpoints: np.ndarray, seed: int) -> int:
    import torch

    from karat.ratings import draw_level, ordinal_logprobs

    cuts = torch.as_tensor(cutpoints)
    logprobs = ordinal_logprobs(torch.tensor([x], dtype=torch.float64), cuts)
    return int(draw_level(logprobs, torch.Generator().manual_seed(seed)))


def _labelled(x: float, threshold: float, seed: int) -> bool:
    import torch

    from karat.feedback_columns import Channel, FeedbackParams, LabelBatch, LabelParams
    from karat.feedback_likelihood import sample_channel

    one = torch.zeros(1, dtype=torch.long)
    channel = Channel("label", "label", 0, LabelBatch(one, one.bool(), one), one, torch.ones(1), one)
    nobody = torch.ones(1, dtype=torch.float64)
    own = LabelParams(torch.tensor([threshold], dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    params = FeedbackParams(nobody, nobody, nobody, labels={"label": own})
    scores = torch.tensor([x], dtype=torch.float64)
    drawn = sample_channel(scores, channel, params, generator=torch.Generator().manual_seed(seed))
    return bool(drawn.columns.good)  # type: ignore[union-attr]
