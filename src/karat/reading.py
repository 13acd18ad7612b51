"""From judgements to statements: what each says about the reward, or why it says nothing.

Nothing is left out silently: what does not fit its targets is an error that names the judgement, and what says nothing
("cannot judge", a critique of words alone) is counted. Knows judgements, responses and the names of objectives. Knows
nothing about tensors, models or files.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from karat.edits import edited_spans
from karat.errors import InputError
from karat.fitting import check_targets
from karat.records import Judgement, Response, Vote
from karat.statements import PREFERENCE, Best, Labelled, Marked, Part, Preferred, Ranked, Rated, Statement

WORDS_ONLY = "words only"
"""Why a critique without aspects says nothing that a likelihood can read."""
SAME_AS_POLICY = "the policy writes the same"
"""Why a demonstration says nothing: there is no other response of the policy that it could be preferred to."""


@dataclass(frozen=True)
class Said:
    """All that some judgements say."""

    statements: tuple[Statement, ...]
    """Votes first, then the others in the order of their judgements."""
    marks: tuple[Marked, ...]
    """What was marked inside responses."""
    responses: dict[str, Response]
    """The responses given, and those that raters wrote (sources correction, demonstration and revision), by id."""
    n_judgements: dict[str, int]
    """Judgements of each kind that say something."""
    silent: dict[str, int]
    """Judgements that say nothing to a likelihood, by reason."""
    misfits: dict[str, str] = field(default_factory=dict)
    """Judgements that do not fit what was asked and were left out: id → why."""
    unspoken: dict[str, str] = field(default_factory=dict)
    """Names in `objective_of` that no judgement gave → the nearest that one gave, "" where none is near."""


def statements_of(
    votes: Sequence[Vote],
    judgements: Sequence[Judgement],
    responses: Mapping[str, Response],
    *,
    objective_of: Mapping[str, str] | None = None,
    samples: Mapping[str, Sequence[Response]] | None = None,
) -> Said:
    """Everything that votes and judgements of all other kinds say.

    Attributes of ratings and aspects of critiques are objectives under their own names; a flag `f` is the objective
    `not_f`, good where it was not raised. Which flags and aspects were on offer is what was named at least once under
    the same question. A written response is preferred to its original; as a demonstration it is preferred to every
    sample of the policy for its prompt. Two responses ranked, or the better of two, are votes.

    Args:
        votes: comparisons, as a snapshot holds them.    judgements: of the other kinds.
        responses: by id; everything that judgements name.
        objective_of: attribute, flag or aspect → objective, where it is not its own name.
        samples: Prompt.id → what the policy wrote, newest round; None = the responses given that no rater wrote.
    Raises: InputError naming the judgement: a response that is not there or answers another prompt, a kind that does
        not fit its number of responses, a correction that changes nothing, a demonstration without a sample.
    """
    reader = _Reader(dict(responses), objective_of or {}, judgements, samples)
    statements: list[Statement] = [*votes]
    n_judgements = {"comparison": len(votes)} if votes else {}
    silent: dict[str, int] = {}
    for vote in votes:
        if vote.both is not None:
            statements += reader.both(vote)
    for judgement in judgements:
        said, reason = reader.read(judgement)
        if reason is None:
            n_judgements[judgement.kind] = n_judgements.get(judgement.kind, 0) + 1
        else:
            silent[reason] = silent.get(reason, 0) + 1
        statements += said
    unspoken = _unspoken(objective_of or {}, judgements)
    return Said(tuple(statements), tuple(reader.marks), reader.responses, n_judgements, silent, unspoken=unspoken)


class _Reader:
    """Reads judgements one by one; what raters wrote becomes a response."""

    def __init__(
        self,
        responses: dict[str, Response],
        objective_of: Mapping[str, str],
        judgements: Sequence[Judgement],
        samples: Mapping[str, Sequence[Response]] | None,
    ) -> None:
        self.responses = responses
        self.objective_of = objective_of
        self.offered = _offered(judgements)
        self.marks: list[Marked] = []
        self.ties = any(
            judgement.kind == "ranking" and len(set(judgement.value.get("ranks", (1, 2)))) == 1
            for judgement in judgements
            if len(judgement.response_ids) == 2
        )
        if samples is None:
            found: dict[str, list[Response]] = {}
            for response in responses.values():
                if response.source not in WRITTEN:
                    found.setdefault(response.prompt_id, []).append(response)
            samples = found
        self.samples = samples
        self.responses.update({one.id: one for group in samples.values() for one in group})

    def read(self, judgement: Judgement) -> tuple[list[Statement], str | None]:
        """The statements of one judgement, or why it says nothing; its marks are put aside."""
        if "missing" in judgement.value:
            return [], f"missing: {judgement.value['missing']}"
        for response_id in judgement.response_ids:
            _check_target(judgement, response_id, self.responses)
        check_targets(f"{judgement.kind} {judgement.id}", judgement.kind, len(judgement.response_ids))
        n_marks = len(self.marks)
        said = getattr(self, f"_{judgement.kind}")(judgement)
        if said or len(self.marks) > n_marks:
            return said, None
        return said, SAME_AS_POLICY if judgement.kind == "demonstration" else WORDS_ONLY

    def both(self, vote: Vote) -> list[Statement]:
        """The two labels in "both good" or "both bad"."""
        rest = (vote.both == "good", vote.annotator, PREFERENCE, "comparison", vote.strategy, vote.propensity)
        return [Labelled(vote.judgement_id, vote.prompt_id, (one,), *rest) for one in vote.response_ids]  # type: ignore[arg-type]

    def _comparison(self, judgement: Judgement) -> list[Statement]:
        raise InputError(f"comparison {judgement.id}: found among the other kinds; pass it as a vote (`vote_of`)")

    def _ranking(self, judgement: Judgement) -> list[Statement]:
        ranks = judgement.value["ranks"]
        order = sorted(set(ranks))
        dense = tuple(order.index(rank) + 1 for rank in ranks)
        if len(dense) == 2:
            n_levels = 3 if self.ties else 2
            level = (n_levels - 1) // 2 if dense[0] == dense[1] else (n_levels - 1) * (dense[0] < dense[1])
            return [_pair_vote(judgement, level, n_levels)]
        rest = (judgement.annotator, judgement.strategy, judgement.propensity)
        return [Ranked(judgement.id, judgement.prompt_id, judgement.response_ids, dense, *rest)]

    def _best_of(self, judgement: Judgement) -> list[Statement]:
        best = judgement.value["best"]
        if len(judgement.response_ids) == 2:
            return [_pair_vote(judgement, 1 - best, 2)]
        rest = (judgement.annotator, judgement.strategy, judgement.propensity)
        return [Best(judgement.id, judgement.prompt_id, judgement.response_ids, best, *rest)]

    def _rating(self, judgement: Judgement) -> list[Statement]:
        value = judgement.value
        scores = value.get("scores")
        named = {PREFERENCE: value["score"]} if scores is None else {self._name(key): scores[key] for key in scores}
        if scores is not None and len(named) != len(scores):
            raise InputError(f"rating {judgement.id}: attributes {sorted(scores)} map to one objective twice")
        scale = (float(value["low"]), float(value["high"]))
        rest = (judgement.annotator,)
        return [
            Rated(
                judgement.id, judgement.prompt_id, judgement.response_ids, float(score), *scale, *rest, objective=name,
                strategy=judgement.strategy, propensity=judgement.propensity,
            )
            for name, score in named.items()
        ]  # fmt: skip

    def _label(self, judgement: Judgement) -> list[Statement]:
        value = judgement.value
        said = [] if value.get("good") is None else [self._labelled(judgement, PREFERENCE, good=value["good"])]
        if value.get("flags") is None:
            return said
        raised = {self._name(flag, f"not_{flag}") for flag in value["flags"]}
        offered = {self._name(flag, f"not_{flag}") for flag in self.offered.get(_asked(judgement), ())}
        return said + [self._labelled(judgement, name, good=name not in raised) for name in sorted(offered)]

    def _critique(self, judgement: Judgement) -> list[Statement]:
        value = judgement.value
        faulted = {self._name(aspect) for aspect in value.get("aspects", ())}
        offered = {self._name(aspect) for aspect in self.offered.get(_asked(judgement), ())} if faulted else set()
        said: list[Statement] = [self._labelled(judgement, name, good=name not in faulted) for name in sorted(offered)]
        # one who hands the response back as it was has still said what is at fault
        if value.get("revision") not in (None, "", self.responses[judgement.response_ids[0]].text):
            said += self._written(judgement, value["revision"], "revision")
        return said

    def _correction(self, judgement: Judgement) -> list[Statement]:
        return self._written(judgement, judgement.value["text"], "correction")

    def _demonstration(self, judgement: Judgement) -> list[Statement]:
        shown = Response(judgement.prompt_id, judgement.value["text"], "demonstration")
        written = self.samples.get(judgement.prompt_id, ())
        against = [one for one in written if one.id != shown.id]
        if not written:
            raise InputError(
                f"demonstration {judgement.id}: no response of the policy to its prompt {judgement.prompt_id}; "
                "sample the policy on the prompts that were demonstrated (karat generate, then --set samples=FILE), or leave "
                "demonstrations out (reward.kinds)"
            )
        self.responses.setdefault(shown.id, shown)
        return [
            Preferred(
                judgement.id, judgement.prompt_id, (shown.id, one.id), judgement.annotator, "demonstration",
                1 / len(against), judgement.strategy, judgement.propensity,
            )
            for one in against
        ]  # fmt: skip

    def _span_marks(self, judgement: Judgement) -> list[Statement]:
        names = tuple(sorted(self.offered.get(_asked(judgement), ())))
        for number in range(len(judgement.response_ids)):
            spans = [span for span in judgement.value["spans"] if span["response"] == number]
            self._mark(judgement, number, [Part(s["start"], s["end"], 1, s["class"]) for s in spans], names)
        return []

    def _step_marks(self, judgement: Judgement) -> list[Statement]:
        parts = [Part(step["start"], step["end"], step["mark"], "step") for step in judgement.value["steps"]]
        self._mark(judgement, 0, parts, ("step",))
        return []

    def _mark(self, judgement: Judgement, number: int, parts: list[Part], names: tuple[str, ...]) -> None:
        response = self.responses[judgement.response_ids[number]]
        for part in parts:
            if not 0 <= part.start < part.end <= len(response.text):
                raise InputError(
                    f"{judgement.kind} {judgement.id}: marks {part.start}–{part.end} of a response of "
                    f"{len(response.text)} characters; expected spans inside the text"
                )
        about = (judgement.id, judgement.prompt_id, (response.id,), tuple(parts), names)
        self.marks.append(Marked(*about, judgement.annotator, judgement.kind, judgement.strategy))

    def _written(self, judgement: Judgement, text: str, source: str) -> list[Statement]:
        original = self.responses[judgement.response_ids[0]]
        written = Response(judgement.prompt_id, text, source)
        edit = edited_spans(original.text, text)
        if not edit.removed and not edit.added:
            raise InputError(
                f"{judgement.kind} {judgement.id}: the text it gives equals the original; expected a change "
                "(a response that needs none is a label, not a correction)"
            )
        self.responses.setdefault(written.id, written)
        self._mark(judgement, 0, [Part(start, end, 1, "edited") for start, end in edit.removed], ("edited",))
        pair = (written.id, original.id)
        rest = (judgement.annotator, judgement.kind, 1.0, judgement.strategy, judgement.propensity)
        return [Preferred(judgement.id, judgement.prompt_id, pair, *rest)]

    def _labelled(self, judgement: Judgement, objective: str, *, good: bool) -> Labelled:
        return Labelled(
            judgement.id, judgement.prompt_id, judgement.response_ids, good, judgement.annotator, objective,
            judgement.kind, judgement.strategy, judgement.propensity,
        )  # fmt: skip

    def _name(self, name: str, default: str | None = None) -> str:
        return self.objective_of.get(name, name if default is None else default)


WRITTEN = ("correction", "demonstration", "revision")
"""Sources of responses that raters wrote in answer to a question."""


def _offered(judgements: Sequence[Judgement]) -> dict[tuple[str, str], set[str]]:
    """Flags, aspects and classes of spans named at least once under each question."""
    offered: dict[tuple[str, str], set[str]] = {}
    for judgement in judgements:
        if judgement.kind == "span_marks" and judgement.value.get("spans"):
            offered.setdefault(_asked(judgement), set()).update(s["class"] for s in judgement.value["spans"])
        key = {"label": "flags", "critique": "aspects"}.get(judgement.kind)
        if key is not None and judgement.value.get(key):
            offered.setdefault(_asked(judgement), set()).update(judgement.value[key])
    return offered


def _unspoken(names: Mapping[str, str], judgements: Sequence[Judgement]) -> dict[str, str]:
    given = {
        name
        for judgement in judgements
        for key in ("scores", "flags", "aspects")
        for name in judgement.value.get(key) or ()
    }
    near = {name: difflib.get_close_matches(name, sorted(given), n=1) for name in names if name not in given}
    return {name: found[0] if found else "" for name, found in near.items()}


def _asked(judgement: Judgement) -> tuple[str, str]:
    return judgement.kind, str(judgement.shown.get("question", ""))


def _pair_vote(judgement: Judgement, level: int, n_levels: int) -> Vote:
    side = 0 if not judgement.shown_order else (1 if judgement.shown_order[0] == 0 else -1)
    return Vote(
        judgement.id, judgement.prompt_id, *judgement.response_ids, level, n_levels, side, judgement.annotator,
        judgement.strategy, judgement.propensity,
    )  # fmt: skip


def _check_target(judgement: Judgement, response_id: str, responses: Mapping[str, Response]) -> None:
    response = responses.get(response_id)
    if response is None:
        raise InputError(
            f"{judgement.kind} {judgement.id}: response {response_id!r} is unknown; expected one of the "
            f"{len(responses)} responses given"
        )
    if response.prompt_id != judgement.prompt_id:
        raise InputError(
            f"{judgement.kind} {judgement.id}: response {response_id!r} answers {response.prompt_id!r}; "
            f"expected an answer to {judgement.prompt_id!r}"
        )
