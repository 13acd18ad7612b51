"""Files in, files out: what `karat generate` and `karat score` write, and that a wrong file writes nothing."""

import json
from pathlib import Path

import pytest

from karat.batches import best_of_n_file, generate_file, score_file
from karat.belief import disagreement, mean_score
from karat.errors import CheckpointError, InputError
from karat.lm.generate import SamplingConfig
from karat.lm.load import load_lm
from karat.records import Prompt, Turn, user_prompt
from karat.reward.model import HeadConfig
from karat.reward.score import load_scorer, save_reward
from karat.reward.train import RewardConfig, train_reward
from karat.reward.trunk import DecoderTrunk
from reward_worlds import planted_votes
from tiny_models import tiny_checkpoint

SHORT = SamplingConfig(max_new_tokens=4)
TURNS = [
    {"role": "user", "content": "q1"}, {"role": "assistant", "content": "abc"}, {"role": "user", "content": "more"},
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_checkpoint("qwen3", tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def reward(base, tmp_path_factory) -> Path:
    config = RewardConfig(heads=HeadConfig(n_heads=3), n_refits=0, holdout_frac=0)
    votes, prompts, responses = planted_votes(2, 3)
    trunk = DecoderTrunk(load_lm(base, for_training=True))
    fit = train_reward(trunk, votes, prompts, responses, config=config, seed=0)
    return save_reward(fit, tmp_path_factory.mktemp("reward") / "rm", metadata={})


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_responses_come_in_the_order_of_the_prompts_and_again_from_the_same_seed(base, tmp_path):
    prompts = written(tmp_path / "in.jsonl", {"prompt": "a longer first question"}, {"prompt": TURNS})
    seen = []
    n = generate_file(
        base, prompts, tmp_path / "a.jsonl", n_samples=3, config=SHORT, seed=1, progress=lambda *now: seen.append(now)
    )
    rows = read(tmp_path / "a.jsonl")
    assert n == len(rows) == 6
    assert [row["prompt"] for row in rows] == ["a longer first question"] * 3 + [TURNS] * 3
    assert [row["sample"] for row in rows] == [0, 1, 2] * 2
    assert {type(row["response"]) for row in rows} == {str}
    assert {type(row["stopped"]) for row in rows} == {bool}
    assert seen[-1][1:] == (6, 6)
    for name, seed in (("b", 1), ("c", 2)):
        generate_file(base, prompts, tmp_path / f"{name}.jsonl", n_samples=3, config=SHORT, seed=seed)
    assert read(tmp_path / "b.jsonl") == rows
    assert read(tmp_path / "c.jsonl") != rows


def test_the_prompts_that_a_run_writes_are_read(base, tmp_path):
    prompts = written(tmp_path / "in.jsonl", {"split": "sft", "topic": None, "turns": [["user", "q"]]})
    assert generate_file(base, prompts, tmp_path / "a.jsonl", n_samples=1, config=SHORT, seed=1) == 1
    assert json.loads((tmp_path / "a.jsonl").read_text())["prompt"] == [{"role": "user", "content": "q"}]


def test_a_short_context_gets_the_responses_that_fit_where_nobody_named_a_length(base, tmp_path):
    prompts = written(tmp_path / "in.jsonl", {"prompt": "w" * 90}, {"prompt": "w"})
    long = SamplingConfig(max_new_tokens=128)  # the model's whole context
    with pytest.raises(InputError, match="lower max_new_tokens"):
        generate_file(base, prompts, tmp_path / "a.jsonl", n_samples=1, config=long, seed=1)
    assert generate_file(base, prompts, tmp_path / "a.jsonl", n_samples=1, config=long, seed=1, fit=True) == 2
    options = {"score_by": "test_batches:lengths", "n": 2, "n_samples": 2, "max_new_tokens": 128, "seed": 1}
    with pytest.raises(InputError, match="lower max_new_tokens"):
        best_of_n_file(base, prompts, tmp_path / "b.jsonl", **options)
    assert best_of_n_file(base, prompts, tmp_path / "b.jsonl", **options, fit=True)["n_prompts"] == 2


def lengths(_, texts):
    return [float(len(text)) for text in texts]


def test_scores_are_the_scorers_and_other_fields_are_kept(reward, tmp_path, monkeypatch):
    monkeypatch.setattr("karat.batches.SCORE_ROWS", 2)
    rows = [
        {"prompt": "q1", "response": "abc", "sample": 7}, {"prompt": TURNS, "response": "aaaa"},
        {"prompt": "q1", "response": "b"},
    ]  # fmt: skip
    seen = []
    out = tmp_path / "out.jsonl"
    n = score_file(reward, written(tmp_path / "in.jsonl", *rows), out, progress=lambda *now: seen.append(now))
    found = read(out)
    assert (n, seen) == (3, [(2, 3), (3, 3)])
    assert [{key: row[key] for key in row if not key.startswith("score")} for row in found] == rows
    long = Prompt(tuple(Turn(turn["role"], turn["content"]) for turn in TURNS))
    belief = load_scorer(reward)([user_prompt("q1"), long, user_prompt("q1")], ["abc", "aaaa", "b"])
    assert [row["score"] for row in found] == pytest.approx(mean_score(belief).tolist(), abs=1e-5)
    assert [row["score_sd"] for row in found] == pytest.approx(disagreement(belief).tolist(), abs=1e-5)
    assert len({row["score"] for row in found}) == 3


def test_loading_a_reward_says_nothing(reward, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity()
    load_scorer(reward)
    assert capfd.readouterr() == ("", "")
    assert logging.get_verbosity() == before


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"response": "x"}, "found no field 'prompt'"),
        ({"prompt": None, "response": "x"}, "found null in the field 'prompt'"),
        ({"prompt": 3, "response": "x"}, "found 3 in the field 'prompt'"),
        ({"prompt": [{"role": "user"}], "response": "x"}, "expected (text or a list of|an object with)"),
        ({"prompt": ["hello"], "response": "x"}, "expected (text or a list of|an object with)"),
        ({"prompt": [{"role": "king", "content": "x"}], "response": "x"}, "king"),
        ({"prompt": [], "response": "x"}, "found (no turn|an empty list of messages)"),
    ],
)
def test_a_wrong_prompt_is_named_and_writes_nothing(tmp_path, row, words):
    rows = written(tmp_path / "in.jsonl", {"prompt": "q1", "response": "abc"}, row)
    nowhere, out = tmp_path / "no-model", tmp_path / "out.jsonl"
    for work in (
        lambda: generate_file(nowhere, rows, out, n_samples=1, config=SHORT, seed=0),
        lambda: score_file(nowhere, rows, out),
    ):
        with pytest.raises(InputError, match=rf"in\.jsonl:2: .*{words}"):
            work()
    assert not out.exists()


def test_a_missing_response_or_model_writes_nothing(tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(InputError, match=r"in\.jsonl:1: found no field 'response'"):
        score_file(tmp_path, written(tmp_path / "in.jsonl", {"prompt": "q"}), out)
    rows = written(tmp_path / "in.jsonl", {"prompt": "q", "response": "r"})
    with pytest.raises(CheckpointError, match="found no reward_card"):
        score_file(tmp_path / "nothing", rows, out)
    with pytest.raises(CheckpointError):
        generate_file(tmp_path / "nothing", rows, out, n_samples=1, config=SHORT, seed=0)
    assert not out.exists()
