"""A planted preference over short texts, its raters, and their votes: what the reward tests train on.

The true reward counts the letter "a"; votes follow the ordinal link with known raters.
"""

import math

import numpy as np

from karat.records import Prompt, Response, Vote, user_prompt
from karat.statements import Best, Labelled, Preferred, Ranked, Rated, Statement

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


def planted_feedback(n_prompts: int = 10, *, n_raters: int = 8, seed: int = 0):
    """Statements of every kind by raters who like the letter a; ratings speak of the letter b too."""
    votes, prompts, responses = planted_votes(n_prompts, 4, n_raters, 1, seed=seed)
    rng = np.random.default_rng(seed + 1)
    said: list[Statement] = list(votes)
    by_prompt: dict[str, list[Response]] = {}
    for response in responses.values():
        by_prompt.setdefault(response.prompt_id, []).append(response)
    numbers = iter(range(10**6))

    def about(prompt_id: str) -> dict:
        return {
            "judgement_id": f"f{next(numbers)}",
            "prompt_id": prompt_id,
            "annotator": f"rater{rng.integers(n_raters)}",
        }

    for prompt_id, own in by_prompt.items():
        ids = tuple(one.id for one in own)
        utility = np.array([gold(one.text) for one in own])
        a, b = ids[:2]
        side = int(rng.choice([-1, 1]))
        level = int(np.searchsorted([-1.5, -0.4, 0.4, 1.5], utility[0] - utility[1] + rng.logistic()))
        said.append(Vote(**about(prompt_id), a=a, b=b, level=level, n_levels=5, side=side))
        ranks = np.argsort(np.argsort(-(utility + rng.gumbel(size=4)))) + 1
        said.append(Ranked(**about(prompt_id), response_ids=ids, ranks=tuple(int(rank) for rank in ranks)))
        best = int(np.argmax(utility[:3] + rng.gumbel(size=3)))
        said.append(Best(**about(prompt_id), response_ids=ids[:3], best=best))
        for one, value in zip(own, utility, strict=True):
            rated = int(np.clip(round(3 + 0.6 * (value - 1.5) + rng.normal()), 1, 7))
            bold = int(np.clip(round(2 + 2 * one.text.count("b") + 0.5 * rng.normal()), 1, 7))
            common = about(prompt_id)
            for objective, number in (("preference", rated), ("bold", bold)):
                said.append(Rated(**common, response_ids=(one.id,), value=number, low=1, high=7, objective=objective))
            good = bool(value - 1.5 + rng.logistic() > 0)
            said.append(Labelled(**about(prompt_id), response_ids=(one.id,), good=good))
        worst = own[int(np.argmin(utility))]
        for kind, text in (("correction", worst.text + "aa"), ("demonstration", "aaaa" + own[0].text)):
            written = Response(prompt_id, text, kind)
            responses[written.id] = written
            against = [worst] if kind == "correction" else own
            common, share = about(prompt_id), 1 / len(against)
            said += [Preferred(**common, kind=kind, response_ids=(written.id, one.id), share=share) for one in against]
    return said, prompts, responses
