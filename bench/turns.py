"""Two processes that take turns: how a bench compares programs that live in different environments.

Each side is a process of its own that waits until it is told to do one unit of work (an optimiser step, an iteration,
a batch of samples), does it, and says how long it took. Only one of them computes at a time, and the two sides of a
pair run within seconds of each other, so that whatever else the machine does disturbs both alike. Standard library
only: the worker's half also runs in the environments of the peers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "bench" / "work"
GO, END = "go\n", "end\n"
# nothing is fetched, and both sides compute on the processor
QUIET = {
    "CUDA_VISIBLE_DEVICES": "",
    "ACCELERATE_USE_CPU": "true",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class Finished(BaseException):
    """Raised in a worker when nothing more is wanted; no `except Exception` on the way keeps it."""


class Turns:
    """The worker's half: `begin` waits for a turn, `done` reports it."""

    def __init__(self) -> None:
        # what libraries print must not reach the channel
        self._channel = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._started = self._cpu = 0.0

    def begin(self, *, ready: Mapping[str, Any] | None = None, probe_scores: Sequence[float] = ()) -> None:
        """Wait for the next turn and start the clock; the first call also says that everything is loaded.

        Args: ready: versions.    probe_scores: how this side scores the responses that it was asked about.

        Raises: Finished when there is no next turn.
        """
        if ready is not None:
            self._send({"ready": dict(ready), "resident_mib": memory_mib("VmRSS"), "probe_scores": [*probe_scores]})
        if sys.stdin.readline() != GO:
            raise Finished
        self._started, self._cpu = time.perf_counter(), time.process_time()

    def done(self, units: float, **figures: Any) -> None:
        """Stop the clock; `units` of work were done since `begin`."""
        spent = {"seconds": time.perf_counter() - self._started, "cpu_seconds": time.process_time() - self._cpu}
        self._send({**spent, "units": units, **figures, "peak_mib": memory_mib("VmHWM")})

    def _send(self, message: Mapping[str, Any]) -> None:
        self._channel.write(json.dumps(message) + "\n")


def memory_mib(field: str) -> float:
    """Resident memory of this process now (VmRSS) or at its highest (VmHWM), MiB; nan where /proc has none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":")), float("nan"))


class Worker:
    """The parent's half: one process, started by `python -m module work.json`, driven turn by turn."""

    def __init__(self, python: str | Path, module: str, work: Path, *, threads: int, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.module, self.log = module, log
        count = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [str(python), "-m", module, str(work)],
                cwd=ROOT,
                env=os.environ | QUIET | count,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.peak_mib = self.resident_mib = float("nan")
        self.versions: dict[str, str] = {}
        self.probe_scores: list[float] = []

    def wait_ready(self) -> None:
        """Return when the worker has loaded everything; at once where that has been waited for before."""
        if self.versions:
            return
        message = self._receive()
        self.versions, self.resident_mib = message["ready"], message["resident_mib"]
        self.probe_scores = message["probe_scores"]

    def turn(self) -> dict[str, Any]:
        """Let the worker do one unit of work; its report."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(GO)
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()
        message = self._receive()
        self.peak_mib = message["peak_mib"]
        return message

    def close(self) -> None:
        """Tell the worker that nothing more is wanted, and wait for its end."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(END)
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else self._fail()

    def _fail(self) -> Any:
        code = self._process.wait()
        last = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        raise SystemExit(f"bench: {self.module} ended with code {code}: {last[-1] if last else ''} (see {self.log})")


def start_pair(
    name: str, work: Mapping[str, Any], ours: str, theirs: str, *, peer_python: str | Path, threads: int
) -> tuple[Worker, Worker]:
    """Both sides of a row, started on one work file: our module in this environment, the peer's in its own."""
    WORK.mkdir(parents=True, exist_ok=True)
    path = WORK / f"{name}.json"
    path.write_text(json.dumps(work), encoding="utf-8")
    logs = WORK / "logs"
    return (
        Worker(sys.executable, ours, path, threads=threads, log=logs / f"{name}-ours.txt"),
        Worker(peer_python, theirs, path, threads=threads, log=logs / f"{name}-theirs.txt"),
    )
