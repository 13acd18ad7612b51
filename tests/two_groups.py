"""Raters of two declared groups who like different things, and their comparisons: the left is twice as large."""

from __future__ import annotations

import numpy as np

from karat.records import Prompt, Response, Vote, user_prompt

GROUPS = {f"rater{i}": "left" if i % 3 else "right" for i in range(12)}


def opinions(seed: int = 0, n_prompts: int = 30) -> tuple[list[Vote], dict[str, Prompt], dict[str, Response]]:
    """Two groups: the left likes the letter a, the right likes the letter b; both like short texts."""
    rng = np.random.default_rng(seed)
    prompts, responses, votes = {}, {}, []
    for number in range(n_prompts):
        prompt = user_prompt(f"q{number}")
        prompts[prompt.id] = prompt
        texts = {"".join(rng.choice(list("abcd"), size=int(rng.integers(2, 7)))) for _ in range(4)}
        own = [Response(prompt.id, text, "planted") for text in sorted(texts)]
        responses |= {one.id: one for one in own}
        for rater, group in GROUPS.items():
            i, j = rng.choice(len(own), 2, replace=False)
            letter = "a" if group == "left" else "b"
            gap = sum(s * (1.5 * own[k].text.count(letter) - 0.2 * len(own[k].text)) for s, k in ((1, i), (-1, j)))
            level = int(rng.logistic() + gap > -0.4) + int(rng.logistic() + gap > 0.4)
            votes.append(Vote(f"j{len(votes)}", prompt.id, own[i].id, own[j].id, level, 3, 0, rater))
    return votes, prompts, responses


def vote_rows(seed: int = 0, n_prompts: int = 30) -> list[dict]:
    """The same in karat's votes format, with the group that each rater declared."""
    votes, prompts, responses = opinions(seed, n_prompts)
    return [
        {
            "prompt": prompts[vote.prompt_id].text, "a": responses[vote.a].text, "b": responses[vote.b].text,
            "choice": ("b", "tie", "a")[vote.level], "annotator": vote.annotator, "group": GROUPS[vote.annotator],
        }
        for vote in votes
    ]  # fmt: skip
