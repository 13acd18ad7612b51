"""The baton between processes: one has it, the one at the door is next, and nobody waits for one that does not let go."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from karat.feedback.baton import DOOR, Baton

OTHER = """
import sys
from karat.feedback.baton import Baton
baton = Baton(sys.argv[1], slice_s=0.0, courtesy_s=30.0)
for line in sys.stdin:
    print(eval("baton." + line), flush=True)
"""


class Other:
    """Another process with the same lock file."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def begin(self, what: str) -> None:
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()

    def heard(self) -> str:
        return self.process.stdout.readline().strip()

    def do(self, what: str) -> str:
        self.begin(what)
        return self.heard()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "k.db-turn"


@pytest.fixture
def other(path):
    process = Other(path)
    yield process
    process.end()


def wait_for_someone_at_the_door(mine: Baton) -> None:
    while mine._take(DOOR):
        mine._drop(DOOR)
        time.sleep(0.001)


def test_one_process_at_a_time_and_a_short_wait_for_one_that_keeps_it(path, other):
    assert other.do("acquire()") == "True"
    mine = Baton(str(path), courtesy_s=0.01)
    assert not mine.acquire()
    mine.release()  # what it never had
    assert not mine.acquire()
    assert other.do("release()") == "None"
    assert mine.acquire()


def test_who_stands_at_the_door_is_next_whoever_comes_running(path, other):
    mine = Baton(str(path), slice_s=0.0, courtesy_s=0.05)
    assert mine.acquire()
    other.begin("acquire()")
    wait_for_someone_at_the_door(mine)
    mine.release()
    assert not mine.acquire()  # at once, and yet the other one has it
    assert other.heard() == "True"
    assert other.do("release()") == "None"
    assert mine.acquire()


def test_a_process_comes_in_again_past_the_door_until_its_slice_is_over(path, other):
    mine = Baton(str(path), slice_s=1e9, courtesy_s=0.01)
    assert mine.acquire()
    mine.release()
    assert (other.do("_open()"), other.do("_take(0)")) == ("True", "True")  # it stands at the door
    assert mine.acquire()
    mine.release()
    mine._slice_s = 0.0
    assert not mine.acquire()


def test_the_baton_of_a_process_that_was_killed_is_free(path, other):
    assert other.do("acquire()") == "True"
    other.end()
    assert Baton(str(path), courtesy_s=0.0).acquire()


def test_without_a_lock_file_everybody_goes_on(tmp_path):
    baton = Baton(str(tmp_path / "missing" / "k.db-turn"))
    assert not baton.acquire()
    baton.release()


def test_the_lock_file_is_for_its_owner_only(path):
    assert Baton(str(path)).acquire()
    assert path.stat().st_mode & 0o777 == 0o600
