"""The simulated raters of a run at work through a server, by the typed client: the run's very votes, over HTTP."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from journeys import karat, manifests

from feedback_cases import small_store
from karat.config import build
from karat.errors import ConfigError
from karat.feedback.people import accounts
from karat.feedback.store import open_store
from karat.pipeline.sandbox import collect_votes
from karat.pipeline.settings import RunConfig
from karat.pipeline.stages import Clock, Workplace
from karat.progress import open_progress

RUN = Path("runs") / "tiny"


@contextmanager
def server(address: Path) -> Iterator[str]:
    """`karat serve` as a process of its own; its address."""
    command = [sys.executable, "-m", "karat", "serve", str(address), "--port", "0", "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline()).group()  # type: ignore[union-attr]
    finally:
        process.terminate()
        process.communicate(timeout=60)


def admins_token(address: Path) -> str:
    """What `karat people token` prints for a new admin of a store."""
    with open_store(address) as store:
        accounts.make_account(store, "admin", login="boss", now=time.time())
    return karat("people", "token", address, "boss").out.strip()


@pytest.mark.usefixtures("copied")
def test_raters_of_a_run_who_work_over_http_give_the_runs_own_votes(monkeypatch):
    before = json.loads(manifests(RUN)["collect"])["metrics"]
    with open_store(RUN / "karat.db") as store:
        commitments = [one.commitment for one in store.records()]
    # everything before the votes stands; the votes are asked for once more, in a store that is served
    (RUN / "manifests" / "collect.json").unlink()
    shutil.rmtree(RUN / "snapshots")
    for file in RUN.glob("karat.db*"):
        file.unlink()
    with server(RUN / "karat.db") as url:
        monkeypatch.setenv("KARAT_TOKEN", admins_token(RUN / "karat.db"))
        done = karat("collect", "tiny.yaml", "--server", url)
        assert done.code == 0, done.err
        after = json.loads(manifests(RUN)["collect"])["metrics"]
        assert after == before
        assert after["n_votes"] == 120
        with open_store(RUN / "karat.db") as store:
            assert [one.commitment for one in store.records()] == commitments
            assert "annotators" in {entry.subject for entry in accounts.log_entries(store)}  # they came by the API


def test_a_server_of_another_store_is_refused_before_anybody_judges(tmp_path):
    config = build(RunConfig, {"name": "tiny", "sandbox": {}})
    with small_store(tmp_path / "run.db", n_tasks=3) as run, small_store(tmp_path / "other.db", n_tasks=2) as other:
        with open_progress(quiet=True) as progress:
            place = Workplace(tmp_path, tmp_path, tmp_path / "m.jsonl", progress, Clock(tmp_path))
            with pytest.raises(ConfigError, match=f"found 0 of this run's 3 questions.*karat serve {run.address}"):
                collect_votes(config, 0, run, place, "main", desk=other)
        assert run.n_judgements() == other.n_judgements() == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["collect", "tiny.yaml"], "found no KARAT_TOKEN in the environment; `karat people token STORE ADMIN` prints"),
        (["run", "tiny.yaml", "--seeds", "0-1"], "expected one run: a server has one store"),
        (["run", "tiny.yaml", "--sweep", "collect.overlap=2,3"], "expected one run: a server has one store"),
        (["collect", "tiny.yaml", "--set", "collect.people=2"], "found a configuration without simulated raters"),
        (["collect", "--model", "m", "--prompts", "p"], "expected it with a CONFIG"),
    ],
)
@pytest.mark.usefixtures("copied")
def test_what_has_no_raters_to_send_there_is_one_line(monkeypatch, arguments, said):
    monkeypatch.delenv("KARAT_TOKEN", raising=False)
    if "KARAT_TOKEN" not in said:
        monkeypatch.setenv("KARAT_TOKEN", "x")
    assert said in karat(*arguments, "--server", "http://127.0.0.1:9").complaint
