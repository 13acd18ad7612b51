"""`karat reward --store` trains what the configuration asks for, goes on after a break, and says what one must know."""

import dataclasses
import json

import pytest
import torch

from journeys_kinds import store_of_sandbox
from karat.cli import main
from karat.cli.findings import calibration_lines, finding_lines, gain_line
from karat.feedback.documents import add_questions
from karat.feedback.store import open_store
from karat.feedback.tasks import answer
from karat.pipeline import mixture
from karat.questions import Question
from karat.records import Annotator, Estimate, Response, Task, user_prompt
from karat.reward import fit as fitting
from karat.reward.dense import load_dense
from karat.reward.novelty import load_novelty
from karat.reward.score import CARD, load_scorer
from karat.reward.steps import TrainingRun
from tiny_models import tiny_checkpoint

SMALL = {"reward.heads.n_heads": 2, "reward.batch_responses": 24, "reward.n_refits": 0, "reward.holdout_frac": 0.3,
         "reward.laplace.n_draws": 8, "reward.ensemble.models": 2, "reward.laplace.tastes": "false"}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("command")
    store_of_sandbox(path / "karat.db", n_prompts=5).close()
    tiny_checkpoint("qwen3", path / "model")
    return path


def run(place, out, *options, store="karat.db", **settings):
    pairs = [part for key, value in (SMALL | settings).items() for part in ("--set", f"{key}={value}")]
    return main(
        ["reward", "--store", str(place / store), "--model", str(place / "model"), "--out", str(out), *pairs, *options]
    )


def test_a_last_layer_is_trained_where_it_is_asked_for(place, tmp_path, capsys):
    only = {"reward.posterior": "laplace", "reward.kinds": "[comparison]", "objectives.names": "{}"}
    assert run(place, tmp_path / "r", "--json", **only) == 0
    assert json.loads(capsys.readouterr().out)["posterior"] == "laplace"
    assert (tmp_path / "r" / "last_layer.safetensors").is_file()
    assert len(load_scorer(tmp_path / "r").model.weight) == 8


def test_plain_features_beside_the_trunk_are_trained_saved_and_scored_with(place, tmp_path, capsys):
    only = {"reward.posterior": "laplace", "reward.kinds": "[comparison,span_marks,step_marks]"}
    beside = {"reward.beside": "[ngrams,place,overlap,numbers]", "reward.laplace.text_effects": "true"}
    assert run(place, tmp_path / "r", "--json", **only, **beside) == 0
    found = json.loads(capsys.readouterr().out)
    assert "reward.beside" in [finding["name"] for finding in found["findings"]]
    assert found["marked"]
    assert load_dense(tmp_path / "r", load_scorer(tmp_path / "r").model.trunk).side.names == (
        "ngrams",
        "place",
        "overlap",
        "numbers",
    )
    rows = [{"prompt": "q", "response": text} for text in ("one", "two words and more")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["score", str(tmp_path / "r"), str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "s.jsonl")]) == 0
    scorer = load_scorer(tmp_path / "r")
    assert scorer.side is not None
    without = dataclasses.replace(scorer, side=None)
    prompts = [user_prompt("q")] * 2
    written = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    texts = [row["response"] for row in rows]
    assert [row["score"] for row in written] == pytest.approx(scorer.logits(prompts, texts).mean(0).tolist(), abs=1e-3)
    assert not torch.allclose(scorer.logits(prompts, texts), without.logits(prompts, texts))


def test_heads_of_marks_read_plain_features_where_the_reward_does_not(place, tmp_path, capsys):
    beside = {"reward.beside": "[ngrams,place]", "objectives.names": "{}"}
    assert run(place, tmp_path / "r", "--json", **beside, **{"reward.kinds": "[comparison,span_marks]"}) == 0
    (told,) = [one for one in json.loads(capsys.readouterr().out)["findings"] if one["name"] == "reward.beside"]
    assert "heads of marks (wrong) read ngrams, place; whole responses are scored by the trunk alone" in told["detail"]
    scorer = load_scorer(tmp_path / "r")
    assert scorer.side is None
    assert load_dense(tmp_path / "r", scorer.model.trunk).side.names == ("ngrams", "place")
    assert run(place, tmp_path / "s", **beside, **{"reward.kinds": "[comparison]"}) == 2
    assert "reward.beside: found ngrams, place with posterior heads" in capsys.readouterr().err.splitlines()[-1]


def test_an_ensemble_is_trained_where_it_is_asked_for(place, tmp_path, capsys):
    assert run(place, tmp_path / "r", **{"reward.posterior": "ensemble", "reward.kinds": "[comparison,label]"}) == 0
    assert len(load_scorer(tmp_path / "r").members) == 2
    assert "reward.held_out" not in capsys.readouterr().out  # an info is not said without --json


def test_several_objectives_have_a_last_layer_each_and_one_of_a_single_response_is_named(place, tmp_path, capsys):
    kinds = {"reward.posterior": "laplace", "reward.kinds": "[comparison,rating,label]"}
    wanted = {"objectives.weights.preference": 1, "objectives.floors.honest": -2}
    assert run(place, tmp_path / "r", "--json", **kinds, **wanted, **{"aggregator": "lower_bound"}) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["objectives"] == ["preference", "helpful", "honest", "not_harmful"]
    assert "reward.last_layer_objectives" in [finding["name"] for finding in found["findings"]]
    assert {one["objective"] for one in found["contributions"]} == set(found["objectives"])
    scorer = load_scorer(tmp_path / "r")
    assert len(scorer.model.further_weight) == 3
    assert scorer.objectives.floors == {"honest": -2}
    # an objective that nothing is said about is named before anything is trained
    assert run(place, tmp_path / "s", **kinds, **{"objectives.weights.kind": 1}) == 2
    assert "objective 'kind': found no feedback about it" in capsys.readouterr().err.splitlines()[-1]


def test_a_last_layer_is_fitted_to_kinds_that_compare_nothing_in_pairs(place, tmp_path, capsys):
    kinds = {"reward.kinds": "[ranking,best_of,label]", "objectives.names": "{harmful: preference}"}
    assert run(place, tmp_path / "r", "--json", **{"reward.posterior": "laplace", **kinds}) == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["kind"] for one in found["contributions"]} == {"ranking", "best_of", "label"}
    assert all(one["n_judgements"] > 0 for one in found["contributions"])
    assert (tmp_path / "r" / "last_layer.safetensors").is_file()


def test_an_interrupted_training_goes_on_and_leaves_no_checkpoints(place, tmp_path, monkeypatch):
    often = {"reward.checkpoint_every": 1, "reward.kinds": "[comparison]"}
    finish = fitting.scorer_of
    monkeypatch.setattr(fitting, "scorer_of", lambda _: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert run(place, tmp_path / "r", **often) != 0
    assert sorted((tmp_path / ".training-r").glob("step-*"))
    monkeypatch.setattr(fitting, "scorer_of", finish)
    monkeypatch.setattr(TrainingRun, "step", lambda *_: pytest.fail("a finished step was made again"))
    assert run(place, tmp_path / "r", **often) == 0
    assert (tmp_path / "r" / CARD).is_file()
    assert not (tmp_path / ".training-r").exists()


def one_rating_a_prompt(path, n_prompts):
    with open_store(path) as store:
        question = Question("rating", low=1, high=100)
        add_questions(store, [question])
        store.add_annotators([Annotator(f"r{i}", "simulated") for i in range(3)])
        for i in range(n_prompts):
            prompt = user_prompt(f"about {i}?")
            response = Response(prompt.id, "good " * (i % 4 + 1), "policy", 0)
            store.add_prompts([prompt])
            store.add_responses([response])
            for rater in range(3):
                task = Task(prompt.id, (response.id,), "rating", batch=f"b{rater}", question=question.id)
                store.add_tasks([task])
                value = {"score": 20 * (i % 4) + 10 + rater, "low": 1, "high": 100}
                store.submit(
                    answer(
                        task, value, annotator=f"r{rater}", shown_order=(0,), created_at="2026-03-04T05:06:07Z",
                        submission=task.id, origin="simulated", shown={"question": question.id},
                    )
                )  # fmt: skip


def test_ratings_of_one_response_a_prompt_train_a_reward_with_a_scale(place, tmp_path, capsys):
    one_rating_a_prompt(place / "one.db", 8)
    assert run(place, tmp_path / "r", store="one.db") == 0
    assert load_scorer(tmp_path / "r").scale.scale > 0
    assert "reward.scale: the spread over 8 prompts" in capsys.readouterr().out


def test_a_single_response_is_refused_before_training(place, tmp_path, capsys):
    one_rating_a_prompt(place / "single.db", 1)
    assert run(place, tmp_path / "r", store="single.db", **{"reward.holdout_frac": 0}) == 2
    assert "found one response in all" in capsys.readouterr().err.splitlines()[-1]


def test_an_aggregator_of_groups_without_votes_enough_for_them_is_refused_before_training(place, tmp_path, capsys):
    of_groups = {"pluralism.enabled": "true", "pluralism.min_votes": 1000, "aggregator": "worst_group"}
    of_groups["reward.kinds"] = "[comparison]"  # about one objective: several would stand in the groups' place
    assert run(place, tmp_path / "r", **of_groups) == 2
    assert "found worst_group and too few votes for groups of people (" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "r").exists()


def test_findings_that_need_a_reader_are_lines():
    found = [
        {"name": "a", "question": "A?", "status": "info", "detail": "x", "estimate": None},
        {"name": "b", "question": "B?", "status": "warn", "detail": "end of range", "estimate": None},
        {"name": "c", "question": "C?", "status": "not measured", "detail": "", "estimate": {"method": "no votes"}},
    ]
    assert finding_lines(found) == ["warn         b: end of range", "not measured c: no votes"]


def test_calibration_of_each_group_and_kind_is_a_line():
    estimate = {"value": 1.5, "low": 1.0, "high": 2.0, "n": 80, "method": "m"}
    few = {"value": None, "low": None, "high": None, "n": 7, "method": "7 held-out judgements"}
    names = {"group.town": estimate, "kind.rating/a.b/1-5": few}
    found = [
        {"name": f"reward.calibration.{name}", "status": "info", "estimate": one, "detail": "d", "question": "?"}
        for name, one in names.items()
    ]
    assert calibration_lines([*found, {**found[0], "status": "warn"}, {**found[0], "name": "gate.likelihood"}]) == [
        "calibration of group town: 1.500 [1.000, 2.000], n = 80; d",
        "calibration of kind rating/a.b/1-5: not estimable (7 held-out judgements); d",
    ]


def test_comparisons_on_prompts_kept_from_training_decide_the_gate(place, tmp_path, capsys):
    store_of_sandbox(tmp_path / "more.db", n_prompts=24).close()
    only = {"reward.kinds": "[comparison]", "objectives.names": "{}", "gate.min_votes": 10, "gate.attack_words": 0,
            "gate.false_alarm_frac": 0.1}  # fmt: skip
    assert run(place, tmp_path / "r", "--json", store=tmp_path / "more.db", gate_frac=0.4, **only) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["n_gate"] >= 10
    status = {one["name"]: one["status"] for one in done["findings"]}
    assert status["gate.likelihood"] in ("pass", "fail")
    (unfamiliar,) = [one for one in done["findings"] if one["name"] == "gate.novelty"]
    assert unfamiliar["status"] == "info"
    assert 0 <= unfamiliar["estimate"]["value"] <= 1
    assert load_novelty(tmp_path / "r") is not None  # the watcher of a run that is given this reward reads it
    assert done["gate"] != "pass" or not {"fail", "not measured"} & {
        each for name, each in status.items() if name.startswith("gate.")
    }
    assert 0 < sum(one["n"] for one in done["calibration"]) <= done["n_gate"]
    assert [(name, one["n"]) for name, one in done["calibration_slices"]["kind"].items()] == [
        (main, done["n_gate"]) for main in done["calibration_slices"]["kind"] if main.startswith("comparison/")
    ]
    assert any(name.startswith("reward.calibration.kind.comparison/") for name in status)
    assert run(place, tmp_path / "all", "--json", store=tmp_path / "more.db", gate_frac=0, **only) == 0
    everything = json.loads(capsys.readouterr().out)
    assert (everything["gate"], everything["n_gate"]) == ("not measured", 0)
    assert load_novelty(tmp_path / "all") is None
    # what it decides with is trained on by nobody
    [kept], [trained] = done["contributions"], everything["contributions"]
    assert kept["n_judgements"] <= trained["n_judgements"] - 0.5 * done["n_gate"]  # some of them of held-out raters
    assert run(place, tmp_path / "all", gate_frac=1.5) == 2
    assert "gate_frac: found 1.5" in capsys.readouterr().err


def test_demonstrations_are_held_against_what_a_file_says_that_the_newest_policy_writes(
    place, tmp_path, capsys, monkeypatch
):
    read, say = [], mixture.said_in
    monkeypatch.setattr(mixture, "said_in", lambda *given, **named: read.append(say(*given, **named)) or read[-1])
    samples = tmp_path / "samples.jsonl"
    rows = [{"prompt": f"about {i}?", "response": f"of this round {n}"} for i in range(5) for n in range(2)]
    samples.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "else?", "response": "x"}]))
    only = {"reward.kinds": "[demonstration]", "objectives.names": "{}", "reward.holdout_frac": 0}
    assert run(place, tmp_path / "r", "--json", samples=samples, **only) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["n_judgements"] == {"demonstration": 10}
    manifest = json.loads((tmp_path / "r" / "manifests" / "reward.json").read_text())
    assert "samples" in [one["name"] for one in manifest["inputs"]]
    (said,) = read
    against = {said.responses[one.response_ids[1]].text for one in said.statements}
    assert against == {"of this round 0", "of this round 1"}
    samples.write_text(json.dumps({"prompt": "else?", "response": "x"}) + "\n")
    assert run(place, tmp_path / "other", samples=samples, **only) == 2
    assert "found 1 responses, none to one of the 5 prompts that were judged" in capsys.readouterr().err


@pytest.mark.parametrize("posterior", ["heads", "laplace"])
def test_what_is_in_only_the_gates_prompts_is_calibrated_by_kind(tmp_path, capsys, place, posterior):
    store_of_sandbox(tmp_path / "more.db", n_prompts=24).close()
    kinds = {"reward.kinds": "[comparison,label,ranking]", "gate.min_votes": 10, "gate.attack_words": 0,
             "reward.posterior": posterior, "objectives.names": "{harmful: preference}"}  # fmt: skip
    assert run(place, tmp_path / "r", "--json", store=tmp_path / "more.db", gate_frac=0.4, **kinds) == 0
    found = json.loads(capsys.readouterr().out)["calibration_slices"]["kind"]
    assert {name.split("/")[0] for name in found} == {"comparison", "label", "ranking"}
    assert all(one["n"] > 0 for one in found.values())


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.00112, 0.00141, "+0.00126 bits [+0.00112, +0.00141], 60 questions"),
        (-0.2, 0.3, "+0.001 bits [-0.200, +0.300], 60 questions"),
        (0.00126, 0.00126, "+0.001 bits [+0.001, +0.001], 60 questions"),
    ],
)
def test_a_small_gain_is_shown_with_the_digits_of_its_interval(low, high, shown):
    gain = Estimate(0.00126, low, high, 60, "bits")
    assert gain_line(gain).endswith(shown)
    assert gain_line(gain, "too few draws").endswith(f"{shown}; too few draws")


def test_a_gain_that_is_not_estimable_says_so_once():
    gain = Estimate(None, None, None, 60, "not estimable: every pair is asked about")
    assert gain_line(gain).endswith("one: not estimable: every pair is asked about")
