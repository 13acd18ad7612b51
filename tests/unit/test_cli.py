"""The command line: results on standard output, one line for a wrong input, exit codes, nothing half-written."""

import dataclasses
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from karat import cli
from karat.config import apply_overrides, build, load_yaml, plain
from karat.errors import ConfigError, GateError
from karat.ledger import artifacts
from karat.ledger.manifest import Manifest, write_manifest
from karat.pipeline import configured

COMMANDS = (
    "demo", "init", "run", "sft", "collect", "reward", "ppo", "generate", "evaluate", "report", "verify", "trace",
    "import", "export", "score", "personalise", "doctor", "chat", "compare", "audit", "rloo", "grpo", "reinforce-pp", "online-dpo",
    "expert-iteration", "dpo", "ipo", "kto", "ilql", "best-of-n",
)  # fmt: skip


def outcome(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "runs" / "demo"
    artifacts.write_text(run / "models" / "sft" / "weights", "w")
    sft = artifacts.ref_of(run, Path("models/sft"), "model", "model")
    artifacts.write_text(run / "models" / "ppo" / "weights", "v")
    ppo = artifacts.ref_of(run, Path("models/ppo"), "model", "model")
    for stage, inputs, outputs, second in (("sft", (), (sft,), 0), ("ppo", (sft,), (ppo,), 1)):
        moment = f"2026-01-01T00:00:0{second}Z"
        write_manifest(run, Manifest("demo", stage, inputs, outputs, {}, {}, {}, None, moment, moment, 1.0))
    return run


@pytest.fixture
def pipeline(monkeypatch):
    """Stands in for what does the work of karat.pipeline and records how it is called; every configuration is a right one."""
    calls: list[tuple[str, tuple, dict]] = []
    summary = {
        "directory": "runs/demo",
        "unsafe": [],
        "policies": {"sft": {"gold": {"value": 0.4, "low": 0.3, "high": 0.5, "n": 9, "method": "m"}}},
        "report": "report.html",
    }

    class Pipeline:
        def __getattr__(self, name: str):
            def call(*arguments, **options):
                calls.append((name, arguments, options))
                options.get("progress") and options["progress"].note("working")
                return summary

            return call

    for module in ("runs", "arenas"):
        monkeypatch.setitem(sys.modules, f"karat.pipeline.{module}", Pipeline())
    for reader in ("read_configs", "demo_config"):
        monkeypatch.setattr(configured, reader, lambda *_, **__: None)
    return calls


def test_no_arguments_shows_every_command(capsys):
    code, out, _ = outcome(capsys)
    assert code == 0
    assert all(f" {name} " in out for name in COMMANDS)


def test_every_command_stands_in_a_panel_and_every_argument_in_capitals():
    def commands(group, at=()):
        for name, one in group.commands.items():
            yield (*at, name), one
            yield from commands(one, (*at, name)) if hasattr(one, "commands") else ()

    found = dict(commands(typer.main.get_command(cli.app)))
    assert [name for name, one in found.items() if len(name) == 1 and not one.rich_help_panel] == []
    arguments = {
        (*name, parameter.name): parameter.metavar
        for name, one in found.items()
        for parameter in one.params
        if parameter.param_type_name == "argument"
    }
    wrong = {name: shown for name, shown in arguments.items() if not re.fullmatch("[A-Z_]+", shown or "")}
    assert wrong == {}  # the brackets of one that may be left out are typer's own


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(capsys, name: str):
    code, out, _ = outcome(capsys, name, "--help")
    assert code == 0
    assert f"Example: karat {name}" in out
    assert "--json" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nosuch"], "No such command"),
        (["verify"], "Missing argument 'RUN'"),
        (["demo", "--seed", "one"], "Invalid value for '--seed'"),
        (["demo", "--fault", "gravity"], "no-kl"),
        (["run", "c.yaml", "--seeds", "4-0"], "--seeds 4-0: expected numbers like"),
        (["import", "votes", "--format", "ukp"], "found no --texts"),
        (["verify", "nowhere.db"], "nowhere.db: nothing is there; expected a run, a model, a store, a backup or"),
        (
            ["import", "votes", "--format", "hh", "--texts", "t"],
            "found --texts; expected it with answers, votes, ukp alone",
        ),
        (["import", "votes", "--format", "answers", "--scale", "1-7"], "found --scale; expected it with argilla"),
        (
            ["import", "votes.csv", "--format", "votes"],
            "found the table votes.csv; expected JSON lines (--format answers",
        ),
        (["import", "votes", "--format", "argilla", "--scale", "1-²"], "--scale 1-²: expected two numbers like 1-5"),
        (["export", "nowhere", "--out", "x", "--format", "votes"], "nothing is there"),
        (["trace", "{run}", "--affected"], "expected a path, hash, stage"),
        (["trace", "{run}", "gold"], "found no artefact 'gold'"),
        (["score", "{run}", "nowhere.jsonl", "--out", "s.jsonl"], "nowhere.jsonl"),
        (["generate", "{run}", "nowhere.jsonl", "--out", "s.jsonl"], "nowhere.jsonl"),
        (["best-of-n", "{run}", "nowhere.jsonl", "--score", "{run}", "--out", "s.jsonl"], "nowhere.jsonl"),
        (
            ["collect", "--model", "m", "--prompts", "p", "--kind", "label", "--question", "q.yaml"],
            "--question and --kind",
        ),
        (["verify", "{run}/models"], "expected the directory of a run"),
        (["odd", "{run}/nowhere"], "expected the directory of a run"),
        (["verify", "{run}", "--opened", "x"], "expected an auditor's bundle"),
        (["verify", "{run}", "--against", "x"], "expected a store"),
        *(
            ([*command, "nowhere.db", *more], "nowhere.db: nothing is there")
            for command, more in (
                (["seal"], []),
                (["quality"], []),
                (["bundle"], ["--out", "x"]),
                (["backup"], ["--out", "x"]),
                (["erase"], ["ann", "--reason", "asked"]),
                (["disclose"], ["1", "--out", "x"]),
                (["people", "list"], []),
                (["experiment"], []),
                (["checks", "failed"], []),
            )
        ),
        (["init", "{run}"], "is already there"),
    ],
)
def test_a_wrong_input_is_one_line_and_exit_code_2(capsys, run: Path, arguments, words: str):
    code, out, err = outcome(capsys, *[argument.replace("{run}", str(run)) for argument in arguments])
    assert (code, out) == (2, "")
    assert err.startswith("karat: ")
    assert err.count("\n") == 1
    assert words in err


def test_what_is_quoted_in_a_complaint_does_not_command_the_terminal(capsys):
    code, _, err = outcome(capsys, "chat", "no\x1b[2J model")
    assert (code, err.partition(": found")[0]) == (2, r"karat: no\x1b[2J model")


@pytest.mark.parametrize(
    ("command", "holds"),
    [
        (("import", "v.jsonl", "--format", "votes"), "nothing was written, and the same command begins anew"),
        (
            ("export", "k.db", "--format", "votes", "--out", "v.jsonl"),
            "nothing was written, and the same command begins anew",
        ),
        (("judge", "k.db", "m", "--endpoint", "http://127.0.0.1:1"), "the same command continues where it stopped"),
    ],
)
def test_who_interrupts_is_told_what_holds(capsys, monkeypatch, command, holds):
    import karat.feedback.store as store

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    for name in ("store_to_fill", "open_store"):
        monkeypatch.setattr(store, name, interrupt)
    assert outcome(capsys, *command)[::2] == (130, f"\nkarat: interrupted; {holds}\n")


def test_what_stops_a_command_decides_its_exit_code(capsys, monkeypatch, run: Path):
    import karat.ledger.manifest as manifest

    def stopping(error: BaseException):
        def stop(_):
            raise error

        monkeypatch.setattr(manifest, "verify_run", stop)
        return outcome(capsys, "verify", str(run))

    code, _, err = stopping(GateError("reward model: failed\nits gate"))
    assert (code, err) == (2, "karat: reward model: failed its gate\n")
    code, _, err = stopping(KeyboardInterrupt())
    assert (code, err) == (130, "\nkarat: interrupted; nothing was written, and the same command begins anew\n")
    code, _, err = stopping(OSError(errno.ENOSPC, "No space left", "runs/demo/x"))
    assert (code, err.count("\n")) == (2, 1)
    assert "runs/demo/x: the disk is full" in err
    torch_says = "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
    for error in (MemoryError(), RuntimeError(torch_says), MemoryError("Unable to allocate 7.28 TiB for an array")):
        code, _, err = stopping(error)
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith(f"karat: the memory does not suffice ({str(error)[:20]}")
        assert "ask for less at once" in err
    code, _, err = stopping(PermissionError(errno.EACCES, "Permission denied", "runs/demo"))
    assert (code, err) == (2, "karat: runs/demo: Permission denied; expected a place that can be read and written\n")
    with pytest.raises(PermissionError):
        stopping(PermissionError(errno.EACCES, "denied"))
    with pytest.raises(ZeroDivisionError):
        stopping(ZeroDivisionError())


def test_a_reader_who_has_enough_is_no_error(run: Path):
    code = "import sys; from karat.cli import main; sys.exit(main(['trace', sys.argv[1]]))"
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run([sys.executable, "-c", code, str(run)], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert result.returncode != 0
    assert result.stderr == ""


def test_verify_says_yes_or_names_the_file(capsys, run: Path):
    code, out, err = outcome(capsys, "verify", str(run))
    assert (code, err) == (0, "")
    assert "2 stages, 2 artefacts, every recorded byte as it was" in out
    (run / "models" / "ppo" / "weights").write_text("V")
    code, out, _ = outcome(capsys, "verify", str(run))
    assert code == 1
    assert out.startswith("altered    models/ppo/weights")
    code, out, _ = outcome(capsys, "verify", str(run), "--json")
    answer = json.loads(out)
    assert (code, answer["ok"], answer["problems"][0]["path"]) == (1, False, "models/ppo/weights")


def test_trace_shows_the_tree_and_the_other_way_round(capsys, run: Path):
    code, out, _ = outcome(capsys, "trace", str(run))
    assert code == 0
    assert [line.split("  [")[0] for line in out.splitlines()] == ["models/ppo", "  models/sft"]
    _, out, _ = outcome(capsys, "trace", str(run), "models/ppo", "--json")
    (tree,) = json.loads(out)["trees"]
    assert tree["fed_by"][0]["artefact"]["path"] == "models/sft"
    _, out, _ = outcome(capsys, "trace", str(run), "sft", "--affected")
    assert out.startswith("models/ppo  [tree:")
    _, out, _ = outcome(capsys, "trace", str(run), "ppo", "--affected")
    assert out == "ppo: nothing was made from it\n"


VOTES = [
    {"prompt": "Which?", "a": "this", "b": "that", "choice": "a", "annotator": "ann"},
    {"prompt": "Which?", "a": "this", "b": "that", "choice": "tie", "annotator": "bob"},
]


def voted_run(capsys, tmp_path: Path) -> Path:
    """A run of two votes with its snapshot."""
    source, run = tmp_path / "votes.jsonl", tmp_path / "run"
    source.write_text("\n".join(json.dumps(vote) for vote in VOTES))
    store = run / "karat.db"
    run.mkdir()
    code, out, _ = outcome(capsys, "import", str(source), "--format", "votes", "--store", str(store), "--json")
    assert (code, json.loads(out)["n_new"]) == (0, 2)
    code, out, _ = outcome(capsys, "export", str(store), "--format", "votes", "--out", str(tmp_path / "back.jsonl"))
    assert code == 0
    back = [json.loads(line) for line in (tmp_path / "back.jsonl").read_text().splitlines()]
    assert {(row["annotator"], row["prompt"][0]["content"]) for row in back} == {("ann", "Which?"), ("bob", "Which?")}

    from karat.feedback.snapshot import write_snapshot
    from karat.feedback.store import open_store

    with open_store(store) as opened:
        write_snapshot(opened, run / "snapshots" / "main")
    reference = artifacts.ref_of(run, Path("snapshots/main"), "snapshot", "snapshot")
    write_manifest(run, Manifest("demo", "collect", (), (reference,), {}, {}, {}, None, "", "", 1.0))
    return run


def test_votes_go_in_out_and_down_to_their_ids_in_a_trace(capsys, tmp_path: Path):
    run = voted_run(capsys, tmp_path)
    store = run / "karat.db"
    code, out, _ = outcome(capsys, "trace", str(run))
    assert code == 0
    assert "votes 2; raters 2" in out
    _, out, _ = outcome(capsys, "trace", str(run), "--judgements", "--json")
    assert len(json.loads(out)["trees"][0]["facts"]["judgements"]) == 2
    pairs = tmp_path / "pairs.jsonl"
    code, _, err = outcome(
        capsys, "export", str(run / "snapshots" / "main"), "--format", "standard", "--out", str(pairs)
    )
    assert (code, err) == (0, "")
    assert json.loads(pairs.read_text()) == {"prompt": "Which?", "chosen": "this", "rejected": "that"}
    code, _, err = outcome(capsys, "export", str(store), "--format", "standard", "--out", str(tmp_path / "x"))
    assert (code, (tmp_path / "x").exists()) == (2, False)
    assert "expected a snapshot" in err


def test_a_snapshot_in_the_place_of_a_store_and_the_other_way_round_is_said_with_what_to_give(capsys, tmp_path: Path):
    run = voted_run(capsys, tmp_path)
    snapshot = run / "snapshots" / "main"
    for place in (snapshot, snapshot / "snapshot.json", snapshot / "judgements.jsonl"):
        code, _, err = outcome(capsys, "export", str(place), "--format", "datasets", "--out", str(tmp_path / "x"))
        said = f"found a snapshot; expected the store or run that it was taken from, {run}"
        assert (code, (tmp_path / "x").exists()) == (2, False)
        assert err == (
            f"karat: export --format datasets: {place}: {said}; of a snapshot itself there is --format conversational or standard\n"
        )
        assert outcome(capsys, "quality", str(place))[2] == f"karat: {place}: {said}\n"
    for place, found in ((run, "no snapshot.json in it"), (snapshot / "snapshot.json", "a file")):
        code, _, err = outcome(capsys, "export", str(place), "--format", "standard", "--out", str(tmp_path / "x"))
        assert (code, err) == (
            2,
            f"karat: {place}: found {found}; expected the directory of a snapshot, as {snapshot} is\n",
        )


def test_a_bad_row_imports_nothing(capsys, tmp_path: Path):
    source = tmp_path / "votes.jsonl"
    source.write_text(json.dumps(VOTES[0]) + '\n{"prompt": "Which?"}\n')
    arguments = ("import", str(source), "--format", "votes", "--store", str(tmp_path / "karat.db"))
    code, out, err = outcome(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{source}:2" in err


def test_demo_names_its_run_after_what_is_special_about_it(capsys, pipeline):
    code, out, err = outcome(capsys, "demo", "--fault", "no-kl", "--seed", "3", "--set", "ppo.kl_coef=0")
    assert code == 0
    name, arguments, options = pipeline[0]
    assert (name, arguments) == ("run_demo", ("demo-no-kl-seed-3",))
    assert (options["fault"], options["seed"], options["overrides"]) == ("no-kl", 3, ["ppo.kl_coef=0"])
    assert out.splitlines()[-1] == "report: runs/demo/report.html"
    assert "0.40 (0.30 to 0.50)" in out
    assert err == "working\n"
    outcome(capsys, "demo")
    assert pipeline[1][1] == ("demo",)


def test_json_is_one_object_and_progress_goes_elsewhere(capsys, pipeline):
    code, out, err = outcome(capsys, "demo", "--json")
    assert code == 0
    assert json.loads(out)["report"] == "report.html"
    assert err == "working\n"
    assert len(pipeline) == 1


@pytest.mark.parametrize("stage", ["sft", "collect", "reward", "ppo", "evaluate"])
def test_stage_commands_run_a_configuration_up_to_there(capsys, pipeline, stage: str):
    assert outcome(capsys, stage, "c.yaml", "--seeds", "0-2,7")[0] == 0
    name, arguments, options = pipeline[0]
    assert (name, arguments, options["until"]) == ("run_config", (Path("c.yaml"),), stage)
    assert options["seeds"] == [0, 1, 2, 7]


@pytest.mark.parametrize("method", ["ppo", "rloo", "reinforce-pp", "online-dpo", "kto", "ilql"])
def test_a_method_is_a_command(capsys, pipeline, method: str):
    name = method.replace("-", "_")
    assert outcome(capsys, method, "c.yaml", "--set", "x=1")[0] == 0
    _, _, options = pipeline[0]
    assert (options["overrides"], options["until"]) == (["x=1", f"algorithm={name}"], name)


def test_a_method_is_a_key_of_the_configuration():
    from karat.pipeline.settings import RunConfig

    for name in ("ppo", "rloo", "reinforce_pp", "online_dpo", "ipo", "ilql"):
        chosen = build(RunConfig, {"sandbox": {}, "algorithm": name}).method
        assert getattr(chosen, "method", name) == name
    assert build(RunConfig, {"sandbox": {}, "algorithm": "ipo"}).method.loss == "ipo"
    assert build(RunConfig, {"sandbox": {}, "algorithm": "grpo", "group": {"scale": "batch"}}).method.scale == "batch"
    with pytest.raises(ConfigError, match="found group with rloo"):
        build(RunConfig, {"sandbox": {}, "algorithm": "rloo", "group": {"scale": "group"}})
    with pytest.raises(ConfigError, match="it is IPO's"):
        build(RunConfig, {"sandbox": {}, "algorithm": "dpo", "direct": {"per_token": True}})
    with pytest.raises(ConfigError, match="algorithm: found 'reinforce'; expected one of ppo, rloo"):
        build(RunConfig, {"sandbox": {}, "algorithm": "reinforce"})


def test_run_hands_over_sweeps_and_overrides(capsys, pipeline):
    outcome(capsys, "run", "c.yaml", "--sweep", "a.b=1,2", "--set", "x=1", "--set", "y=2")
    _, _, options = pipeline[0]
    assert (options["sweep"], options["overrides"], options["seeds"]) == (["a.b=1,2"], ["x=1", "y=2"], None)
    assert options["until"] is None


WRONG_KEYS = {
    ("run", "c.yaml", "--set", "ppo.n_iteration=3"): "did you mean 'ppo.n_iterations'?",
    ("run", "none.yaml"): "none.yaml: no such file",
    ("run", "c.yaml", "--sweep", "ppo.update.gamma=1,2"): "gamma=2.0",
    ("ppo", "c.yaml", "--set", "aggregator=mean"): "aggregator: found 'mean'",
    ("reward", "votes.yaml", "--set", "n_folds=1"): "n_folds: found 1",
    ("demo", "--set", "kl=1"): "unknown configuration key 'kl'",
    ("doctor", "c.yaml", "--set", "device=cuda:x"): "device: found 'cuda:x'",
}


@pytest.mark.parametrize("typed", list(WRONG_KEYS))
def test_what_is_wrong_with_a_configuration_is_said_before_a_library_of_models_is_waited_for(tmp_path, typed):
    (tmp_path / "c.yaml").write_text("sandbox: {}\n", encoding="utf-8")
    (tmp_path / "votes.yaml").write_text("votes: {path: votes.jsonl}\n", encoding="utf-8")
    code = (
        f"import sys\nfrom karat import cli\ncode = cli.main({list(typed)})\n"
        "print(code, [name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "2 []\n"
    assert WRONG_KEYS[typed] in done.stderr
    assert done.stderr.count("\n") == 1


def flat(section: dict, at: str = "") -> dict:
    return {
        key: value
        for name, own in section.items()
        for key, value in (flat(own, f"{at}{name}.") if isinstance(own, dict) else {f"{at}{name}": own}).items()
    }


def test_a_written_configuration_of_the_sandbox_is_the_demos_and_names_the_defaults(capsys, tmp_path: Path):
    from karat.pipeline.configured import DEMO
    from karat.pipeline.settings import RunConfig, SandboxSettings

    path = tmp_path / "config.yaml"
    code, out, _ = outcome(capsys, "init", str(path))
    assert code == 0
    assert str(path) in out
    assert build(RunConfig, load_yaml(path)) == build(RunConfig, load_yaml(DEMO) | {"name": "run"})
    text = path.read_text(encoding="utf-8")
    assert "# Peak learning rate of the trunk, AdamW. Default: 5.0e-05.\n  learning_rate: 0.001\n" in text
    written, usual = (
        flat(plain(one)) for one in (build(RunConfig, load_yaml(path)), RunConfig(sandbox=SandboxSettings()))
    )
    n_others = sum(written[key] != usual[key] for key in usual)
    assert " ".join(text.split()).count(" Default: ") == n_others > 10
    for line, below in zip(text.splitlines(), text.splitlines()[1:], strict=False):
        assert (
            not line
            or line.lstrip().startswith("#")
            or not below
            or below.lstrip().startswith("#")
            or line.endswith(":")
        )
    code, _, err = outcome(capsys, "init", str(tmp_path / "other.yaml"), "--source", "nowhere")
    assert (code, (tmp_path / "other.yaml").exists()) == (2, False)
    assert "'sandbox', 'preferences', 'people', 'votes'" in err


def test_a_written_configuration_of_votes_is_the_default_one(capsys, tmp_path: Path):
    from karat.pipeline.votes import VotesConfig, VotesSettings
    from karat.starter import PLACEHOLDER

    path = tmp_path / "votes.yaml"
    code, out, _ = outcome(capsys, "init", str(path), "--source", "votes")
    assert code == 0
    assert str(path) in out
    with pytest.raises(ConfigError, match=f"^votes.path: found {PLACEHOLDER}; expected a value of your own"):
        build(VotesConfig, load_yaml(path))
    filled = apply_overrides(load_yaml(path), ["votes.path=v.jsonl"])
    assert build(VotesConfig, filled) == VotesConfig(VotesSettings(Path("v.jsonl")))
    assert "# The votes, .jsonl or .jsonl.gz.\n  path:" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("source", "blanks"),
    [
        ("sandbox", []),
        ("people", ["people.prompts", "people.model"]),
        ("preferences", ["preferences.path", "preferences.model"]),
        ("votes", ["votes.path"]),
    ],
)
def test_whoever_begins_is_told_what_to_fill_in(capsys, tmp_path: Path, source, blanks):
    code, out, _ = outcome(capsys, "init", str(tmp_path / "c.yaml"), "--source", source)
    assert code == 0
    assert f"written; {'fill in ' + ' and '.join(blanks) if blanks else 'change what you need'}, then: karat run" in out
    if blanks:
        code, _, err = outcome(capsys, "run", str(tmp_path / "c.yaml"))
        assert (code, f"karat: {blanks[0]}: found PLEASE-FILL-IN; expected a value of your own" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--sweep", "n_folds=2,3"], "found --sweep n_folds=2,3 for a configuration of `votes`"),
        (["ppo"], "found the station 'ppo' for a configuration of `votes`"),
        (["collect"], "expected `karat run` or `karat reward`"),
    ],
)
def test_a_configuration_of_votes_refuses_what_it_cannot_do(capsys, tmp_path: Path, arguments, words: str):
    path = tmp_path / "votes.yaml"
    path.write_text("votes: {path: nowhere.jsonl}\n", encoding="utf-8")
    code, out, err = outcome(capsys, arguments[0], str(path), *arguments[1:])
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_doctor_fails_only_over_what_is_needed(capsys, monkeypatch):
    from karat import doctor

    checks = [doctor.Check("torch", True, "2"), doctor.Check("extra", False, "none", needed=False)]
    monkeypatch.setattr(doctor, "examine", lambda: checks)
    code, out, _ = outcome(capsys, "doctor", "--json")
    assert (code, json.loads(out)["extra"]["ok"]) == (0, False)
    assert outcome(capsys, "doctor")[1] == "ok       torch: 2\noptional extra: none\n"
    monkeypatch.setattr(doctor, "examine", lambda: [dataclasses.replace(checks[0], ok=False)])
    code, out, _ = outcome(capsys, "doctor")
    assert (code, out) == (1, "missing  torch: 2\n")


def test_seeds_are_read_as_people_write_them():
    assert cli.parse_seeds("0") == [0]
    assert cli.parse_seeds("0-4") == [0, 1, 2, 3, 4]
    assert cli.parse_seeds("3,1,3-4") == [3, 1, 4]
    for wrong in ("", "-1", "a", "2-1", "1,,2", "²", "0-²"):
        with pytest.raises(ConfigError, match="expected numbers"):
            cli.parse_seeds(wrong)
    with pytest.raises(ConfigError, match="expected at most 1,000,000 seeds"):
        cli.parse_seeds("0-1000000000000")


def test_a_wrong_use_points_to_the_help_of_its_command(capsys):
    assert "see `karat people add --help`" in outcome(capsys, "people", "add", "a.db", "ann")[2]
    assert "see `karat --help`" in outcome(capsys, "nosuch")[2]


def test_errors_of_usage_are_recognised_by_their_root():
    assert issubclass(typer.BadParameter, cli.UsageError)
    assert cli.UsageError is not Exception


@pytest.mark.parametrize(
    "arguments",
    [["people", "add"], ["serve"], ["people", "study"]],
)
def test_a_run_that_is_not_there_makes_no_store_in_its_place(capsys, tmp_path: Path, arguments):
    place = tmp_path / "runs" / "own"
    place.parent.mkdir()
    more = ["pilot"] if "study" in arguments else []
    code, _, err = outcome(capsys, *arguments, str(place), *more)
    assert (code, place.exists()) == (2, False)
    assert "found neither a run nor a store; expected a run that `karat run` has begun" in err


def test_the_store_of_a_run_that_is_about_to_begin_is_made_with_its_directory(capsys, tmp_path: Path):
    place = tmp_path / "runs" / "own" / "karat.db"
    code, out, _ = outcome(capsys, "people", "add", str(place))
    assert (code, place.is_file()) == (0, True)
    assert "/invite/" in out


def test_a_choice_that_there_is_none_of_is_said_in_the_users_words(capsys):
    code, _, err = outcome(capsys, "score", "model", "answers.jsonl", "--out", "x", "--suite", "rm-bench")
    assert code == 2
    assert err.startswith("karat: Invalid value for '--suite': 'rm-bench' is not one of 'rewardbench'")


def test_agreement_that_is_undefined_says_why_once(tmp_path, capsys):
    store = str(tmp_path / "judged.db")
    votes = tmp_path / "votes.jsonl"
    votes.write_text('{"prompt": "Which?", "a": "x", "b": "y", "level": 2, "n_levels": 3, "annotator": "ann"}\n')
    assert outcome(capsys, "import", str(votes), "--format", "votes", "--store", store)[0] == 0
    code, out, _ = outcome(capsys, "quality", store)
    assert code == 0
    assert "agreement: undefined: no item has two votes\n" in out
