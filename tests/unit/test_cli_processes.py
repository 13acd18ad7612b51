"""Starting a command in several processes: who is told what, and that one which fails ends the others."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from karat import cli, ranks
from karat.cli import processes

TELLS = """
import json, os, sys
print("said by", os.environ["RANK"], flush=True)
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "KARAT_SPOKEN_FOR")
open(sys.argv[1] + os.environ["RANK"], "w").write(json.dumps({name: os.environ[name] for name in names}))
"""
FAILS = """
import os, signal, sys, time
if os.environ["RANK"] == sys.argv[1]:
    os.kill(os.getpid(), signal.SIGKILL) if sys.argv[2] == "killed" else sys.exit(int(sys.argv[2]))
time.sleep(100_000)  # longer than a test may last
"""


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in (*ranks.WORLD, *ranks.RANK, *ranks.LOCAL_RANK, "OMP_NUM_THREADS", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(processes, "GRACE_S", 0.3)


def test_each_process_knows_its_place_and_the_first_alone_speaks(tmp_path: Path, capfd):
    assert processes.start([f"{tmp_path}/"], 3, program=["-c", TELLS]) == 0
    told = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(3)]
    assert [one["RANK"] for one in told] == [one["LOCAL_RANK"] for one in told] == ["0", "1", "2"]
    assert {one["WORLD_SIZE"] for one in told} == {"3"}
    assert len({(one["MASTER_ADDR"], one["MASTER_PORT"]) for one in told}) == 1
    assert all(int(one["OMP_NUM_THREADS"]) >= 1 for one in told)
    assert {one[ranks.SPOKEN_FOR] for one in told} == {"1"}
    assert capfd.readouterr().out == "said by 0\n"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("rank", ["0", "1"])
def test_one_that_fails_ends_the_others(rank: str):
    assert processes.start([rank, "3"], 2, program=["-c", FAILS]) == 3


@pytest.mark.parametrize(("rank", "said"), [("0", "karat: process 0 of 2 was ended by signal 9\n"), ("1", "")])
@pytest.mark.usefixtures("impatient")
def test_one_that_is_killed_ends_the_others(capsys, rank: str, said: str):
    """The first keeps the list of who has complained; when another is killed it is the first that says so."""
    assert processes.start([rank, "killed"], 2, program=["-c", FAILS]) == 128 + 9
    assert capsys.readouterr().err == said


@pytest.mark.usefixtures("impatient")
def test_an_interruption_ends_them_all(monkeypatch):
    started = []
    watched = processes._watched

    def interrupted(running):
        started.extend(running)
        monkeypatch.setattr(processes, "_watched", watched)
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "_watched", interrupted)
    with pytest.raises(KeyboardInterrupt):
        processes.start(["5", "0"], 2, program=["-c", FAILS])
    assert [process.poll() is not None for process in started] == [True, True]


@pytest.mark.parametrize(("spoken_for", "said"), [(False, 1), (True, 0)])
def test_an_interruption_is_said_once(monkeypatch, capsys, spoken_for: bool, said: int):
    """By the process that a person started, not by it and the first of those that it started."""

    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    if spoken_for:
        monkeypatch.setenv(ranks.SPOKEN_FOR, "1")
    monkeypatch.setattr(cli.typer.main, "get_command", lambda _: SimpleNamespace(main=interrupted))
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err.count("karat: interrupted; ") == said


def test_a_command_starts_itself_again_with_its_own_arguments(monkeypatch, tmp_path):
    calls = []
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("sandbox: {}\n", encoding="utf-8")
    monkeypatch.setattr(processes, "start", lambda arguments, n: calls.append((arguments, n)) or 7)
    given = ["run", "c.yaml", "--processes", "2", "--set", "seed=3"]
    assert cli.main(given) == 7
    assert cli.main(["demo", "--processes", "3"]) == 7
    assert calls == [(given, 2), (["demo", "--processes", "3"], 3)]
    assert cli.main(["run", "c.yaml", "--processes", "2", "--set", "sede=3"]) == 2  # once, not in each of them
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("world", "given", "says"),
    [("1", "0", "found 0; expected at least 1"), ("4", "2", "found 2, in one of 4 processes that a launcher started")],
)
def test_a_number_that_cannot_be_is_one_line(monkeypatch, capsys, world: str, given: str, says: str):
    monkeypatch.setenv("WORLD_SIZE", world)
    assert cli.main(["run", "c.yaml", "--processes", given]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_a_model_of_its_own_is_sampled_in_one_process(capsys):
    for command in ("collect", "reward"):
        assert cli.main([command, "--model", "m", "--processes", "2"]) == 2
        assert "found several processes; expected one, or a configuration" in capsys.readouterr().err


def test_what_a_launcher_says_is_read_from_whichever_it_is(monkeypatch):
    assert (ranks.launched(), ranks.launched_rank(), ranks.speaks()) == (1, None, True)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "0")
    found = (ranks.launched(), ranks.launched_rank(), ranks.launched_local_rank(), ranks.speaks())
    assert found == (2, 1, 0, False)
    monkeypatch.setenv("RANK", "0")  # a launcher within a launcher: the inner one counts
    assert ranks.launched_rank() == 0


def test_shards_want_several_processes(monkeypatch, capsys):
    for given in (["run", "c.yaml"], ["demo", "--processes", "1"], ["ppo", "c.yaml"]):
        assert cli.main([*given, "--fsdp"]) == 2
        err = capsys.readouterr().err
        assert "--fsdp: found one process; expected several" in err
        assert err.count("\n") == 1
    assert cli.main(["reward", "--model", "m", "--fsdp"]) == 2
    assert not processes.in_shards(False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # of one process there is nothing to part
    assert not processes.in_shards(False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes.in_shards(False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    assert (processes.in_shards(False), processes.in_shards(True)) == (False, True)


def test_an_interrupted_process_ends_without_taking_the_interpreter_apart(monkeypatch):
    ended = []
    monkeypatch.setattr(processes.os, "_exit", ended.append)
    with pytest.raises(SystemExit):
        processes.leave(cli.INTERRUPTED)
    assert ended == [130]


def test_a_process_that_held_shards_ends_without_taking_the_interpreter_apart(monkeypatch):
    ended = []
    monkeypatch.setattr(processes.os, "_exit", ended.append)
    monkeypatch.setattr(processes, "_holds_shards", False)
    with pytest.raises(SystemExit) as alone:  # the one that starts the others
        processes.leave(3)
    assert (alone.value.code, ended) == (3, [])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes.in_shards(True)
    with pytest.raises(SystemExit):
        processes.leave(4)  # os._exit does not return, its stand-in does
    assert ended == [4]
