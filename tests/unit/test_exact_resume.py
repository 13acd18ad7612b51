"""Training that is killed by SIGKILL at a random moment and continued ends with the same bits as training in one go.

Compared are the last checkpoint, byte by byte (weights, optimiser, controllers, counts), and every metric of every
step but for clocks. The kill comes when a step drawn at random has been written down, after a random part of a step's
time, so that it falls on computing, on writing metrics and on writing checkpoints alike.
"""

import json
import random
import signal
import time
from pathlib import Path

import pytest

import resume_recipes
from children import WAIT_S, context
from resume_recipes import N_STEPS

CONTEXT = context()


def begin(recipe: str, place: Path):
    place.mkdir(parents=True, exist_ok=True)
    process = CONTEXT.Process(target=resume_recipes.train, args=(recipe, str(place)))
    process.start()
    return process


def finish(recipe: str, place: Path) -> float:
    started = time.monotonic()
    process = begin(recipe, place)
    process.join(WAIT_S)
    assert process.exitcode == 0
    return time.monotonic() - started


def n_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_after(recipe: str, place: Path, step: int, delay_s: float) -> int | None:
    """Start, wait until so many steps are written down, then a little, then SIGKILL.

    Returns: the steps that were done, or None where the run had ended before it could be killed.
    """
    process = begin(recipe, place)
    deadline = time.monotonic() + WAIT_S
    while n_lines(place / "metrics.jsonl") < step and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.0005)
    time.sleep(delay_s)
    process.kill()
    process.join(WAIT_S)
    return n_lines(place / "metrics.jsonl") if process.exitcode == -signal.SIGKILL else None


def left_behind(place: Path) -> tuple[dict[str, bytes], list[dict]]:
    (last,) = (place / "loop").glob("step-*")
    files = {f"{last.name}/{file.name}": file.read_bytes() for file in sorted(last.iterdir())}
    best = place / "watcher" / "best" / "model.safetensors"
    if best.exists():
        files["best"] = best.read_bytes()
    # of a panel's candidates those that count now; what else lies there is for older checkpoints
    watched = json.loads(files.get(f"{last.name}/state.json", b"{}")).get("controllers", {}).get("watcher", {})
    for step in watched.get("looks", ()):
        files[f"look {step}"] = (place / "watcher" / "looks" / str(step) / "model.safetensors").read_bytes()
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    return files, [{k: v for k, v in row.items() if k != "time" and not k.startswith("seconds/")} for row in rows]


def check(recipe: str, tmp_path: Path, n_kills: int, seed: int) -> None:
    draws = random.Random(seed)
    seconds = finish(recipe, tmp_path / "whole")
    files, rows = left_behind(tmp_path / "whole")
    assert [row["step"] for row in rows if row["step"]] == list(range(1, N_STEPS.get(recipe, N_STEPS["ppo"]) + 1))
    n_killed = 0
    for number in range(10 * n_kills):
        place = tmp_path / f"killed-{number}"
        step = draws.randint(1, len(rows) - 1)
        done = kill_after(recipe, place, step, draws.random() * seconds / len(rows))
        if done is None:
            continue  # another moment instead
        assert done >= step  # it had begun
        n_killed += 1
        finish(recipe, place)
        found_files, found_rows = left_behind(place)
        assert found_rows == rows, f"kill {number} after {done} steps"
        assert found_files.keys() == files.keys()
        different = [name for name in files if files[name] != found_files[name]]
        assert not different, f"kill {number} after {done} steps: {different}"
        if n_killed == n_kills:
            return
    pytest.fail(f"only {n_killed} of {n_kills} runs could be killed before they ended")


def test_a_run_killed_by_sigkill_ends_with_the_same_bits(tmp_path):
    check("loop", tmp_path, n_kills=1, seed=0)


def test_the_candidates_of_a_panel_survive_a_kill(tmp_path):
    check("ppo-panel", tmp_path, n_kills=1, seed=3)
    state = json.loads(next((tmp_path / "whole" / "loop").glob("step-*/state.json")).read_text())["controllers"][
        "watcher"
    ]
    assert state["best_step"] in state["looks"]
    assert 0 < state["best_step"] < N_STEPS["ppo"]
    assert len(state["looks"]) == 2


@pytest.mark.long
@pytest.mark.timeout(1800)  # forty processes; a busy machine is no failure
def test_the_one_loop_at_twenty_random_moments(tmp_path):
    check("loop", tmp_path, n_kills=20, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("recipe", [name for name in resume_recipes.RECIPES if name != "loop"])
def test_every_recipe_at_two_random_moments(recipe, tmp_path):
    check(recipe, tmp_path, n_kills=2, seed=2)
