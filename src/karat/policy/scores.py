"""Asking a score function, and checking what comes back before anything is optimised against it.

Knows records and numbers; knows nothing about where scores come from or what they are for.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Sequence
from pathlib import PurePath

from karat.errors import InputError, KaratError
from karat.records import Prompt, ScoreFn


def score_responses(
    score_fn: ScoreFn, prompts: Sequence[Prompt], texts: Sequence[str], *, what: str = "score function", name: str = ""
) -> list[float]:
    """The scores of some responses, from one call.

    Args:
        what: it is, and its name (`module:function`), by which a complaint names it; "" = where it was defined.
    Raises: InputError where the function raises, or does not give one finite number for each response.
    """
    what = f"{what} {name or _name(score_fn)}".rstrip()
    try:
        scores = score_fn(prompts, texts)
    except KaratError:
        raise  # it says already what is wrong
    except (Exception, SystemExit) as error:  # a function that calls exit() would end karat without a word
        raise InputError(
            f"{what}: raised {type(error).__name__}: {' '.join(str(error).split())[:200]}{_where(error)} for {len(texts)} "
            f"responses, the first {_quoted(texts)}; expected one finite number each"
        ) from error
    return checked_scores(scores, prompts, texts, what=what)


def checked_scores(
    scores: Sequence[float], prompts: Sequence[Prompt], texts: Sequence[str], *, what: str = "score function"
) -> list[float]:
    """The scores as floats.

    Raises: InputError naming the first response that has not one finite number.
    """
    try:
        given = list(scores)
    except TypeError as error:
        found = " ".join(repr(scores).split())[:80]
        raise InputError(f"{what}: found {found}; expected one finite number for each response") from error
    numbers = []
    for index, (score, prompt, text) in enumerate(zip(given, prompts, texts, strict=False)):
        try:
            number = float(score)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            found = " ".join(repr(score).split())[:80]
            raise InputError(
                f"{what}: found {found} for responses[{index}] of {len(texts)}, {text[:60]!r} to {prompt.id}; expected a "
                "finite number"
            )
        numbers.append(number)
    if len(given) != len(texts):
        lacking = f"; responses[{len(given)}] is the first without one" if len(given) < len(texts) else ""
        raise InputError(f"{what}: found {len(given)} scores for {len(texts)} responses{lacking}; expected one each")
    return numbers


def _name(score_fn: ScoreFn) -> str:
    """Module and name of a function; "" of karat's own, whose names say nothing to who runs it."""
    module = getattr(score_fn, "__module__", "") or ""
    name = getattr(score_fn, "__qualname__", type(score_fn).__qualname__)
    return "" if not module or module.startswith("karat.") else f"{module}:{name}"


def _where(error: BaseException) -> str:
    """File and line in which it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f" (line {last.lineno} of {PurePath(last.filename).name})"


def _quoted(texts: Sequence[str]) -> str:
    return repr(texts[0][:60]) if len(texts) else "none"
