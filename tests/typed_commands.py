"""What the documentation tells people to type, and what is wrong with it, by the programs' own parsers. Runs no stage.

A word in capitals, `…` and `[optional]` stand for what the reader fills in. A command of a block has to be whole; one
within a sentence may leave things out, but what it says must be there.
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
import yaml
from bench import run as bench_rows

from documented_pages import Block, Typed, between_backticks
from karat import cli
from karat.config import PLACEHOLDER, apply_overrides, build, load_yaml
from karat.devices import named
from karat.errors import ConfigError, KaratError
from karat.feedback.arm_changes import read_arm
from karat.pipeline.asking import asked_question
from karat.pipeline.choosing import parse_budget
from karat.pipeline.configured import DEMO, sweep_points
from karat.pipeline.mixture import RewardRequest
from karat.pipeline.settings import RunConfig
from karat.pipeline.votes import VotesConfig
from karat.questions import Question

ROOT = Path(__file__).parents[1]
MORE = "…"
OURS = re.compile(r"(examples|bench|docs|src|tests)/[\w./-]*[\w/]")
"""A path in this project."""
STANDS_FOR = {"N": "2", "i": "0"}
"""What stands where a number is read."""
PROGRAMS = ("karat", "make", "python", "torchrun", "accelerate")
"""What can begin a command within a sentence."""


def in_sentences(page: str, text: str) -> Iterator[Typed]:
    """The commands and paths between backticks."""
    for n, code in between_backticks(text):
        words = re.sub(r"^([A-Z_]+=\S+ +)+", "", code).split()
        if words and (words[0] in PROGRAMS or (len(words) == 1 and OURS.fullmatch(code))):
            yield Typed(f"{page}:{n}", code, False)


def all_commands() -> list[Any]:
    """Every command of karat, those of groups too."""
    found = [_karat()]
    for one in found:  # grows while it is read
        found += getattr(one, "commands", {}).values()
    return [one for one in found if not hasattr(one, "commands")]


def in_help() -> list[Typed]:
    """The example below the help of each command."""
    return [
        Typed(f"karat {one.name} --help", (one.epilog or "").removeprefix("Example: "), True) for one in all_commands()
    ]


def complaints(commands: Iterable[Typed], apart: Collection[str] = ()) -> list[str]:
    """What is wrong with the commands, a line each.

    Args:
        apart: programs, and paths that are made later, which are not looked into.
    """
    found = []
    for place, text, whole in commands:
        for words in _simple(text):
            try:
                said = "" if words[0] in apart else _wrong(words, whole and MORE not in words)
            except KaratError as error:
                said = str(error)
            except cli.UsageError as error:
                said = error.format_message()  # type: ignore[attr-defined]
            if said:
                found.append(f"{place}: {shlex.join(words)}: {said}")
    return found


def _simple(text: str) -> Iterator[list[str]]:
    """The words of each command in a line, `a && b` and `x=$(y)` being two; without comments and variables."""
    inner = re.findall(r"\$\(([^)]*)\)", text)
    for one in inner:
        yield from _simple(one)
    reader = shlex.shlex(re.sub(r"\$\([^)]*\)", "ANSWER", text), posix=True, punctuation_chars="&|;")
    reader.whitespace_split = True
    part: list[str] = []
    for word in [*reader, "&&"]:
        if set(word) <= set("&|;"):
            yield from [part] if part else []
            part = []
        elif part or not re.match(r"[A-Z_]+=", word):
            part.append(STANDS_FOR.get(_bare(word), _bare(word)))


def _bare(word: str) -> str:
    """Without the brackets of what may be left out: `[--set key=value]`."""
    word = word.removeprefix("[")
    return word[:-1] if word.count("]") > word.count("[") else word


def _wrong(words: Sequence[str], whole: bool) -> str:
    if gone := [word for word in words if OURS.fullmatch(word) and not (ROOT / word).exists()]:
        return f"{gone[0]} is not there"
    program, *rest = words
    match Path(program).name:
        case "karat":
            return _wrong_karat(rest, whole)
        case "make":
            return _wrong_make(rest)
        case "python":
            return _wrong_python(rest, whole)
        case "torchrun" | "accelerate":
            return _wrong_launch(program, rest, whole)
    return "" if OURS.fullmatch(program) and not rest else f"{program} is no program that this test knows"


@functools.cache
def _karat() -> Any:
    return typer.main.get_command(cli.app)


def _wrong_karat(words: Sequence[str], whole: bool) -> str:
    command, given = _karat(), [word for word in words if word != MORE]
    while given and hasattr(command, "commands"):
        name = given.pop(0)
        if name.isupper():  # stands for any
            return ""
        if name not in command.commands:
            return f"no such command {name!r}"
        command = command.commands[name]
    if hasattr(command, "commands"):
        return "a command is missing" if whole else ""
    config = None
    try:
        config = command.make_context(command.name, list(given)).params.get("config")
    except typer.Exit:  # help was asked for
        return ""
    except cli.UsageError as error:  # of what was given, all was read before something was missed
        if whole or type(error).__name__ not in ("MissingParameter", "BadOptionUsage"):
            raise
    for option, read in READERS.items():
        for value in _after(words, option):
            if value != MORE:
                read(value)
    if overrides := _after(given, "--set") + _after(given, "--sweep"):
        _build(command.name, config, [one for one in overrides if one != "key=value"])
    return ""


def _kinds(text: str) -> None:
    for kind in text.split(","):
        asked_question(kind)


READERS: Mapping[str, Callable[[str], Any]] = {
    "--seeds": cli.parse_seeds, "--sweep": lambda one: sweep_points([one]), "--budget": parse_budget, "--kind": _kinds,
    "--device": named, "--arm": read_arm,
}  # fmt: skip
"""Values that a command reads when it runs, not when it is parsed."""


def _after(words: Sequence[str], option: str) -> list[str]:
    """The values of an option, as they were typed."""
    return [value for word, value in itertools.pairwise(words) if word == option]


def _build(command: str, config: Path | None, overrides: Sequence[str]) -> None:
    """The command's configuration with keys changed: of an example here, else of a run in the sandbox.

    Raises: ConfigError where it cannot be.
    """
    kind: type = RunConfig
    settings: dict[str, Any] = {"sandbox": {}}
    if config is not None and OURS.fullmatch(str(config)):
        settings = _filled(load_yaml(ROOT / config))
        kind = VotesConfig if "votes" in settings else kind
    elif command == "demo":
        settings = load_yaml(DEMO)
    elif command == "reward" and config is None:
        kind, settings = RewardRequest, {"model": "models/sft", "out": "models/reward", "store": "karat.db"}
    for point in sweep_points(overrides) if all("," in one for one in overrides) else [tuple(overrides)]:
        build(kind, apply_overrides(settings, [one for one in point if not one.endswith(f"={MORE}")]))
    for one in overrides:
        if one.endswith(f"={MORE}"):  # the value is the reader's
            _known(kind, one.removesuffix(MORE))


def _filled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an example leaves to its reader, filled in."""
    return {
        key: _filled(value) if isinstance(value, Mapping) else "own" if value == PLACEHOLDER else value
        for key, value in settings.items()
    }


def _known(kind: type, override: str) -> None:
    try:
        build(kind, apply_overrides({}, [f"{override}0"]))
    except ConfigError as error:
        if str(error).startswith("unknown configuration key"):
            raise


def _wrong_make(words: Sequence[str]) -> str:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+)(?: [a-z-]+)*: \$", text, flags=re.MULTILINE)
    targets += " ".join(re.findall(r"^\.PHONY: (.*)$", text, flags=re.MULTILINE)).split()
    variables = re.findall(r"^([A-Z]+) [?:]?=", text, flags=re.MULTILINE)
    for word in words:
        name, sign, value = word.partition("=")
        if name not in (variables if sign else targets):
            return f"make knows no {name}"
        if name == "WORK" and value not in _rows():
            return f"the bench has no row {value}"
        if name == "DEMO" and (said := _wrong_karat(["demo", *value.split()], whole=True)):
            return said
    return ""


def _rows() -> list[str]:
    return [*bench_rows.ROWS, *bench_rows.LONG_ROWS, "all"]


def _wrong_python(words: Sequence[str], whole: bool) -> str:
    """A program of the bench is read, not started: many import what takes seconds."""
    by_module = words[0] == "-m"
    name, *rest = words[1:] if by_module else words
    if by_module and name == "karat":
        return _wrong_karat(rest, whole)
    if by_module and name == "pytest":
        return next(
            (f"{word} is not there" for word in rest if word.endswith(".py") and not (ROOT / word).is_file()), ""
        )
    script = ROOT / (f"{name.replace('.', '/')}.py" if by_module else name)
    of_rows = name in ("bench", "bench/run.py")
    script = ROOT / "bench" / "run.py" if of_rows else script
    if not script.is_file():
        return f"{name} is not there"
    said = _strings(script)
    for word in rest:
        if word.startswith("-") and word not in said:
            return f"{name} has no option {word}"
        if of_rows and not word.startswith("-") and word not in _rows():
            return f"the bench has no row {word}"
    return ""


def _strings(script: Path) -> set[str]:
    """The texts in a program and in what it imports from the bench; its options are among them."""
    found: set[str] = set()
    seen, waiting = {script}, [script]
    while waiting:
        texts, imported = _texts_and_imports(waiting.pop())
        found |= texts
        waiting += imported - seen
        seen |= imported
    return found


@functools.cache
def _texts_and_imports(script: Path) -> tuple[set[str], set[Path]]:
    nodes = list(ast.walk(ast.parse(script.read_text(encoding="utf-8"))))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    names = [
        f"{node.module}.{one.name}" for node in nodes
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bench") for one in node.names
    ]  # fmt: skip
    names += [name.rpartition(".")[0] for name in names]
    return texts, {path for name in names if (path := ROOT / f"{name.replace('.', '/')}.py").is_file()}


def _wrong_launch(program: str, words: Sequence[str], whole: bool) -> str:
    """By the launcher's own options up to `-m karat`, and by ours from there."""
    if program == "torchrun":
        from torch.distributed.run import get_args_parser as parser_of
    else:
        from accelerate.commands.launch import launch_command_parser as parser_of

        if words[0] != "launch":
            return f"expected accelerate launch, found {words[0]}"
        words = words[1:]
    parser = parser_of()
    options = {option for action in parser._actions for option in action.option_strings}
    before = words[: words.index("-m")] if "-m" in words else words
    if wrong := [word for word in before if word.startswith("-") and word not in options]:
        return f"{program} has no option {wrong[0]}"
    if "-m" not in words:
        return "the program to be launched is missing" if whole else ""
    read = parser.parse_args(list(words))
    return _wrong_python(["-m", read.training_script, *read.training_script_args], whole)


def unknown_options(page: str, text: str) -> list[str]:
    """The options between backticks that nothing here has: no command of karat, no program of the bench, no launcher."""
    found = [(n, word) for n, code in between_backticks(text) for word in code.split() if code.startswith("--")]
    return [f"{page}:{n}: {word}" for n, word in found if word.startswith("--") and word not in _all_options()]


@functools.cache
def _all_options() -> set[str]:
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    launchers = (get_args_parser(), launch_command_parser())
    found = {option for parser in launchers for action in parser._actions for option in action.option_strings}
    ours = [
        option for command in all_commands() for one in command.params for option in (*one.opts, *one.secondary_opts)
    ]
    return found.union(ours, ["--help"], *(_texts_and_imports(script)[0] for script in (ROOT / "bench").rglob("*.py")))


def unknown_keys(page: str, text: str) -> list[str]:
    """The settings between backticks, `key.sub: value` or `key.sub=value`, that no configuration has."""
    found = []
    for n, code in between_backticks(text):
        key = re.match(r"([a-z_]+(?:\.[a-z_0-9]+)+)(?:: |=)", code)
        if key and not any(_has(kind, key[1]) for kind in (RunConfig, VotesConfig, RewardRequest, Question)):
            found.append(f"{page}:{n}: {code}")
    return found


def _has(kind: type, key: str) -> bool:
    try:
        _known(kind, f"{key}=")
    except ConfigError:
        return False
    return True


def wrong_settings(page: str, found: Iterable[Block]) -> list[str]:
    """What is wrong with blocks of YAML, which are parts of a configuration, or a question."""
    wrong = []
    for block in found:
        lines = [re.sub(r"^# (?=\w+: )", "", line) for line in block.lines]  # `# key: …` shows another way
        keys = [line.split(":")[0] for line in lines if re.match(r"\w", line)]
        ways = (
            re.split(r"^(?=\w)", "\n".join(lines), flags=re.MULTILINE)
            if len(set(keys)) < len(keys)
            else ["\n".join(lines)]
        )
        for values in filter(None, map(yaml.safe_load, ways)):
            try:
                build(Question, values) if "kind" in values else build(RunConfig, {"sandbox": {}} | values)
            except ConfigError as error:
                wrong.append(f"{page}:{block.line}: {error}")
    return wrong
