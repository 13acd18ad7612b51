"""Trackers: each step once though the run is killed, one line where a package is missing, and TensorBoard's own file."""

import io
import json

import pytest
import torch
from torch import nn

from karat.config import build
from karat.errors import ConfigError
from karat.lm import trackers
from karat.lm.checkpoints import newest_step
from karat.lm.loop import LoopConfig, TrainState, optimiser_step, run_loop
from karat.lm.trackers import Mark, TrackerReporter, check_trackers, flat_settings, open_trackers
from karat.pipeline.settings import RunConfig
from karat.pipeline.stages import Clock, Workplace, training_reporters
from karat.progress import LineDisplay


class Recorded:
    """A tracker that remembers what it was sent; a class attribute stands for the server that outlives the process."""

    server: list[tuple[int, dict]]

    def __init__(self):
        self.finished = False

    def log(self, values, step=None):
        self.server.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def server(monkeypatch):
    Recorded.server = []
    monkeypatch.setattr(trackers, "check_trackers", lambda _: None)
    monkeypatch.setattr(trackers, "_start", lambda *_, **__: Recorded())
    return Recorded.server


def opened(tmp_path, identity="i"):
    return open_trackers(
        ["wandb"], run="r", stage="sft", identity=identity, mark=tmp_path / "t.json", directory=tmp_path
    )


class Killed(Exception):
    pass


def train(tmp_path, kill_at=None):
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    state = TrainState({"m": model}, {"m": torch.optim.SGD(model.parameters(), lr=0.1)})

    def step(index):
        if index == kill_at:
            raise Killed
        loss = (model(torch.full((1, 2), float(index + 1))) - 1).square().sum()
        optimiser_step(state, "m", [loss], max_grad_norm=1.0)
        return {"loss": float(loss.detach())}

    with opened(tmp_path) as reporters:
        assert newest_step(tmp_path / "loop") in (0, 3)
        run_loop(state, step, LoopConfig(7, checkpoint_every=3), directory=tmp_path / "loop", reporters=reporters)


def test_a_killed_and_resumed_run_sends_every_step_once_and_the_same(tmp_path, server):
    with pytest.raises(Killed):
        train(tmp_path, kill_at=5)  # five steps sent, the checkpoint is of the third
    train(tmp_path)
    assert [step for step, _ in server] == [1, 2, 3, 4, 5, 6, 7]
    sent = list(server)
    server.clear()
    train(tmp_path / "whole")
    assert sent == server


def test_a_resumed_run_goes_on_under_its_name_and_other_settings_get_another(tmp_path):
    mark = Mark.read(tmp_path / "t.json", identity="a", run="first")
    reporter = TrackerReporter([], mark)
    reporter.log(0, {"x": 1.0})
    reporter.log(4, {"x": 1.0})
    again = Mark.read(tmp_path / "t.json", identity="a", run="second")
    assert (again.run, again.sent) == ("first", 4)
    other = Mark.read(tmp_path / "t.json", identity="b", run="second")
    assert (other.run, other.sent) == ("second", -1)


def test_a_step_is_noted_before_it_is_sent(tmp_path):
    class Dies(Recorded):
        def log(self, *_, **__):
            raise Killed

    mark = Mark.read(tmp_path / "t.json", identity="a", run="first")
    with pytest.raises(Killed):
        TrackerReporter([Dies()], mark).log(3, {"x": 1.0})
    assert json.loads((tmp_path / "t.json").read_text())["sent"] == 3


@pytest.mark.usefixtures("server")
def test_trackers_are_closed_also_when_training_fails(tmp_path):
    with pytest.raises(Killed), opened(tmp_path) as (reporter,):
        raise Killed
    assert reporter.trackers[0].finished


def test_a_missing_package_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        ConfigError, match=r"^tracking: found mlflow, whose package is not installed; pip install mlflow"
    ):
        check_trackers(["mlflow"])


def test_a_folder_of_a_trackers_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "karat_runs").mkdir()  # as wandb leaves one of its own name where it was run
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"^tracking: found karat_runs, whose package is not installed"):
        check_trackers(["karat_runs"])


def test_a_tracker_that_does_not_start_is_one_clear_line(tmp_path, monkeypatch):
    from accelerate import tracking

    def refuses(_):
        raise RuntimeError("no server\nat that address")

    monkeypatch.setattr(trackers, "check_trackers", lambda _: None)
    monkeypatch.setattr(tracking.WandBTracker, "start", refuses)
    with pytest.raises(ConfigError, match=r"^tracking: wandb did not start: no server$"), opened(tmp_path):
        pass


def test_the_configuration_names_trackers_and_refuses_others():
    assert build(RunConfig, {"sandbox": {}, "tracking": ["tensorboard", "wandb"]}).tracking == ("tensorboard", "wandb")
    with pytest.raises(ConfigError, match=r"tracking\[0\]: found 'tensorbord'; expected one of tensorboard, wandb"):
        build(RunConfig, {"sandbox": {}, "tracking": ["tensorbord"]})


def test_settings_are_one_table_of_names_with_dots():
    assert flat_settings({"settings": [{"epochs": 1.0}, None]}) == {"settings.0.epochs": 1.0, "settings.1": "null"}
    nested = {"seed": 1, "settings": {"kl": 0.1, "reward": {"heads": [1, 2], "name": "a", "path": None, "on": True}}}
    assert flat_settings(nested) == {
        "seed": 1, "settings.kl": 0.1, "settings.reward.heads": "[1, 2]", "settings.reward.name": "a",
        "settings.reward.path": "null", "settings.reward.on": True,
    }  # fmt: skip


def test_every_tracker_hears_the_settings_of_its_run(tmp_path, monkeypatch, server):
    heard = []
    monkeypatch.setattr(Recorded, "store_init_configuration", lambda _, values: heard.append(values), raising=False)
    place = Workplace(
        tmp_path, tmp_path / "c", tmp_path / "m.jsonl", LineDisplay(io.StringIO()), Clock(tmp_path),
        tracking=("wandb", "mlflow"), told={"seed": 3, "settings": {"lr": 0.1}},
    )  # fmt: skip
    with training_reporters(place, "sft", 1) as reporters:
        assert len(reporters) == 4
    assert heard == [{"seed": 3, "settings.lr": 0.1}] * 2
    assert server == []

    def refuses(*_):
        raise RuntimeError("too long")

    monkeypatch.setattr(Recorded, "store_init_configuration", refuses)
    with pytest.raises(ConfigError, match=r"^tracking: wandb did not take the settings: too long$"):
        training_reporters(place, "sft", 1).__enter__()


def test_tensorboard_has_the_settings_in_the_run_itself(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    opening = {"run": "r", "stage": "sft", "identity": "i", "mark": tmp_path / "t.json", "directory": tmp_path}
    for _ in range(2):
        with open_trackers(["tensorboard"], **opening, settings={"lr": 0.5, "name": "a"}):
            pass
    (place,) = (tmp_path / "tensorboard").iterdir()
    assert all(one.is_file() for one in place.iterdir())
    events = EventAccumulator(str(place))
    events.Reload()
    kept = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = HParamsPluginData.FromString(kept).session_start_info.hparams
    assert (hparams["lr"].number_value, hparams["name"].string_value) == (0.5, "a")


def test_tensorboard_reads_back_what_was_sent(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_trackers(
        ["tensorboard"], run="r", stage="sft", identity="i", mark=tmp_path / "t.json", directory=tmp_path
    ) as (first,):
        first.log(1, {"loss": 0.5})
    with open_trackers(
        ["tensorboard"], run="r", stage="sft", identity="i", mark=tmp_path / "t.json", directory=tmp_path
    ) as (second,):
        second.log(1, {"loss": 0.75})
        second.log(2, {"loss": 0.25})
    (place,) = (tmp_path / "tensorboard").iterdir()
    events = EventAccumulator(str(place))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
