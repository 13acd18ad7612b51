"""The server as processes: what it refuses to serve, what survives a killed worker, and how it stops."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from karat import cli
from karat.errors import ConfigError
from karat.feedback.client import RaterClient
from karat.feedback.documents import documents
from karat.feedback.people import accounts
from karat.feedback.store import open_store
from karat.feedback.web.serve import default_workers, serve
from karat.feedback.web.settings import ServerSettings
from web_app import served

SCRIPT = """
import sys
from karat.feedback.web.serve import serve
from karat.feedback.web.settings import ServerSettings
if __name__ == "__main__":
    serve(sys.argv[1], ServerSettings(port=0), workers=2, say=lambda line: print(line, flush=True))
"""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
@pytest.mark.parametrize("public_url", ["", "http://example.org"])
def test_others_are_not_served_without_tls(host, public_url):
    with pytest.raises(ConfigError, match="without a public_url of https"):
        ServerSettings(host=host, public_url=public_url)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_is_served(host):
    assert ServerSettings(host=host).url.startswith("http://")
    assert not ServerSettings(host=host).secure
    assert ServerSettings(host="0.0.0.0", public_url="https://example.org").secure
    with pytest.raises(ConfigError, match="passwords would travel in the clear"):  # nor through a proxy
        ServerSettings(public_url="http://judge.example.org")
    assert not ServerSettings(public_url="http://localhost:8000").secure


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"public_url": "example.org"}, "public_url"),
        ({"public_url": "https://example.org/path"}, "without a path"),
        ({"public_url": "javascript:alert(1)"}, "public_url"),
        ({"public_url": "https://"}, "public_url"),
        ({"trusted_proxies": ("proxy.local",)}, "expected an address or network"),
        ({"port": 70_000}, "port"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        ServerSettings(**wrong)


def test_the_addresses_that_are_ours():
    local = ServerSettings(port=8123)
    assert local.origins == {"http://127.0.0.1:8123", "http://localhost:8123", "http://[::1]:8123"}
    public = ServerSettings(public_url="https://Judge.Example.org/")
    assert public.origins == {"https://judge.example.org"}
    assert public.hosts == {"judge.example.org", "127.0.0.1", "localhost", "::1"}


def test_what_is_wrong_is_said_before_a_worker_starts(tmp_path):
    with pytest.raises(ConfigError, match="workers: found 0"):
        serve(str(tmp_path / "s.db"), ServerSettings(port=0), workers=0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}.*--port"):
            serve(str(tmp_path / "s.db"), ServerSettings(port=port))


def test_links_begin_with_the_address_that_the_server_was_last_started_with(tmp_path, monkeypatch, capsys):
    store = str(tmp_path / "s.db")

    def link(*options: str) -> tuple[str, str]:
        assert cli.main(["people", "add", store, *options]) == 0
        said = capsys.readouterr()
        return said.out.split()[1].partition("/invite/")[0], said.err

    monkeypatch.setattr("karat.feedback.web.serve._Workers.keep", lambda *_: None)
    address, said = link()
    assert address == "http://127.0.0.1:8000"
    assert "no server of this store was started yet: http://127.0.0.1:8000 is assumed" in said
    assert "--url" in said
    for settings in (ServerSettings(port=0), ServerSettings(port=0, public_url="https://judge.example.org")):
        lines: list[str] = []
        serve(store, settings, say=lines.append)
        assert link() == (lines[0].split(" at ")[1], "")
    assert link("--url", "http://localhost:9/") == ("http://localhost:9", "")
    with open_store(store) as opened:
        assert [one.body["url"] for one in documents(opened, "server")][1:] == ["https://judge.example.org"]
        accounts.make_account(opened, "admin", login="boss", now=0.0)
    assert cli.main(["people", "link", store, "boss"]) == 0
    assert cli.main(["people", "study", store, "pilot"]) == 0
    first, second = capsys.readouterr().out.split()
    assert first.startswith("https://judge.example.org/invite/")
    assert second.startswith("https://judge.example.org/study/")


def children(pid: int) -> set[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return {
        int(child)
        for child in found.read_text().split()
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    }


def wait_for(condition, seconds: float = 90.0):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads the children of a process from /proc")
def test_a_killed_worker_is_replaced_and_a_signal_lets_all_finish(tmp_path):
    site = served(tmp_path, n_tasks=40)
    account = site.accounts["annotator"]
    now = time.time()
    token = accounts.open_session(site.store, account.id, now=now, kind="api")
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    server = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "served.db")], stdout=subprocess.PIPE, text=True
    )
    try:
        line = server.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+", line).group()
        with urllib.request.urlopen(f"{url}/health", timeout=60) as answer:
            assert answer.read() == b'{"status":"ok"}'
        before = wait_for(lambda: len(found := children(server.pid)) == 2 and found)
        receipts = set()
        with RaterClient(url, token, n_tries=12, timeout_s=60) as client:
            for i in range(12):
                task = client.next_task()
                if i == 4:
                    os.kill(min(before), signal.SIGKILL)  # in the middle of the work
                receipts.add(client.submit(task.lease, {"level": 6, "n_levels": 7}).commitment)
        after = wait_for(lambda: len(found := children(server.pid)) == 2 and found)
        assert len(after - before) == 1
        site.store.close()
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0
        assert not (tmp_path / "served.db-wal").exists()  # closed as it should be: the store is one file again
        assert not Path(f"/proc/{min(after)}").exists()
    finally:
        server.kill()
        server.stdout.close()
        server.wait()
    with open_store(tmp_path / "served.db") as store:
        stored = {record.commitment for record in store.records()}
        assert receipts <= stored
        assert len(stored) == 12
        assert store.verify() == []


@pytest.mark.parametrize(("cores", "workers"), [(1, 2), (2, 2), (3, 3), (64, 4)])
def test_there_is_a_worker_a_core_within_bounds(cores, workers, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert default_workers() == workers
