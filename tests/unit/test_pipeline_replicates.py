"""Several runs, some of which their gate refuses: what becomes of the others."""

from pathlib import Path

import pytest
import yaml

from karat.errors import GateError
from karat.pipeline import runs
from karat.progress import open_progress
from karat.report.table import summary_lines


@pytest.fixture
def refusing(monkeypatch, tmp_path):
    """`run_config` of seeds 0 to 2 in a scratch directory, given which of them are refused; with the seeds begun."""
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(yaml.safe_dump({"name": "c", "sandbox": {}}), encoding="utf-8")
    begun = []

    def run(*refused: int):
        def run_once(_config, *, seed, directory, **_):
            begun.append(seed)
            if seed in refused:
                raise GateError(f"the gate of seed {seed} failed")
            return {"directory": str(directory), "unsafe": []}

        monkeypatch.setattr(runs, "run_once", run_once)
        with open_progress(silent=True) as progress:
            return runs.run_config(
                Path("c.yaml"), overrides=[], seeds=[0, 1, 2], sweep=[], until=None, progress=progress
            )

    return run, begun


def test_a_seed_that_the_gate_refuses_does_not_end_the_others(refusing):
    run, begun = refusing
    answer = run(0)
    assert begun == [0, 1, 2]
    assert answer["runs"] == ["runs/c-seed-1", "runs/c-seed-2"]
    assert answer["refused"] == {"runs/c-seed-0": "the gate of seed 0 failed"}
    assert answer["table"][0]["seeds"] == 2
    assert "REFUSED, not in the table: runs/c-seed-0: the gate of seed 0 failed" in summary_lines(answer)


def test_where_the_gate_refuses_every_seed_that_is_the_answer(refusing):
    run, begun = refusing
    with pytest.raises(GateError, match=r"every one of 3 runs ended so\. the gate of seed 0 failed"):
        run(0, 1, 2)
    assert begun == [0, 1, 2]


@pytest.mark.parametrize(
    ("sweep", "until", "begun"),
    [
        ("ppo.n_iterations=1,2", None, [(1, None), (2, None)]),
        ("rounds=1,2", None, [(1, "collect"), (2, "collect"), (1, None), (2, None)]),
        ("rounds=1,2", "collect", [(1, "collect"), (2, "collect")]),
        ("watch.panel.n_votes=1,2", "ppo", [(1, "collect"), (2, "collect"), (1, "ppo"), (2, "ppo")]),
    ],
)
def test_where_more_votes_are_asked_for_later_all_runs_go_up_to_their_first_ones(
    monkeypatch, tmp_path, sweep, until, begun
):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(yaml.safe_dump({"name": "c", "sandbox": {}}), encoding="utf-8")
    found = []

    def run_once(_config, *, directory, until, lenders: tuple[Path, ...], **_):
        value = int(directory.name.partition("=")[2][0])
        found.append((value, until))
        assert [path.name for path in lenders] == [f"c-{sweep.partition('=')[0]}={3 - value}-seed-{directory.name[-1]}"]
        return {"directory": str(directory), "unsafe": []}

    monkeypatch.setattr(runs, "run_once", run_once)
    with open_progress(silent=True) as progress:
        table = runs.run_config(
            Path("c.yaml"), overrides=[], seeds=[0, 1], sweep=[sweep], until=until, progress=progress
        )
    assert found == [one for one in begun for _ in range(2)]
    assert len(table["runs"]) == 4
