"""The command that scores: a file of responses, for one person, or a benchmark by its own rules.

Knows options and lines of text; scores nothing itself.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from karat.cli.options import MODELS, AsJson, Device, Out, answer, app
from karat.errors import ConfigError

SuiteName = Literal["rewardbench", "rewardbench2", "rmbench"]


@app.command(
    rich_help_panel=MODELS, epilog="Example: karat score runs/demo/models/reward answers.jsonl --out scores.jsonl"
)
def score(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A reward model: karat's, or a sequence classifier as TRL saves it.")
    ],
    responses: Annotated[
        Path,
        typer.Argument(metavar="RESPONSES", help='JSON lines: {"prompt": …, "response": text}; or a suite\'s file.'),
    ],
    out: Out,
    suite: Annotated[SuiteName | None, typer.Option(help="Judge by a benchmark's own rules.")] = None,
    person: Annotated[Path | None, typer.Option(help="Score and rerank for this person (karat personalise).")] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Score responses with a reward model, in logits: a file of them, for one person, or a benchmark's by its own rules."""
    from karat.batches import score_file, suite_file
    from karat.devices import on_device
    from karat.progress import open_progress

    if suite is not None and person is not None:
        raise ConfigError("score: found --suite and --person; expected one of them")

    unit = "items" if suite else "responses"
    with on_device(device), open_progress() as progress, progress.stage("score", unit=unit, announced=False) as bar:
        if person is not None:
            from karat.pipeline.for_person import score_for_person

            done = score_for_person(
                model, person, responses, out, progress=lambda done, total: bar.reach(done, of=total)
            )
        elif suite is None:
            n = score_file(model, responses, out, progress=lambda done, total: bar.reach(done, of=total))
        else:
            result = suite_file(model, responses, out, suite, progress=lambda done, total: bar.reach(done, of=total))
    if person is not None:
        answer(as_json, {"out": str(out), **dataclasses.asdict(done)}, _person_lines(out, done))
    elif suite is None:
        answer(as_json, {"out": str(out), "n_responses": n}, [f"{out}: {n} scores"])
    else:
        answer(as_json, {**dataclasses.asdict(result), "out": str(out)}, [*_suite_lines(result), f"{out}: the scores"])


def _person_lines(out: Path, done: Any) -> list[str]:
    limited = [f"{done.n_outside} outside the population's limits"] if done.n_outside else []
    lost = [f"no winner for {done.n_without_winner} of {done.n_prompts} prompts"] if done.n_without_winner else []
    return [f"{out}: " + ", ".join([f"{done.n_responses} scores", *limited, *lost])]


def _suite_lines(result: Any) -> list[str]:
    from karat.report.page import format_estimate
    from karat.report.table import aligned

    rows = [("overall", result.overall), *result.sections.items(), *(("  " + k, v) for k, v in result.subsets.items())]
    shown = [[name, *format_estimate(estimate), f"n = {estimate.n}"] for name, estimate in rows]
    return [*aligned([[result.suite, "", "95 % interval", ""], *shown]), *result.notes]
