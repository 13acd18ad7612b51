"""Asking a score function, and checking what comes back before anything is optimised against it.

Knows records and numbers; knows nothing about where scores come from or what they are for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from karat.errors import InputError, KaratError
from karat.records import Prompt, ScoreFn


def score_responses(
    score_fn: ScoreFn, prompts: Sequence[Prompt], texts: Sequence[str], *, what: str = "score function"
) -> list[float]:
    """The scores of some responses, from one call.

    Raises: InputError where the function raises, or does not give one finite number for each response.
    """
    try:
        scores = score_fn(prompts, texts)
    except KaratError:
        raise  # it says already what is wrong
    except (Exception, SystemExit) as error:  # a function that calls exit() would end karat without a word
        name = getattr(score_fn, "__qualname__", type(score_fn).__name__)
        raise InputError(
            f"{what} {name}: raised {type(error).__name__}: {' '.join(str(error).split())[:200]} for {len(texts)} "
            "responses; expected one finite number each"
        ) from error
    return checked_scores(scores, prompts, texts, what=what)


def checked_scores(
    scores: Sequence[float], prompts: Sequence[Prompt], texts: Sequence[str], *, what: str = "score function"
) -> list[float]:
    """The scores as floats.

    Raises: InputError when there is not one finite number for each response.
    """
    try:
        numbers = [float(score) for score in scores]
    except (TypeError, ValueError) as error:
        found = " ".join(repr(scores).split())[:80]
        raise InputError(f"{what}: found {found}; expected one finite number for each response") from error
    if len(numbers) != len(texts):
        raise InputError(f"{what}: found {len(numbers)} scores for {len(texts)} responses; expected one each")
    for number, prompt, text in zip(numbers, prompts, texts, strict=True):
        if not math.isfinite(number):
            raise InputError(
                f"{what}: found {number} for the response {text[:60]!r} to {prompt.id}; expected a finite number"
            )
    return numbers
