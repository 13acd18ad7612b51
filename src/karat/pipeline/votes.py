"""Real votes without a policy: import, snapshot, and rewards judged on whole topics never trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from karat.progress import Progress


def run_votes(path: Path, settings: Mapping[str, Any], *, seeds: Sequence[int], progress: Progress) -> dict[str, Any]:
    raise NotImplementedError
