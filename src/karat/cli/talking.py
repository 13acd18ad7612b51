"""Commands to talk to a checkpoint, and to compare two of them blindly, in the terminal or from a script."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from karat.cli.options import MODELS, MOST, AsJson, Decoding, Device, StorePath, answer, app, at_work
from karat.errors import InputError

if TYPE_CHECKING:
    from karat.talk.duel import Ballot, Duel, Shown

MaxNewTokens = Annotated[int, typer.Option(max=MOST, help="Longest reply; a shorter context gives what fits.")]
Temperature = Annotated[float, typer.Option(help="1 = the policy's own distribution, 0 = the likeliest token.")]
TopK = Annotated[int, typer.Option(help="Draw among the k likeliest tokens only; 0 = all.")]
TopP = Annotated[float, typer.Option(help="Draw among the likeliest tokens of this total probability; 1 = all.")]
NO_TEXT = "bytes that are not UTF-8, or the character NUL"
Seed = Annotated[int, typer.Option(help="Seed of the draws.")]


@app.command(
    rich_help_panel=MODELS, epilog="Example: karat chat runs/demo/models/ppo --temperature 0.7 --system 'Be brief.'"
)
def chat(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Directory of a causal language model.")],
    turns: Annotated[Path | None, typer.Option(help="Messages, one a line; none = what is typed or piped in.")] = None,
    system: Annotated[str, typer.Option(help="The system message.")] = "",
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    device: Device = "auto",
    decode: Decoding = "auto",
    as_json: AsJson = False,
) -> None:
    """Talk to a checkpoint: words as they are drawn, /reset, /system TEXT, /help, /quit."""
    from karat.lm.load import load_lm
    from karat.rowfiles import text_fault
    from karat.talk.conversation import Conversation, TalkSettings
    from karat.talk.script import talk

    settings = TalkSettings(max_new_tokens, temperature, top_k, top_p, seed)
    if text_fault(system):
        raise InputError(f"--system: found {NO_TEXT}; expected text")
    typed = turns is None and sys.stdin.isatty()
    lines = _typed_lines("> ") if typed else _given_lines(turns)
    with at_work(device, decode):
        exchanges = talk(
            Conversation(load_lm(model), settings, system), lines, heard=None if as_json else _say,
            note=lambda text: print(text, file=sys.stderr), forgiving=typed,
        )  # fmt: skip
    if as_json:
        content = {"model": str(model), **dataclasses.asdict(settings)}
        answer(True, {**content, "exchanges": [dataclasses.asdict(exchange) for exchange in exchanges]}, [])


@app.command(
    rich_help_panel=MODELS,
    epilog="Example: karat compare runs/demo/models/sft runs/demo/models/ppo --rater ann --prompts p.jsonl",
)
def compare(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="Directory of a causal language model.")],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="Directory of another one.")],
    rater: Annotated[str, typer.Option(help="Who votes: a pseudonym, kept with every judgement.")],
    prompts: Annotated[Path | None, typer.Option(help="Prompts, text lines or JSON lines; none = typed ones.")] = None,
    answers: Annotated[Path | None, typer.Option(help="A file instead of what is typed or piped in.")] = None,
    store: StorePath = "karat.db",
    arena: Annotated[str, typer.Option(help="Name of the comparison; empty = after the checkpoints.")] = "",
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    device: Device = "auto",
    decode: Decoding = "auto",
    as_json: AsJson = False,
) -> None:
    """Vote blindly between two checkpoints: 1, 2, t (tie), s (skip), /quit. Votes are judgements in the store."""
    from karat.feedback.store import open_store
    from karat.lm.load import load_lm
    from karat.rowfiles import text_fault
    from karat.talk.conversation import TalkSettings
    from karat.talk.duel import Duel, arena_name, policy_names, run_duel

    if not rater.strip() or text_fault(rater):
        raise InputError(f"--rater: found {rater!r}; expected a pseudonym")
    names = policy_names((first, second))
    settings = TalkSettings(max_new_tokens, temperature, top_k, top_p, seed)
    typed = answers is None and sys.stdin.isatty()
    lines = _typed_lines("") if typed else _given_lines(answers)
    with at_work(device, decode):
        models = {
            name: load_lm(path) for name, path in zip(names, (first, second), strict=True)
        }  # before a store is made
        with open_store(store) as opened:
            duel = Duel(opened, arena or arena_name(names), models, rater, settings)
            ballots = run_duel(
                duel, _prompts(prompts, lines, typed), show=_shower(quiet=as_json), ask=lambda: _answer(lines, typed)
            )
            _report_duel(duel, ballots, as_json)


def _say(text: str) -> None:
    print(text, end="", flush=True)


def _typed_lines(sign: str) -> Iterator[str]:
    from karat.rowfiles import text_fault

    while True:
        try:
            line = input(sign)
        except EOFError:
            return
        if text_fault(line):
            print(f"found {NO_TEXT}; say it again", file=sys.stderr)
        else:
            yield line


def _given_lines(path: Path | None) -> Iterator[str]:
    if path is None:
        return _whole(sys.stdin, "standard input")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from None
    if not text.strip():
        raise InputError(f"{path}: found no text; expected one entry a line")
    return _whole(text.split("\n"), str(path))


def _whole(lines: Iterable[str], name: str) -> Iterator[str]:
    from karat.rowfiles import text_fault

    for number, line in enumerate(lines, 1):
        if text_fault(line):
            raise InputError(f"{name}, line {number}: found {NO_TEXT}; expected text")
        yield line


def _prompts(path: Path | None, lines: Iterator[str], typed: bool) -> Iterator[Any]:
    """Prompts of a file, or the lines between the answers."""
    from karat.prompts.sources import read_prompts
    from karat.records import user_prompt

    if path is not None:
        yield from read_prompts(path)
        return
    while True:
        if typed:
            print("prompt> ", end="", file=sys.stderr, flush=True)
        line = next(lines, None)
        if line is None or line.strip() == "/quit":
            return
        if line.strip():
            yield user_prompt(line.strip())


def _answer(lines: Iterator[str], typed: bool) -> str | None:
    """The next answer; a person is asked again until it is one, a script is taken at its word."""
    from karat.talk.duel import ANSWERS, LEVELS, SKIPS

    while True:
        if typed:
            print(f"better: {ANSWERS}> ", end="", file=sys.stderr, flush=True)
        line = next(lines, None)
        if line is None or line.strip() == "/quit":
            return None
        if (not typed and line.strip()) or line.strip().lower() in (*LEVELS, *SKIPS):
            return line
        if typed:
            print(f"found {line.strip()!r}; expected {ANSWERS}, or /quit", file=sys.stderr)


def _shower(*, quiet: bool) -> Any:
    def show(shown: Shown) -> None:
        if not quiet:
            print(f"\n{shown.prompt.text}\n\n1: {shown.texts[0]}\n\n2: {shown.texts[1]}\n", flush=True)

    return show


def _report_duel(duel: Duel, ballots: list[Ballot], as_json: bool) -> None:
    from karat.talk.duel import result

    found = result(duel)
    first, second = duel.models
    votes = [
        {"prompt": one.shown.prompt.text, "texts": one.shown.texts, "policies": one.shown.policies, "vote": one.vote,
         "winner": one.winner}
        for one in ballots
    ]  # fmt: skip
    content: dict[str, Any] = {"store": duel.store.address, "arena": duel.name, "policies": [first, second]}
    content |= {"rater": duel.rater, "votes": votes, "all_votes": None}
    lines = ["nothing was put to the vote"]
    if found is not None:
        rate = found.by_prompt
        content["all_votes"] = {
            "wins": found.n_wins, "ties": found.n_ties, "losses": found.n_losses, "identical": found.arena.n_identical,
            "win_rate": dataclasses.asdict(rate), "shown_first": dataclasses.asdict(found.shown_first),
        }  # fmt: skip
        known = "no interval yet" if rate.low is None or rate.high is None else f"{rate.low:.2f} … {rate.high:.2f}"
        shown = "no votes yet" if rate.value is None else f"{rate.value:.2f} ({known})"
        lines = [
            f"{first} against {second}: win rate {shown}; won {found.n_wins}, tied {found.n_ties}, lost {found.n_losses}, "
            f"equal texts {found.arena.n_identical}",
            f"kept in {duel.store.address}, arena {duel.name}",
        ]
    answer(as_json, json.loads(json.dumps(content, default=list)), lines)
