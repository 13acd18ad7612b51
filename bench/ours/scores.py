"""What our side is started on, and what it scores responses with in the rows ppo, rloo and grpo and the time-to-score study."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from bench.models import plain_reward_model
from bench.text_rewards import REWARDS

from karat.belief import ScoreScale
from karat.devices import on_device
from karat.lm.chat import response_text
from karat.lm.load import LoadedLM
from karat.records import Prompt, ScoreFn
from karat.reward.calibration import VoteModel
from karat.reward.raters import RaterPriors
from karat.reward.score import Scorer, score_fn


def given_work() -> dict[str, Any]:
    """The WORK.json that this process was started on."""
    return json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))


def on_its_device(work: Callable[[], None]) -> None:
    """Do the work where its WORK.json says: `device`, the processor if absent."""
    with on_device(given_work().get("device", "cpu")):
        work()


def products_of(work: Mapping[str, Any]) -> torch.dtype | None:
    """What `dtype` of a WORK.json makes of matrix products; float32 if absent."""
    return torch.bfloat16 if work.get("dtype") == "bfloat16" else None


def score_of(name: str, size: str = "small") -> ScoreFn:
    """The score function of a WORK.json's `reward`: "model" of that size, or a name of text_rewards."""
    return model_score(size) if name == "model" else text_score(name)


def model_score(size: str) -> ScoreFn:
    """The reward model of the bench as a score function, raw scores."""
    model = plain_reward_model(size).requires_grad_(False).eval()
    return score_fn(Scorer(model, VoteModel(RaterPriors(), (0.0,)), ScoreScale(0.0, 1.0), torch.zeros(1, 1)))


def text_score(name: str) -> ScoreFn:
    """A reward of text_rewards as a score function."""
    reward = REWARDS[name]

    def score(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:  # noqa: ARG001 - a ScoreFn
        return [reward(text) for text in responses]

    return score


def probe_scores(lm: LoadedLM, prompts: Sequence[Prompt], score: ScoreFn, work: Mapping[str, Any]) -> list[float]:
    """Scores of the responses that both sides are asked about before their first turn, if any, decoded as rollouts are."""
    texts = [response_text(lm.tokenizer, ids, lm.eos_ids) for ids in work.get("probes", ())]
    return list(score(list(prompts[:1]) * len(texts), texts)) if texts else []
