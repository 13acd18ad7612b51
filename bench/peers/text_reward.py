"""A reward of the text in the shape of the reward models that TRL's PPOTrainer asks: torch and the standard library only."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from bench.text_rewards import response_text
from torch import nn


class TextBackbone(nn.Module):
    """Decodes and scores what stands from `n_prompt` on; a backbone with one hidden number, the same at every position."""

    def __init__(self, reward: Callable[[str], float], tokenizer, n_prompt: int) -> None:
        super().__init__()
        self.reward, self.tokenizer, self.n_prompt = reward, tokenizer, n_prompt

    def forward(self, input_ids, attention_mask, **named):  # noqa: ARG002
        end = self.tokenizer.eos_token_id
        scores = [
            self.reward(response_text(self.tokenizer, ids[mask].tolist(), end))
            for ids, mask in zip(input_ids[:, self.n_prompt :], attention_mask[:, self.n_prompt :].bool(), strict=True)
        ]
        hidden = torch.tensor(scores, dtype=torch.float32)[:, None, None].expand(*input_ids.shape, 1)
        return SimpleNamespace(hidden_states=[hidden])


class TextReward(nn.Module):
    """A reward model as the trainer expects one, whose score is a function of the response's text."""

    base_model_prefix = "backbone"

    def __init__(self, reward: Callable[[str], float], tokenizer, n_prompt: int) -> None:
        super().__init__()
        self.backbone = TextBackbone(reward, tokenizer, n_prompt)

    def score(self, hidden):
        """The hidden number itself."""
        return hidden
