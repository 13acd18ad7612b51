"""Commands for silent checks: gold items in the form of real work, and the qualification that comes before it.

Knows files of items and their options; what an item may say is `karat.feedback.work.check_items`'.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from karat.cli.options import MOST, PEOPLE, AsJson, StoreOrRun, answer, app, store_address
from karat.errors import ConfigError

checks = typer.Typer(help="Silent checks: gold items, and the qualification before any work.")
app.add_typer(checks, name="checks", rich_help_panel=PEOPLE)

Items = Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines: a task or texts, and the right answer.")]
Version = Annotated[str, typer.Option(help="Names this set.")]


@checks.command("gold", epilog="Example: karat checks gold karat.db gold.jsonl --version 1")
def gold(run_or_store: StoreOrRun, path: Items, version: Version = "1", as_json: AsJson = False) -> None:
    """Put gold items into use: they come to raters now and then and look like any other task."""
    from karat.feedback.documents import project_settings
    from karat.feedback.people.accounts import log
    from karat.feedback.people.roles import COMMAND_LINE
    from karat.feedback.store import open_store
    from karat.feedback.work.check_items import put_items
    from karat.feedback.work.checks import add_gold
    from karat.rowfiles import read_rows

    with open_store(store_address(run_or_store), create=False) as store:
        n = len(add_gold(store, put_items(store, read_rows(path), version=version), version=version))
        log(store, COMMAND_LINE, "gold items added", version, f"{n} items", now=time.time())
        rate = project_settings(store).gold_rate
    said = f"gold {version}: {n:,} items; they come in {rate:.0%} of turns (Settings)"
    answer(as_json, {"version": version, "n_items": n, "gold_rate": rate}, [said])


@checks.command("qualification", epilog="Example: karat checks qualification karat.db test.jsonl --pass-mark 0.8")
def qualification(
    run_or_store: StoreOrRun,
    path: Items,
    version: Version = "1",
    pass_mark: Annotated[float, typer.Option(help="Share of right answers that is enough, (0, 1].")] = 0.8,
    attempts: Annotated[int, typer.Option(max=MOST, help="How often it may be tried.")] = 2,
    again: Annotated[bool, typer.Option("--again", help="Ask those too who passed an earlier version.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask every rater these items before any work; the newest version counts, earlier ones stay on record."""
    from karat.feedback.people.accounts import log
    from karat.feedback.people.roles import COMMAND_LINE
    from karat.feedback.store import open_store
    from karat.feedback.work.check_items import put_items
    from karat.feedback.work.checks import add_qualification
    from karat.rowfiles import read_rows

    now = time.time()
    with open_store(store_address(run_or_store), create=False) as store:
        made = add_qualification(
            store,
            put_items(store, read_rows(path), version=version),
            version=version,
            pass_mark=pass_mark,
            attempts=attempts,
            requalify=again,
            now=now,
        )
        n = len(made.body["items"][0])
        detail = f"{n} items, pass mark {100 * pass_mark:.4g} %"
        log(store, COMMAND_LINE, "qualification made", made.version, detail, now=now)
    said = f"qualification {made.version}: {n:,} items, pass mark {100 * pass_mark:.4g}%, {attempts} attempts"
    answer(as_json, {"version": made.version, "n_items": n, "pass_mark": pass_mark, "attempts": attempts}, [said])


@checks.command("list", epilog="Example: karat checks list karat.db --json")
def list_(run_or_store: StoreOrRun, as_json: AsJson = False) -> None:
    """Every gold item with how often it was answered as expected, and the qualification in force."""
    from karat.feedback.documents import QUALIFICATION, document
    from karat.feedback.store import open_store
    from karat.feedback.work.checks import attempts_at, gold_items

    with open_store(store_address(run_or_store), create=False) as store:
        found, test = gold_items(store), document(store, QUALIFICATION)
        tried = attempts_at(store, test.version) if test is not None else (0, 0)
    rows: list[dict[str, Any]] = [
        {
            "task": one.task.id,
            "version": one.version,
            "kind": one.task.kind,
            "expected": one.expected,
            "in_use": one.retired_at is None,
            "n_answers": one.n_answers,
            "n_right": one.n_right,
        }
        for one in found
    ]
    lines = [
        f"gold {row['version']:<8} {row['kind']:<11} {row['n_right']} of {row['n_answers']} right"
        f"{'' if row['in_use'] else ', retired'}  {row['task']}"
        for row in rows
    ]
    content: dict[str, Any] = {"gold": rows, "qualification": None}
    if test is not None:
        mark = test.body["pass_mark"]
        content["qualification"] = {
            "version": test.version,
            "pass_mark": mark,
            "n_passed": tried[0],
            "n_failed": tried[1],
        }
        lines.append(
            f"qualification {test.version}: pass mark {100 * mark:.4g}%, {tried[0]} passed, {tried[1]} did not"
        )
    answer(as_json, content, lines or ["no checks yet; `karat checks gold --help` says how to add some"])


@checks.command("retire", epilog="Example: karat checks retire karat.db task:4f2a… --version 1")
def retire(
    run_or_store: StoreOrRun,
    tasks: Annotated[
        list[str] | None, typer.Argument(metavar="TASK", help="Ids that `karat checks list` names.")
    ] = None,
    version: Annotated[str, typer.Option(help="All gold items of this set.")] = "",
    as_json: AsJson = False,
) -> None:
    """Take gold items out of use: too easy, known by now, or wrong themselves. Answers to them stay."""
    from karat.feedback.people.accounts import log
    from karat.feedback.people.roles import COMMAND_LINE
    from karat.feedback.store import open_store
    from karat.feedback.work.checks import gold_items
    from karat.feedback.work.checks import retire as take_out

    if not tasks and not version:
        raise ConfigError("checks retire: found neither tasks nor --version; expected ids of gold items, or a set")
    with open_store(store_address(run_or_store), create=False) as store:
        items = gold_items(store)
        known, versions = {one.task.id for one in items}, sorted({one.version for one in items})
        if version and version not in versions:
            raise ConfigError(
                f"checks retire: found no gold items of version {version!r}; found {', '.join(versions) or 'none'}"
            )
        if strange := [one for one in tasks or () if one not in known]:
            raise ConfigError(f"checks retire: {strange[0]!r} is no gold item; `karat checks list` names them")
        wanted = [one.task.id for one in items if one.version == version] + list(tasks or ())
        now = time.time()
        n = take_out(store, wanted, now=now)
        log(store, COMMAND_LINE, "gold items retired", f"{n} items", now=now)
    answer(as_json, {"n_retired": n}, [f"{n:,} gold items are out of use"])


@checks.command("failed", epilog="Example: karat checks failed karat.db --json")
def failed(run_or_store: StoreOrRun, as_json: AsJson = False) -> None:
    """Raters whom a failed qualification keeps from work, those who ask for a review first."""
    from karat.feedback.store import open_store
    from karat.feedback.work.qualifying import failed_tests

    with open_store(store_address(run_or_store), create=False) as store:
        found = failed_tests(store)
    rows = [
        {
            "annotator": one.annotator, "version": one.version, "asks": one.asks, "waits": one.waits,
            "attempts_failed": one.standing.attempts_failed, "attempts_left": one.standing.attempts_left,
            "events": [[event.action, event.reason] for event in one.standing.events],
        }
        for one in found
    ]  # fmt: skip
    lines = [
        f"{one.annotator}  {one.standing.attempts_failed} failed, "
        + ("asks for a review" if one.asks else f"{one.standing.attempts_left} left" if not one.waits else "waits")
        for one in found
    ]
    answer(as_json, {"failed": rows}, lines or ["the qualification in force keeps nobody from work"])


@checks.command("decide", epilog="Example: karat checks decide karat.db r7 --reason 'item 3 was wrong' --admit")
def decide(
    run_or_store: StoreOrRun,
    annotator: Annotated[str, typer.Argument(metavar="ANNOTATOR", help="The rater's pseudonym.")],
    reason: Annotated[str, typer.Option(help="What the rater reads.")],
    admit: Annotated[bool, typer.Option("--admit", help="Let the rater work without another attempt.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Let the result stand.")] = False,
    as_json: AsJson = False,
) -> None:
    """Decide on a failed qualification: another attempt, or --admit, or --keep. The rater reads the reason."""
    from karat.feedback.people.accounts import log
    from karat.feedback.people.roles import COMMAND_LINE
    from karat.feedback.people.standing import ADMITTED, KEPT, RETRY
    from karat.feedback.store import open_store
    from karat.feedback.work import qualifying

    if admit and keep:
        raise ConfigError("checks decide: found --admit and --keep; expected one of them, or neither: another attempt")
    decision = ADMITTED if admit else KEPT if keep else RETRY
    with open_store(store_address(run_or_store), create=False) as store:
        now = time.time()
        qualifying.decide(store, annotator, decision, reason=reason, by=COMMAND_LINE, now=now)
        log(store, COMMAND_LINE, f"qualification: {decision}", annotator, reason, now=now)
    answer(as_json, {"annotator": annotator, "decision": decision}, [f"{annotator}: {decision}"])
