"""Commands for whoever keeps a store: seal it, take it away for an audit, back it up, restore it, erase a person."""

from __future__ import annotations

import dataclasses
import datetime
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from karat.cli.options import RECORD, AsJson, Out, RunDirectory, StoreOrRun, answer, app, so_many, store_address
from karat.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from karat.feedback.record.erasure import Erasure, Fed
    from karat.feedback.store import Store

BY = "command line"
"""Who is noted as having erased."""


@app.command(rich_help_panel=RECORD, epilog="Example: karat seal karat.db")
def seal(run_or_store: StoreOrRun, as_json: AsJson = False) -> None:
    """Seal what came in since the last seal, and print the line to publish: it pins everything up to here."""
    from karat.feedback.record.seals import seal as make_seal
    from karat.feedback.record.seals import seals
    from karat.feedback.store import open_store

    with open_store(store_address(run_or_store), create=False) as store:
        new = make_seal(store, now=time.time())
        last = seals(store)[-1:]
    content = {"new": new is not None, "seal": last[0].line if last else None}
    answer(as_json, content, [last[0].line] if last else ["there is nothing to seal yet"])


@app.command(rich_help_panel=RECORD, epilog="Example: karat bundle karat.db --out bundle && karat verify bundle")
def bundle(run_or_store: StoreOrRun, out: Out, as_json: AsJson = False) -> None:
    """Write what an auditor may take away: every record and seal, no texts, pseudonyms of its own."""
    from karat.feedback.record.bundle import write_bundle
    from karat.feedback.store import open_store

    with open_store(store_address(run_or_store), create=False) as store:
        made = write_bundle(store, out, now=time.time())
    who = f"{so_many(made.n_judgements, 'judgements')} by {so_many(made.n_raters, 'raters')}"
    lines = [f"{out}: {who}; check it with: karat verify {out}"]
    answer(as_json, dataclasses.asdict(made), lines)


@app.command(rich_help_panel=RECORD, epilog="Example: karat backup karat.db --out backup-2026-11-21")
def backup(run_or_store: StoreOrRun, out: Out, as_json: AsJson = False) -> None:
    """Copy a store as it is now, while people go on working: a directory of rows, or one file where OUT ends in .db."""
    from karat.feedback.record.backup import backup as make_backup
    from karat.feedback.store import open_store

    with open_store(store_address(run_or_store), create=False) as store:
        made = make_backup(store, out, now=time.time())
    answer(
        as_json, dataclasses.asdict(made), [f"{out}: {made.rows.get('judgements', 0):,} judgements; keep it private"]
    )


@app.command(rich_help_panel=RECORD, epilog="Example: karat restore backup-2026-11-21 karat-restored.db")
def restore(
    path: Annotated[Path, typer.Argument(metavar="BACKUP", help="What `karat backup` wrote.")],
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="Where the store shall be: a file or database that is empty.")
    ],
    as_json: AsJson = False,
) -> None:
    """Make a store from a backup, on SQLite or PostgreSQL, and check it; exit code 1 where the check finds something."""
    from karat.feedback.record.backup import restore as make_store

    made = make_store(path, store)
    lines = [f"{one.judgement_id}  {one.what}" for one in made.problems]
    lines.append(f"{made.address}: {made.rows.get('judgements', 0):,} judgements restored")
    answer(as_json, dataclasses.asdict(made), lines)
    if made.problems:
        raise typer.Exit(1)


@app.command(
    rich_help_panel=RECORD, epilog="Example: karat erase karat.db rater-4f2a81c09d --reason 'asked by mail' --runs runs"
)
def erase(
    run_or_store: StoreOrRun,
    who: Annotated[
        str,
        typer.Argument(metavar="WHO", help="The person's pseudonym; or the login or id of an account without one."),
    ],
    reason: Annotated[str, typer.Option(help="Who asked for it and why; it is kept.")],
    runs: Annotated[
        list[Path] | None, typer.Option(help="Runs, or directories that hold some at any depth, to look through.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this, say only what would be done.")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase a person's words and whatever leads to her, for good, and list the artefacts that fed on her judgements."""
    from karat.feedback.record.erasure import Erasure, erase_account, erase_annotator, erase_from_snapshots
    from karat.feedback.store import open_store

    if not reason.strip():
        raise ConfigError("erase: found an empty --reason; expected who asked for it and why")
    now = time.time()
    with open_store(store_address(run_or_store), create=False) as store:
        annotator, account = _person(store, who)
        if annotator is None:
            removed = erase_account(store, account, reason=reason, by=BY, now=now, trial=not yes)
            done = Erasure((), 0, removed, ())
        else:
            done = erase_annotator(store, annotator, reason=reason, by=BY, now=now, runs=runs or [], trial=not yes)
    lines = _erasure_lines(done, yes=yes)
    content = {"done": yes, "n_judgements": len(done.judgement_ids), **dataclasses.asdict(done), "rewritten": []}
    if yes:
        changed = erase_from_snapshots(done.artefacts, done.judgement_ids, reason=reason, now=now)
        content["rewritten"] = [str(path) for path in changed]
        lines += [f"taken out of {path}" for path in changed]
    answer(as_json, content, [*lines, *map(_fed_line, done.artefacts)])


def _person(store: Store, who: str) -> tuple[str | None, str]:
    """The pseudonym of a person, "" beside it, or None and the id of her account. Raises: StoreError for nobody."""
    from karat.feedback.people.accounts import accounts

    if who in store.annotators():
        return who, ""
    for one in accounts(store):
        if who in (one.id, one.login):
            return one.annotator, one.id
    raise StoreError(f"erase: found nobody called {who!r} in {store.address}; see `karat people list`")


def _erasure_lines(done: Erasure, *, yes: bool) -> list[str]:
    """What an erasure came to, or would come to."""
    n, led = len(done.judgement_ids), ", ".join(f"{name} {n:,}" for name, n in done.removed.items())
    if not (done.n_erased or led):
        return [f"nothing to erase: no words in {so_many(n, 'judgements')}, and nothing that leads to a person"]
    words = [f"{done.n_erased:,} of {so_many(n, 'judgements')} {'had' if yes else 'with'} words"] if n else []
    if yes:
        lines = [f"{one}; they are gone" for one in words]
        return [*lines, f"what led to the person is gone: {led}" if led else "nothing else led to the person"]
    lines = [*words, f"what leads to the person: {led}" if led else "nothing else leads to the person"]
    return [*lines, "repeat with --yes to erase it for good"]


@app.command(
    rich_help_panel=RECORD,
    epilog="Example: karat odd runs/demo --veto response:4f2a… --by ann --reason 'praises instead of answering'",
)
def odd(
    run_dir: RunDirectory,
    veto: Annotated[str, typer.Option(help="Id of a response in the queue: its score is no longer believed.")] = "",
    by: Annotated[str, typer.Option(help="Who says so; kept.")] = "",
    reason: Annotated[str, typer.Option(help="Why; kept.")] = "",
    as_json: AsJson = False,
) -> None:
    """List a run's odd rewards: scores that no response of the reference policy had; or veto one of them."""
    from karat.policy.odd_rewards import read_queue, read_vetoes
    from karat.policy.odd_rewards import veto as write_veto

    if not any((run_dir / name).is_dir() for name in ("manifests", "odd-rewards")):
        raise ConfigError(f"{run_dir}: found no manifests; expected the directory of a run (runs/<name>)")
    place = run_dir / "odd-rewards"
    if veto:
        moment = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_veto(place, veto, by=by, reason=reason, at=moment)
    vetoed = read_vetoes(place)
    rows = [{**vars(row), "vetoed": row.id in vetoed} for row in read_queue(place)]
    lines = [
        f"{row['id']}  {'vetoed' if row['vetoed'] else 'waits '}  score {row['score']:.3g} "
        f"(usual {row['low']:.3g} … {row['high']:.3g})  {row['prompt'][:60]!r} → {row['response'][:80]!r}"
        for row in rows
    ]
    answer(as_json, {"odd": rows}, lines or [f"{place}: nothing is waiting"])


def _fed_line(fed: Fed) -> str:
    words = ", with words of theirs" if fed.has_words else ""
    return f"fed on them: {os.path.normpath(fed.run / fed.path)} ({fed.stage}{words})"
