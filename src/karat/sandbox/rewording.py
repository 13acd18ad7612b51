"""Edits that leave the meaning of a text as it is: other words for the same clause, another order, a slip.

They are the sandbox's typos and paraphrases: a model with a closed vocabulary has never seen a misspelt word. Knows the
grammar; knows nothing about facts, questions or gold. Rewording and reordering leave the gold reward equal; a slip costs
fluency.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache

import numpy as np

from karat.probes import Perturbation
from karat.sandbox.grammar import END, Clause, Form, Grammar, all_forms, fill


def meaning_preserving(grammar: Grammar) -> tuple[Perturbation, ...]:
    """The edits as a table for the gate."""
    return (
        Perturbation("reworded", lambda texts, rng: reworded(grammar, texts, rng), "same"),
        Perturbation("reordered", reordered, "same"),
        Perturbation("slips", slips, "not_better"),
    )


def reworded(grammar: Grammar, texts: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Each clause in another form of the same kind, confidence, slots and length, where there is one.

    Never two equal clauses in a text: the second would count as repetition.
    """
    return [" ".join(_reworded(grammar, text.split(), rng)) for text in texts]


def reordered(texts: Sequence[str], rng: np.random.Generator) -> list[str]:
    """The clauses of each text in random order; what follows the last `.` stays last."""
    result = []
    for text in texts:
        *closed, rest = _clauses_of(text.split())
        order = rng.permutation(len(closed))
        result.append(" ".join(word for part in [*(closed[int(i)] for i in order), rest] for word in part))
    return result


def slips(texts: Sequence[str], rng: np.random.Generator) -> list[str]:
    """The first word of one clause of each text said twice: a stray before an unharmed clause."""
    result = []
    for text in texts:
        parts = [part for part in _clauses_of(text.split()) if part]
        chosen = int(rng.integers(len(parts))) if parts else -1
        result.append(" ".join(w for i, part in enumerate(parts) for w in ([part[0], *part] if i == chosen else part)))
    return result


def _reworded(grammar: Grammar, words: Sequence[str], rng: np.random.Generator) -> list[str]:
    parts = _clauses_of(words)
    said = {tuple(part) for part in parts}
    result: list[str] = []
    for part in parts:
        found = list(grammar.clauses(part))
        # only a part that is one whole clause: of any other, words are strays and must stay where they are
        if len(found) == 1 and len(found[0].words) == len(part) - (part[-1:] == [END]):
            options = [option for option in _forms_like(found[0]) if tuple(option) not in said]
            if options:
                part = options[int(rng.integers(len(options)))]
                said.add(tuple(part))
        result += part
    return result


def _forms_like(clause: Clause) -> list[list[str]]:
    slots = {letter: clause.words[offset] for letter, offset in clause.form.slots}
    closed = [END] if clause.n_fluent > len(clause.words) else []
    patterns = _patterns()[_signature(clause.form, len(clause.words))]
    return [[*fill(pattern, slots).split(), *closed] for pattern in patterns]


@cache
def _patterns() -> dict[tuple, list[str]]:
    table: dict[tuple, list[str]] = defaultdict(list)
    for pattern, form in all_forms():
        table[_signature(form, len(pattern.split()))].append(pattern)
    return table


def _signature(form: Form, n_words: int) -> tuple:
    return form.kind, form.confidence, tuple(sorted(letter for letter, _ in form.slots)), n_words


def _clauses_of(words: Sequence[str]) -> list[list[str]]:
    """The words up to and with each `.`, and what is left after the last one (perhaps nothing)."""
    parts: list[list[str]] = [[]]
    for word in words:
        parts[-1].append(word)
        if word == END:
            parts.append([])
    return parts
