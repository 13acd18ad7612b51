"""The sandbox as a source of votes: what its raters' configuration switches on can be found in the votes of a run."""

import io

import numpy as np

from karat.config import build
from karat.feedback.store import open_store
from karat.feedback.work.trial import trial
from karat.pipeline.runs import source_of
from karat.pipeline.sandbox import open_world
from karat.pipeline.settings import RunConfig
from karat.pipeline.stages import Clock, Workplace
from karat.progress import LineDisplay
from karat.records import Response, Task

STEADY = {"n_raters": 12, "attention": 1.0, "hidden_fact_frac": 0.0, "length_liking": 0.0, "lapse": 0.0}


def votes_of(path, drift):
    """Two raters each on a short and a long demonstration of 150 prompts."""
    raters = STEADY | {"drift": drift}
    config = build(RunConfig, {"sandbox": {"raters": raters}, "collect": {"n_tasks": 150, "overlap": 2}})
    world, rng = open_world(config.sandbox, 0), np.random.default_rng(0)
    path.mkdir()
    place = Workplace(
        path, path / "checkpoints", path / "metrics.jsonl", LineDisplay(io.StringIO()), Clock(path), identity="stage:1"
    )
    with open_store(path / "karat.db") as store:
        for prompt in world.prompts(150, rng):
            texts = sorted({world.demonstration(prompt, rng) for _ in range(8)}, key=lambda text: len(text.split()))
            if len(texts) > 1:
                pair = [Response(prompt.id, text, "sft", n) for n, text in enumerate((texts[0], texts[-1]))]
                store.add_prompts([prompt])
                store.add_responses(pair)
                store.add_tasks([Task(prompt.id, tuple(one.id for one in pair), overlap=2, batch="b")])
        source_of(config, 0).votes(store, place, "b")
        (length,) = [one for one in trial(store, np.random.default_rng(0)).drifts if one.trait == "log-length"]
    return length


def test_tastes_that_drift_are_found_in_the_votes_of_a_run(tmp_path):
    moved, still = votes_of(tmp_path / "moved", 1.0), votes_of(tmp_path / "still", 0.0)
    assert moved.change > 0
    assert moved.p_value <= 0.01
    assert still.p_value > 0.05
