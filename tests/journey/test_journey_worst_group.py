"""Two groups that want different things: PPO against the worst group's score serves the worst-served group better.

The world knows what each group thinks of a response; neither reward model ever sees it.
"""

import json
from pathlib import Path

import pytest
from journeys import SANDBOX, inside, karat, write_config

TWO_GROUPS = {
    "sandbox": {
        "n_base_texts": 6000,
        "n_demonstrations": 1500,
        "model": {"hidden": 64, "mlp": 192, "layers": 2, "heads": 4, "kv_heads": 2, "head_size": 16},
        # seven in ten enjoy talk and praise, three in ten have no patience for either
        "raters": {"n_raters": 20, "group_fracs": [0.0, 0.7, 0.3], "group_divergence": 2.0, "attention": 1.0},
    },
    "base": {"learning_rate": 4e-3},
    "sft": {"epochs": 3, "learning_rate": 2e-3},
    "collect": {"n_prompts": 600, "n_tasks": 2400, "max_new_tokens": 40},
    "reward": {"n_epochs": 3, "learning_rate": 1e-3, "head_learning_rate": 2e-2},
    "pluralism": {"n_features": 12, "max_rank": 2, "max_kinds": 2, "n_starts": 2},
    "ppo": {
        "n_iterations": 30, "evaluate_every": 10, "checkpoint_every": 30,
        "rollout": {"n_prompts": 32, "n_samples": 4, "max_new_tokens": 40},
        "reward": {"kl_coef": 0.1},
        "update": {"n_epochs": 2, "n_minibatches": 4, "learning_rate": 2e-4},
    },
    "watch": {"n_prompts": 24, "n_samples": 2, "kl_budget": None, "disagreement_quantile": None, "keep": "last"},
    "evaluate": {"n_prompts": 80, "n_samples": 4, "n_best_of": 4, "best_of": [2]},
}  # fmt: skip


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_worst_group_gains_more_when_its_score_is_maximised(tmp_path):
    gains = {}
    with inside(tmp_path):
        for aggregator in ("mean_score", "worst_group"):
            name = f"two-{aggregator.replace('_', '-')}"
            path = write_config(SANDBOX, Path(f"{name}.yaml"), **TWO_GROUPS, name=name, aggregator=aggregator)
            outcome = karat("run", path)
            assert outcome.code == 0, outcome.err
            content = json.loads(Path(f"runs/{name}/evaluation.json").read_text(encoding="utf-8"))
            gains[aggregator] = content["by_group"]["gain"]
    print(json.dumps(gains))
    worst = {name: min(groups.items(), key=lambda item: item[1]["value"]) for name, groups in gains.items()}
    assert worst["worst_group"][1]["value"] > worst["mean_score"][1]["value"]
    # and beyond what the prompts drawn could explain: the same group's interval under one lies above the other's value
    group = worst["mean_score"][0]
    assert gains["worst_group"][group]["low"] > gains["mean_score"][group]["value"]
