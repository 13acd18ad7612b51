"""Figures that a stage takes of what it was given before it begins, and then goes by to its end.

With another number of processes or threads, or on another device, they would differ in the last bit: an interrupted stage
goes on with those that it began with. Knows numbers; knows nothing about what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from karat.damaged import object_in
from karat.errors import LedgerError
from karat.ledger.artifacts import write_json
from karat.lm import parallel
from karat.pipeline.stages import Workplace
from karat.policy.scores import score_responses
from karat.records import Prompt, ScoreFn


def measured_once(place: Workplace, name: str, measure: Callable[[], Sequence[float]]) -> list[float]:
    """What `measure` gives, or gave when this stage, of these inputs and settings, began.

    Args:
        name: of the file among the stage's checkpoints.
        measure: called by all of several processes, or by none; gives each the same numbers.
    """
    path = place.checkpoints / f"{name}.json"

    def kept() -> list[float] | None:
        if not path.exists():
            return None
        anew = f"it as karat wrote it: restore it, or remove {place.checkpoints} to begin this stage anew"
        found = object_in(path, "figures", expected=anew, of=str, figures=list)
        if not all(isinstance(one, int | float) for one in found["figures"]):
            raise LedgerError(f"{path}: found something else than numbers; expected {anew}")
        return found["figures"] if found["of"] == place.identity else None

    before = parallel.from_main(kept)
    if before is not None:
        return before
    figures = [float(one) for one in measure()]
    parallel.from_main(lambda: write_json(path, {"of": place.identity, "figures": figures}))
    return figures


def scored_once(place: Workplace, score: ScoreFn) -> ScoreFn:
    """A score that is asked once, of a method whose data are responses with their scores."""

    def scores(prompts: Sequence[Prompt], responses: Sequence[str]) -> Sequence[float]:
        return measured_once(place, "scores", lambda: score_responses(score, prompts, responses))

    return scores
