"""The peers' environments: one virtual environment a peer and version, made on first use, outside the repository.

They lie in ~/.cache/karat-bench, or where the environment variable KARAT_BENCH_ENVS points. pip keeps to the user's own
settings.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

TORCH, TRANSFORMERS = "2.13.0", "5.23.0"  # the same as in constraints.txt, so that only the trainers differ
REWARD_PEER, PPO_PEER = "1.16.0", "1.9.2"  # the newest TRL measured; the last line with a PPOTrainer
# the peers of the row "load" with the server that their own images use, and what the crowd and PostgreSQL need
POTATO = {"potato-annotation": "2.12.1", "gunicorn": "27.0.1"}
LABEL_STUDIO = {"label-studio": "1.23.2", "gunicorn": "27.0.1"}
CROWD = {"aiohttp": "3.14.5", "pgserver": "0.1.4"}
PROBE = "import json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in %r}))"


def trl_python(version: str) -> Path:
    """The interpreter of an environment with that TRL, installed if it is not there or not complete.

    Raises: SystemExit (one line) when pip fails.
    """
    wanted = {"trl": version, "torch": TORCH, "transformers": TRANSFORMERS, "datasets": None, "rich": None}
    return python_with(f"trl-{version}", wanted)


def python_with(name: str, wanted: Mapping[str, str | None]) -> Path:
    """The interpreter of an environment with these packages, installed if it is not there or not complete.

    Args:
        name: of its directory.    wanted: version by package; None = any.
    Raises: SystemExit (one line) when pip fails.
    """
    directory = environment_directory(name)
    python = directory / "bin" / "python"
    if _matches(python, wanted):
        return python
    print(f"bench: installing {', '.join(wanted)} in {directory} (once)", file=sys.stderr)
    directory.parent.mkdir(parents=True, exist_ok=True)
    requirements = [name if pin is None else f"{name}=={pin}" for name, pin in wanted.items()]
    for command in (
        [sys.executable, "-m", "venv", str(directory)],
        [str(python), "-m", "pip", "install", "--quiet", *requirements],
    ):
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            raise SystemExit(f"bench: `{' '.join(command)}` failed; the peers need a package index that has these")
    if not _matches(python, wanted):
        raise SystemExit(f"bench: {directory} has other versions than asked for; remove it and start again")
    return python


def environment_directory(name: str) -> Path:
    """Where the environment of that name lies, or would."""
    return _root() / name


def _root() -> Path:
    return Path(os.environ.get("KARAT_BENCH_ENVS") or Path.home() / ".cache" / "karat-bench")


def _matches(python: Path, wanted: Mapping[str, str | None]) -> bool:
    if not python.exists():
        return False
    found = subprocess.run([str(python), "-c", PROBE % (tuple(wanted),)], capture_output=True, text=True, check=False)
    if found.returncode:
        return False
    versions = json.loads(found.stdout)
    return all(pin is None or versions[name].split("+")[0] == pin for name, pin in wanted.items())
