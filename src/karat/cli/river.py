"""Commands of the river: whole runs, their stages, and the models they leave behind."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from karat.cli.findings import calibration_lines, finding_lines, gain_line, noises, people_lines
from karat.cli.options import (
    METHODS,
    MOST,
    RUNS,
    START,
    STATIONS,
    AsJson,
    ConfigFile,
    Decoding,
    Device,
    InShards,
    MaxNewTokens,
    Overrides,
    Processes,
    RunDirectory,
    Seeds,
    Server,
    StorePath,
    answer,
    app,
    at_work,
    counts,
)
from karat.cli.working import Task, admin_of, check_alone, configured, shown, together
from karat.errors import ConfigError

Fault = Literal["no-kl", "unchecked-facts"]


@app.command(rich_help_panel=START, epilog="Example: karat demo --seed 1 --fault no-kl")
def demo(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="Name of the run; empty = demo, with fault and seed.")] = "",
    fault: Annotated[Fault | None, typer.Option(help="A fault to switch on, to watch it show.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    directory: Annotated[Path, typer.Option(help="Where runs are kept.")] = RUNS,
    processes: Processes = 1,
    fsdp: InShards = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """The whole loop in the sandbox, from nothing to an audited policy, in two to six minutes."""
    chosen = name or "-".join(["demo", *([fault] if fault else []), *([f"seed-{seed}"] if seed else [])])

    def read() -> None:
        from karat.pipeline.configured import demo_config

        demo_config(chosen, overrides or [], fault=fault)

    def work(progress: Any) -> Any:
        from karat.pipeline.runs import run_demo

        return run_demo(
            chosen,
            fault=fault,
            seed=seed,
            directory=directory,
            overrides=overrides or [],
            progress=progress,
        )

    together(context, processes, Task(read, work), as_json, fsdp)


@app.command(
    rich_help_panel=STATIONS, epilog="Example: karat run config.yaml --seeds 0-4 --sweep ppo.reward.kl_coef=0.1,0.2"
)
def run(
    context: typer.Context,
    config: ConfigFile,
    seeds: Seeds = "",
    sweep: Annotated[list[str] | None, typer.Option(metavar="KEY=V1,V2", help="Values to try; repeatable.")] = None,
    rounds: Annotated[
        int, typer.Option(max=MOST, help="Rounds of votes, reward and policy; 0 = the configuration's.")
    ] = 0,
    server: Server = "",
    processes: Processes = 1,
    fsdp: InShards = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Run a configuration to its report, for each seed and each value of a sweep; what is finished is reused, and what runs share is done once."""
    said = [*(overrides or []), *([f"rounds={rounds}"] if rounds else [])]
    task = configured(config, seeds, sweep, said, until=None, server=server)
    together(context, processes, task, as_json, fsdp)


def _stage_command(stage: str, says: str, *settings: str, panel: str = STATIONS) -> None:
    """The command that runs a configuration up to a stage, with further settings said for the user."""
    name = stage.replace("_", "-")

    def command(
        context: typer.Context,
        config: ConfigFile,
        seeds: Seeds = "",
        processes: Processes = 1,
        fsdp: InShards = False,
        overrides: Overrides = None,
        as_json: AsJson = False,
    ) -> None:
        task = configured(config, seeds, None, [*(overrides or []), *settings], until=stage)
        together(context, processes, task, as_json, fsdp)

    app.command(name, help=says, rich_help_panel=panel, epilog=f"Example: karat {name} config.yaml --seeds 0")(command)


_stage_command("sft", "Run a configuration up to the supervised policy.")


@app.command(
    rich_help_panel=STATIONS,
    epilog="Example: karat collect --model runs/demo/models/ppo --prompts prompts.jsonl --store karat.db",
)
def collect(
    context: typer.Context,
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="A configuration; none = --model.")] = None,
    seeds: Seeds = "",
    overrides: Overrides = None,
    model: Annotated[Path | None, typer.Option(help="A checkpoint whose samples become questions.")] = None,
    against: Annotated[Path | None, typer.Option(help="A second one: a blind arena of the two.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Prompts for --model: text lines or JSON lines.")] = None,
    store: StorePath = "karat.db",
    kind: Annotated[
        str, typer.Option(help="What is asked: comparison, ranking, …; comparison,rating,label parts a budget of time.")
    ] = "",
    principle: Annotated[str, typer.Option(help="A written principle to judge by.")] = "",
    question: Annotated[Path | None, typer.Option(help="YAML: a question in full, instead of --kind.")] = None,
    samples: Annotated[int, typer.Option(max=MOST, help="Responses for each prompt.")] = 4,
    tasks: Annotated[int, typer.Option(max=MOST, help="Questions in all.")] = 200,
    overlap: Annotated[
        int, typer.Option(max=MOST, help="Raters for each question; a stratum of the settings may want more.")
    ] = 1,
    stop_after: Annotated[int, typer.Option(max=MOST, help="Equal answers that suffice; 0 = the whole overlap.")] = 0,
    max_new_tokens: MaxNewTokens = None,
    batch: Annotated[str, typer.Option(help="Names these questions; empty = after the checkpoint.")] = "",
    budget: Annotated[str, typer.Option(help="With --reward: questions (200) or raters' time (3600s, 90m, 2h).")] = "",
    strategy: Annotated[str, typer.Option(help="bald, variance or random; the first two need --reward.")] = "",
    reward: Annotated[Path | None, typer.Option(help="A reward model that says which questions tell most.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    server: Server = "",
    processes: Processes = 1,
    fsdp: InShards = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until people have answered.")] = False,
    device: Device = "auto",
    decode: Decoding = "auto",
    as_json: AsJson = False,
) -> None:
    """Run a configuration up to its votes; or put questions about a checkpoint's samples into a store, or its server."""
    if (config is None) == (model is None):
        raise ConfigError("collect: found both or neither of CONFIG and --model; expected one of them")
    if config is not None:
        if (device, decode) != ("auto", "auto"):
            raise ConfigError("collect: found --device or --decode with CONFIG; expected its keys: --set decode=plain")
        task = configured(config, seeds, None, overrides, until="collect", server=server)
        together(context, processes, task, as_json, fsdp)
        return
    check_alone("collect", processes, fsdp)
    if model is None or prompts is None:
        raise ConfigError("collect --model: found no --prompts; expected a file of prompts")
    if question is not None and kind:
        raise ConfigError("collect: found --question and --kind; expected one of them")
    if reward is None and (budget or strategy not in ("", "random")):
        raise ConfigError("collect: found --budget or --strategy without --reward; expected a reward model's directory")
    from karat.feedback.engine import shown_address
    from karat.pipeline.asking import Asking, arena_batch, asked_beside, asked_question, collect_from
    from karat.pipeline.choosing import parse_budget
    from karat.progress import open_progress

    models = [model] if against is None else [model, against]
    n_asked, seconds = parse_budget(budget) if budget else (tasks, None)
    kind, *others = (one.strip() for one in kind.split(","))
    asking = Asking(
        beside=tuple(asked_beside(one, principle) for one in others),
        strategy=strategy or ("random" if reward is None else "bald"), reward=reward, seconds=seconds,
        question=asked_question(kind, principle, question), n_tasks=n_asked or tasks, overlap=overlap,
        stop_after=stop_after,
        n_samples=samples, max_new_tokens=max_new_tokens, batch=batch or arena_batch(models), seed=seed,
    )  # fmt: skip
    with at_work(device, decode), open_progress() as progress, contextlib.ExitStack() as stack:
        place = stack.enter_context(admin_of(server)) if server else store
        done = collect_from(place, models, prompts, asking, wait=wait, progress=progress)
    shown = shown_address(store)
    lines = [f"{server or shown}: {counts(done)}"]
    if not server and not wait:
        lines.append(f"let people answer with: karat serve {shown}")
    if done.gain is not None:
        lines.insert(1, gain_line(done.gain, done.caution))
        timed = f"{done.pace.factor:.2f} × the seconds its words lead to expect, measured on {done.pace.n} answers"
        lines[2:2] = [f"a comparison takes {timed}"] if done.pace.n else []
    if done.kinds is not None:
        parts = ", ".join(f"{share:.0%} {name}" for name, share in done.kinds.shares.items())
        why = ", ".join(f"{one.kind} {one.rate:.4f}" for one in done.kinds.rates)
        lines.insert(1, f"time: {parts}; information a second: {why}" + noises(done.kinds))
    where = {"server": server} if server else {"store": shown}
    answer(as_json, {**where, **dataclasses.asdict(done)}, lines)


@app.command(
    rich_help_panel=STATIONS,
    epilog="Example: karat reward --store karat.db --model models/sft --out models/reward --set reward.n_epochs=2",
)
def reward(
    context: typer.Context,
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="A configuration; none = --model.")] = None,
    seeds: Seeds = "",
    overrides: Overrides = None,
    model: Annotated[Path | None, typer.Option(help="A decoder or encoder that becomes the reward model.")] = None,
    store: Annotated[str, typer.Option(help="A feedback store with judgements of any kinds.")] = "",
    snapshot: Annotated[Path | None, typer.Option(help="A snapshot instead of a store.")] = None,
    out: Annotated[Path, typer.Option(help="Where the reward model goes.")] = Path("reward"),
    batch: Annotated[str, typer.Option(help="Only judgements of this batch.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    processes: Processes = 1,
    fsdp: InShards = False,
    as_json: AsJson = False,
) -> None:
    """Run a configuration up to its reward and gate; or train one on everything in a store or snapshot, and gate it."""
    if (config is None) == (model is None):
        raise ConfigError("reward: found both or neither of CONFIG and --model; expected one of them")
    if model is None:
        assert config is not None
        together(context, processes, configured(config, seeds, None, overrides, until="reward"), as_json, fsdp)
        return
    check_alone("reward", processes, fsdp)
    from karat.config import apply_overrides, build
    from karat.pipeline.mixture import RewardRequest, reward_from
    from karat.progress import open_progress
    from karat.report.table import aligned
    from karat.reward.contributions import contribution_table
    from karat.reward.mark_quality import mark_table

    given = {"model": str(model), "out": str(out), "store": store or None, "batch": batch or None, "seed": seed}
    given["snapshot"] = None if snapshot is None else str(snapshot)
    request = build(RewardRequest, apply_overrides(given, overrides or []))
    with open_progress() as progress:
        done = reward_from(request, progress=progress)
    silent = [f"silent: {n} × {reason}" for reason, n in done["silent"].items()]
    table = aligned(contribution_table(done["contributions"]))
    table += aligned(mark_table(done["marks"])) if done["marks"] else []
    gate = f"gate: {done['gate']}, {done['n_gate']} votes on prompts kept from training"
    found = [line for told in (calibration_lines, people_lines, finding_lines) for line in told(done["findings"])]
    answer(as_json, done, [*table, *silent, *found, gate, f"reward: {out}; made from: karat trace {out} --judgements"])


_METHODS = {
    "ppo": "PPO with a critic",
    "rloo": "RLOO, the siblings' mean as baseline",
    "grpo": "GRPO, group mean and deviation",
    "reinforce_pp": "REINFORCE++, returns normalised over the batch",
    "online_dpo": "DPO on pairs of the policy's own responses",
    "expert_iteration": "imitation of the best of n",
    "dpo": "DPO on the votes",
    "ipo": "IPO on the votes",
    "kto": "KTO on the votes read as labels",
    "ilql": "implicit Q-learning on scored samples",
}


for _method, _says in _METHODS.items():
    _stage_command(
        _method, f"Run a configuration up to the policy optimised by {_says}.", f"algorithm={_method}", panel=METHODS
    )

_stage_command("evaluate", "Run a configuration up to the comparison of the policies.")


@app.command(rich_help_panel=STATIONS, epilog="Example: karat report runs/demo")
def report(
    run_dir: RunDirectory,
    arenas: Annotated[
        list[str] | None,
        typer.Option("--arenas", metavar="STORE", help="A store with blind votes on this run's policies; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a finished run's report, audit card and summary again, with what people have said of its policies since."""

    def work(progress: Any) -> Any:
        from karat.pipeline.arenas import report_run

        return report_run(run_dir, stores=arenas or [], progress=progress)

    shown(work, as_json)


@app.command(rich_help_panel=STATIONS, epilog="Example: karat audit runs/demo --look-inside")
def audit(
    run_dir: RunDirectory,
    look_inside: Annotated[
        bool, typer.Option("--look-inside", help="Words, concepts and an atlas of the reward model.")
    ] = False,
    attributed: Annotated[int, typer.Option(max=MOST, help="Responses attributed to their words.")] = 48,
    activations: Annotated[int, typer.Option(max=MOST, help="Responses that concept vectors are made of.")] = 400,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Ask a finished run, or a reward of `karat reward --store`, a question; the answers are findings, kept with a manifest and shown in the report."""
    if not look_inside:
        raise ConfigError("audit: found no question; expected --look-inside")
    from karat.audit.inside import LookSettings
    from karat.devices import on_device
    from karat.pipeline.looking import inspect_run
    from karat.progress import open_progress

    settings = LookSettings(n_attributed=attributed, n_activations=activations)
    with on_device(device), open_progress() as progress:
        found = inspect_run(run_dir, settings, progress=progress)
    lines = [f"{one['status']:<12} {one['name']}: {one['detail']}" for one in found["findings"]]
    answer(as_json, found, [*lines, f"report: {found['directory']}/{found['report']}"])
