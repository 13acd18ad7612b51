"""The recipes without a critic on a toy with a known reward: they learn, repeat and resume to the bit, and say why not."""

import itertools
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from karat.errors import ConfigError, InputError, LedgerError
from karat.lm.load import load_lm, save_lm
from karat.lm.logprobs import response_logprobs
from karat.lm.trees import pack_trees
from karat.policy import direct, group
from karat.policy.actor import build_policy
from karat.policy.beside import Beside
from karat.policy.direct import DirectStep, train_direct
from karat.policy.expert import train_expert
from karat.policy.group import train_group
from karat.policy.ilql import guided, train_ilql
from karat.policy.kl import kl_summary
from karat.policy.method_settings import (
    DirectConfig,
    ExpertConfig,
    GroupConfig,
    ImplicitQConfig,
    OnlineDPOConfig,
    StepSettings,
)
from karat.policy.metrics import rollout_metrics
from karat.policy.offline_data import LabelledResponse, Preference, ScoredResponse, dealt, tree_of
from karat.policy.online_dpo import train_online_dpo
from karat.policy.ppo import train_ppo
from karat.policy.rollout import collect_rollout
from karat.policy.settings import ConstraintSettings, PPOConfig, RewardSettings, RolloutSettings, UpdateSettings
from karat.records import Demonstration
from policy_toys import PROMPTS, WORDS, share_of_w3, toy_lm

DOCS = Path(__file__).parents[2] / "docs"
ROLLOUT = RolloutSettings(n_prompts=4, n_samples=4, max_new_tokens=6)
STEPS = StepSettings(n_epochs=2, n_minibatches=2, learning_rate=3e-3, token_budget=200)
REWARD = RewardSettings(kl_coef=0.05)
ADAPTIVE = RewardSettings(kl_controller="adaptive", kl_coef=0.05, kl_target=0.2, kl_horizon=100)
SHORT = {"n_iterations": 4, "checkpoint_every": 2, "evaluate_every": 100, "rollout": ROLLOUT, "update": STEPS}


def texts(prompt_number):
    """A good and a bad response to a prompt: with and without w3."""
    other = WORDS[4 + prompt_number % 10]
    return f"w3 w3 {other}", f"{other} {other} w5"


PREFERENCES = [Preference(prompt, *texts(i)) for i, prompt in enumerate(PROMPTS)]
RESPONSES = [
    ScoredResponse(prompt, text, share_of_w3([prompt], [text])[0])
    for i, prompt in enumerate(PROMPTS)
    for text in texts(i)
]
DIRECT = {"epochs": 3.0, "batch_size": 8, "learning_rate": 2e-3, "token_budget": 100, "checkpoint_every": 2}

METHODS = {
    "rloo": (train_group, GroupConfig("rloo", reward=ADAPTIVE, **SHORT)),
    "grpo": (train_group, GroupConfig("grpo", reward=REWARD, **SHORT)),
    "grpo by length": (train_group, GroupConfig("grpo", reward=REWARD, scale="none", normalise="length", kl="loss_k2",
                                                **SHORT)),
    "rloo, k2": (train_group, GroupConfig("rloo", reward=REWARD, kl="loss_k2", **SHORT)),
    "reinforce_pp": (train_group, GroupConfig("reinforce_pp", reward=REWARD, **SHORT)),
    "online_dpo": (train_online_dpo, OnlineDPOConfig(reward=REWARD, **SHORT)),
    "online_dpo of all": (train_online_dpo, OnlineDPOConfig(reward=REWARD, pairs="all", **SHORT)),
    "expert": (train_expert, ExpertConfig(**SHORT)),
    "dpo": (train_direct, DirectConfig("dpo", **DIRECT)),
    "ipo": (train_direct, DirectConfig("ipo", **DIRECT)),
    "kto": (train_direct, DirectConfig("kto", **DIRECT)),
    "ilql": (train_ilql, ImplicitQConfig(epochs=1.5, batch_size=8, learning_rate=2e-3, checkpoint_every=2)),
}  # fmt: skip


class Rows:
    """A reporter that keeps what it was given, and may kill the run."""

    def __init__(self, dies_at=None):
        self.rows, self.dies_at = [], dies_at

    def log(self, step, metrics):
        self.rows.append((step, {k: v for k, v in metrics.items() if not k.startswith("seconds/")}))
        if step == self.dies_at:
            raise KeyboardInterrupt


def run(name, lm, rows, directory=None, seed=5, config=None):
    recipe, default = METHODS[name]
    chosen = config or default
    options = {"seed": seed, "reporters": [rows], "directory": directory}
    if recipe is train_direct:
        return recipe(lm, PREFERENCES, chosen, **options)
    if recipe is train_ilql:
        return recipe(lm, RESPONSES, chosen, **options)
    return recipe(lm, PROMPTS, share_of_w3, chosen, **options)


def weights(lm):
    return {name: p.detach().clone() for name, p in lm.model.named_parameters()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_resumes_to_the_bit_and_every_figure_is_documented(tmp_path, name):
    whole, killed, resumed = toy_lm(), toy_lm(), toy_lm()
    straight, rest = Rows(), Rows()
    run(name, whole, straight)
    with pytest.raises(KeyboardInterrupt):
        run(name, killed, Rows(dies_at=3), tmp_path)  # the third step is lost
    run(name, resumed, rest, tmp_path)
    assert rest.rows[0][0] == 3
    assert equal(weights(whole), weights(resumed))
    assert not equal(weights(whole), weights(toy_lm()))
    assert rest.rows == straight.rows[2:]
    pages = "".join((DOCS / page).read_text(encoding="utf-8") for page in ("ppo.md", "optimisers.md"))
    documented = set(re.findall(r"^\| `([a-z_0-9/]+)` \|", pages, flags=re.MULTILINE))
    assert set(straight.rows[-1][1]) <= documented
    assert all(value == value for _, metrics in straight.rows for value in metrics.values())


@pytest.mark.long
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dies_at", [1, 4])
def test_other_moments_of_death(tmp_path, name, dies_at):
    whole, resumed = toy_lm(), toy_lm()
    run(name, whole, Rows())
    with pytest.raises(KeyboardInterrupt):
        run(name, toy_lm(), Rows(dies_at=dies_at if dies_at < 4 or "dpo" not in name else 3), tmp_path)
    run(name, resumed, Rows(), tmp_path)
    assert equal(weights(whole), weights(resumed))


@pytest.mark.parametrize("name", ["rloo", "reinforce_pp", "online_dpo", "expert"])
def test_learns_a_known_reward(name):
    recipe, config = METHODS[name]
    rollout = RolloutSettings(n_prompts=8, n_samples=4, max_new_tokens=6)
    rows = Rows()
    recipe(toy_lm(), PROMPTS, share_of_w3, replace(config, n_iterations=10, rollout=rollout), seed=0, reporters=[rows])
    first, last = rows.rows[0][1]["score/mean"], rows.rows[-1][1]["score/mean"]
    assert last > first + 0.1


@pytest.mark.parametrize("name", ["dpo", "ipo", "kto"])
def test_comparisons_are_learnt(name):
    lm, rows = toy_lm(), Rows()
    run(name, lm, rows, config=replace(METHODS[name][1], epochs=8.0))
    before, after = (_preferred(model) for model in (toy_lm(), lm))
    assert after > before + 1.0  # nats by which the better response gained on the worse


def _preferred(lm):
    trees = [tree_of(lm, one.prompt, one.better, one.worse) for one in PREFERENCES]
    total = 0.0
    with torch.no_grad():
        for batch in pack_trees(trees, token_budget=200):
            flat = response_logprobs(lm.model, batch).logprobs
            sign = 1.0 - 2.0 * (batch.branch_id % 2).float()
            total += float((flat * sign[batch.branch_of]).sum())
    return total / len(trees)


def test_reference_now_or_before_is_the_same_run():
    policies = []
    for precompute in (True, False):
        lm = toy_lm()
        run("dpo", lm, Rows(), config=replace(METHODS["dpo"][1], precompute_reference=precompute))
        policies.append(weights(lm))
    for name in policies[0]:
        torch.testing.assert_close(policies[0][name], policies[1][name], atol=1e-5, rtol=0)


def test_the_guided_policy_is_one_output_layer_and_likes_what_scored(tmp_path):
    lm = toy_lm()
    config = ImplicitQConfig(
        epochs=40.0, batch_size=16, learning_rate=2e-3, gamma=1.0, expectile=0.5, conservative_coef=0.01,
        target_rate=0.2, strength=8.0,
    )  # fmt: skip
    result = train_ilql(lm, RESPONSES, config, seed=0)
    plain, saved = _begins_with_w3(lm), load_lm(save_lm(result.guided, tmp_path / "guided", metadata={}))
    assert _begins_with_w3(guided(lm, result.heads, 0.0)) == pytest.approx(plain, abs=1e-5)
    assert _begins_with_w3(saved) == pytest.approx(_begins_with_w3(result.guided), abs=1e-5)
    assert 0.2 < plain < 0.6  # half of the data begins with it
    assert _begins_with_w3(saved) > plain + 0.2


def _begins_with_w3(lm):
    """Mean probability of w3 as the first word."""
    trees = [tree_of(lm, prompt, "w3") for prompt in PROMPTS]
    with torch.no_grad():
        flats = [response_logprobs(lm.model, batch).logprobs for batch in pack_trees(trees, token_budget=200)]
    return float(torch.cat(flats)[::2].exp().mean())  # every second token is the end token


def test_a_constraint_raises_its_price_and_survives_in_the_checkpoint(tmp_path):
    cost = lambda prompts, texts: share_of_w3(prompts, texts)  # noqa: E731
    limit = ConstraintSettings(limit=0.01, learning_rate=2.0)
    rows, again = Rows(), Rows()
    config = PPOConfig(
        n_iterations=3, checkpoint_every=1, rollout=ROLLOUT, reward=REWARD, constraint=limit,
        update=UpdateSettings(n_epochs=1, n_minibatches=2, learning_rate=1e-3, token_budget=200, ptx_coef=0.5,
                              ptx_batch=3),
    )  # fmt: skip
    shown = [Demonstration(one.prompt, one.worse, "test") for one in PREFERENCES]
    beside = Beside(cost_fn=cost, demonstrations=shown)
    train_ppo(toy_lm(), PROMPTS, share_of_w3, config, seed=1, beside=beside, reporters=[rows], directory=tmp_path)
    prices = [metrics["cost/coef"] for _, metrics in rows.rows]
    assert prices[0] == 0
    assert prices[1] == pytest.approx(2.0 * max(0.0, rows.rows[0][1]["cost/mean"] - 0.01))
    assert rows.rows[0][1]["policy/data_nll"] > 0
    train_group(
        toy_lm(), PROMPTS, share_of_w3, GroupConfig("rloo", reward=REWARD, constraint=limit, **SHORT), seed=1,
        beside=Beside(cost_fn=cost), reporters=[again],
    )  # fmt: skip
    assert again.rows[1][1]["cost/coef"] > 0
    for settings, given, said in (
        (config, None, "a limit without a cost function"),
        (replace(config, constraint=None), beside, "a cost function without a limit"),
        (replace(config, constraint=None), Beside(), "without demonstrations"),
    ):
        with pytest.raises(ConfigError, match=said):
            train_ppo(toy_lm(), PROMPTS, share_of_w3, settings, seed=1, beside=given)


def test_a_price_rises_while_its_limit_is_broken_and_a_killed_run_goes_on_with_it_to_the_bit(tmp_path):
    limit = ConstraintSettings(limit=0.01, start=0.5, learning_rate=2.0, largest=1.5)
    config = PPOConfig(
        n_iterations=5, checkpoint_every=1, rollout=ROLLOUT, reward=REWARD, constraint=limit,
        update=UpdateSettings(n_epochs=1, n_minibatches=2, learning_rate=1e-4, token_budget=200),
    )  # fmt: skip

    def work(lm, rows, directory=None):
        beside = Beside(
            cost_fn=share_of_w3,
            dense_fn=lambda prompts, texts: [[(len(t) + 1, 0.1)] for t in texts],  # noqa: ARG005
        )
        train_ppo(lm, PROMPTS, share_of_w3, config, seed=3, beside=beside, reporters=[rows], directory=directory)

    whole, resumed, straight, rest = toy_lm(), toy_lm(), Rows(), Rows()
    work(whole, straight)
    price = 0.5
    for _, metrics in straight.rows:
        assert metrics["cost/coef"] == price
        assert metrics["cost/mean"] > 0.01  # the limit is broken throughout
        price = min(1.5, max(0.0, price + 2.0 * (metrics["cost/mean"] - 0.01)))
    prices = [metrics["cost/coef"] for _, metrics in straight.rows]
    assert all(later > earlier or later == 1.5 for earlier, later in itertools.pairwise(prices))
    with pytest.raises(KeyboardInterrupt):
        work(toy_lm(), Rows(dies_at=3), tmp_path)
    work(resumed, rest, tmp_path)
    assert rest.rows == straight.rows[2:]
    assert equal(weights(whole), weights(resumed))


def test_rewards_inside_a_response_land_on_the_token_that_completes_the_piece():
    seen = []

    def marks(prompts, texts):  # noqa: ARG001
        seen.extend(texts)
        return [[(text.index("w3") + 2, 1.0)] if "w3" in text else [] for text in texts]

    rows = Rows()
    config = GroupConfig("reinforce_pp", reward=RewardSettings(kl_coef=0.0), **SHORT)
    nothing = lambda prompts, texts: [0.0] * len(texts)  # noqa: ARG005, E731
    train_group(toy_lm(), PROMPTS, nothing, replace(config, n_iterations=8), seed=0, beside=Beside(dense_fn=marks),
                reporters=[rows])  # fmt: skip
    n = len(seen) // 8
    assert sum("w3" in text for text in seen[-n:]) > sum("w3" in text for text in seen[:n])
    wrong = Beside(dense_fn=lambda prompts, texts: [[(999, 1.0)] for _ in texts])  # noqa: ARG005
    with pytest.raises(InputError, match=r"found \(999, 1\.0\) for a response"):
        train_group(toy_lm(), PROMPTS, nothing, config, seed=0, beside=wrong)


def test_the_kl_over_the_whole_vocabulary_is_what_plain_logits_say():
    policy = build_policy(toy_lm())
    with torch.no_grad():
        for parameter in policy.lm.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    rollout = collect_rollout(
        policy, PROMPTS[:3], share_of_w3, settings=replace(ROLLOUT, n_prompts=3, exact_kl=True), token_budget=40, seed=0
    )
    row = 0
    for tree in rollout.trees:
        for branch in tree.branches:
            ids = torch.tensor([[*tree.prompt, *branch]])
            with torch.no_grad():
                new, ref = (m(ids).logits[0].log_softmax(-1) for m in (policy.lm.model, policy.reference))
            part = slice(len(tree.prompt) - 1, ids.shape[1] - 1)
            expected = (new[part].exp() * (new[part] - ref[part])).sum(-1)
            torch.testing.assert_close(rollout.exact_kl[row, : len(branch)], expected, atol=1e-5, rtol=0)
            row += 1
    assert float(rollout.exact_kl[rollout.response_mask].min()) > 0
    metrics = rollout_metrics(rollout, rollout.scores, kl_summary(rollout.logprobs, rollout.ref_logprobs,
                                                                  rollout.response_mask))  # fmt: skip
    assert metrics["kl/exact_per_sequence"] == pytest.approx(float(rollout.exact_kl.sum()) / row, rel=1e-5)


def test_a_checkpoint_of_another_configuration_names_the_keys_that_differ(tmp_path):
    config = GroupConfig("rloo", reward=REWARD, **SHORT | {"n_iterations": 1, "checkpoint_every": 1})
    run("rloo", toy_lm(), Rows(), tmp_path, config=config)
    other = replace(config, clip_range=0.3, reward=RewardSettings(kl_coef=0.1))
    said = r"\(settings\.clip_range: 0\.2 there, 0\.3 here; settings\.reward\.kl_coef: 0\.05 there, 0\.1 here\)"
    with pytest.raises(LedgerError, match=said):
        run("rloo", toy_lm(), Rows(), tmp_path, config=other)
    with pytest.raises(LedgerError, match="seed: 5 there, 6 here"):
        run("rloo", toy_lm(), Rows(), tmp_path, config=config, seed=6)


@pytest.mark.parametrize("name", ["ppo", "rloo", "online_dpo", "expert"])
def test_a_checkpoint_that_something_else_paid_for_is_refused_by_name(tmp_path, name: str):
    ppo = PPOConfig(
        rollout=ROLLOUT, reward=REWARD, update=UpdateSettings(n_epochs=1, n_minibatches=2, token_budget=200)
    )
    recipe, config = (train_ppo, ppo) if name == "ppo" else METHODS[name]
    config = replace(config, n_iterations=1, checkpoint_every=1)
    paid = Beside(paid_by={"aggregator": "mean_score", "reward model": "tree:1"})
    recipe(toy_lm(), PROMPTS, share_of_w3, config, seed=5, directory=tmp_path, beside=paid)
    recipe(toy_lm(), PROMPTS, share_of_w3, config, seed=5, directory=tmp_path, beside=paid)  # goes on
    other = Beside(paid_by={"aggregator": "mean_score", "reward model": "tree:2"})
    with pytest.raises(LedgerError, match=r"\(paid by\.reward model: tree:1 there, tree:2 here\)"):
        recipe(toy_lm(), PROMPTS, share_of_w3, config, seed=5, directory=tmp_path, beside=other)


def test_kto_learns_from_labels_alone_and_each_response_stands_behind_another_prompt():
    labels = [LabelledResponse(one.prompt, text, text is one.better) for one in PREFERENCES
              for text in (one.better, one.worse)]  # fmt: skip
    config = DirectConfig("kto", **DIRECT)
    found = []
    for given, further in ((PREFERENCES, []), ([], labels)):
        lm = toy_lm()
        train_direct(lm, given, config, seed=5, labels=further)
        found.append(torch.cat([one.flatten() for one in weights(lm).values()]))
    assert torch.equal(*found)  # a comparison is two labels
    with pytest.raises(InputError, match="dpo: found 32 labels; expected none"):
        train_direct(toy_lm(), PREFERENCES, DirectConfig("dpo", **DIRECT), seed=5, labels=labels)


def test_the_reference_point_of_kto_puts_each_response_behind_another_prompt(monkeypatch):
    # the two labels of one comparison are neighbours and have one prompt
    labels = [(one.prompt, text) for one in PREFERENCES[:2] for text in (one.better, one.worse)]
    trees = [tree_of(toy_lm(), prompt, text) for prompt, text in labels]
    asked, original = [], direct.pack
    monkeypatch.setattr(direct, "pack", lambda shifted, *rest: asked.extend(shifted) or original(shifted, *rest))
    step = DirectStep(build_policy(toy_lm()), trees, [0, 1, 2, 3], None, DirectConfig("kto", **DIRECT))
    assert float(step.mismatched_kl()) == 0  # the policy is the reference still
    assert [tree.branches for tree in asked] == [tree.branches for tree in trees]
    assert all(tree.prompt != own.prompt for tree, own in zip(asked, trees, strict=True))


def test_k3_is_weighted_where_that_is_asked_for_and_only_once_the_policy_has_moved():
    def trained(**changes):
        lm, config = toy_lm(), METHODS["grpo"][1]
        steps = replace(config.update, n_epochs=1, n_minibatches=changes.pop("n_minibatches"))
        config = replace(config, update=steps, n_iterations=1, **changes)
        train_group(lm, PROMPTS, share_of_w3, config, seed=1)
        return torch.cat([one.flatten() for one in weights(lm).values()])

    assert torch.equal(trained(weigh_k3=True, n_minibatches=1), trained(n_minibatches=1))
    assert not torch.equal(trained(weigh_k3=True, n_minibatches=4), trained(n_minibatches=4))
    with pytest.raises(ConfigError, match="weigh_k3: found true with rloo"):
        _ = GroupConfig("rloo", weigh_k3=True).choices


def test_a_score_function_that_fails_is_one_line():
    def broken(prompts, texts):  # noqa: ARG001
        raise ValueError("no\nidea")

    config = METHODS["rloo"][1]
    for bad, said in (
        (broken, r"broken: raised ValueError: no idea \(line \d+ of .*\) for 16 responses"),
        (lambda prompts, texts: sys.exit(3), r"raised SystemExit: 3 \(line \d+ of .*\) for 16 responses"),  # noqa: ARG005
        (lambda prompts, texts: [float("nan")] * len(texts), r"found nan for responses\[0\] of 16"),  # noqa: ARG005
        (lambda prompts, texts: [1.0], "found 1 scores for 16 responses"),  # noqa: ARG005
        (lambda prompts, texts: ["good"] * len(texts), r"found 'good' for responses\[0\] of 16"),  # noqa: ARG005
        (lambda prompts, texts: None, "found None; expected one finite number"),  # noqa: ARG005
    ):
        with pytest.raises(InputError, match=said):
            train_group(toy_lm(), PROMPTS, bad, config, seed=0)


def test_contradictions_are_refused():
    for wrong, said in (
        (lambda: GroupConfig("grpo", rollout=RolloutSettings(n_samples=1)).choices, "expected ≥ 2: grpo compares"),
        (lambda: GroupConfig("rloo", scale="group").choices, "found group with rloo"),
        (lambda: GroupConfig("reinforce_pp", level="sequence").choices, "one advantage a response"),
        (lambda: GroupConfig("rloo", reward=RewardSettings(whiten_rewards=True)), "need a critic"),
        (lambda: OnlineDPOConfig(loss="ipo"), "IPO reads votes"),
        (lambda: DirectConfig("kto", label_smoothing=0.1).check(), "it is DPO's"),
        (lambda: DirectConfig("dpo", per_token=True).check(), "it is IPO's"),
        (lambda: ImplicitQConfig(expectile=1.0), "expectile=1.0"),
        (lambda: ExpertConfig(rollout=RolloutSettings(n_prompts=6)), "do not divide into 4 minibatches"),
    ):
        with pytest.raises(ConfigError, match=said):
            wrong()
    assert GroupConfig("reinforce_pp", rollout=RolloutSettings(n_samples=1)).choices.scale == "batch"
    with pytest.raises(InputError, match="found no comparisons"):
        train_direct(toy_lm(), [], DirectConfig(), seed=0)
    with pytest.raises(InputError, match="the same response twice"):
        Preference(PROMPTS[0], "w1", "w1")


def test_each_epoch_of_the_data_is_read_once():
    batch_of = dealt(10, 4, seed=1, shuffle=True)
    drawn = [i for step in range(5) for i in batch_of(step)]
    assert sorted(drawn) == sorted([*range(10)] * 2)
    assert drawn[:10] != drawn[10:]
    assert dealt(3, 4, seed=1, shuffle=False)(1) == [1, 2, 0, 1]


ONE_STEP = StepSettings(learning_rate=2e-3)


@pytest.mark.parametrize(
    "own",
    [
        {"method": "grpo"},
        {"method": "rloo"},
        {"method": "grpo", "kl": "reward", "rollout": replace(ROLLOUT, temperature=0.7)},
        {"method": "reinforce_pp", "kl": "loss_k2"},
    ],
)
def test_one_pass_is_the_same_as_two(monkeypatch, own):
    config = GroupConfig(reward=REWARD, **SHORT | {"update": ONE_STEP} | own)
    assert group.updates_in_one_pass(config)
    one, two, rows_one, rows_two = toy_lm(), toy_lm(), Rows(), Rows()
    run("grpo", one, rows_one, config=config)
    monkeypatch.setattr(group, "updates_in_one_pass", lambda _: False)
    run("grpo", two, rows_two, config=config)
    assert equal(weights(one), weights(two))
    assert not equal(weights(one), weights(toy_lm()))
    assert rows_one.rows == rows_two.rows
    assert rows_one.rows[-1][1]["kl/k1_per_sequence"] != 0


def test_two_passes_are_made_where_something_needs_the_first():
    def passes(method, **own):
        return 2 - group.updates_in_one_pass(GroupConfig(method, reward=REWARD, **SHORT | {"update": ONE_STEP} | own))

    assert passes("rloo") == passes("grpo") == 1
    assert passes("reinforce_pp") == 2  # normalised over the batch, with the KL in it
    assert passes("grpo", scale="batch", kl="reward") == 2
    assert (
        passes("grpo", update=replace(ONE_STEP, n_epochs=2))
        == passes("grpo", update=replace(ONE_STEP, n_minibatches=2))
        == 2
    )
    assert passes("grpo", rollout=replace(ROLLOUT, exact_entropy=True)) == 2
