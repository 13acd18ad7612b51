"""The learnable rewards of the time-to-score study: functions of a response's text, so that no reward model's time counts.

    letters         ¼ · k                                   k: how often "e" occurs
    length          10 · max(0, 1 − |n − 16| / 16)          n: words
    word            10 · min(k, 4) / 4                      k: how often the word "you" occurs
    no_repetition   10 · d / n · min(1, n / 16), n > 0      d: different words

A word is a run of letters and digits, apostrophes inside it included, in any case. An empty text earns 0 everywhere. All
but `letters` lie in [0, 10], which is as far as `letters` comes in 48 tokens, so that one KL coefficient weighs alike
beside each. Standard library only, because it is also read in the peers' environments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

LETTER, SCORE_OF_ONE = "e", 0.25
MOST = 10.0
"""Of every reward but the letters."""
N_WORDS = 16
"""About half of what the bench's model writes in 48 tokens: a policy has to learn to stop, and can."""
WORD, N_TIMES = "you", 4
"""The trained model writes it about once a response."""

_A_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def words(text: str) -> list[str]:
    """The words of a text, in lower case.

    >>> words("It's here: IT'S _here_.")
    ["it's", 'here', "it's", 'here']
    """
    return _A_WORD.findall(text.lower())


def letters(text: str) -> float:
    """¼ for each "e"; bounded by the length of the text only."""
    return SCORE_OF_ONE * text.count(LETTER)


def length(text: str) -> float:
    """10 · max(0, 1 − |n − 16| / 16) for n words: 10 at 16 words, 0 at none and from 32 on."""
    return MOST * max(0.0, 1 - abs(len(words(text)) - N_WORDS) / N_WORDS)


def word(text: str) -> float:
    """10 · min(k, 4) / 4 where "you" occurs k times as a whole word; more than four earn nothing more."""
    return MOST * min(words(text).count(WORD), N_TIMES) / N_TIMES


def no_repetition(text: str) -> float:
    """10 · d / n · min(1, n / 16) for n words, d of them different: the last term keeps short answers from winning."""
    found = words(text)
    if not found:
        return 0.0
    return MOST * len(set(found)) / len(found) * min(1.0, len(found) / N_WORDS)


REWARDS: dict[str, Callable[[str], float]] = {
    "letters": letters,
    "length": length,
    "word": word,
    "no_repetition": no_repetition,
}


def response_text(tokenizer: Any, token_ids: Sequence[int], end_id: int) -> str:
    """The text that is scored: up to the first end token, special tokens dropped, outer blanks stripped.

    For the peers' sides; ours has the same in `karat.lm.chat`.
    """
    ids = list(token_ids)
    kept = ids[: ids.index(end_id)] if end_id in ids else ids
    return tokenizer.decode(kept, skip_special_tokens=True).strip()
