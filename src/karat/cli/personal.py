"""The command that asks one person what she prefers, and keeps a reward of her own.

Knows the terminal; the arithmetic and the files are the pipeline's.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from karat.cli.options import MODELS, MOST, AsJson, Device, Out, answer, app

if TYPE_CHECKING:
    from karat.pipeline.personalise import Pair

KEYS = "a = A is better, b = B is better{tie}, s = skip, q = enough"


@app.command(
    rich_help_panel=MODELS,
    epilog="Example: karat personalise runs/mine/models/reward answers.jsonl --out people/ada --questions 10",
)
def personalise(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Directory of a reward model with a population.")],
    responses: Annotated[
        Path | None, typer.Argument(metavar="RESPONSES", help='JSON lines {"prompt", "response"}, several a prompt.')
    ] = None,
    out: Out = Path("person"),
    questions: Annotated[int, typer.Option(min=0, max=MOST, help="How many questions to ask.")] = 10,
    name: Annotated[str, typer.Option(help="What the person is called; empty = after the directory.")] = "",
    group: Annotated[str | None, typer.Option(help="Her declared group, where the population has groups.")] = None,
    answers: Annotated[
        Path | None, typer.Option(help='JSON lines {"prompt", "a", "b", "answer"}; nothing is asked.')
    ] = None,
    simulate: Annotated[str | None, typer.Option(help="A rater of the population who answers instead.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the pairs considered and of simulated answers.")] = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Ask one person the questions that tell most about her taste, and keep a reward of her own."""
    from karat.devices import on_device
    from karat.pipeline.personalise import Asking
    from karat.pipeline.personalise import personalise as work
    from karat.progress import open_progress

    asking = Asking(questions, name, group, answers, simulate, seed)
    number = itertools.count(1)
    with on_device(device):
        done = work(
            model, responses, out, lambda pair, levels: ask_in_terminal(pair, levels, f"{next(number)} of {questions}"),
            asking, watched=open_progress,
        )  # fmt: skip
    told = [f"{done.directory}: {done.name}, {done.standing}"]
    if done.n_repeated:
        one = done.n_repeated == 1
        told.append(
            f"{done.n_repeated} answer{'' if one else 's'} not counted: {'its' if one else 'their'} question was answered "
            "before, or again further down"
        )
    if done.n_skipped:
        told.append(f"{done.n_skipped} skipped; another time such questions come when no other is left")
    if done.n_left == 0:
        told.append("no pair is left to ask about: she has answered all of these responses")
    told.append(f"score for her with: karat score {model} … --person {out} --out …")
    answer(as_json, dataclasses.asdict(done), told)


def ask_in_terminal(pair: Pair, n_levels: int, place: str) -> int | None:
    """Show a question on standard error and read the answer from standard input; EOFError when she has had enough."""
    keys = {"a": n_levels - 1, "b": 0} | ({"t": n_levels // 2} if n_levels % 2 else {})
    help_line = KEYS.format(tie=", t = a tie" if "t" in keys else "")
    for line in ("", f"Question {place}", "", pair.prompt.text, "", f"A: {pair.a}", "", f"B: {pair.b}", "", help_line):
        print(line, file=sys.stderr)
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        said = line.strip().lower()
        if not line or said == "q":
            raise EOFError
        if said == "s":
            return None
        if said in keys:
            return keys[said]
        print(f"found {said!r}; expected {help_line}", file=sys.stderr)
