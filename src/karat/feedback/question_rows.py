"""Questions as the store keeps them: their JSON, named by their content.

Knows the form of a question's JSON; knows nothing about tasks or who is asked.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from karat.errors import InputError
from karat.questions import Choice, Question

_CHOICES = ("attributes", "flags", "span_classes", "aspects")


def question_from(body: Mapping[str, Any]) -> Question:
    """A question from plain JSON. Raises: InputError for keys or values that no question has."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in body.items()}
    try:
        values |= {name: tuple(Choice(**each) for each in values[name]) for name in _CHOICES if name in values}
        return Question(**values)
    except TypeError as error:
        raise InputError(
            f"question: found something of the wrong form ({error}); expected what `Question` says"
        ) from error


@functools.lru_cache(maxsize=256)
def question_in(body: str) -> Question:
    """The question in a row of `questions`: it is named by its content and never changes."""
    return question_from(json.loads(body))
