"""Every method that `algorithm` names, from the command line to the report, on the votes of a run that is there."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from journeys import SANDBOX, inside, karat, write_config, write_rows
from safetensors.torch import load_file

from journeys_kinds import store_of_sandbox
from karat.lm import narrow as narrow_module
from karat.pipeline.stages import Run
from karat.records import Response, user_prompt
from karat.reward.dense import fit_dense, load_dense, save_dense
from karat.reward.score import load_scorer
from karat.statements import Marked, Part

ROLLOUT = {"n_prompts": 8, "n_samples": 2, "max_new_tokens": 24}
ONLINE = {"n_iterations": 2, "checkpoint_every": 1, "evaluate_every": 1, "rollout": ROLLOUT}
STEPS = {"update": {"n_minibatches": 2, "learning_rate": 3.0e-3}}
OFFLINE = {"epochs": 1.0, "batch_size": 16, "learning_rate": 1.0e-3, "checkpoint_every": 1, "evaluate_every": 2}
SECTIONS = {
    "group": {**ONLINE, **STEPS},
    "online_dpo": {**ONLINE, **STEPS},
    "expert": {**ONLINE, **STEPS},
    "direct": OFFLINE,
    "ilql": OFFLINE,
}
TITLES = {"rloo": "RLOO", "grpo": "GRPO", "reinforce_pp": "REINFORCE++", "online_dpo": "Online DPO",
          "expert_iteration": "Expert iteration", "dpo": "DPO", "ipo": "IPO", "kto": "KTO", "ilql": "ILQL"}  # fmt: skip
SHORT = ("rloo", "dpo")


@pytest.mark.parametrize(
    "name", [*SHORT, *(pytest.param(name, marks=pytest.mark.long) for name in TITLES if name not in SHORT)]
)
def test_a_method_from_the_command_line_to_the_report(copied: Path, name: str):
    config = write_config(SANDBOX, **SECTIONS)
    done = karat("run", config, "--set", f"algorithm={name}", "--json")
    assert done.code == 0, done.err
    answer = json.loads(done.out)
    run = copied / "runs" / "tiny"
    assert answer["algorithm"] == name
    assert set(answer["policies"]) == {"sft", "best_of_2", name}
    assert f"{name}_minus_sft" in answer
    assert (run / "models" / name / "model.safetensors").is_file()
    assert (run / "models" / "ppo" / "model.safetensors").is_file()  # what was there is kept
    page = (run / "report.html").read_text(encoding="utf-8")
    assert TITLES[name] in page
    assert karat("verify", run).code == 0
    # the command of the method finds everything done
    again = karat(name.replace("_", "-"), config, "--json")
    assert again.code == 0, again.err
    assert f"{name}: done before, kept" in again.err


def test_figures_of_a_policy_that_was_trained_anew_are_left_out_until_it_is_measured(copied: Path):
    config = write_config(SANDBOX)
    before = json.loads((copied / "runs/tiny/summary.json").read_text(encoding="utf-8"))
    assert "ppo" in before["policies"]
    assert "left_out" not in before
    anew = ("--set", "ppo.update.learning_rate=0.02")
    done = karat("ppo", config, *anew)
    assert done.code == 0, done.err
    assert "note: evaluate: left out, stale: it read models/ppo as it was before ppo" in done.out
    assert "PPO − SFT" not in done.out
    summary = json.loads((copied / "runs/tiny/summary.json").read_text(encoding="utf-8"))
    assert summary["policies"] == {}
    assert summary["ppo_minus_sft"]["gold"]["value"] is None
    card = json.loads((copied / "runs/tiny/card.json").read_text(encoding="utf-8"))
    assert str(before["policies"]["ppo"]["gold"]["value"]) not in json.dumps(card)
    assert "left out, stale" in (copied / "runs/tiny/report.html").read_text(encoding="utf-8")
    measured = json.loads(karat("evaluate", config, *anew, "--json").out)
    assert measured["policies"]["ppo"]["gold"] != before["policies"]["ppo"]["gold"]
    assert "left_out" not in measured
    # a policy of another method that nobody has measured is named, and the measured one keeps its row
    other = karat("expert-iteration", write_config(SANDBOX, **SECTIONS), "--set", "ppo.update.learning_rate=0.02")
    assert "note: expert_iteration: its policy has not been measured; the table is of sft, best_of_2, ppo" in other.out


def test_an_optimiser_goes_on_only_under_what_paid_it_and_stays_close_to_demonstrations(copied: Path):
    Path("payments.py").write_text(
        "asked = []\n"
        "def first(prompts, texts):\n"
        "    asked.append(len(texts))\n"
        "    assert asked.count(16) < 2, 'enough'\n"
        "    return [float(len(text)) for text in texts]\n"
        "def second(prompts, texts):\n"
        "    return [-float(len(text)) for text in texts]\n"
    )
    config = write_config(SANDBOX, **SECTIONS)
    ptx = ("--set", "group.update.ptx_coef=0.2", "--set", "watch.odd_quantile=null")
    stopped = karat("rloo", config, *ptx, "--set", "score=payments:first")
    assert "raised AssertionError: enough" in stopped.complaint
    done = karat("rloo", config, *ptx, "--set", "score=payments:second")
    assert done.code == 0, done.err
    assert "score: payments:first there, payments:second here" in done.err  # the unfinished try was set aside
    rows = [json.loads(line) for line in (copied / "runs/tiny/metrics/rloo.jsonl").read_text().splitlines()]
    assert all(row["policy/data_nll"] > 0 for row in rows if row["step"])
    manifest = json.loads((copied / "runs/tiny/manifests/rloo.json").read_text(encoding="utf-8"))
    assert "demonstrations" in [one["name"] for one in manifest["inputs"]]
    # an edited function of the same name is other work
    Path("payments.py").write_text(Path("payments.py").read_text() + "# edited\n")
    assert "rloo: done before, kept" not in karat("rloo", config, *ptx, "--set", "score=payments:second").err
    refused = karat("expert-iteration", config, "--set", "expert.update.ptx_coef=5")
    assert "expert.update.ptx_coef: found 5" in refused.complaint


def test_best_of_n_from_the_command_line(copied: Path):
    write_rows(Path("p.jsonl"), [{"prompt": "who is it?"}, {"prompt": "what is it?"}])
    Path("taste.py").write_text("def short(prompts, texts):\n    return [-len(t.split()) for t in texts]\n")
    sft = copied / "runs" / "tiny" / "models" / "sft"
    options = ("--n", "4", "--samples", "8", "--max-new-tokens", "12", "--json")
    done = karat("best-of-n", sft, "p.jsonl", "--score", "taste:short", "--out", "o.jsonl", *options)
    assert done.code == 0, done.err
    answer = json.loads(done.out)
    assert answer["score_mean"] >= answer["sample_score_mean"]
    assert 0 <= answer["kl_estimate"] <= answer["kl_bound"] + 1e-9
    assert [json.loads(line)["n"] for line in Path("o.jsonl").read_text().splitlines()] == [4, 4]
    wrong = karat("best-of-n", sft, "p.jsonl", "--score", "taste:long", "--out", "o.jsonl")
    assert "found no function 'long' in taste" in wrong.complaint


def test_a_run_keeps_a_bound_and_pays_inside_responses(copied: Path):
    """The token rewards come with a given reward model: a tiny run asks no rater for marks inside responses."""
    run = copied / "runs" / "tiny"
    shutil.copytree(run / "models" / "reward", "given")
    (row, *_) = [json.loads(line) for line in (run / "data" / "sft_samples.jsonl").read_text().splitlines()]
    prompt, text = user_prompt("who is it?"), row["texts"][0] if "texts" in row else "it is"
    one = Response(prompt.id, text, "sft")
    mark = Marked("m", prompt.id, (one.id,), (Part(0, 3, 1, "wrong"),), ("wrong",), "ann", "span_marks")
    trunk = load_scorer(Path("given")).model.trunk
    save_dense(fit_dense(trunk, [mark], {prompt.id: prompt}, {one.id: one}), Path("given"), metadata={})
    bound = {"objective": "preference", "keep": "above", "limit": 50.0, "learning_rate": 0.5}
    config = write_config(SANDBOX, reward_model="given", constraint=bound, dense={"weights": {"wrong": -0.5}})
    done = karat("run", config)
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (run / "metrics" / "ppo.jsonl").read_text().splitlines()]
    rows = [one for one in rows if "cost/coef" in one]
    # nobody is 50 logits better than the reference: the price rises from 0 at every iteration
    prices = [one["cost/coef"] for one in rows]
    assert prices[0] == 0
    assert prices[1] == pytest.approx(0.5 * (rows[0]["cost/mean"] + 50))
    assert prices == sorted(set(prices))
    assert all(-0.5 < one["score/inside_mean"] < 0 for one in rows)
    told = {one["name"]: one for one in json.loads((run / "manifests" / "evaluate.json").read_text())["findings"]}
    assert (told["evaluate.constraint"]["status"], told["evaluate.constraint"]["threshold"]) == ("warn", "≥ 50")
    assert f"at a price λ of {prices[-1]:.3g}" in told["evaluate.constraint"]["detail"]
    reported = (run / "report.html").read_text(encoding="utf-8")
    for name in ("evaluate.constraint", "evaluate.objective.preference"):
        assert name in told
        assert name in reported


def test_a_given_reward_keeps_its_several_objectives_though_the_votes_speak_of_one(copied: Path):
    """The weights on its card hold, unless the run names others; before, the first objective alone was optimised."""
    store_of_sandbox(Path("kinds.db")).close()
    sft, weights = copied / "runs/tiny/models/sft", {"preference": 1.0, "helpful": 0.5}
    card = ("--set", "objectives.weights={preference: 1.0, helpful: 0.5}")
    made = karat("reward", "--model", sft, "--store", "kinds.db", "--out", "given", *card)
    assert made.code == 0, made.err

    def kept(**changes) -> dict[str, float]:
        done = karat("ppo", write_config(SANDBOX, reward_model="given", **changes))
        assert done.code == 0, done.err
        saved = json.loads((copied / "runs/tiny/models/reward/reward_card.json").read_text(encoding="utf-8"))
        return saved["objectives_config"]["weights"]

    assert kept() == weights
    assert kept(objectives={"weights": {"not_harmful": 2.0}}) == {"not_harmful": 2.0}


@pytest.mark.long
def test_a_run_trains_its_own_token_rewards_from_simulated_marks(tmp_path: Path):
    """From the marks in the store to what the policy is paid inside its responses.

    A policy of seconds writes no sentences worth a mark, so the sign of what was learnt is not looked at here.
    """
    world = {"harm_frac": 0.97, "fact_frac": 0.01, "belief_frac": 0.01, "unknowable_frac": 0.01, "n_entities": 16}
    sandbox = {**SANDBOX["sandbox"], "world": world}
    collect = {**SANDBOX["collect"], "n_step_marks": 60, "n_span_marks": 30}
    weights = {"step": 1.0, "wrong": -0.5}
    with inside(tmp_path):
        config = write_config({**SANDBOX, "sandbox": sandbox, "collect": collect}, dense={"weights": weights})
        done = karat("ppo", config)
        assert done.code == 0, done.err
        run = tmp_path / "runs" / "tiny"
        manifest = json.loads((run / "manifests" / "collect.json").read_text())
        assert manifest["metrics"]["n_marked"] == 90
        scorer = load_scorer(run / "models" / "reward")
        dense = load_dense(run / "models" / "reward", scorer.model.trunk)
        assert set(dense.names) >= {"step", "wrong"}
        rows = [json.loads(line) for line in (run / "metrics" / "ppo.jsonl").read_text().splitlines()]
        assert any(abs(one.get("score/inside_mean", 0.0)) > 0 for one in rows)


def test_every_training_stage_of_a_run_obeys_its_dtype(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Products under gradients are counted by stage; what the stages save is float32."""
    stage, narrow, real = [""], Counter(), narrow_module.narrow_linear

    def counted(x, weight, bias, products):
        narrow[stage[0]] += x.requires_grad
        return real(x, weight, bias, products)

    def entered(run, name, **given):
        stage[0] = name
        return real_stage(run, name, **given)

    real_stage = Run.stage
    monkeypatch.setattr("karat.lm.kernels.narrow_linear", counted)
    monkeypatch.setattr(Run, "stage", entered)
    with inside(tmp_path):
        done = karat("run", write_config(SANDBOX, dtype="bfloat16"))
        assert done.code == 0, done.err
        assert {name for name, n in narrow.items() if n} == {"base", "sft", "reward", "ppo"}
        for name in ("base", "sft", "reward", "ppo"):
            settings = json.loads(Path(f"runs/tiny/manifests/{name}.json").read_text(encoding="utf-8"))["config"]
            assert "bfloat16" in json.dumps(settings), name
            for file in Path(f"runs/tiny/models/{name}").glob("*.safetensors"):
                assert {tensor.dtype for tensor in load_file(file).values()} <= {torch.float32, torch.bool}, file
