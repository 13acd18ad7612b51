"""The gate's way out: a reward that was really trained passes it, with nothing set and no threshold moved."""

import dataclasses

import numpy as np
import pytest

from karat.errors import GateError
from karat.lm.load import load_lm
from karat.records import Response, Vote
from karat.reward.baselines import length_baseline
from karat.reward.data import vote_data
from karat.reward.gate import GateProbes, check_gate, gate_checks, run_gate
from karat.reward.model import HeadConfig
from karat.reward.score import scorer_of
from karat.reward.train import RewardConfig, train_reward
from karat.reward.trunk import DecoderTrunk
from reward_worlds import gold, planted_votes
from tiny_models import tiny_checkpoint


def with_empty_answers(world):
    """The same world, in which raters also compared a response to each prompt with an empty one, worth 1.5 less than none."""
    votes, prompts, responses = world
    rng, more, texts = np.random.default_rng(1), list(votes), dict(responses)
    first = {vote.prompt_id: vote.a for vote in reversed(votes)}
    for prompt_id, other in first.items():
        empty = Response(prompt_id, "", "planted")
        texts[empty.id] = empty
        for rater in range(3):
            level = int(np.searchsorted([-0.5, 0.5], gold(texts[other].text) + 1.5 + rng.logistic()))
            more.append(Vote(f"e{len(more)}", prompt_id, other, empty.id, level, 3, 1, f"rater{rater}"))
    return more, prompts, texts


def test_a_fitted_reward_passes_the_whole_gate_and_one_fitted_to_coin_flips_does_not(tmp_path):
    """Nothing is set: the reward is trained on some prompts and held against the gate on others, at its own thresholds."""
    llama = tiny_checkpoint("llama", tmp_path / "llama")
    votes, prompts, responses = with_empty_answers(planted_votes(75, 4, 12, 2))
    fitted_to = set(list(prompts)[:50])
    held = [vote for vote in votes if vote.prompt_id not in fitted_to]
    train = [vote for vote in votes if vote.prompt_id in fitted_to]
    flips = np.random.default_rng(0).permutation([vote.level for vote in train])
    blind = [dataclasses.replace(vote, level=int(level)) for vote, level in zip(train, flips, strict=True)]
    config = RewardConfig(heads=HeadConfig(n_heads=2), learning_rate=3e-3, head_learning_rate=1e-2, n_refits=1)
    probes = GateProbes(praise=("Oh, jolly good.", "Most truly."))  # without the letter that is worth something
    findings = []
    for seen, n_epochs in ((train, 4), (blind, 1)):
        fit = train_reward(
            DecoderTrunk(load_lm(llama, for_training=True)),
            seen,
            prompts,
            responses,
            seed=0,
            config=dataclasses.replace(config, n_epochs=n_epochs),
        )
        baseline = length_baseline(vote_data(seen, prompts, responses), fit.vote_model.priors)
        checks = run_gate(scorer_of(fit), baseline, held, prompts, responses, seed=0, probes=probes)
        findings.append(gate_checks([*fit.findings, *checks]))
    check_gate(findings[0])
    passed = {finding.name for finding in findings[0] if finding.status == "pass"}
    assert {"gate.likelihood", "gate.calibration", "gate.praise", "gate.empty_answer"} <= passed
    with pytest.raises(GateError, match=r"gate\.likelihood"):
        check_gate(findings[1])
