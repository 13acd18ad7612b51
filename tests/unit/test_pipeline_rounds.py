"""Later rounds train the reward against what the newest policy wrote, and keep the first samples for the scale."""

from types import SimpleNamespace

import pytest

from karat.config import build
from karat.errors import ConfigError, InputError
from karat.pipeline import rewarding, rounds
from karat.pipeline.settings import RunConfig


class FakeRun:
    """Notes which work each stage was given, and does none of it."""

    def __init__(self):
        self.stages = []

    def stage(self, name, *, inputs, config, work, together, round_number):
        del config, together
        made = SimpleNamespace(stage=name, number=round_number)
        self.stages.append((made, inputs, work))
        return made


def test_demonstrations_meet_the_newest_samples_of_each_round(monkeypatch):
    monkeypatch.setattr(rounds, "output", lambda made, name: f"{made.stage} {made.number}: {name}")
    for name in ("findings_of", "check_gate"):
        monkeypatch.setattr(rounds, name, lambda *_, **__: [])
    config = build(RunConfig, {"sandbox": {}, "rounds": 3})
    first = {name: SimpleNamespace(stage=name, number=1) for name in ("source", "sft", "collect", "reward", "ppo")}
    run = FakeRun()
    rounds.run_rounds(run, SimpleNamespace(settings={}), config, first, collect=None)
    trained = [(made, inputs, work) for made, inputs, work in run.stages if made.stage == "reward"]
    assert [made.number for made, _, _ in trained] == [2, 3]
    for made, inputs, work in trained:
        newest = f"collect {made.number}: samples"
        assert work.func is rewarding.train
        assert work.keywords["newest"] == newest
        assert newest in inputs
        assert work.args[-1] == "collect 1: samples"


def test_training_reads_the_newest_samples(monkeypatch):
    seen = []

    def parts(run, config, votes, samples, place):
        del run, config, votes, place
        seen.append(samples)
        raise KeyboardInterrupt

    monkeypatch.setattr(rewarding, "vote_parts", parts)
    for newest in (None, "newest"):
        with pytest.raises(KeyboardInterrupt):
            rewarding.train(None, None, None, None, "votes", "first", None, newest=newest)
    assert seen == ["first", "newest"]


def test_what_could_not_be_measured_after_training_is_refused_before_it():
    people = {"preferences": {"path": "v.jsonl", "model": "m"}}
    with pytest.raises(ConfigError, match="jury_median without people to sit on the jury"):
        build(RunConfig, {"sandbox": {}, "aggregator": "jury_median"})
    assert build(RunConfig, {"sandbox": {}, "aggregator": "jury_median", "pluralism": {"enabled": True}})
    with pytest.raises(ConfigError, match="worst_group without groups of people"):
        build(RunConfig, {"sandbox": {}, "aggregator": "worst_group"})
    assert build(RunConfig, {"sandbox": {}, "aggregator": "worst_group", "pluralism": {"enabled": True}})
    assert build(RunConfig, {"sandbox": {}, "aggregator": "worst_group", "reward_model": "several-objectives"})
    assert build(RunConfig, {"sandbox": {}, "aggregator": "mean_minus_sd:2"}).aggregator == "mean_minus_sd:2"
    with pytest.raises(ConfigError, match="a quantile between 0 and 1 after the colon"):
        build(RunConfig, {"sandbox": {}, "aggregator": "lower_bound:5"})
    with pytest.raises(ConfigError, match="a bound where nothing can be measured"):
        build(RunConfig, people | {"gate": {"max_sycophancy": 0.5}})
    assert build(RunConfig, people | {"gate": {"max_sycophancy": 0.5}, "allow_ungated_reward": True})
    said = [SimpleNamespace(objective=name) for name in ("honest", "helpful")]
    with pytest.raises(ConfigError, match="jury_median and the objectives helpful, honest"):
        rewarding.check_jury(said, SimpleNamespace(aggregator="jury_median"))
    rewarding.check_jury(said[:1], SimpleNamespace(aggregator="jury_median"))


def test_a_bound_on_an_objective_without_feedback_is_refused_before_training():
    said = [SimpleNamespace(objective=name) for name in ("preference", "honest")]
    with pytest.raises(InputError, match="objective 'helpful': found no feedback about it"):
        rewarding.check_bound(said, SimpleNamespace(constraint=SimpleNamespace(objective="helpful")))
    rewarding.check_bound(said, SimpleNamespace(constraint=SimpleNamespace(objective="honest")))
    rewarding.check_bound(said, SimpleNamespace(constraint=SimpleNamespace(objective="")))
    rewarding.check_bound(said, SimpleNamespace(constraint=None))
