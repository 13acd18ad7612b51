"""Whole commands on tiny input: a sandbox run of three seconds, and what a person would see of a command.

Knows the command line and the files of a run; nothing of what is inside karat.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.numpy import load_file

from karat import cli

SANDBOX: dict[str, Any] = {
    "name": "tiny",
    "sandbox": {
        "n_base_texts": 300,
        "n_demonstrations": 80,
        "model": {"hidden": 32, "mlp": 64, "layers": 2, "heads": 2, "kv_heads": 1, "head_size": 16},
    },
    "collect": {"n_prompts": 40, "n_tasks": 60, "max_new_tokens": 24},
    "ppo": {
        "n_iterations": 3,
        "checkpoint_every": 1,
        "evaluate_every": 1,
        "rollout": {"n_prompts": 8, "n_samples": 2, "max_new_tokens": 24},
        "update": {"n_epochs": 1, "n_minibatches": 2, "learning_rate": 3.0e-3},
    },
    "watch": {"n_prompts": 6, "n_samples": 2},
    "evaluate": {"n_prompts": 12, "n_samples": 2, "n_best_of": 4, "best_of": [2]},
    "allow_ungated_reward": True,
}
STAGES = ("source", "base", "sft", "collect", "reward", "ppo", "evaluate")


@dataclass(frozen=True)
class Outcome:
    """What a person sees of a command."""

    code: int
    """Exit code."""
    out: str
    """Standard output."""
    err: str
    """Standard error, progress included."""

    @property
    def complaint(self) -> str:
        """The one line of the error, which is the last of standard error."""
        lines = self.err.splitlines()
        assert self.code not in (0, None), f"the command succeeded: {self.out}"
        assert [line for line in lines if line.startswith("karat: ")] == lines[-1:], self.err
        assert "Traceback" not in self.err
        return lines[-1]


def karat(*arguments: object) -> Outcome:
    """Run a command in this process."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small only lose by sharing the work
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main([str(argument) for argument in arguments])
    finally:
        torch.set_num_threads(n_threads)
    return Outcome(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def inside(directory: Path) -> Iterator[Path]:
    """Work in a directory, as a person in a shell does."""
    before = Path.cwd()
    directory.mkdir(parents=True, exist_ok=True)
    os.chdir(directory)
    try:
        yield directory
    finally:
        os.chdir(before)


def write_config(content: Mapping[str, Any], path: Path = Path("tiny.yaml"), **changes: Any) -> Path:
    """Write a configuration with some sections changed."""
    path.write_text(yaml.safe_dump({**content, **changes}, sort_keys=False), encoding="utf-8")
    return path


def weights(model: Path) -> str:
    """sha256 over the names and bytes of a saved model's tensors."""
    digest = hashlib.sha256()
    for file in sorted(model.glob("*.safetensors")):
        for name, tensor in sorted(load_file(file).items()):
            digest.update(name.encode() + tensor.tobytes())
    return digest.hexdigest()


def manifests(run: Path) -> dict[str, bytes]:
    """The manifests of a run by stage, to the byte."""
    return {path.stem: path.read_bytes() for path in sorted((run / "manifests").glob("*.json"))}


def n_votes(run: Path) -> int:
    """Judgements in a run's store."""
    from karat.feedback.store import open_store

    if not (run / "karat.db").exists():
        return 0
    with open_store(run / "karat.db") as store:
        return store.n_judgements()


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
