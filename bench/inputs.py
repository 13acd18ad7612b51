"""What both sides of each comparison get: prompts and pairs of the HH comparisons as token ids.

karat's own tokenisation makes the ids and the peers are given them, so that nobody's template or truncation can make a
difference.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from bench.models import checkpoint, hh_rows
from transformers import PreTrainedTokenizerFast

from karat.feedback.exchange.importers import hh_conversation
from karat.lm.chat import prompt_tokens, response_tokens
from karat.records import Prompt, Response, Vote
from karat.statements import Ranked

MAX_PAIR_TOKENS = 1024
MAX_PROMPT_TOKENS = 96


@dataclass(frozen=True)
class Pairs:
    """Comparisons in training order."""

    votes: list[Vote]
    """One vote a pair, for a = chosen."""
    prompts: dict[str, Prompt]
    """By id."""
    responses: dict[str, Response]
    """By id."""
    token_ids: list[tuple[list[int], list[int]]]
    """Whole sequences, chosen and rejected, prompt ⊕ response ⊕ EOS."""
    shared_tokens: int
    """Prompt tokens, counted once a pair."""
    triples: list[tuple[list[int], list[int], list[int]]]
    """Prompt, chosen and rejected response as token ids, the responses with their end token."""


def hh_pairs(n_pairs: int) -> Pairs:
    """The first n comparisons in file order whose prompts differ and whose sequences fit."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint("medium"))
    found = Pairs([], {}, {}, [], 0, [])
    shared_tokens = 0
    for number, row in enumerate(hh_rows()):
        prompt, chosen = hh_conversation(row["chosen"])
        other, rejected = hh_conversation(row["rejected"])
        if prompt != other or chosen == rejected or prompt.id in found.prompts:
            continue
        start = prompt_tokens(tokenizer, prompt.turns)
        ends = [response_tokens(tokenizer, text, tokenizer.eos_token_id) for text in (chosen, rejected)]
        if len(start) + max(map(len, ends)) > MAX_PAIR_TOKENS:
            continue
        a, b = (Response(prompt.id, text, "hh") for text in (chosen, rejected))
        found.prompts[prompt.id] = prompt
        found.responses.update({a.id: a, b.id: b})
        found.votes.append(Vote(f"hh-{number}", prompt.id, a.id, b.id, 1, 2, 0, "hh"))
        found.token_ids.append((start + ends[0], start + ends[1]))
        found.triples.append((start, ends[0], ends[1]))
        shared_tokens += len(start)
        if len(found.votes) == n_pairs:
            return replace(found, shared_tokens=shared_tokens)
    raise SystemExit(f"bench: found {len(found.votes)} usable HH pairs; expected {n_pairs}")


@dataclass(frozen=True)
class Rankings:
    """Rankings of four responses in training order, and the comparisons that say the same."""

    said: list[Ranked]
    """One a prompt."""
    prompts: dict[str, Prompt]
    """By id."""
    responses: dict[str, Response]
    """By id."""
    token_ids: list[tuple[list[int], list[int]]]
    """Three neighbouring pairs a ranking, better and worse, as whole sequences."""


def hh_rankings(n_rankings: int) -> Rankings:
    """HH prompts with their own two answers and, worse than these, those to the next prompt that fit.

    Neighbours in a ranking are the k − 1 comparisons that it takes at least to say the same.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint("medium"))
    pairs = hh_pairs(min(2 * n_rankings + 40, len(hh_rows()) // 2))
    found = Rankings([], {}, {}, [])
    for number, (vote, other) in enumerate(itertools.pairwise(pairs.votes)):
        prompt = pairs.prompts[vote.prompt_id]
        texts = [pairs.responses[one].text for one in (vote.a, vote.b, other.a, other.b)]
        start = prompt_tokens(tokenizer, prompt.turns)
        whole = [start + response_tokens(tokenizer, text, tokenizer.eos_token_id) for text in texts]
        if max(map(len, whole)) > MAX_PAIR_TOKENS or len(set(texts)) < len(texts):
            continue
        own = [Response(prompt.id, text, "hh") for text in texts]
        found.prompts[prompt.id] = prompt
        found.responses.update({one.id: one for one in own})
        found.said.append(Ranked(f"hh-{number}", prompt.id, tuple(one.id for one in own), (1, 2, 3, 4), "hh"))
        found.token_ids.extend(itertools.pairwise(whole))
        if len(found.said) == n_rankings:
            return found
    raise SystemExit(f"bench: found {len(found.said)} usable HH rankings; expected {n_rankings}")


def hh_prompts(n_prompts: int) -> tuple[list[Prompt], list[list[int]]]:
    """The first n different prompts of at most 96 tokens, and their ids."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint("small"))
    prompts: dict[str, Prompt] = {}
    ids: list[list[int]] = []
    for row in hh_rows():
        prompt, _ = hh_conversation(row["chosen"])
        tokens = prompt_tokens(tokenizer, prompt.turns)
        if prompt.id in prompts or len(tokens) > MAX_PROMPT_TOKENS:
            continue
        prompts[prompt.id] = prompt
        ids.append(tokens)
        if len(ids) == n_prompts:
            return list(prompts.values()), ids
    raise SystemExit(f"bench: found {len(ids)} HH prompts of at most {MAX_PROMPT_TOKENS} tokens; expected {n_prompts}")


def hh_texts(n_tokens: int, *, longest: int) -> list[list[int]]:
    """Whole chosen conversations as token ids with their end token, in file order, until there are n tokens of them."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint("medium"))
    texts: list[list[int]] = []
    total = 0
    for row in hh_rows():
        ids = tokenizer(row["chosen"])["input_ids"] + [tokenizer.eos_token_id]
        if len(ids) <= longest:
            texts.append(ids)
            total += len(ids)
        if total >= n_tokens:
            return texts
    raise SystemExit(f"bench: found {total} tokens of HH conversations; expected {n_tokens}")
