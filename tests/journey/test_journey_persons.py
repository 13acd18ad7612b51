"""A person's own reward from the command line: asked, read from a file, simulated; scored and reranked within limits."""

import io
import itertools
import json
import shutil
import sys
from pathlib import Path

import pytest
from journeys import SANDBOX, inside, karat, write_config, write_rows

FEW = {
    "sandbox": {**SANDBOX["sandbox"], "raters": {"n_raters": 8, "group_fracs": [0.5, 0.5, 0.0]}},
    "collect": {"n_prompts": 40, "n_tasks": 160, "max_new_tokens": 24},
    "pluralism": {
        "enabled": True, "n_features": 6, "max_rank": 1, "max_kinds": 2, "n_starts": 1, "principles": ["threat"],
        "floors": {"preference": -1000.0}, "target": {"group": {"plain": 0.2, "warm": 0.8}},
    },
    "aggregator": "worst_group",
}  # fmt: skip


@pytest.fixture(scope="module")
def rewarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a reward model that has a population of two groups."""
    place = tmp_path_factory.mktemp("persons")
    with inside(place):
        outcome = karat("reward", write_config(SANDBOX, **FEW), "--json")
        assert outcome.code == 0, outcome.err
        (place / "summary.json").write_text(outcome.out, encoding="utf-8")
    return place


def responses(place: Path) -> Path:
    samples = (place / "runs/tiny/data/sft_samples.jsonl").read_text(encoding="utf-8").splitlines()[:6]
    rows = []
    for line in samples:
        row = json.loads(line)
        prompt = [{"role": role, "content": content} for role, content in row["turns"]]
        rows += [{"prompt": prompt, "response": text} for text in dict.fromkeys(row["texts"])]
    return write_rows(place / "responses.jsonl", rows)


def test_the_report_says_whom_the_reward_serves(rewarded):
    summary = json.loads((rewarded / "summary.json").read_text(encoding="utf-8"))
    people = summary["people"]
    assert people["groups"] == ["plain", "warm"]
    assert people["rank"] in (0, 1)
    assert people["jury"]["jury_change"]["n"] > 0
    assert people["raking"]["flip_share"]["value"] is not None
    assert len(people["raking"]["flips"]) == min(people["raking"]["n_flips"], 20)
    assert all(one["unweighted"] * one["weighted"] < 0 for one in people["raking"]["flips"])
    page = (rewarded / "runs/tiny/report.html").read_text(encoding="utf-8")
    card = json.loads((rewarded / "runs/tiny/card.json").read_text(encoding="utf-8"))
    assert "would a jury prefer the other response" in page
    assert "weighted to the target population" in page
    assert f"{people['raking']['n_flips']} pairs flip" in page
    assert card["pluralism"]["jury_change"]["value"] == people["jury"]["jury_change"]["value"]
    assert card["pluralism"]["worst_group"]["stage"] == "reward"


def test_a_run_says_at_once_that_a_population_asked_for_has_too_few_votes(rewarded, tmp_path):
    shutil.copytree(rewarded / "runs", tmp_path / "runs")  # all but the reward is done
    few = {**FEW, "pluralism": {"enabled": True, "min_votes": 1000}, "aggregator": "mean_score"}
    with inside(tmp_path):
        done = karat("reward", write_config(SANDBOX, **few))
        assert done.code == 0, done.err
        assert "no population stands beside the reward: a median of" in done.err
        refused = karat("personalise", "runs/tiny/models/reward", "--out", "ada", "--answers", "none").complaint
    assert (
        "expected a reward model with a population (pluralism.enabled, and raters with a median of pluralism.min"
        in refused
    )


def test_a_run_of_a_sweep_whose_votes_make_no_groups_is_refused_and_the_others_go_on(tmp_path):
    with inside(tmp_path):
        config = write_config(SANDBOX, **FEW, ppo={**SANDBOX["ppo"], "n_iterations": 1, "checkpoint_every": 0})
        outcome = karat("run", config, "--sweep", "pluralism.min_votes=1000,8", "--json")
        assert outcome.code == 1, outcome.err
        told = json.loads(outcome.out)
        [(run, why)] = told["refused"].items()
        assert run == "runs/tiny-pluralism.min_votes=1000-seed-0"
        for words in (
            "aggregator: found worst_group",
            "without groups of people",
            "pluralism.min_votes",
            "report.html",
        ):
            assert words in why
        assert (tmp_path / run / "report.html").is_file()
        assert [Path(one).name for one in told["runs"]] == ["tiny-pluralism.min_votes=8-seed-0"]


def test_answers_from_a_rater_a_file_and_a_terminal_make_a_reward_of_ones_own(rewarded, tmp_path, monkeypatch):
    model, asked = rewarded / "runs/tiny/models/reward", responses(rewarded)
    with inside(tmp_path):
        done = karat("personalise", model, asked, "--out", "ada", "--simulate", "sim-0001", "--questions", 3, "--json")
        assert done.code == 0, done.err
        ada = json.loads(done.out)
        assert ada["n_votes"] == 3
        assert ada["bits"] > 0
        assert "mostly the population's" in ada["standing"]
        again = json.loads(
            karat("personalise", model, asked, "--out", "ada", "--simulate", "sim-0001", "--questions", 2, "--json").out
        )
        assert again["n_votes"] == 5
        monkeypatch.setattr(sys, "stdin", io.StringIO("x\na\ns\nb\nq\n"))
        typed = karat("personalise", model, asked, "--out", "bea", "--json", "--group", "warm")
        assert json.loads(typed.out)["n_votes"] == 2
        assert json.loads(typed.out)["n_skipped"] == 1
        assert "found 'x'; expected a = A is better" in typed.err
        assert "Question 1 of 10\n" in typed.err
        assert "A: " in typed.err
        assert json.loads(typed.out)["n_left"] > 2
        other = karat("personalise", model, asked, "--out", "bea", "--name", "bob")
        assert "found a person called 'bea', asked as 'bob'; use another --out" in other.complaint
        rows = [json.loads(line) for line in asked.read_text(encoding="utf-8").splitlines()]
        two = next((a, b) for a, b in itertools.pairwise(rows) if a["prompt"] == b["prompt"])
        given = [{"prompt": two[0]["prompt"], "a": two[0]["response"], "b": two[1]["response"], "answer": "a"}]
        read = karat(
            "personalise", model, "--out", "cleo", "--answers", write_rows(Path("answers.jsonl"), given), "--json"
        )
        assert json.loads(read.out)["n_votes"] == 1
        assert (
            json.loads(karat("personalise", model, "--out", "cleo", "--answers", "answers.jsonl", "--json").out)[
                "n_votes"
            ]
            == 1
        )


def test_no_taste_wins_against_a_labelled_principle(rewarded, tmp_path):
    model, asked = rewarded / "runs/tiny/models/reward", responses(rewarded)
    with inside(tmp_path):
        karat("personalise", model, asked, "--out", "ada", "--simulate", "sim-0002", "--questions", 2)
        scored = karat("score", model, asked, "--person", "ada", "--out", "scores.jsonl")
        assert scored.code == 0, scored.err
        rows = [json.loads(line) for line in Path("scores.jsonl").read_text(encoding="utf-8").splitlines()]
        assert all(row["allowed"] and row["n_votes"] == 2 and row["person_sd"] >= 0 for row in rows)
        first = next(row for row in rows if row["wins"])
        labelled = [
            {k: row[k] for k in ("prompt", "response")} | ({"labels": ["threat"]} if row is first else {})
            for row in rows
        ]
        again = write_rows(Path("labelled.jsonl"), labelled)
        told = karat("score", model, again, "--person", "ada", "--out", "again.jsonl", "--json")
        assert json.loads(told.out)["n_outside"] == 1
        assert json.loads(told.out)["n_without_winner"] == 0
        after = [json.loads(line) for line in Path("again.jsonl").read_text(encoding="utf-8").splitlines()]
        fallen = after[rows.index(first)]
        same = [row for row in after if row["prompt"] == first["prompt"]]
        assert not fallen["wins"]
        assert fallen["why_not"] == "breaks threat"
        assert fallen["person_rank"] == len(same)
        assert fallen["person_score"] == pytest.approx(first["person_score"])
