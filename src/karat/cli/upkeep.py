"""Commands for whoever keeps a store: seal it, take it away for an audit, back it up, restore it, erase a person."""

from __future__ import annotations

import dataclasses
import datetime
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from karat.cli.options import RECORD, AsJson, Out, RunDirectory, StoreOrRun, answer, app, so_many, store_address
from karat.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from karat.feedback.record.erasure import Fed

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
    annotator: Annotated[str, typer.Argument(metavar="ANNOTATOR", help="The pseudonym of the person.")],
    reason: Annotated[str, typer.Option(help="Who asked for it and why; it is kept.")],
    runs: Annotated[list[Path] | None, typer.Option(help="Runs, or directories of runs, to look through.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this, say only what would be done.")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase a person's words and whatever leads to her, for good, and list the artefacts that fed on her judgements."""
    from karat.feedback.record.erasure import erase_annotator, erase_from_snapshots, fed_artefacts
    from karat.feedback.store import open_store

    if not reason.strip():
        raise ConfigError("erase: found an empty --reason; expected who asked for it and why")
    with open_store(store_address(run_or_store), create=False) as store:
        if annotator not in store.annotators():
            raise StoreError(f"erase: found nobody called {annotator!r} in {store.address}; see `karat people list`")
        if not yes:
            ids = [one.id for one in store.records() if one.judgement.annotator == annotator]
            fed = fed_artefacts(runs or [], ids)
            lines = [
                f"{len(ids):,} judgements; repeat with --yes to erase their words, and whatever leads to the person"
            ]
            lines += map(_fed_line, fed)
            answer(as_json, {"done": False, "n_judgements": len(ids), "artefacts": list(fed)}, lines)
            return
        done = erase_annotator(store, annotator, reason=reason, by=BY, now=time.time(), runs=runs or [])
    changed = erase_from_snapshots(done.artefacts, done.judgement_ids, reason=reason, now=time.time())
    lines = [f"{done.n_erased:,} of {len(done.judgement_ids):,} judgements had words; they are gone"]
    beside = ", ".join(f"{name} {n:,}" for name, n in done.removed.items())
    lines.append(f"what led to the person is gone: {beside}" if beside else "nothing else led to the person")
    lines += [f"taken out of {path}" for path in changed]
    content = {"done": True, **dataclasses.asdict(done), "rewritten": [str(path) for path in changed]}
    answer(as_json, content, [*lines, *map(_fed_line, done.artefacts)])


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
    return f"fed on them: {fed.run}/{fed.path} ({fed.stage}{words})"
