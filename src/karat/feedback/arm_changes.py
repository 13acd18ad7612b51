"""What an arm of an experiment changes on the page of whoever is in it, and what two arms at once come to. Pure.

Knows questions and settings as plain data; knows nothing about raters, the store or pages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from karat.errors import InputError
from karat.questions import Question

RATER, TASK = "rater", "task"
"""What is drawn into an arm: a rater once for all her work, or each task for everybody."""
UNITS = (RATER, TASK)
TIES = ("scale", "apart")
LAYOUTS = ("side", "stacked")
RATIONALES = ("off", "optional", "required")
MOST_LEVELS = 9
LONGEST_NAME = 64
"""Characters of the name of an experiment or an arm."""


@dataclass(frozen=True)
class ArmChange:
    """What is other than the question and the settings say; a field at its default changes nothing."""

    guideline: str = ""
    """Version of the guideline that stands beside the task, and that the judgement names; "" = the task's."""
    levels: int = 0
    """Comparisons: levels of strength, 2 (A or B, no tie) to 9; 0 = the question's."""
    tie: str = ""
    """Comparisons: the tie stands in the middle of the "scale", or "apart", among the ways out; "" = scale."""
    layout: str = ""
    """Responses stand "side" by side where there is room, or always "stacked"; "" = side."""
    rationale: str = ""
    """Reasons are "off", "optional" or "required"; "" = as the question says."""
    pay: float | None = None
    """The rate shown to these raters and counted for them, in currency and unit of the settings; None = the settings'."""

    def __post_init__(self) -> None:
        for name, known in (("tie", TIES), ("layout", LAYOUTS), ("rationale", RATIONALES)):
            if getattr(self, name) not in ("", *known):
                raise InputError(f"arm: found {name} = {getattr(self, name)!r}; expected one of {', '.join(known)}")
        if self.levels != 0 and not 2 <= self.levels <= MOST_LEVELS:
            raise InputError(f"arm: found levels = {self.levels}; expected 2 to {MOST_LEVELS}")
        if self.pay is not None and not 0 <= self.pay < 1e6:
            raise InputError(f"arm: found pay = {self.pay}; expected an amount of 0 or more")

    @property
    def names(self) -> tuple[str, ...]:
        """The fields that change something."""
        return tuple(one.name for one in dataclasses.fields(self) if getattr(self, one.name) != one.default)

    def question(self, asked: Question) -> Question:
        """The question as it is put in this arm."""
        changes: dict[str, Any] = {}
        if self.levels and asked.kind == "comparison" and self.levels != asked.n_levels:
            # words for single points do not fit another scale; words for its two ends do
            anchors = asked.anchors if len(asked.anchors) == 2 else ()
            changes |= {"n_levels": self.levels, "anchors": anchors}
        if self.rationale:
            changes["rationale"] = self.rationale
        return dataclasses.replace(asked, **changes) if changes else asked


def change_of(body: Mapping[str, Any]) -> ArmChange:
    """A change from plain JSON. Raises: InputError for a key or value that changes nothing."""
    known = {one.name for one in dataclasses.fields(ArmChange)}
    if unknown := set(body) - known:
        raise InputError(f"arm: found {min(unknown)[:40]!r}; expected some of {', '.join(sorted(known))}")
    values = dict(body)
    for name, kind in (("levels", int), ("pay", float)):
        if name in values:
            try:
                values[name] = kind(str(values[name]))
            except ValueError:
                raise InputError(f"arm: found {name} = {str(values[name])[:40]!r}; expected a number") from None
    for name in ("guideline", "tie", "layout", "rationale"):
        if not isinstance(values.get(name, ""), str):
            raise InputError(f"arm: found {name} = {str(values[name])[:40]!r}; expected a word")
    return ArmChange(**values)


def read_arm(text: str) -> tuple[str, float, ArmChange]:
    """An arm as people write it, `binary = 2: levels = 2, rationale = off`: name, weight (1 where none is said), change.

    Raises: InputError for what does not fit.
    """
    head, _, tail = text.partition(":")
    name, sign, weight = head.partition("=")
    name = name.strip()
    if not 0 < len(name) <= LONGEST_NAME:
        raise InputError(f"arm: found {text[:60]!r}; expected a name, as in 'binary = 1: levels = 2'")
    body: dict[str, Any] = {}
    for part in filter(None, map(str.strip, tail.split(","))):
        key, mid, value = part.partition("=")
        if not mid:
            raise InputError(f"arm {name!r}: found {part[:40]!r}; expected key = value, such as levels = 2")
        body[key.strip()] = value.strip()
    try:
        share = float(weight) if sign else 1.0
    except ValueError:
        raise InputError(f"arm {name!r}: found the weight {weight.strip()[:20]!r}; expected a number above 0") from None
    if not 0 < share < 1e6:
        raise InputError(f"arm {name!r}: found the weight {share:g}; expected a number above 0")
    return name, share, change_of(body)


def merged(changes: Iterable[ArmChange]) -> ArmChange:
    """Several arms at once; no two of them change the same thing (`check_experiments`)."""
    fields: dict[str, Any] = {}
    for change in changes:
        fields |= {name: getattr(change, name) for name in change.names}
    return ArmChange(**fields)


def check_experiments(
    experiments: Mapping[str, Mapping[str, float]],
    changes: Mapping[str, Mapping[str, Mapping[str, Any]]],
    units: Mapping[str, str],
) -> None:
    """Raise InputError unless arms, what they change, and what is drawn into them fit together."""
    for name, arms in experiments.items():
        for word in (name, *arms):
            if not 0 < len(word) <= LONGEST_NAME:
                raise InputError(
                    f"settings.experiments: found a name of {len(word)} characters in {name[:40]!r}; "
                    f"expected 1 to {LONGEST_NAME}"
                )
    changed_by: dict[str, str] = {}
    for name, arms in changes.items():
        if name not in experiments:
            raise InputError(
                f"settings.arm_changes: found the experiment {name[:60]!r}; expected one of the experiments"
            )
        for arm, body in arms.items():
            if arm not in experiments[name]:
                raise InputError(
                    f"settings.arm_changes: found the arm {arm[:60]!r} of {name!r}; expected one of {', '.join(experiments[name])}"
                )
            for field in change_of(body).names:
                if changed_by.setdefault(field, name) != name:
                    raise InputError(
                        f"settings.arm_changes: {changed_by[field]!r} and {name!r} both change {field}; "
                        "nobody could tell their effects apart"
                    )
                if field == "pay" and units.get(name, RATER) != RATER:
                    raise InputError(f"settings.arm_changes: {name!r} draws tasks and changes pay; draw raters instead")
    for name, unit in units.items():
        if name not in experiments or unit not in UNITS:
            raise InputError(
                f"settings.arm_units: found {name[:60]!r} = {unit!r}; expected an experiment and rater or task"
            )
