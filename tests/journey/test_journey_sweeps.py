"""A sweep does what its runs share once: every run ends in the bits it would have had alone, with a record of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from journeys import SANDBOX, STAGES, Outcome, inside, karat, manifests, n_votes, weights, write_config, write_rows
from test_journey_sources import preferences

from karat.config import build, plain
from karat.errors import InputError
from karat.pipeline import taking, told
from karat.pipeline.runs import run_config, run_once
from karat.pipeline.settings import RunConfig
from karat.progress import open_progress
from recorded_reads import recorded_reads
from tiny_models import tiny_checkpoint

RATE = "ppo.update.learning_rate"
SWEEP = ("--sweep", f"{RATE}=0.01,0.003")
FIRST, SECOND = (f"tiny-{RATE}={value}-seed-0" for value in ("0.01", "0.003"))
"""The second has the settings of the run `finished`."""
AROUND = {"device", "decode", "attention"}
"""Keys whose runs differ in circumstances (`taking.circumstances`), of which no stage is told."""


def taken(outcome: Outcome) -> list[tuple[str, str]]:
    """(stage, run that lent it) of every stage that the progress says was taken over, in order."""
    rows = [line.partition(": taken over from ") for line in outcome.err.splitlines()]
    return [(stage, where.partition(",")[0]) for stage, said, where in rows if said]


def ends_alike(run: Path, alone: Path) -> None:
    """Model by model and figure by figure a run ended as another one, and every recorded byte is as it was."""
    for model in ("base", "sft", "reward", "ppo"):
        assert weights(run / "models" / model) == weights(alone / "models" / model), model
    assert n_votes(run) == n_votes(alone)
    assert (run / "evaluation.json").read_bytes() == (alone / "evaluation.json").read_bytes()
    assert karat("verify", run).code == 0
    left = [path.name for path in run.rglob("*") if path.name.startswith(".") and path.name != ".lock"]
    assert left == []


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a sweep over two values; not to be changed."""
    place = tmp_path_factory.mktemp("swept")
    with inside(place):
        outcome = karat("run", write_config(SANDBOX), *SWEEP)
        assert outcome.code == 0, outcome.err
        assert taken(outcome) == [(stage, FIRST) for stage in STAGES[:5]]
    return place


@pytest.fixture
def copied_sweep(swept: Path, tmp_path: Path):
    """A copy of the sweep's directory, to be changed at will."""
    shutil.copytree(swept, tmp_path / "copied")
    with inside(tmp_path / "copied") as place:
        yield place


def test_a_run_of_a_sweep_ends_in_the_bits_it_has_alone(swept: Path, finished: Path):
    ends_alike(swept / "runs" / SECOND, finished / "runs" / "tiny")
    assert weights(swept / "runs" / FIRST / "models/ppo") != weights(finished / "runs/tiny/models/ppo")


def test_its_record_is_complete_without_the_run_that_it_was_taken_from(copied_sweep: Path, finished: Path):
    run = copied_sweep / "runs" / SECOND
    shutil.rmtree(copied_sweep / "runs" / FIRST)
    ends_alike(run, finished / "runs" / "tiny")
    assert set(manifests(run)) == set(STAGES)
    collected = json.loads(manifests(run)["collect"])
    assert collected["notes"][-1].startswith(f"taken over from {FIRST}, where it ended at ")
    traced = karat("trace", run, "models/ppo")
    assert f"votes {collected['metrics']['n_votes']}" in traced.out
    assert "from outside" not in traced.out
    listed = json.loads(karat("trace", run, "snapshots/votes", "--judgements", "--json").out)
    assert len(listed["trees"][0]["facts"]["judgements"]) == collected["metrics"]["n_votes"]
    assert karat("report", run).code == 0
    page = (run / "report.html").read_text()
    assert f"sft: taken over from {FIRST}" in page
    assert f"ppo: taken over from {FIRST}" not in page
    theirs, ours = (json.loads((one / "card.json").read_text()) for one in (finished / "runs/tiny", run))
    assert ours["policy"]["gold"]["value"] == theirs["policy"]["gold"]["value"]
    assert ours["feedback"]["n_judgements"]["value"] == theirs["feedback"]["n_judgements"]["value"]


def swept_up_to(stage: str, sweep: str) -> None:
    """Run a sweep up to some stage."""
    with open_progress(silent=True) as progress:
        run_config(Path("tiny.yaml"), overrides=[], seeds=None, sweep=[sweep], until=stage, progress=progress)


def lent(run: Path) -> list[str]:
    """The stages whose manifests say that another run did them."""
    return [stage for stage, text in manifests(run).items() if "taken over from" in text.decode()]


def as_run_of(sweep: Path, name: str, *, without: tuple[str, ...] = ()) -> Path:
    """The run with the settings of `finished`, as if another sweep over a key that leaves them as they are had done it."""
    run = sweep / "runs" / name
    shutil.copytree(sweep / "runs" / SECOND, run)
    for stage in without:
        (run / "manifests" / f"{stage}.json").unlink()
    return run


@pytest.mark.usefixtures("copied_sweep")
def test_what_a_refused_run_has_done_is_taken_over(copied_sweep: Path):
    names = [f"tiny-allow_ungated_reward={said}-seed-0" for said in ("false", "true")]
    refused = as_run_of(copied_sweep, names[0], without=("ppo", "evaluate"))
    outcome = karat("run", "tiny.yaml", "--sweep", "allow_ungated_reward=false,true", "--set", "ppo.n_iterations=1")
    assert outcome.code == 1
    assert f"REFUSED, not in the table: runs/{names[0]}" in outcome.out
    assert taken(outcome) == [(stage, names[0]) for stage in STAGES[:5]]
    assert set(manifests(refused)) == set(STAGES[:5])
    passed = copied_sweep / "runs" / names[1]
    assert set(manifests(passed)) == set(STAGES)
    assert karat("verify", passed).code == 0


def test_a_sweep_that_is_killed_while_it_takes_over_goes_on_and_what_is_gone_comes_back(
    copied_sweep: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
):
    """Over a key that no stage is told, so that every one of them is shared."""
    names = [f"tiny-score_http.n_retries={n}-seed-0" for n in (3, 4)]
    first, second = as_run_of(copied_sweep, names[0]), copied_sweep / "runs" / names[1]
    command = ("run", "tiny.yaml", "--sweep", "score_http.n_retries=3,4")
    real, left = taking.copy_in, iter(range(5))

    def until_killed(*given: Path) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(taking, "copy_in", until_killed)
        assert karat(*command).code == 130
    before = manifests(second)
    outcome = karat(*command)
    assert outcome.code == 0, outcome.err
    assert 0 < len(before) < len(STAGES)
    assert taken(outcome) == [(stage, names[0]) for stage in STAGES[len(before) :]]
    ends_alike(second, finished / "runs" / "tiny")
    shutil.rmtree(first)
    before = manifests(second)
    assert taken(karat(*command)) == [(stage, names[1]) for stage in STAGES]
    ends_alike(first, finished / "runs" / "tiny")
    assert manifests(second) == before


@pytest.mark.usefixtures("copied_sweep")
def test_from_the_stage_on_that_reads_the_swept_key_nothing_is_shared(copied_sweep: Path):
    names = [f"tiny-sft.learning_rate={rate}-seed-0" for rate in (0.0005, 0.0007)]
    as_run_of(copied_sweep, names[0])
    swept_up_to("collect", "sft.learning_rate=0.0005,0.0007")
    done = copied_sweep / "runs" / names[1]
    assert lent(done) == ["base", "source"]
    assert set(manifests(done)) == set(STAGES[:4])
    assert weights(done / "models/sft") != weights(copied_sweep / "runs" / names[0] / "models/sft")


@pytest.mark.long
def test_rounds_of_a_sweep_share_the_first_one(here: Path):
    """The first round's votes are taken over before the store of the run that gave them holds those of a second round."""
    config = write_config(SANDBOX, ppo={**SANDBOX["ppo"], "n_iterations": 1, "checkpoint_every": 0})
    outcome = karat("run", config, "--sweep", "rounds=2,1")
    assert outcome.code == 0, outcome.err
    two, one = (f"tiny-rounds={n}-seed-0" for n in (2, 1))
    assert taken(outcome) == [(stage, two) for stage in STAGES[:6]]
    assert n_votes(here / "runs" / two) == 2 * n_votes(here / "runs" / one)
    assert weights(here / "runs" / two / "models/ppo") == weights(here / "runs" / one / "models/ppo")
    for run in (one, two):
        assert karat("verify", here / "runs" / run).code == 0


def test_runs_on_a_file_of_preferences_share_its_votes(here: Path):
    tiny_checkpoint("qwen3", here / "model")
    write_rows(Path("rows.jsonl"), preferences(80))
    limits = {"max_prompt_tokens": 80, "max_response_tokens": 24}
    config: dict[str, Any] = {"preferences": {"path": "rows.jsonl", "model": "model", **limits}, "name": "tiny"}
    config |= {key: SANDBOX[key] for key in ("ppo", "watch", "allow_ungated_reward")}
    config["collect"] = {"n_prompts": 16, "n_samples": 2, "max_new_tokens": 16}
    config["evaluate"] = {**SANDBOX["evaluate"], "n_prompts": 8}
    write_config(config)
    first, second = (here / "runs" / name for name in (FIRST, SECOND))
    swept_up_to("reward", SWEEP[1])
    assert lent(second) == ["collect", "reward", "sft", "source"]
    # another room for responses is one that the prompts were not measured by
    rooms = "ppo.rollout.max_new_tokens=24,100000"
    first.rename(here / "runs" / f"tiny-{rooms.partition(',')[0]}-seed-0")
    with pytest.raises(InputError, match="room wanted for 100000 response tokens"):
        swept_up_to("reward", rooms)
    shutil.rmtree(here / "runs" / f"tiny-{rooms.partition(',')[0]}-seed-0")
    assert karat("verify", second).code == 0
    assert "votes 80" in karat("trace", second, "models/reward").out


OTHERS = (
    ({}, None),
    ({"algorithm": "dpo"}, "dpo"),
    ({"lora": {"rank": 4, "alpha": 8.0}, "dtype": "bfloat16", "gate": {"remove_length": True}}, "reward"),
)


@pytest.mark.parametrize(("changes", "until"), OTHERS, ids=["as it is", "dpo", "adapters"])
def test_every_key_that_a_stage_reads_is_one_that_it_is_told(here: Path, changes: dict[str, Any], until: str | None):
    """Or one that a stage before it was told; or it is among what whoever takes the stage over has to look at."""
    config = build(RunConfig, {**SANDBOX, **changes})
    with recorded_reads(config) as reads, open_progress(silent=True) as progress:
        run_once(config, seed=0, directory=here / "runs" / "tiny", progress=progress, until=until)
        allowed: set[str] = set()
        for stage in tuple(reads.found):
            station = told.POLICY if stage == config.algorithm else stage
            with reads.during("what it is told") as declared:
                plain(told.settings_of(station, config))
                lendable = told.lendable(station, config)
                assert lendable is not None
                if lendable.also is not None:
                    lendable.also()
            allowed |= declared
            assert reads.found[stage] <= allowed, (stage, reads.found[stage] - allowed)
            beside = {name for name in reads.left[stage] if not name.startswith("karat.db")}
            assert beside == set(), (stage, "leaves what is no output of it")
            assert lendable.with_store or beside == reads.left[stage], (stage, "writes to the store")
    assert not AROUND & allowed
