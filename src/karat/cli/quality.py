"""The command that says what a store's answers come to: agreement, consensus, votes still needed, whose they are.

Knows options and how figures are put in a line; the figures are the feedback room's.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from karat.cli.options import PEOPLE, AsJson, StoreOrRun, answer, app, so_many, store_address
from karat.errors import ConfigError

if TYPE_CHECKING:
    from karat.feedback.work.consensus_view import ConsensusRow
    from karat.feedback.work.dashboard import AgreementRow
    from karat.feedback.work.reward_plan import RewardPlan
    from karat.feedback.work.trial import Trial
    from karat.feedback.work.who_speaks import Spoken
    from karat.records import Estimate


@app.command(
    rich_help_panel=PEOPLE, epilog="Example: karat quality judged.db --accuracy 0.75 --population adults.json --json"
)
def quality(
    run_or_store: StoreOrRun,
    accuracy: Annotated[float, typer.Option(help="Held-out accuracy that a reward should reach, above 1/2.")] = 0.7,
    curve: Annotated[
        Path | None, typer.Option(help="JSON lines {n_votes, accuracy, standard_error} of your own reward model.")
    ] = None,
    pay: Annotated[float | None, typer.Option(help="Pay for an hour of active work; by default the settings'.")] = None,
    population: Annotated[
        Path | None, typer.Option(help="Target population, JSON {field: {group: share}}; by default the store's.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Make --population the store's target.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say how far raters agree, what their answers come to, how many votes are still needed, and whose they are."""
    import numpy as np

    from karat.feedback.store import open_store
    from karat.feedback.work.consensus_view import consensus_rows
    from karat.feedback.work.dashboard import agreement_rows
    from karat.feedback.work.reward_plan import given_points, reader_points, reward_plan
    from karat.feedback.work.who_speaks import put_target, read_target, spoken, target_of
    from karat.rowfiles import read_rows

    if keep and population is None:
        raise ConfigError("quality: found --keep without --population; expected a file to keep")
    if pay is not None and not pay >= 0:
        raise ConfigError(f"quality: found --pay {pay}; expected 0 or more")
    target = None if population is None else read_target(_text_of(population), str(population))
    given = None if curve is None else given_points(read_rows(curve))
    rng = np.random.default_rng(0)
    with open_store(store_address(run_or_store), create=False) as store:
        records = store.records()
        agreement, n_unfair = agreement_rows(store, records, rng)
        consensus, n_left_out = consensus_rows(store, records)
        plan = reward_plan(store, accuracy, given or reader_points(store, rng), rng, pay=pay)
        target = target or target_of(store)
        speaks = None if target is None else spoken(store, target, rng)
        if keep:
            put_target(store, target, now=time.time())
    content = {
        "agreement": {"rows": agreement, "n_left_out": n_unfair},
        "consensus": {"rows": consensus, "n_left_out": n_left_out},
        "reward_plan": dataclasses.asdict(plan),
        "population": None if speaks is None else dataclasses.asdict(speaks),
    }
    lines = [
        *map(_agreement_line, agreement),
        *map(_consensus_line, consensus),
        *_plan_lines(plan),
        *_spoken_lines(speaks),
    ]
    answer(as_json, content, lines)


@app.command(rich_help_panel=PEOPLE, epilog="Example: karat trial judged.db")
def trial(run_or_store: StoreOrRun, as_json: AsJson = False) -> None:
    """Put the choice model on trial: would it give votes like these, would another link do better, do tastes drift?"""
    import numpy as np

    from karat.feedback.store import open_store
    from karat.feedback.work.trial import trial as put_on_trial

    with open_store(store_address(run_or_store), create=False) as store:
        found = put_on_trial(store, np.random.default_rng(0))
    answer(as_json, dataclasses.asdict(found), _trial_lines(found))


def _trial_lines(found: Trial) -> list[str]:
    lines = [f"{so_many(found.n_votes, 'comparisons')} by {so_many(found.n_raters, 'raters')}"]
    lines += [
        f"check  {one.name}: {one.observed:.3f}; the model gives {one.low:.3f} … {one.high:.3f} (p = {one.p_value:.3f})"
        for one in found.checks
    ]
    lines += [
        f"link   {one.name}: {one.loglik:.4f} nats a held-out vote, {_figure(one.difference, 4)} beside the ordinal logistic"
        for one in found.links
    ]
    lines += [
        f"drift  {one.trait}: {one.change:+.3f} logits a unit from first to last (p = {one.p_value:.3f}, {one.n:,} votes)"
        for one in found.drifts
    ] or ["drift  times of the votes are not known"]
    lines.append(f"scale  mean and median strength disagree: {_figure(found.mean_not_median)}")
    lines += [f"scale  {name}: order of means not safe: {_figure(one)}" for name, one in found.sign_flips]
    return lines


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(f"{path}: cannot be read ({why}); expected a target population as JSON") from None


def _agreement_line(row: AgreementRow) -> str:
    by_item, by_rater = _figure(row.by_item), _figure(row.by_rater)
    said = (
        by_item
        if by_item == by_rater and row.by_item.value is None
        else f"{by_item} over items, {by_rater} over raters"
    )
    return f"agreement  {row.about}, {row.coefficient}: {said}"


def _consensus_line(row: ConsensusRow) -> str:
    start = (
        f"consensus  {row.about}: {row.n_answers:,} answers to {row.n_items:,} items, nobody leads in {row.n_split:,}"
    )
    if row.why:
        return f"{start}; undefined: {row.why}"
    return f"{start}; {row.n_open:,} open, {row.n_other:,} not as the majority, certainty {row.certainty:.3f} ({row.method})"


def _plan_lines(plan: RewardPlan) -> list[str]:
    start = f"votes      for a held-out accuracy of {plan.accuracy:g}"
    if plan.ceiling is None:
        return [f"{start}: {_figure(plan.votes)}"]
    points = "; ".join(
        f"{one.accuracy:.3f} ± {one.standard_error:.3f} from {one.n_votes:,.0f}" for one in plan.measured.points
    )
    return [
        f"{start}: {_figure(plan.votes, 0)} in all, {_figure(plan.more, 0)} still to be had",
        f"           hours {_figure(plan.hours, 1)}; cost {_figure(plan.cost, 2)}",
        f"           expected of the {plan.n_votes:,} there are {_figure(plan.now)}, of endless votes {plan.ceiling:.3f}",
        f"           by {plan.measured.of_what}: {points}",
    ]


def _spoken_lines(found: Spoken | None) -> list[str]:
    if found is None:
        return ["population no target population is set; give one with --population"]
    if found.why:
        return [f"population not shown: {found.why}"]
    lines = [
        f"population {found.n_raters:,} raters, design effect {found.design_effect}, effectively about "
        f"{found.effective_n:,}, largest weight {found.max_weight}"
    ]
    lines += [
        f"           {one.field} = {one.group}: {one.n_raters:,} raters, {one.before:.3f} → {one.after:.3f}, target "
        f"{one.target:.3f}"
        for one in found.groups
    ]
    lines += [f"           nobody speaks for {one}" for one in found.empty]
    for one in found.rates:
        if one.rate is None:
            lines.append(f"           {one.what}: {one.why}")
        else:
            both = f"{_figure(one.rate.unweighted)} as raters are, {_figure(one.rate.weighted)} weighted"
            lines.append(f"           {one.what}: {both}, difference {_figure(one.rate.difference)}")
    return lines


def _figure(found: Estimate, digits: int = 3) -> str:
    if found.value is None:
        return found.method
    if found.low is None:
        return f"{found.value:,.{digits}f}"
    end = f"{found.high:,.{digits}f}" if found.high is not None else "no upper end"
    return f"{found.value:,.{digits}f} [{found.low:,.{digits}f}, {end}]"
