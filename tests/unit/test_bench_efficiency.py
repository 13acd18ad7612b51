"""The efficiency rows give our programs everything that those read."""

import re
from pathlib import Path

import pytest
from bench import efficiency

OURS = Path(efficiency.__file__).parent / "ours"


def read_by(program: str) -> set[str]:
    """Keys that a program reads of its work without a default."""
    return set(re.findall(r'work\["(\w+)"\]', (OURS / f"{program}.py").read_text(encoding="utf-8")))


@pytest.mark.parametrize(("row", "program"), [(efficiency.ppo_row, "ppo"), (efficiency.reward_row, "reward")])
def test_a_row_gives_its_program_what_that_reads(monkeypatch, row, program):
    given = {}

    class Enough(Exception):
        pass

    def turns(_name, module, work, *_):
        assert module == f"bench.ours.{program}"
        given.update(work)
        raise Enough

    monkeypatch.setattr(efficiency, "_turns", turns)
    monkeypatch.setattr(efficiency, "hh_pairs", lambda _n: None)
    for name in ("checkpoint", "classifier"):
        monkeypatch.setattr(efficiency, name, lambda size: Path(size))
    with pytest.raises(Enough):
        row(quick=True, threads=1)
    assert read_by(program)
    assert read_by(program) <= set(given)
