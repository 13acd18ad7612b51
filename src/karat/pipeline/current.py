"""Which stages of a run speak of what lies on the disk now: figures of a policy that was made anew are not shown.

Pure: knows manifests; reads nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from karat.ledger.lineage import stale_stages
from karat.ledger.manifest import Manifest
from karat.pipeline.stages import findings_of
from karat.records import Finding


def current(manifests: Sequence[Manifest], config: Mapping[str, Any]) -> tuple[list[Manifest], list[str]]:
    """The stages of the run as it was last begun, and a line for each of the others, which a report leaves out.

    Args:
        config: of the run. A stage is left out whose inputs are no longer as it read them, whose round is beyond `rounds`
            (what a run of fewer rounds measures and hands over is of those), or that read what such a round made.
    """
    stale = stale_stages(manifests)
    left_out = {stage: f"stale: {why}; {again(stage)}" for stage, why in stale.items()}
    names, n_rounds = {one.stage for one in manifests}, config.get("rounds")
    beyond: set[str] = set()
    for one in sorted(manifests, key=lambda one: (one.finished_at, one.stage)):
        number, reads = round_of(one.stage), {ref.path for ref in one.inputs}
        # a number is a round's where the first round did a stage of that name, but for arenas, which people name
        of_round = one.stage.rpartition("-")[0] in names and not one.stage.startswith("arena-")
        later = isinstance(n_rounds, int) and number > n_rounds and of_round
        if one.stage not in left_out and (later or reads & beyond):
            beyond |= {ref.path for ref in one.outputs}
            left_out[one.stage] = f"of more rounds than the {n_rounds} that the run has now; `--rounds` brings it back"
    kept = [manifest for manifest in manifests if manifest.stage not in left_out]
    return kept, [f"{stage}: left out, {why}" for stage, why in left_out.items()]


def again(stage: str) -> str:
    """What makes a stage anew, in words."""
    if stage.startswith("arena-"):
        return "an arena of the new policy needs new votes"
    if stage == "inside":
        return "run `karat audit RUN --look-inside`"
    if round_of(stage) > 1:
        return "run `karat run CONFIG`"
    return f"run `karat {stage.replace('_', '-')} CONFIG`, or `karat run CONFIG`"


def round_of(stage: str) -> int:
    """The round of a stage's name: 2 for `collect-2`.

    >>> round_of("collect-2"), round_of("collect")
    (2, 1)
    """
    number = stage.rpartition("-")[2]
    return int(number) if number.isdecimal() else 1


def newest_round(stages: Collection[str], base: str) -> str:
    """The stage of that name that the last round did; the name itself where there was one round, or none.

    >>> newest_round(["reward", "reward-10", "reward-2", "reward-model"], "reward")
    'reward-10'
    """
    later = [name for name in stages if name.startswith(f"{base}-") and name.removeprefix(f"{base}-").isdecimal()]
    return max(later, key=round_of, default=base)


def policy_of(by_stage: Mapping[str, Manifest], method: str) -> dict[str, str]:
    """`{"policy": path}` of what a method left; of several rounds, what the last of them left; {} where it left no model."""
    last = by_stage.get(newest_round(by_stage, method))
    found = [ref.path for ref in last.outputs if ref.kind == "model"] if last else []
    return {"policy": found[0]} if found else {}


def last_findings(by_stage: Mapping[str, Manifest]) -> tuple[Finding, ...]:
    """What every stage found; of a stage that several rounds did, what the last of them did, and what rounds say of rounds."""
    found: list[Finding] = []
    for name, manifest in by_stage.items():
        base = name.rpartition("-")[0]
        if base not in by_stage:  # the first round's, or a name that ends in a number: an arena's
            base = name
        last = newest_round(by_stage, base) == name
        found += [one for one in findings_of(manifest) if last or one.name.startswith("rounds.")]
    return _each_once(found)


def _each_once(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """A check that came out alike for several policies, as their leash, is one check: what was said of each stands in it."""
    found: dict[tuple[str, str, str], Finding] = {}
    for number, one in enumerate(findings):
        key = (one.name, one.question, one.status)
        if key in found and found[key].estimate is None and one.estimate is None:
            found[key] = replace(found[key], detail="; ".join(filter(None, (found[key].detail, one.detail))))
        else:
            found[key if key not in found else (*key[:2], f"{one.status} {number}")] = one
    return tuple(found.values())


def collected(by_stage: Mapping[str, Manifest]) -> str:
    """The stage that has the figures of all votes: the newest round's, where there were several."""
    rounds = [name for name in by_stage if "all_rounds" in by_stage[name].metrics]
    return max(rounds, key=round_of, default="collect")


def unmeasured(name: str, stages: Collection[str], measured: Collection[str]) -> list[str]:
    """A line where a policy was optimised and the evaluation is of others.

    Args:
        name: of the method that finished last.    stages: that are done.    measured: policies of the evaluation.
    """
    if name not in stages or not measured or name in measured:
        return []
    return [f"{name}: its policy has not been measured; the table is of {', '.join(measured)}; {again('evaluate')}"]
