"""The command line: one thin command for each recipe, which imports its room only when it runs.

Results go to standard output, progress and errors to standard error. A wrong input is one line and exit code 2;
interrupting is safe (130) and the same command continues. Knows no method: every command hands over to a room.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from karat.errors import ConfigError, KaratError, StoreError

app = typer.Typer(
    name="karat",
    help="Reinforcement learning from human feedback, end to end, and the audit of it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
RESUMES = "karat: interrupted; the same command continues where it stopped"
RUNS = Path("runs")
INTERRUPTED = 130
# typer carries its own copy of click, whose root of usage errors has no public name.
UsageError: type[Exception] = typer.BadParameter.__bases__[0].__bases__[0]

AsJson = Annotated[bool, typer.Option("--json", help="One machine-readable object on standard output.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY.SUB=VALUE", help="Override a configuration key; repeatable.")
]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A configuration; `karat init` writes one.")]
RunDirectory = Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run, runs/<name>.")]
StorePath = Annotated[str, typer.Option("--store", help="The feedback store: a file or a database address.")]
Seeds = Annotated[str, typer.Option("--seeds", help="Seeds: 0, 0-4 or 0,3,7; empty = the configuration's.")]
Out = Annotated[Path, typer.Option("--out", help="Where to write.")]
Fault = Literal["no-kl", "unchecked-facts"]
ImportFormat = Literal["votes", "preferences", "hh", "ukp"]
InitSource = Literal["sandbox", "preferences", "votes"]
ExportFormat = Literal["conversational", "standard", "votes"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 success, 1 a check that failed, 2 a wrong input, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # standalone_mode=False: click hands its errors over instead of exiting by its own rules.
        code = typer.main.get_command(app).main(args=given or ["--help"], prog_name="karat", standalone_mode=False)
        sys.stdout.flush()
    except KaratError as error:
        return _complain(str(error))
    except UsageError as error:
        return _complain(f"{error.format_message().rstrip('.')}; see `karat --help`")  # type: ignore[attr-defined]
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough; Python would complain once more while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        said = f"(os error {getattr(error, 'errno', None)}) {error}"  # safetensors tells the number in words only
        if not any(f"(os error {full})" in said for full in (errno.ENOSPC, errno.EDQUOT)):
            raise
        place = getattr(error, "filename", None) or "a write failed"
        return _complain(f"{place}: the disk is full; free some space and run the same command again")
    if code == INTERRUPTED:  # typer itself turns an interruption into this code, silently
        print(f"\n{RESUMES}", file=sys.stderr)
    return code if isinstance(code, int) else 0


# --- the river -------------------------------------------------------------------------------------------------


@app.command(epilog="Example: karat demo --seed 1 --fault no-kl")
def demo(
    name: Annotated[str, typer.Option(help="Name of the run; empty = demo, with fault and seed.")] = "",
    fault: Annotated[Fault | None, typer.Option(help="A fault to switch on, to watch it show.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    directory: Annotated[Path, typer.Option(help="Where runs are kept.")] = RUNS,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """The whole river in the sandbox, from nothing to an audited policy, in about six minutes."""
    chosen = name or "-".join(["demo", *([fault] if fault else []), *([f"seed-{seed}"] if seed else [])])

    def work(pipeline: Any, progress: Any) -> Any:
        return pipeline.run_demo(
            chosen,
            fault=fault,
            seed=seed,
            directory=directory,
            overrides=overrides or [],
            progress=progress,
        )

    _river(work, as_json)


@app.command(epilog="Example: karat run config.yaml --seeds 0-4 --sweep ppo.reward.kl_coef=0.1,0.2")
def run(
    config: ConfigFile,
    seeds: Seeds = "",
    sweep: Annotated[list[str] | None, typer.Option(metavar="KEY=V1,V2", help="Values to try; repeatable.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Run a configuration to its report, for each seed and each value of a sweep; what is finished is reused."""
    _configured(config, seeds, sweep, overrides, as_json, until=None)


def _stage_command(stage: str, says: str) -> None:
    def command(config: ConfigFile, seeds: Seeds = "", overrides: Overrides = None, as_json: AsJson = False) -> None:
        _configured(config, seeds, None, overrides, as_json, until=stage)

    app.command(stage, help=says, epilog=f"Example: karat {stage} config.yaml --seeds 0")(command)


_stage_command("sft", "Run a configuration up to the supervised policy.")
_stage_command("collect", "Run a configuration up to the snapshot of votes.")
_stage_command("reward", "Run a configuration up to the reward model and its gate.")
_stage_command("ppo", "Run a configuration up to the optimised policy.")
_stage_command("evaluate", "Run a configuration up to the comparison of the policies.")


@app.command(epilog="Example: karat report runs/demo")
def report(run_dir: RunDirectory, as_json: AsJson = False) -> None:
    """Write a finished run's report, audit card and summary again from its manifests."""
    _river(lambda pipeline, _: pipeline.write_report(run_dir), as_json)


def _configured(
    config: Path, seeds: str, sweep: list[str] | None, overrides: list[str] | None, as_json: bool, *, until: str | None
) -> None:
    numbers = parse_seeds(seeds) if seeds else None

    def work(pipeline: Any, progress: Any) -> Any:
        return pipeline.run_config(
            config, overrides=overrides or [], seeds=numbers, sweep=sweep or [], until=until, progress=progress
        )

    _river(work, as_json)


def _river(work: Callable[[Any, Any], Any], as_json: bool) -> None:
    """The one place that calls karat.pipeline; each function returns what summary.json holds, plus `directory`."""
    from karat import pipeline
    from karat.progress import open_progress

    with open_progress() as progress:
        summary = work(pipeline, progress)
    _answer(as_json, summary, _summary_lines(summary))


# --- models ----------------------------------------------------------------------------------------------------


@app.command(epilog="Example: karat generate runs/demo/models/ppo prompts.jsonl --out answers.jsonl --samples 4")
def generate(
    model: Annotated[Path, typer.Argument(help="Directory of a causal language model.")],
    prompts: Annotated[Path, typer.Argument(help='JSON lines: {"prompt": text or [{"role", "content"}]}.')],
    out: Out,
    samples: Annotated[int, typer.Option(help="Responses for each prompt.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Longest response.")] = 128,
    temperature: Annotated[float, typer.Option(help="1 = the policy's own distribution.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Sample responses of a policy."""
    from karat.batches import generate_file
    from karat.lm.generate import SamplingConfig
    from karat.progress import open_progress

    config = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature)
    with open_progress() as progress, progress.stage("generate", unit="responses") as bar:
        n = generate_file(
            model,
            prompts,
            out,
            n_samples=samples,
            config=config,
            seed=seed,
            progress=lambda tokens, done, total: bar.log(done, {"of": total, "tokens": tokens}),
        )
    _answer(as_json, {"out": str(out), "n_responses": n}, [f"{out}: {n} responses"])


@app.command(epilog="Example: karat score runs/demo/models/reward answers.jsonl --out scores.jsonl")
def score(
    model: Annotated[Path, typer.Argument(help="Directory of a reward model.")],
    responses: Annotated[Path, typer.Argument(help='JSON lines: {"prompt": …, "response": text}.')],
    out: Out,
    as_json: AsJson = False,
) -> None:
    """Score responses with a reward model: mean and spread of its belief, in logits."""
    from karat.batches import score_file
    from karat.progress import open_progress

    with open_progress() as progress, progress.stage("score", unit="responses") as bar:
        n = score_file(model, responses, out, progress=lambda done, total: bar.log(done, {"of": total}))
    _answer(as_json, {"out": str(out), "n_responses": n}, [f"{out}: {n} scores"])


# --- the record ------------------------------------------------------------------------------------------------


@app.command(epilog="Example: karat verify runs/demo")
def verify(run_dir: RunDirectory, as_json: AsJson = False) -> None:
    """Hash every recorded file of a run again and name whatever was altered; exit code 1 if anything was."""
    from karat.ledger.manifest import read_manifests, verify_run

    problems = verify_run(run_dir)
    fatal = [problem for problem in problems if problem.fatal]
    lines = [f"{problem.kind:<10} {problem.path}  ({problem.detail}; {problem.stage})" for problem in problems]
    if not fatal:
        manifests = read_manifests(run_dir)
        n_outputs = sum(len(manifest.outputs) for manifest in manifests)
        lines.append(f"{run_dir}: {len(manifests)} stages, {n_outputs} artefacts, every recorded byte as it was")
    content = {"run": str(run_dir), "ok": not fatal, "problems": [dataclasses.asdict(problem) for problem in problems]}
    _answer(as_json, content, lines)
    if fatal:
        raise typer.Exit(1)


@app.command(epilog="Example: karat trace runs/demo models/ppo --judgements")
def trace(
    run_dir: RunDirectory,
    artefact: Annotated[
        str | None, typer.Argument(help="A path, hash, stage or stage/name; none = all final artefacts.")
    ] = None,
    judgements: Annotated[bool, typer.Option("--judgements", help="List the judgements of each snapshot.")] = False,
    affected: Annotated[bool, typer.Option("--affected", help="The other way: what was made from it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what an artefact was made from, down to the votes."""
    from karat.ledger import lineage
    from karat.ledger.manifest import read_manifests, trace_run

    if affected:
        if artefact is None:
            raise ConfigError("trace --affected: found no artefact; expected a path, hash, stage or stage/name")
        made = lineage.affected(read_manifests(run_dir), artefact)
        rows = [{"stage": stage, "path": reference.path, "hash": reference.hash} for stage, reference in made]
        lines = [f"{row['path']}  [{lineage.short(row['hash'])}] written by {row['stage']}" for row in rows]
        _answer(as_json, {"artefact": artefact, "affected": rows}, lines or [f"{artefact}: nothing was made from it"])
        return
    nodes = trace_run(run_dir, artefact, describe=lambda ref, place: _snapshot_facts(ref.kind, place, judgements))
    _answer(as_json, {"trees": [dataclasses.asdict(node) for node in nodes]}, lineage.trace_lines(nodes))


def _snapshot_facts(kind: str, place: Path, with_ids: bool) -> Mapping[str, Any]:
    if kind != "snapshot" or not place.is_dir():
        return {}
    from karat.feedback.snapshot import read_snapshot

    snapshot = read_snapshot(place)
    ids = sorted([vote.judgement_id for vote in snapshot.votes] + [judgement.id for judgement in snapshot.judgements])
    facts = {"root": snapshot.root, "votes": len(snapshot.votes), "raters": len(snapshot.annotators)}
    return facts | ({"judgements": ids} if with_ids else {})


# --- votes in and out ------------------------------------------------------------------------------------------


@app.command("import", epilog="Example: karat import votes.jsonl.gz --format votes --store karat.db")
def import_(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines, plain or gzip.")],
    kind: Annotated[ImportFormat, typer.Option("--format", help="How the file is written (docs/votes-format.md).")],
    store: StorePath = "karat.db",
    texts: Annotated[Path | None, typer.Option(help="The texts that votes name by id (votes, ukp).")] = None,
    as_json: AsJson = False,
) -> None:
    """Bring votes from a file into a store: all of them or, where a row is wrong, none."""
    from karat.feedback import importers
    from karat.feedback.store import open_store

    if kind == "ukp" and texts is None:
        raise ConfigError("import --format ukp: found no --texts; expected the file of arguments")
    with open_store(store) as opened:
        if kind == "ukp":
            done = importers.import_ukp(opened, path, texts or "")
        elif kind == "votes":
            done = importers.import_votes(opened, path, texts)
        elif kind == "hh":
            done = importers.import_hh(opened, path)
        else:
            done = importers.import_preferences(opened, path)
    _answer(as_json, {"store": store, **dataclasses.asdict(done)}, [f"{store}: {_counts(done)}"])


@app.command(epilog="Example: karat export runs/demo/snapshots/votes --format conversational --out preferences.jsonl")
def export(
    source: Annotated[Path, typer.Argument(help="A snapshot (a directory) or a store (a file).")],
    out: Out,
    kind: Annotated[ExportFormat, typer.Option("--format", help="standard or conversational: chosen and rejected.")],
    as_json: AsJson = False,
) -> None:
    """Write votes to a file: as preference trainers read them, or all that is known in the votes format (a store)."""
    from karat.feedback import exporters
    from karat.feedback.snapshot import read_snapshot
    from karat.feedback.store import open_store

    if not source.exists():
        raise StoreError(f"{source}: nothing is there; expected the directory of a snapshot or the file of a store")
    if (kind == "votes") == source.is_dir():
        expected = "a store (a file)" if kind == "votes" else "a snapshot (a directory)"
        raise ConfigError(f"export --format {kind}: found {source}; expected {expected}")
    if kind == "votes":
        with open_store(source) as opened:
            done = exporters.export_votes(opened, out)
    else:
        done = exporters.export_preferences(read_snapshot(source), out, style=kind)
    _answer(as_json, {"out": str(out), **dataclasses.asdict(done)}, [f"{out}: {_counts(done)}"])


# --- help ------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: karat init config.yaml && karat run config.yaml")
def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("config.yaml"),
    source: Annotated[InitSource, typer.Option(help="Where prompts and votes come from.")] = "sandbox",
    as_json: AsJson = False,
) -> None:
    """Write a commented configuration with every key and its default."""
    if path.exists():
        raise ConfigError(f"{path}: is already there; choose another name, or remove it first")
    from karat.ledger.artifacts import write_text
    from karat.pipeline.settings import RunConfig
    from karat.pipeline.votes import VotesConfig
    from karat.starter import commented_yaml

    write_text(path, commented_yaml(VotesConfig) if source == "votes" else commented_yaml(RunConfig, choose=source))
    _answer(as_json, {"written": str(path)}, [f"{path}: written; change what you need, then: karat run {path}"])


@app.command(epilog="Example: karat doctor --json")
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine offers and what is missing; exit code 1 where something needed is."""
    from karat.doctor import examine

    checks = examine()
    lines = [f"{'ok' if check.ok else 'missing':<8} {check.name}: {check.found}" for check in checks]
    _answer(as_json, {check.name: dataclasses.asdict(check) for check in checks}, lines)
    if not all(check.ok for check in checks if check.needed):
        raise typer.Exit(1)


def parse_seeds(text: str) -> list[int]:
    """The numbers in `0`, `0-4` or `0,3,7`.

    >>> parse_seeds("0-2,7")
    [0, 1, 2, 7]
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or not (last or first).isdigit() or int(last or first) < int(first):
            raise ConfigError(f"--seeds {text}: expected numbers like 0, 0-4 or 0,3,7")
        seeds += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(seeds))


def _answer(as_json: bool, content: Any, lines: Iterable[str]) -> None:
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False, default=_plain, allow_nan=False))
        return
    for line in lines:
        typer.echo(line)


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else str(value)


def _summary_lines(summary: Mapping[str, Any]) -> list[str]:
    from karat.report.table import summary_lines

    return summary_lines(summary)


def _counts(summary: Any) -> str:
    counts = dataclasses.asdict(summary).items()
    return ", ".join(f"{count:,} {name.removeprefix('n_').replace('_', ' ')}" for name, count in counts)


def _complain(message: str) -> int:
    print(f"karat: {' '.join(message.split())}", file=sys.stderr)
    return 2
