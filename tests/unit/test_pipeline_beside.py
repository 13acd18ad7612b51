"""What a configuration hands the optimiser beside the score: costs by objective or function, token rewards, refusals."""

import dataclasses

import pytest
import torch

from karat.config import build
from karat.errors import CheckpointError, ConfigError, InputError
from karat.lm.load import load_lm
from karat.pipeline.beside import beside_the_score, keep_token_rewards
from karat.pipeline.beside_settings import ConstraintConfig, DenseSettings
from karat.pipeline.settings import RunConfig
from karat.records import Response, user_prompt
from karat.reward.calibration import VoteModel
from karat.reward.classifier import UNSCALED
from karat.reward.model import HeadConfig, RewardModel
from karat.reward.objectives import ObjectivesConfig
from karat.reward.raters import RaterPriors
from karat.reward.score import Scorer
from karat.reward.trunk import DecoderTrunk
from karat.statements import Marked, Part
from tiny_models import tiny_checkpoint

PROMPT = user_prompt("say it")
TEXTS = ["abc", "xxa", "bbbb"]
NO_DENSE = DenseSettings()


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    trunk = DecoderTrunk(load_lm(tiny_checkpoint("qwen3", tmp_path_factory.mktemp("qwen"))))
    model = RewardModel(trunk, HeadConfig(n_heads=2), seed=0, objectives=("preference", "harmless"))
    model.requires_grad_(False)
    reference = torch.tensor([[0.5, 1.0], [-0.5, 2.0]])
    weights = ObjectivesConfig(weights={"preference": 1.0})
    return Scorer(model, VoteModel(RaterPriors(), (0.0,)), UNSCALED, reference, objectives=weights)


@pytest.fixture(scope="module")
def marks():
    found, responses = [], {}
    for number, text in enumerate(("abxa", "xabb", "aaax", "bxba")):
        one = Response(PROMPT.id, text, "policy", number)
        responses[one.id] = one
        spans = tuple(Part(i, i + 1, 1, "wrong") for i, letter in enumerate(text) if letter == "x")
        found.append(Marked(f"s{number}", PROMPT.id, (one.id,), spans, ("wrong",), "ann", "span_marks"))
    return found, ({PROMPT.id: PROMPT}, responses)


def test_an_objective_is_bounded_relative_to_its_reference_and_the_side_is_a_sign(scorer, tmp_path):
    asked = [PROMPT] * len(TEXTS)
    logits = scorer.every(asked, TEXTS)[..., 1] - torch.tensor([[1.0], [2.0]])
    by_hand = logits.mean(0).tolist()
    for keep, sign, limit in (("above", -1.0, 0.3), ("below", 1.0, -0.3)):
        bound = ConstraintConfig(objective="harmless", keep=keep, limit=0.3)
        beside = beside_the_score(scorer, tmp_path, NO_DENSE, bound)
        assert beside.cost_fn(asked, TEXTS) == pytest.approx([sign * value for value in by_hand], abs=1e-5)
        assert bound.settings.limit == pytest.approx(-limit if keep == "above" else 0.3)
        assert beside.dense_fn is None
    with pytest.raises(ConfigError, match="found 'kind'; expected one of the reward's: preference, harmless"):
        beside_the_score(scorer, tmp_path, NO_DENSE, ConstraintConfig(objective="kind"))


def test_a_function_can_be_bounded_instead(scorer, tmp_path, monkeypatch):
    (tmp_path / "costs.py").write_text(
        "def words(prompts, texts):\n    return [len(t) for t in texts]\n"
        "def broken(prompts, texts):\n    raise ValueError('no idea')\n"
    )
    monkeypatch.chdir(tmp_path)
    bound = ConstraintConfig(cost="costs:words", keep="below", limit=3)
    assert beside_the_score(scorer, tmp_path, NO_DENSE, bound).cost_fn([PROMPT] * 3, TEXTS) == [3.0, 3.0, 4.0]
    broken = beside_the_score(scorer, tmp_path, NO_DENSE, dataclasses.replace(bound, cost="costs:broken")).cost_fn
    with pytest.raises(
        InputError, match=r"cost function costs:broken: raised ValueError: no idea \(line 4 of costs\.py\)"
    ):  # not the score function
        broken([PROMPT], ["a"])
    with pytest.raises(ConfigError, match=r"constraint\.cost: found no function 'letters' in costs"):
        beside_the_score(scorer, tmp_path, NO_DENSE, dataclasses.replace(bound, cost="costs:letters"))


def test_token_rewards_are_fitted_kept_taken_over_and_handed_on(scorer, marks, tmp_path):
    weights = DenseSettings({"wrong": -1.0})
    trunk = scorer.model.trunk
    first, second = tmp_path / "first", tmp_path / "second"
    for place in (first, second):
        place.mkdir()
    (fitted,) = keep_token_rewards(weights, trunk, *marks, first, metadata={})
    assert (
        fitted.detail == "4 marked responses; wrong: no marks of this class were kept from training; weights wrong -1"
    )
    (taken,) = keep_token_rewards(weights, trunk, [], marks[1], second, metadata={}, given=first)
    assert "the marks behind first" in taken.detail
    assert (first / "dense.safetensors").read_bytes() == (second / "dense.safetensors").read_bytes()
    beside = beside_the_score(scorer, second, weights, None)
    (pieces,) = beside.dense_fn([PROMPT], ["abxx"])
    assert all(-1 <= reward <= 0 for _, reward in pieces)
    assert beside.cost_fn is None
    assert keep_token_rewards(NO_DENSE, trunk, *marks, first, metadata={}) == []


def test_what_has_no_marks_is_one_clear_line(scorer, marks, tmp_path):
    trunk = scorer.model.trunk
    with pytest.raises(InputError, match="found no span marks, step marks or corrections among the judgements"):
        keep_token_rewards(DenseSettings({"wrong": -1.0}), trunk, [], marks[1], tmp_path, metadata={})
    with pytest.raises(ConfigError, match="found 'rude'; expected classes that were marked: wrong"):
        keep_token_rewards(DenseSettings({"rude": 1.0}), trunk, *marks, tmp_path, metadata={})
    with pytest.raises(CheckpointError, match=r"found no dense\.safetensors"):
        beside_the_score(scorer, tmp_path / "none", DenseSettings({"wrong": 1.0}), None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"constraint": {"limit": 1.0}}, "found neither of `objective` and `cost`"),
        ({"constraint": {"objective": "a", "cost": "b:c"}}, "found both of `objective` and `cost`"),
        ({"constraint": {"objective": "a", "learning_rate": 0}}, r"constraint\.learning_rate: found 0"),
        ({"constraint": {"objective": "a"}, "algorithm": "dpo"}, "constraint: found with algorithm=dpo"),
        ({"dense": {"weights": {"step": 1.0}}, "algorithm": "online_dpo"}, "found with algorithm=online_dpo"),
        ({"score": "a:b", "algorithm": "kto"}, "score: found 'a:b' with algorithm=kto, which learns from votes"),
        ({"dense": {"weights": {"step": 0.0}}}, "expected finite numbers, not all 0"),
        (
            {"dense": {"weights": {"step": 1.0}, "step_pay": "sum"}},
            "step_pay: found 'sum'; expected one of mean, every",
        ),
        ({"dense": {"weights": {"wrong": 1.0}, "step_pay": "every"}}, "without a weight of `step`"),
        ({"ppo": {"constraint": {"limit": 1.0}}}, "at the top of the configuration"),
    ],
)
def test_settings_that_cannot_be_are_one_clear_line(changes, said):
    with pytest.raises(ConfigError, match=said):
        build(RunConfig, {"sandbox": {}, **changes})


def test_the_methods_settings_carry_the_limit_as_a_cost():
    given = {"sandbox": {}, "constraint": {"objective": "harmless", "limit": 0.2, "start": 1.0}}
    for name in ("ppo", "rloo"):
        method = build(RunConfig, {**given, "algorithm": name}).method
        assert (method.constraint.limit, method.constraint.start) == (-0.2, 1.0)
    assert build(RunConfig, {"sandbox": {}}).method.constraint is None
