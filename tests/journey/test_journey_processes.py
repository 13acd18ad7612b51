"""The whole river in two processes: the figures of one, every byte recorded, and one line where something is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from journeys import SANDBOX, STAGES, karat, write_config

from karat import ranks
from karat.errors import LedgerError
from karat.ledger.manifest import lock_run

LAUNCHERS = {
    "karat": ["-m", "karat"],
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "karat"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m", "karat"],
}


def two(launcher: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command in two processes, one thread each."""
    said = {name for names in (ranks.WORLD, ranks.RANK, ranks.LOCAL_RANK) for name in names}
    environment = {name: value for name, value in os.environ.items() if name not in said} | {"OMP_NUM_THREADS": "1"}
    own = ["--processes", "2"] if launcher == "karat" else []
    command = [sys.executable, *LAUNCHERS[launcher], *map(str, arguments), *own]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def rows(run: Path, stage: str) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics" / f"{stage}.jsonl").read_text().splitlines()]


def same(mine: Sequence[dict], theirs: Sequence[dict]) -> None:
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]
    for one, other in zip(mine, theirs, strict=True):
        names = [name for name in one if name != "time" and not name.startswith("seconds/")]
        assert [other[name] for name in names] == pytest.approx([one[name] for name in names], abs=1e-4, rel=1e-4)


@pytest.mark.long
def test_two_processes_run_the_river_as_one_does(finished: Path, here: Path):
    outcome = two("karat", "run", write_config(SANDBOX), "--json")
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads(outcome.stdout)["run"] == "tiny"
    assert outcome.stderr.count("\nppo: done") == 1
    run, alone = here / "runs" / "tiny", finished / "runs" / "tiny"
    assert karat("verify", run).code == 0
    for stage in ("base", "sft", "reward", "ppo"):
        same(rows(alone, stage), rows(run, stage))
    assert (run / "data" / "sft_samples.jsonl").read_bytes() == (alone / "data" / "sft_samples.jsonl").read_bytes()
    notes = {stage: json.loads((run / "manifests" / f"{stage}.json").read_text())["notes"] for stage in STAGES}
    shared = [stage for stage in STAGES if "worked out by 2 processes" in notes[stage]]
    assert shared == [stage for stage in STAGES if stage != "source"]


@pytest.mark.long
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_other_launchers_start_it_too(finished: Path, launcher: str):
    outcome = two(launcher, "sft", write_config(SANDBOX))
    assert outcome.returncode == 0, outcome.stderr
    same(rows(finished / "runs" / "tiny", "sft"), rows(Path("runs/tiny"), "sft"))


@pytest.mark.long
@pytest.mark.usefixtures("here")
def test_what_is_wrong_for_all_is_said_once():
    outcome = two("karat", "run", write_config(SANDBOX | {"rounds": "many"}))
    assert outcome.returncode == 2
    assert [line for line in outcome.stderr.splitlines() if "rounds" in line] == outcome.stderr.splitlines()[-1:]
    assert "Traceback" not in outcome.stderr


@pytest.mark.long
def test_two_processes_are_killed_and_one_goes_on(finished: Path, here: Path):
    config = write_config(SANDBOX)
    process = subprocess.Popen(
        [sys.executable, *LAUNCHERS["karat"], "run", config, "--processes", "2"],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    run = here / "runs" / "tiny"
    while process.poll() is None and not list((run / "checkpoints" / "ppo" / "loop").glob("step-*")):
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while True:  # a process that was killed keeps its lock until it is gone
        with contextlib.suppress(LedgerError), lock_run(run):
            break
    assert not (run / "manifests" / "ppo.json").exists()
    outcome = karat("run", config)
    assert outcome.code == 0, outcome.err
    same(rows(finished / "runs" / "tiny", "ppo"), rows(run, "ppo"))
    assert karat("verify", run).code == 0
