"""What comes back from a score function, checked before anything is optimised against it.

Knows records and numbers; knows nothing about where scores come from or what they are for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from karat.errors import InputError
from karat.records import Prompt


def checked_scores(scores: Sequence[float], prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    """The scores as floats.

    Raises: InputError when there is not one finite number for each response.
    """
    numbers = [float(score) for score in scores]
    if len(numbers) != len(texts):
        raise InputError(f"score function: found {len(numbers)} scores for {len(texts)} responses; expected one each")
    for number, prompt, text in zip(numbers, prompts, texts, strict=True):
        if not math.isfinite(number):
            raise InputError(
                f"score function: found {number} for the response {text[:60]!r} to {prompt.id}; expected a finite number"
            )
    return numbers
