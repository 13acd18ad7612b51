"""A planted preference over short texts, its raters, and their votes: what the reward tests train on.

The true reward counts the letter "a"; votes follow the ordinal link with known raters.
"""

import math

import numpy as np

from karat.records import Prompt, Response, Vote, user_prompt

LETTERS = "abcdefgh"


def gold(text: str) -> float:
    """1.5 logits for every letter a."""
    return 1.5 * text.count("a")


def planted_votes(
    n_prompts: int = 12,
    n_responses: int = 4,
    n_raters: int = 10,
    votes_per_pair: int = 3,
    *,
    n_levels: int = 3,
    seed: int = 0,
    competence: dict[str, float] | None = None,
) -> tuple[list[Vote], dict[str, Prompt], dict[str, Response]]:
    """Votes on all pairs of the responses to each prompt, each by different raters."""
    rng = np.random.default_rng(seed)
    prompts, responses, votes = {}, {}, []
    cutpoints = {2: [0.0], 3: [-0.5, 0.5], 5: [-1.5, -0.4, 0.4, 1.5]}[n_levels]
    for number in range(n_prompts):
        prompt = user_prompt(f"q{number}", topic=f"t{number % 4}")
        prompts[prompt.id] = prompt
        own = []
        while len(own) < n_responses:
            text = "".join(rng.choice(list(LETTERS), size=int(rng.integers(3, 9))))
            response = Response(prompt.id, text, "planted")
            if response.id not in responses:
                responses[response.id] = response
                own.append(response)
        for i in range(n_responses):
            for j in range(i + 1, n_responses):
                for rater in rng.choice(n_raters, size=min(votes_per_pair, n_raters), replace=False):
                    name = f"rater{rater}"
                    side = int(rng.choice([-1, 1]))
                    slope = (competence or {}).get(name, 1.0)
                    delta = slope * (gold(own[i].text) - gold(own[j].text))
                    uniform = rng.random()
                    level = sum(uniform > 1 / (1 + math.exp(-(cut - delta))) for cut in cutpoints)
                    votes.append(Vote(f"j{len(votes)}", prompt.id, own[i].id, own[j].id, level, n_levels, side, name))
    return votes, prompts, responses
