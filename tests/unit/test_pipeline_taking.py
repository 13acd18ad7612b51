"""When a stage may be taken over from another run, what arrives, and what keeps it from being lent."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from karat.errors import LedgerError
from karat.feedback.store import open_store
from karat.ledger.manifest import read_manifest, verify_run
from karat.lm.loop import JsonlReporter
from karat.pipeline import stages, taking
from karat.pipeline.stages import Output, Run, StageResult, Workplace
from karat.pipeline.taking import Lendable
from karat.progress import open_progress
from karat.records import Annotator

STAGES = ("sft", "reward", "ppo")
WHOLE = Lendable()


class Notes:
    """A progress display that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@dataclasses.dataclass
class Tried:
    """A toy run: three stages, each of which writes a model made of its settings and of what it reads."""

    directory: Path
    lenders: tuple[Path, ...] = ()
    seed: int = 0
    lendable: Lendable | None = WHOLE
    worked: list[str] = dataclasses.field(default_factory=list)
    lines: list[str] = dataclasses.field(default_factory=list)
    fails: str = ""
    store: str = ""

    def __call__(self, *settings: str) -> Tried:
        """Run the stages under these settings, one each."""
        self.worked, notes = [], Notes()
        run = Run(self.directory, self.seed, notes, lenders=self.lenders)  # type: ignore[arg-type]
        read = ()
        for stage, told in zip(STAGES, settings, strict=False):
            done = run.stage(
                stage, inputs=read, config=told, work=lambda place, told=told: self.work(place, told),
                lendable=self.lendable,
            )  # fmt: skip
            read = tuple(one for one in done.outputs if one.name == "model")
        self.lines = notes.lines
        return self

    def work(self, place: Workplace, told: str) -> StageResult:
        stage = place.checkpoints.name
        self.worked.append(stage)
        JsonlReporter(place.metrics_path).log(1, {"value": 1.0})
        if self.fails == stage:
            raise LedgerError("refused")
        if self.store:
            with open_store(self.directory / taking.STORE) as store:
                store.add_annotators([Annotator(self.store, "simulated")])
        model = place.model_directory(stage)
        (model / "head").mkdir(parents=True, exist_ok=True)
        (model / "weights").write_text(f"{told} of {stage}", encoding="utf-8")
        (model / "head" / "weights").write_text(told, encoding="utf-8")
        return StageResult([Output("model", model, "model"), Output("head", model / "head", "model")], {"n": 1})


@pytest.fixture
def first(tmp_path: Path) -> Tried:
    """A run of three stages that others may borrow from."""
    return Tried(tmp_path / "first", lenders=(tmp_path / "second",))("a", "b", "c")


@pytest.fixture
def second(first: Tried) -> Tried:
    """A run that has not begun, and may borrow from the first."""
    return Tried(first.directory.parent / "second", lenders=(first.directory,))


def stopped(*_) -> None:
    """Ctrl-C at some moment."""
    raise KeyboardInterrupt


def test_what_is_the_same_is_taken_over_and_the_rest_is_done(first: Tried, second: Tried):
    second("a", "b", "other")
    assert second.worked == ["ppo"]
    said = "{}: taken over from first, where this very work was done"
    assert second.lines == [said.format("sft"), said.format("reward")]
    for path in ("models/sft/weights", "models/reward/head/weights", "metrics/sft.jsonl"):
        assert (second.directory / path).read_bytes() == (first.directory / path).read_bytes()
    there, here = (read_manifest(one.directory, "reward") for one in (first, second))
    assert here.run_id == "second"
    assert here.notes == (f"taken over from first, where it ended at {there.finished_at}: {there.id}",)
    assert (here.key, here.outputs, here.metrics, here.seconds) == (
        there.key,
        there.outputs,
        there.metrics,
        there.seconds,
    )
    assert here.started_at >= there.finished_at
    assert not (second.directory / "checkpoints").exists() or not list((second.directory / "checkpoints").iterdir())
    again = second("a", "b", "other")
    assert (again.worked, again.lines) == ([], [f"{stage}: done before, kept" for stage in STAGES])


def test_what_arrives_is_a_copy_that_stands_alone(first: Tried, second: Tried):
    second("a", "b", "other")
    for name in ("models/sft/weights", "metrics/sft.jsonl"):
        assert os.stat(first.directory / name).st_ino != os.stat(second.directory / name).st_ino
    for place in (first.directory / "models" / "sft", first.directory / "metrics"):
        for file in place.rglob("*"):
            if file.is_file():
                file.write_text("written over")
    assert verify_run(second.directory) == []


def test_a_third_run_says_who_did_the_work_not_who_lent_it(second: Tried, tmp_path: Path):
    second("a", "b", "other")
    third = Tried(tmp_path / "third", lenders=(tmp_path / "gone", second.directory))("a", "b", "d")
    assert third.worked == ["ppo"]
    assert third.lines[0].startswith("sft: taken over from second")
    assert read_manifest(third.directory, "sft").notes[0].startswith("taken over from first, ")


@pytest.mark.parametrize("settings", [("z", "b", "c"), ("a", "z", "c")], ids=["the first stage", "the second stage"])
def test_from_the_first_difference_on_nothing_is_shared(second: Tried, settings: tuple[str, ...]):
    """Also where a later stage has the same settings, and by chance would read the same bytes."""
    second.work = lambda place, _: Tried.work(second, place, "a")  # type: ignore[method-assign]
    second(*settings)
    assert second.worked == list(STAGES[settings.index("z") :])


def test_another_seed_shares_nothing(second: Tried):
    second.seed = 1
    assert second("a", "b", "c").worked == list(STAGES)


def test_what_leaves_more_than_its_outputs_is_never_taken_over(second: Tried, tmp_path: Path):
    second.lendable = None
    assert second("a", "b", "c").worked == list(STAGES)
    third = Tried(tmp_path / "third", lenders=(second.directory,))("a", "b", "c")
    assert third.worked == list(STAGES)
    assert third.lines[0] == "sft: not taken over from second: how it was worked out is not recorded"


@pytest.mark.parametrize("named", ["threads", "code", "decode"])
def test_other_circumstances_may_give_other_bits(second: Tried, monkeypatch, named: str):
    here = taking.circumstances()
    monkeypatch.setattr(taking, "circumstances", lambda: {**here, named: "another"})
    assert second("a", "b", "c").worked == list(STAGES)
    assert second.lines == [f"sft: not taken over from first: it was worked out in other circumstances ({named})"]


def test_circumstances_name_threads():
    before = taking.circumstances()
    assert taking.circumstances() == before
    n = torch.get_num_threads()
    torch.set_num_threads(n + 1)
    try:
        assert {key for key, value in taking.circumstances().items() if value != before[key]} == {"threads"}
    finally:
        torch.set_num_threads(n)


@pytest.mark.parametrize("marked", [True, False], ids=["of a sweep", "of a run before"])
def test_a_try_that_went_on_in_other_circumstances_is_not_lent(second: Tried, tmp_path, monkeypatch, marked):
    second.lenders, second.fails = ((tmp_path / "third",) if marked else ()), "sft"
    here = taking.circumstances()
    with monkeypatch.context() as patch:
        patch.setattr(taking, "circumstances", lambda: {**here, "threads": 7})
        with pytest.raises(LedgerError, match="refused"):
            second("a")
    second.lenders, second.fails = (tmp_path / "third",), ""
    second("a")
    third = Tried(tmp_path / "third", lenders=(second.directory,))("a")
    assert third.worked == ["sft"]
    assert "it was worked out in other circumstances (" in third.lines[0]


def test_what_was_altered_or_is_damaged_there_is_done_anew(first: Tried, second: Tried):
    (first.directory / "models/reward/weights").write_text("altered")
    (first.directory / "manifests/ppo.json").write_text("{")
    second("a", "b", "c")
    assert second.worked == ["reward", "ppo"]
    assert verify_run(second.directory) == []
    third = Tried(second.directory.parent / "third", lenders=(first.directory,))
    (first.directory / "manifests/sft.json").write_text("{")
    third("a")
    assert third.worked == ["sft"]
    assert "sft: not taken over from first: " in third.lines[0]
    assert "damaged manifest" in third.lines[0]


def test_what_a_stage_goes_by_beside_its_inputs_is_compared(tmp_path: Path):
    for name, by in (("lends", 1), ("same", 1), ("other", 2)):
        run = Tried(tmp_path / name, (tmp_path / "lends",), lendable=Lendable(also=lambda by=by: [by]))("x")
        assert run.worked == ([] if name == "same" else ["sft"])
    assert run.lines == ["sft: not taken over from lends: what it went by beside its inputs is not the same"]


def test_it_takes_the_place_of_what_stood_there_under_other_settings(second: Tried, monkeypatch):
    alone = Tried(second.directory)("other", "b")
    assert alone.worked == ["sft", "reward"]
    with monkeypatch.context() as patch:
        patch.setattr(stages, "write_manifest", stopped)  # all files are in their places, the manifest is not
        with pytest.raises(KeyboardInterrupt):
            second("a")
    assert {one.kind for one in verify_run(second.directory)} >= {"interrupted"}
    second("a", "b", "c")
    assert second.worked == []
    assert verify_run(second.directory) == []
    assert (second.directory / "models/sft/weights").read_text() == "a of sft"
    left = [one.name for one in second.directory.rglob(".*") if one.name != ".lock"]
    assert left == []


def test_an_unfinished_try_of_ones_own_gives_way(first: Tried, second: Tried):
    second.fails = "ppo"
    with pytest.raises(LedgerError, match="refused"):
        Tried(second.directory, fails="sft")("a")
    second.fails = ""
    assert second("a", "b", "c").worked == []
    assert verify_run(second.directory) == []
    assert (second.directory / "metrics/sft.jsonl").read_bytes() == (first.directory / "metrics/sft.jsonl").read_bytes()


@pytest.fixture
def with_store(tmp_path: Path) -> dict[str, Tried]:
    """Two runs whose stages write to their stores; the first has run one of them."""
    made = {
        name: Tried(tmp_path / name, (tmp_path / other,), lendable=Lendable(with_store=True), store="ann")
        for name, other in (("first", "second"), ("second", "first"))
    }
    made["first"]("a")
    return made


def annotators(run: Tried) -> list[str]:
    with open_store(run.directory / taking.STORE) as store:
        return sorted(store.annotators())


def test_the_store_comes_along_as_the_stage_left_it(with_store: dict[str, Tried]):
    first, second = with_store.values()
    assert second("a").worked == []
    assert annotators(second) == ["ann"]
    with open_store(second.directory / taking.STORE) as store:
        store.add_annotators([Annotator("later", "simulated")])
    assert annotators(first) == ["ann"]
    assert not list(second.directory.glob(".*"))


def test_a_store_that_was_written_to_since_is_not_taken_over(with_store: dict[str, Tried]):
    first, second = with_store.values()
    with open_store(first.directory / taking.STORE) as store:
        store.add_annotators([Annotator("later", "simulated")])
    assert second("a").worked == ["sft"]
    assert second.lines == ["sft: not taken over from first: its store has been written to since"]
    assert annotators(second) == ["ann"]
    assert not list(second.directory.glob(".taken*"))


def test_a_store_of_ones_own_is_never_replaced(with_store: dict[str, Tried]):
    _, second = with_store.values()
    second.directory.mkdir()
    with open_store(second.directory / taking.STORE) as store:
        store.add_annotators([Annotator("own", "simulated")])
    assert second("a").worked == ["sft"]
    assert second.lines == ["sft: not taken over from first: the store of this run holds something else"]
    assert annotators(second) == ["ann", "own"]


def test_a_kill_after_the_store_was_copied_is_made_up_for(with_store: dict[str, Tried], monkeypatch):
    first, second = with_store.values()
    with monkeypatch.context() as patch:
        patch.setattr(taking, "copy_in", stopped)
        with pytest.raises(KeyboardInterrupt):
            second("a")
    assert second("a").worked == []
    assert annotators(second) == annotators(first)


def test_progress_of_a_line_display_has_the_note(first: Tried, second: Tried, capsys):
    with open_progress() as progress:
        Run(second.directory, 0, progress, lenders=(first.directory,)).stage(
            "sft", inputs=(), config="a", work=lambda _: StageResult([]), lendable=Lendable()
        )
    assert "sft: taken over from first, where this very work was done" in capsys.readouterr().err
