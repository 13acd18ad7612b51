"""The peers' environments: one virtual environment a peer and version, made on first use, outside the repository.

They lie in ~/.cache/karat-bench, or where the environment variable KARAT_BENCH_ENVS points. pip keeps to the user's own
settings.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TORCH, TRANSFORMERS = "2.13.0", "5.23.0"  # the same as in constraints.txt, so that only the trainers differ
REWARD_PEER, PPO_PEER = "1.16.0", "1.9.2"  # the newest TRL measured; the last line with a PPOTrainer
PROBE = "import json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in %r}))"


def trl_python(version: str) -> Path:
    """The interpreter of an environment with that TRL, installed if it is not there or not complete.

    Raises: SystemExit (one line) when pip fails.
    """
    wanted = {"trl": version, "torch": TORCH, "transformers": TRANSFORMERS, "datasets": None, "rich": None}
    directory = _root() / f"trl-{version}"
    python = directory / "bin" / "python"
    if _matches(python, wanted):
        return python
    print(f"bench: installing trl {version} in {directory} (once)", file=sys.stderr)
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


def _root() -> Path:
    return Path(os.environ.get("KARAT_BENCH_ENVS") or Path.home() / ".cache" / "karat-bench")


def _matches(python: Path, wanted: dict[str, str | None]) -> bool:
    if not python.exists():
        return False
    found = subprocess.run([str(python), "-c", PROBE % (tuple(wanted),)], capture_output=True, text=True, check=False)
    if found.returncode:
        return False
    versions = json.loads(found.stdout)
    return all(pin is None or versions[name].split("+")[0] == pin for name, pin in wanted.items())
