"""The watcher's panel: whom it asks, what their votes come to, and that a look repeated asks nothing twice."""

import io
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from karat.config import build
from karat.errors import ConfigError
from karat.feedback.snapshot import read_snapshot
from karat.feedback.store import open_store
from karat.lm.load import load_lm, save_lm
from karat.pipeline.methods import Trained
from karat.pipeline.optimise import keep
from karat.pipeline.panel import Panel, preferred
from karat.pipeline.runs import source_of
from karat.pipeline.sandbox import open_world
from karat.pipeline.settings import RunConfig
from karat.pipeline.stages import Clock, Run, Workplace
from karat.policy.watcher import Watcher, WatchRules
from karat.progress import LineDisplay
from karat.records import Judgement
from policy_toys import toy_lm

N_SAMPLES = 3
CAREFUL = {
    "attention": 1.0, "hidden_fact_frac": 0.0, "length_liking": 0.0, "confidence_liking": 0.0, "agreement_liking": 0.0,
    "flattery_liking": 0.0, "evasion_liking": 0.0, "group_divergence": 0.0, "side_bias_sd": 0.0, "lapse": 0.0,
    "utility_scale": 6.0,
}  # fmt: skip


def config_with(**panel):
    return build(RunConfig, {"sandbox": {}, "watch": {"panel": {"n_votes": 48, "raters": CAREFUL} | panel}})


@pytest.fixture(scope="module")
def written():
    """Prompts of the sandbox, and good and bad answers to each."""
    source = source_of(config_with(), 0)
    world = open_world(config_with().sandbox, 0)
    rng = np.random.default_rng(0)
    prompts = world.prompts(24, rng)
    good, bad = [], []
    for prompt in prompts:
        tried = [world.demonstration(prompt, rng) for _ in range(12)] + ["you are so wise ."]
        tried.sort(key=lambda text: source.gold(prompt, text))
        good.append([tried[-1]] * N_SAMPLES)
        bad.append([tried[0]] * N_SAMPLES)
    return prompts, good, bad


def panel_in(tmp_path, written, *, reference, **panel):
    config = config_with(**panel)
    tmp_path.mkdir(exist_ok=True)
    place = Workplace(
        tmp_path, tmp_path / "checkpoints", tmp_path / "metrics" / "ppo.jsonl", LineDisplay(io.StringIO()),
        Clock(tmp_path), identity="stage:1",
    )  # fmt: skip
    return Panel(config, source_of(config, 0), place, written[0], reference, seed=0)


def n_judgements(tmp_path):
    with open_store(tmp_path / "karat.db") as store:
        return len(store.records())


def test_equal_texts_are_half_a_vote_and_nobody_is_asked(tmp_path, written):
    _, good, _ = written
    panel = panel_in(tmp_path, written, reference=good)
    assert panel(0, good) == {"validation/panel": 0.5, "validation/panel_votes": 48.0}
    assert n_judgements(tmp_path) == 0
    assert [one.name for one in panel.outputs()] == ["panel"]


def test_the_better_answers_win_whichever_side_they_are_on(tmp_path, written):
    _, good, bad = written
    won = panel_in(tmp_path / "a", written, reference=bad)(5, good)
    lost = panel_in(tmp_path / "b", written, reference=good)(5, bad)
    assert won["validation/panel"] > 0.85
    assert lost["validation/panel"] < 0.15


def test_a_look_repeated_asks_nothing_twice_and_its_votes_are_traced(tmp_path, written):
    _, good, bad = written
    panel = panel_in(tmp_path, written, reference=bad)
    mixed = [texts if row % 2 else other for row, (texts, other) in enumerate(zip(good, bad, strict=True))]
    first, n_first = panel(5, mixed), n_judgements(tmp_path)
    second = panel(10, good)
    again = panel_in(tmp_path, written, reference=bad)  # another process, after a kill
    assert again(10, good) == second
    assert n_judgements(tmp_path) > n_first > 0
    rows = again.rows()
    assert [(row["step"], row["validation/panel"]) for row in rows] == [
        (5, first["validation/panel"]), (10, second["validation/panel"]),
    ]  # fmt: skip
    (kept,) = [one for one in again.outputs() if one.kind == "asked"]
    snapshot = read_snapshot(kept.path)
    assert {vote.judgement_id for vote in snapshot.votes} == {one for row in rows for one in row["judgements"]}
    assert all(who.startswith("panel-") for who in snapshot.annotators)
    assert {vote.strategy for vote in snapshot.votes} == {"panel"}
    assert {round(vote.propensity, 6) for vote in snapshot.votes} == {round(48 / (24 * N_SAMPLES), 6)}


def test_votes_hang_on_the_texts_and_not_on_the_last_bit_of_the_reward(tmp_path, written):
    """The identity of a stage holds its reward's hash, which two processes round otherwise; the people are the same."""
    _, good, bad = written
    mixed = [texts if row % 2 else other for row, (texts, other) in enumerate(zip(good, bad, strict=True))]
    one, other = (panel_in(tmp_path / name, written, reference=bad) for name in "ab")
    other.place = replace(other.place, identity="stage:2")
    assert one(3, mixed) == other(3, mixed)
    assert one.rows() == other.rows()
    # of other people nothing is taken over
    lazy = panel_in(tmp_path / "a", written, reference=bad, raters=CAREFUL | {"attention": 0.5})
    assert lazy(3, mixed)["validation/panel_votes"] == 48
    assert set(lazy.rows()[0]["judgements"]).isdisjoint(other.rows()[0]["judgements"])


def test_pairs_are_drawn_without_replacement_and_anew_for_each_look(tmp_path, written):
    prompts, good, bad = written
    numbered = [[f"{text} {i} ." for i, text in enumerate(group)] for group in good]
    panel = panel_in(tmp_path, written, reference=bad)
    pairs = panel.pairs(3, numbered)
    assert len({(pair.prompt.id, pair.ours) for pair in pairs}) == len(pairs) == 48
    assert pairs == panel.pairs(3, numbered) != panel.pairs(4, numbered)
    assert 10 < sum(pair.ours_first for pair in pairs) < 38
    assert len(panel_in(tmp_path, written, reference=bad, n_votes=1000).pairs(3, numbered)) == len(prompts) * N_SAMPLES


def test_a_vote_counts_for_its_side_however_strong(tmp_path, written):
    _, good, bad = written
    panel_in(tmp_path, written, reference=bad)(1, good)
    with open_store(tmp_path / "karat.db") as store:
        judgement: Judgement = store.records()[0].judgement
    for level, wanted in ((0, 0.0), (2, 0.0), (3, 0.5), (4, 1.0), (6, 1.0)):
        assert preferred(replace(judgement, value={"level": level, "n_levels": 7})) == wanted
    assert preferred(replace(judgement, value={"missing": "cannot judge"})) is None


def test_where_votes_say_that_the_start_was_best_the_start_is_kept(tmp_path):
    watcher = Watcher(WatchRules(best_metric="validation/panel", of_top=0.85, run_steps=3), tmp_path / "watcher")
    start, last = toy_lm(), toy_lm()
    with torch.no_grad():
        last.model.get_output_embeddings().weight.mul_(2)
    for step, share in enumerate((0.5, 0.4, 0.3, 0.2)):
        policy = last if step else start
        save = partial(save_lm, policy, metadata={})
        watcher.observe(step, {"validation/panel": share, "validation/panel_votes": 96.0}, save)
    place = Workplace(
        tmp_path, tmp_path / "checkpoints", tmp_path / "metrics" / "ppo.jsonl", LineDisplay(io.StringIO()), Clock(tmp_path)
    )  # fmt: skip
    (tmp_path / "metrics").mkdir()
    ended = Trained(last, 3, None, watcher.best_step, watcher.best_path, 0)
    found = keep(Run(tmp_path, 0, LineDisplay(io.StringIO())), config_with(), place, ended, watcher)
    assert found.metrics["kept_step"] == 0
    kept = load_lm(tmp_path / "models" / "ppo").model.get_output_embeddings().weight
    assert torch.equal(kept, start.model.get_output_embeddings().weight)


def test_a_run_of_given_votes_has_nobody_to_ask(tmp_path):
    given = {"path": str(tmp_path / "a.jsonl"), "model": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"watch\.panel: found it in a run of `preferences`"):
        build(RunConfig, {"preferences": given, "watch": {"panel": {}}})
    with pytest.raises(ConfigError, match=r"watch\.panel: found n_votes=0"):
        build(RunConfig, {"sandbox": {}, "watch": {"panel": {"n_votes": 0}}})
