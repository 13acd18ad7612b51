"""Through a server, by the typed client: a run's raters give its very votes, a checkpoint's samples become questions."""

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
from karat.feedback.documents import ProjectSettings, put_document, put_settings, question_of
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


@pytest.mark.usefixtures("copied")
def test_what_a_checkpoint_writes_becomes_questions_of_a_server(monkeypatch, tmp_path):
    with open_store(RUN / "karat.db") as store:
        prompts = [prompt.turns[-1].content for prompt in list(store.prompts().values())[:4]]
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": one}) + "\n" for one in prompts), encoding="utf-8")
    command = ["collect", "--model", RUN / "models" / "sft", "--prompts", "prompts.jsonl", "--samples", "3"]
    command += ["--max-new-tokens", "8", "--tasks", "5", "--kind", "rating", "--principle", "Be brief.", "--json"]
    address = tmp_path / "judged.db"
    with open_store(address) as store:
        put_document(store, "guideline", "v7", {"text": "Be fair."}, now=0.0)
        put_settings(store, ProjectSettings(overlap={"*": 2}), now=0.0)
    with server(address) as url:
        monkeypatch.setenv("KARAT_TOKEN", admins_token(address))
        done = [karat(*command, "--server", url) for _ in range(2)]
    assert [one.code for one in done] == [0, 0], done[0].err
    said = [json.loads(one.out.splitlines()[-1]) for one in done]
    assert [(one["server"], one["n_prompts"], one["n_tasks"]) for one in said] == [(url, 4, 5), (url, 4, 0)]
    with open_store(address) as store:
        tasks = store.tasks()
        fields = {(task.guideline, task.kind, task.overlap, task.batch) for task in tasks}
        assert fields == {("v7", "rating", 2, "live:sft")}
        assert {question_of(store, task).principle for task in tasks} == {"Be brief."}
        assert {response.source for response in store.responses().values()} == {str(RUN / "models" / "sft")}
    # the same as put there without a server
    assert karat(*command, "--store", "at-hand.db").code == 0
    with open_store("at-hand.db") as store:
        assert {task.response_ids for task in store.tasks()} == {task.response_ids for task in tasks}
    assert not Path("karat.db").exists()


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
        (["collect", "--model", "m", "--prompts", "p", "--wait"], "--server: found --wait or --against"),
    ],
)
@pytest.mark.usefixtures("copied")
def test_what_has_no_raters_to_send_there_is_one_line(monkeypatch, arguments, said):
    monkeypatch.delenv("KARAT_TOKEN", raising=False)
    if "KARAT_TOKEN" not in said:
        monkeypatch.setenv("KARAT_TOKEN", "x")
    assert said in karat(*arguments, "--server", "http://127.0.0.1:9").complaint
