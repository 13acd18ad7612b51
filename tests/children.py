"""Child processes for tests that kill or need several: forked from one server that has imported everything once.

Python 3.11's fork server looks for what it is to import beforehand on its own path, which the tests' folder is not on
(`sys_path` is handed to it and not used), so the folder goes into the environment that it inherits.
"""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

_PATH = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
WAIT_S = 280
"""Seconds to wait for a child: below the limit of a test, so that the failure says which child."""


def context() -> multiprocessing.context.BaseContext:
    """The context whose processes start from the imports of the recipes."""
    os.environ["PYTHONPATH"] = os.pathsep.join(_PATH)
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload(["resume_recipes", "two_processes"])
    return chosen
