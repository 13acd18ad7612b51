"""What turns (prompt, response) into a feature vector: a decoder's last token or an encoder's mean over tokens.

A decoder reads prompt ⊕ response ⊕ EOS and the feature is the hidden state of that EOS, in training and in scoring
alike; the responses of a prompt share one tree. An encoder reads each text once and averages its last layer. Knows
token sequences and modules; knows nothing about votes, raters or heads.

Dimension letters: N texts, d features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn

from karat.errors import InputError
from karat.lm.chat import TokenMemory, check_fits
from karat.lm.load import LoadedEncoder, LoadedLM
from karat.lm.logprobs import hidden_at, trunk_of
from karat.lm.trees import Tree, pack_trees, padded_batch
from karat.records import Prompt

ENCODER_ROWS = 16  # texts a padded encoder batch; sorted by length, so that padding stays small


@dataclass(frozen=True)
class Encoded:
    """One text as token ids."""

    prompt: tuple[int, ...]
    """Token ids of the prompt; () for an encoder, which reads everything as one sequence."""
    response: tuple[int, ...]
    """Token ids of the response with its EOS, or the encoder's whole sequence."""

    @property
    def n_tokens(self) -> int:
        """Length of the whole sequence."""
        return len(self.prompt) + len(self.response)


class Trunk(Protocol):
    """What the reward model needs from its backbone."""

    kind: str
    width: int
    module: nn.Module
    adapted: bool

    def encode(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Encoded]:
        """Token ids, one entry a (prompt, text)."""
        ...

    def features(self, items: Sequence[Encoded], *, token_budget: int) -> Tensor:
        """Features [N, d], in the order given, on the trunk's device."""
        ...

    def describe(self) -> dict[str, Any]:
        """Plain JSON settings that `score.load_scorer` needs to build the same trunk again."""
        ...


class DecoderTrunk:
    """Last-token features of any decoder of transformers, all responses of a prompt in one tree."""

    kind = "decoder"

    def __init__(self, lm: LoadedLM, *, use_trees: bool = True) -> None:
        self.lm = lm
        self.module: nn.Module = trunk_of(lm.model)
        self.adapted = isinstance(lm.model, PeftModel)
        self.width = int(lm.model.config.get_text_config().hidden_size)
        self.use_trees = use_trees
        self.tokens = TokenMemory(lm.tokenizer, lm.eos_ids[0])

    def encode(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Encoded]:
        """Prompt by the chat template, response with the EOS that training and scoring share.

        Raises: InputError when prompt and response do not fit the context; nothing is cut off.
        """
        items = []
        for prompt, text in zip(prompts, texts, strict=True):
            item = Encoded(self.tokens.prompt(prompt.turns), self.tokens.response(text))
            try:
                check_fits(item.prompt, len(item.response), self.lm.context_length)
            except InputError as error:
                raise InputError(f"response {text[:40]!r}…: {error}") from None
            items.append(item)
        return items

    def features(self, items: Sequence[Encoded], *, token_budget: int) -> Float[Tensor, "N d"]:
        """Hidden state after the last norm at each response's EOS, float32."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, item in enumerate(items):
            groups.setdefault(item.prompt, []).append(index)
        trees = [Tree(prompt, tuple(items[i].response for i in members)) for prompt, members in groups.items()]
        order = torch.tensor([i for members in groups.values() for i in members])
        if self.use_trees:
            batches = pack_trees(trees, token_budget=token_budget)
        else:
            batches = [padded_batch(trees, self.lm.pad_id)]
        found, numbers = [], []
        for batch in batches:
            there = batch.to(self.lm.model.device)
            found.append(hidden_at(self.lm.model, there, there.last_index).float())
            numbers.append(order[batch.branch_id])
        return in_order(torch.cat(found), torch.cat(numbers))

    def describe(self) -> dict[str, Any]:
        """Kind, whether trees are used, and the special tokens and context length."""
        tokenizer = {
            "eos_ids": list(self.lm.eos_ids),
            "pad_id": self.lm.pad_id,
            "context_length": self.lm.context_length,
        }
        return {"kind": self.kind, "use_trees": self.use_trees, "tokenizer": tokenizer}


class EncoderTrunk:
    """Mean-pooled, layer-normalised features of a bidirectional encoder."""

    kind = "encoder"

    def __init__(self, encoder: LoadedEncoder, *, max_tokens: int = 256, with_prompt: bool = False) -> None:
        self.encoder = encoder
        self.module: nn.Module = encoder.model
        self.adapted = False
        self.width = encoder.hidden_size
        self.max_tokens = min(max_tokens, encoder.max_tokens)
        self.with_prompt = with_prompt

    def encode(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Encoded]:
        """The text alone, or prompt and text as a pair; longer sequences are cut at `max_tokens`."""
        items = []
        for prompt, text in zip(prompts, texts, strict=True):
            parts = (prompt.text, text) if self.with_prompt else (text,)
            ids = self.encoder.tokenizer(*parts, truncation=True, max_length=self.max_tokens)["input_ids"]
            items.append(Encoded((), tuple(ids)))
        return items

    def features(self, items: Sequence[Encoded], *, token_budget: int) -> Float[Tensor, "N d"]:
        """Mean of the last layer over the tokens that count, scaled to mean 0 and variance 1 over d."""
        order = sorted(range(len(items)), key=lambda i: items[i].n_tokens)
        found = []
        for rows in padded_rows(order, [item.n_tokens for item in items], token_budget):
            ids, mask = pad_right([items[i].response for i in rows], self.encoder.tokenizer.pad_token_id or 0)
            device = next(self.module.parameters()).device
            hidden = self.module(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state.float()
            weight = mask.to(hidden).unsqueeze(-1)
            found.append((hidden * weight).sum(1) / weight.sum(1))
        return F.layer_norm(in_order(torch.cat(found), torch.tensor(order)), (self.width,))

    def describe(self) -> dict[str, Any]:
        """Kind, the limit of length and whether the prompt is read."""
        return {"kind": self.kind, "max_tokens": self.max_tokens, "with_prompt": self.with_prompt}


def micro_batches(
    groups: Sequence[Sequence[int]], n_tokens: Callable[[int], int], *, token_budget: int
) -> list[list[int]]:
    """Cut groups of text indices into micro-batches of about `token_budget` tokens, no group ever cut.

    Args:
        groups: the texts of one prompt each; votes never cross groups, so a loss is a sum over micro-batches.
        n_tokens: tokens of one text.
    Returns: lists of text indices; a group above the budget is alone in its list.
    """
    batches: list[list[int]] = []
    used = 0
    for group in groups:
        need = sum(n_tokens(index) for index in group)
        if not batches or used + need > token_budget:
            batches.append([])
            used = 0
        batches[-1].extend(group)
        used += need
    return batches


def check_texts(texts: Sequence[str], caller: str) -> None:
    """Raise InputError for no texts."""
    if not texts:
        raise InputError(f"{caller}: found no texts; expected at least one (prompt, response)")


def padded_rows(order: Sequence[int], lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Cut texts, ascending by length, into batches of at most ENCODER_ROWS rows and `token_budget` tokens with padding."""
    rows: list[list[int]] = []
    for index in order:  # ascending lengths: the newest text decides the width
        full = rows and (len(rows[-1]) >= ENCODER_ROWS or (len(rows[-1]) + 1) * lengths[index] > token_budget)
        if not rows or full:
            rows.append([])
        rows[-1].append(index)
    return rows


def pad_right(sequences: Sequence[tuple[int, ...]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask (1 = counts), filled up on the right."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(sequences), width), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return ids, mask


def in_order(rows: Tensor, order: Tensor) -> Tensor:
    """Rows that were computed in another order, put back: row i of the result is the one computed for text i."""
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return rows[place.to(rows.device)]
