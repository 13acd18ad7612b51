"""Ctrl-C, SIGKILL and a full disk at every stage: the same command continues, and the policy is the same to the bit."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from journeys import SANDBOX, STAGES, Outcome, karat, manifests, n_votes, weights, write_config

from karat import progress
from karat.ledger import artifacts

SHOWN = {
    "base model": "base", "sft": "sft", "samples": "collect", "votes": "collect", "reward model": "reward",
    "ppo": "ppo", "evaluate sft": "evaluate", "evaluate ppo": "evaluate",
}  # fmt: skip
"""What the progress display calls a piece of work, and the stage that it belongs to."""


def same_result(run: Path, finished: Path) -> None:
    """The run ended as the uninterrupted one did, model by model, and every recorded byte is as it was."""
    for model in ("base", "sft", "reward", "ppo"):
        assert weights(run / "models" / model) == weights(finished / "runs/tiny/models" / model), model
    assert n_votes(run) == n_votes(finished / "runs/tiny")
    assert (run / "evaluation.json").read_bytes() == (finished / "runs/tiny/evaluation.json").read_bytes()
    assert karat("verify", run).code == 0
    left = [path.name for path in run.rglob("*") if path.name.startswith((".partial", ".")) and path.name != ".lock"]
    assert left == []


def test_ctrl_c_at_any_stage_and_the_same_command_continues(here: Path, finished: Path, monkeypatch):
    config, run = write_config(SANDBOX), here / "runs" / "tiny"
    reach = progress._LineStage._reach
    for name, stage in SHOWN.items():

        def stop(bar: progress._LineStage, done: float, figures, name: str = name) -> None:
            reach(bar, done, figures)
            if bar.name == name:
                raise KeyboardInterrupt

        before, votes = manifests(run), n_votes(run)
        with monkeypatch.context() as patch:
            patch.setattr(progress._LineStage, "_reach", stop)
            stopped = karat("run", config)
        assert stopped.code == 130, name
        assert stopped.err.endswith("karat: interrupted; the same command continues where it stopped\n")
        assert "Traceback" not in stopped.err
        assert stopped.out == ""
        after = manifests(run)
        assert {key: after[key] for key in before} == before
        assert set(after) == set(STAGES[: STAGES.index(stage)])
        assert n_votes(run) >= votes
    before = manifests(run)
    assert karat("run", config).code == 0
    after = manifests(run)
    assert {key: after[key] for key in before} == before
    same_result(run, finished)


FULL = {
    "prompts.jsonl": "source", "base": "base", "sft": "sft", "sft_samples.jsonl": "collect", "votes": "collect",
    "collect.json": "collect", "reward": "reward", "step-00000002": "ppo", "evaluation.json": "evaluate",
    "report.html": "",
}  # fmt: skip
"""A file or directory that is about to take its place when the disk fills up, and the stage that writes it."""


def test_a_full_disk_at_any_stage_is_one_line_and_the_same_command_continues(here: Path, finished: Path, monkeypatch):
    config, run = write_config(SANDBOX), here / "runs" / "tiny"
    replace = os.replace
    for name, stage in FULL.items():

        def refuse(source, target, *, name: str = name, **options) -> None:
            if Path(target).name == name:
                raise OSError(errno.ENOSPC, "No space left on device", str(source))
            replace(source, target, **options)

        before = manifests(run)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", refuse)
            full = karat("run", config)
        assert any(words in full.complaint for words in ("the disk is full", "No space left on device")), name
        after = manifests(run)
        assert {key: after[key] for key in before} == before
        assert stage not in after
        if stage:
            assert set(after) == set(STAGES[: STAGES.index(stage)])
    assert karat("run", config).code == 0
    same_result(run, finished)


@pytest.mark.parametrize("stage", ["base", "sft", "ppo"])
def test_a_disk_that_fills_up_while_weights_are_written(copied: Path, finished: Path, monkeypatch, stage: str):
    import safetensors.torch
    import transformers.modeling_utils
    from safetensors import SafetensorError

    run = copied / "runs" / "tiny"
    (run / "manifests" / f"{stage}.json").unlink()

    def refuse(*_, **__) -> None:
        # what the library raises on a disk that is full
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        for module in (safetensors.torch, transformers.modeling_utils, sys.modules["karat.lm.loop"]):
            for name in ("save_file", "safe_save_file"):
                if name in vars(module):
                    patch.setattr(module, name, refuse)
        full = karat("run", "tiny.yaml")
    assert "the disk is full" in full.complaint
    assert stage not in manifests(run)
    assert karat("run", "tiny.yaml").code == 0
    same_result(run, finished)


def test_a_full_disk_while_the_store_is_written(here: Path, monkeypatch):
    """SQLite's own words for it become the same line."""
    import sqlite3

    import sqlalchemy.exc

    from karat.feedback import store
    from karat.feedback.engine import one_line

    def refuse(self, _):
        with one_line(self.address):
            raise sqlalchemy.exc.OperationalError("insert", {}, sqlite3.OperationalError("database or disk is full"))

    with monkeypatch.context() as patch:
        patch.setattr(store.Store, "write", refuse)
        full = karat("collect", write_config(SANDBOX))
    assert "the disk is full" in full.complaint
    assert "collect" not in manifests(here / "runs/tiny")
    assert n_votes(here / "runs/tiny") == 0
    assert karat("collect", "tiny.yaml").code == 0


def kill_during(name: str, delay_s: float, *command: str) -> None:
    """Start the command in a process of its own and kill it `delay_s` after it says that it has begun `name`.

    On a fast machine that may already be the next piece of work, or the end; what is asked of the run is the same.
    """
    code = "import sys; from karat.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", code, *command], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env=environment,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(f"{name}: started"):
                time.sleep(delay_s)
                break
        process.send_signal(signal.SIGKILL)
        process.communicate()


def killed_and_continued(run: Path, name: str, delay_s: float) -> None:
    """Kill the run in one piece of work; what was finished stays as it was."""
    before, votes = manifests(run), n_votes(run)
    kill_during(name, delay_s, "run", "tiny.yaml")
    after = manifests(run)
    assert {key: after[key] for key in before} == before
    assert n_votes(run) >= votes


def test_sigkill_twice_loses_nothing_and_ends_in_the_same_bits(here: Path, finished: Path):
    write_config(SANDBOX)
    run = here / "runs" / "tiny"
    killed_and_continued(run, "votes", 0.02)
    killed_and_continued(run, "ppo", 0.3)
    before = manifests(run)
    continued: Outcome = karat("run", "tiny.yaml")
    assert continued.code == 0, continued.err
    after = manifests(run)
    assert {key: after[key] for key in before} == before
    same_result(run, finished)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_sigkill_at_a_random_moment_of_every_stage(here: Path, finished: Path, seed: int):
    write_config(SANDBOX)
    run, moments = here / "runs" / "tiny", random.Random(seed)
    for name in SHOWN:
        killed_and_continued(run, name, moments.uniform(0, 0.4))
    assert karat("run", "tiny.yaml").code == 0
    same_result(run, finished)


def test_two_processes_cannot_work_in_one_run(copied: Path):
    from karat.ledger.manifest import lock_run

    with lock_run(copied / "runs" / "tiny"):
        assert "another karat process is working in this run" in karat("run", "tiny.yaml").complaint


def test_an_altered_output_is_made_again_and_a_damaged_manifest_is_not_overwritten(copied: Path, finished: Path):
    run = copied / "runs" / "tiny"
    artifacts.write_text(run / "evaluation.json", "{}")
    assert karat("run", "tiny.yaml").code == 0
    same_result(run, finished)
    damaged = run / "manifests" / "ppo.json"
    damaged.write_text("{")
    assert "damaged manifest" in karat("run", "tiny.yaml").complaint
    assert damaged.read_text() == "{"
