"""The study of crashes in small: the server is killed, and nothing that was acknowledged is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench import crash_study

from feedback_cases import small_store, tamper, vote
from karat.feedback.record.seals import seal
from karat.feedback.store import Store

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "bench" / "crash_study.py"


def carry_out(tmp_path: Path, n_kills: int, n_migrations: int) -> dict:
    # in its own process: it forks, which a process with threads must not do
    options = ["--kills", str(n_kills), "--migrations", str(n_migrations), "--seed", "1"]
    places = ["--result", str(tmp_path / "result.json"), "--work", str(tmp_path / "work")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options, *places], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.long
def test_a_killed_server_loses_nothing_that_it_acknowledged(tmp_path):
    found = carry_out(tmp_path, 4, 2)
    assert (found["server"]["kills"], found["migration"]["kills"]) == (4, 2)
    assert set(found["broken"].values()) == {0}
    assert found["server"]["acknowledged"] >= 4
    assert found["server"]["judgements"] >= found["server"]["acknowledged"]
    assert carry_out(tmp_path, 4, 2) == found  # what is done is not done again


@pytest.mark.long
@pytest.mark.timeout(0)
def test_five_hundred_kills_lose_nothing(tmp_path):
    found = carry_out(tmp_path, 500, 50)
    assert (found["server"]["kills"], found["migration"]["kills"]) == (500, 50)
    assert set(found["broken"].values()) == {0}


@pytest.fixture
def answered(tmp_path) -> tuple[Store, Path]:
    """A sealed store with ten judgements, and what raters wrote down about them."""
    store = small_store(tmp_path / "k.db")
    log = tmp_path / "receipts"
    log.mkdir()
    records = store.submit_many([vote(task, "r0", reason="words") for task in store.tasks()])
    lines = [json.dumps({"key": record.judgement.submission, "receipt": record.commitment}) for record in records]
    (log / "r0").write_text("\n".join(lines) + "\n")
    seal(store, now=0.0)
    return store, log


@pytest.mark.parametrize(
    ("statements", "kind", "n"),
    [
        ((), None, 0),
        (
            ("DELETE FROM words WHERE judgement_id = '{0}'", "DELETE FROM salts WHERE judgement_id = '{0}'",
             "DELETE FROM judgements WHERE id = '{0}'"),
            "lost", 1,
        ),
        (("DELETE FROM salts WHERE judgement_id = '{0}'",), "half rows", 1),
        (("DELETE FROM words WHERE judgement_id = '{0}'",), "half rows", 1),
        (("UPDATE tasks SET n_answers = 2",), "half rows", 10),
        (("UPDATE assignments SET state = 'leased'",), "half rows", 10),
        (("UPDATE judgements SET late = 1 WHERE id = '{0}'",), "problems of verify", 1),
    ],
)  # fmt: skip
def test_what_a_crash_could_break_would_be_seen(answered, statements, kind, n):
    store, log = answered
    judgement_id = store.records()[3].id
    tamper(store, *(statement.format(judgement_id) for statement in statements))
    store.close()
    found = crash_study.examine(log.parent / "k.db", log)
    if kind is None:
        assert set(found.values()) == {0}
    else:
        assert found[kind] == n
