"""`--processes N`: this command again in N processes on this machine, which find one another and share the work.

What torchrun does, for one machine and without its own output: the first process speaks for all, and one that fails ends
the others. Knows processes; knows no command.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from karat.errors import ConfigError
from karat.ranks import SPOKEN_FOR, launched, launched_in_shards

GRACE_S = 10.0
"""Seconds for the others to notice that one is gone, before they are ended."""
LOOK_EVERY_S = 0.1
INTERRUPTED = 130
"""Exit code of a command that was interrupted."""
_holds_shards = False
"""Whether this process was told to: what torch keeps of it outlives the command."""


def wanted(n: int) -> bool:
    """Whether the command is to be started again in n processes.

    Raises: ConfigError for fewer than one, or for another number than a launcher has already started.
    """
    running = launched()
    if n < 1:
        raise ConfigError(f"--processes: found {n}; expected at least 1")
    if n > 1 and running not in (1, n):
        raise ConfigError(
            f"--processes: found {n}, in one of {running} processes that a launcher started; leave it to the launcher"
        )
    return n > 1 and running == 1


def in_shards(asked: bool) -> bool:
    """Whether this process is to hold shards: by `--fsdp`, or by a launcher's word.

    Raises: ConfigError where it is asked of one process.
    """
    global _holds_shards
    if asked and launched() == 1:
        raise ConfigError(
            "--fsdp: found one process; expected several to hold the shards: --processes N, or a launcher"
        )
    _holds_shards = launched() > 1 and (asked or launched_in_shards())
    return _holds_shards


def leave(code: int) -> None:
    """End this process with the command's exit code.

    torch's caches keep the group of processes that held shards, and with it threads that can abort a process in which
    the interpreter is being taken apart: there the process ends at once, all that was to be written being written. So
    does one that was interrupted: somebody waits for the prompt, and taking apart all that torch brought takes seconds.
    """
    if _holds_shards or code == INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def start(arguments: Sequence[str], n: int, *, program: Sequence[str] = ("-m", "karat")) -> int:
    """Run `python -m karat ARGUMENTS` n times at once; returns the exit code of the first that failed, or 0.

    Each gets its share of the cores, unless OMP_NUM_THREADS says how many threads it is to have.

    Args:
        program: what of Python is run.
    Returns: 128 + the signal's number where one was ended by a signal.
    """
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // n))
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(n)}
    environment = os.environ | meeting | {"LOCAL_WORLD_SIZE": str(n), "OMP_NUM_THREADS": threads, SPOKEN_FOR: "1"}
    command = [sys.executable, *program, *arguments]
    running: list[subprocess.Popen[bytes]] = []
    with _ended_by_sigterm():
        try:
            for rank in range(n):
                own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                others: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL} if rank else {}
                running.append(subprocess.Popen(command, env=own, **others))
            return _watched(running)
        except KeyboardInterrupt:
            _wait(running, GRACE_S)  # a terminal interrupts them too
            raise
        finally:
            _end(running)


def _watched(running: Sequence[subprocess.Popen[bytes]]) -> int:
    while True:
        codes = [process.poll() for process in running]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None:
            break
        if all(code == 0 for code in codes):
            return 0
        time.sleep(LOOK_EVERY_S)
    _wait(running, GRACE_S)
    code = codes[failed]
    assert code is not None
    if code > 0:
        return code
    if failed == 0:  # the others ask the first one whether anybody has said why
        print(f"karat: process 0 of {len(running)} was ended by signal {-code}", file=sys.stderr)
    return 128 - code


def _wait(running: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(process.poll() is None for process in running):
        time.sleep(LOOK_EVERY_S)


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in running:
        if process.poll() is None:
            process.terminate()
    _wait(running, GRACE_S)
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM unwinds, so that the processes started here end too."""

    def leave(number: int, frame: object) -> None:
        del frame
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
