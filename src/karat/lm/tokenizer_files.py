"""The tokenizer of a model directory, looked at before anybody believes its tokens.

Knows tokenizer files; knows nothing about models, but for how many tokens one has and where it ends.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from karat.errors import CheckpointError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
SETTINGS = "tokenizer_config.json"
"""The class of a tokenizer, its special tokens and often its chat template; without it transformers goes by the kind of the model."""
PROBE = "The 12 quick foxes don't jump -- über 3.5%!\n\n  <b>Do_they</b>?"
"""A text that kinds of tokenizers split in different ways."""


def has_tokenizer(path: Path) -> bool:
    """Whether a directory holds a tokenizer."""
    return any((path / name).is_file() for name in TOKENIZER_FILES)


def model_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory.

    Raises: CheckpointError (one line) where there is none, it cannot be read, or it was made without its settings and splits
        texts otherwise than its own file says.
    """
    if not has_tokenizer(path):
        raise CheckpointError(f"{path}: found no tokenizer; expected tokenizer.json or another tokenizer file")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(f"{path}: the tokenizer cannot be read ({said})") from error
    if not isinstance(tokenizer.model_max_length, int | float):
        raise CheckpointError(
            f"{path}: found model_max_length {str(tokenizer.model_max_length)[:40]!r} in {SETTINGS}; expected a number"
        )
    _check_guess(path, tokenizer)
    # it would warn of a text beyond the context, in lines of its own, before karat says what to do about it
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def _check_guess(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise CheckpointError where a tokenizer without settings is another one than its file describes.

    Models from elsewhere may lawfully have none: where the usual tokenizer of their kind is theirs, nothing is lost.
    """
    if (path / SETTINGS).is_file() or not (path / "tokenizer.json").is_file():
        return
    own = Tokenizer.from_file(str(path / "tokenizer.json"))
    own.no_padding()
    own.no_truncation()
    marks = "".join(one.content for one in own.get_added_tokens_decoder().values())
    if own.encode(PROBE + marks, add_special_tokens=False).ids != tokenizer.encode(
        PROBE + marks, add_special_tokens=False
    ):
        raise CheckpointError(
            f"{path}: found no {SETTINGS}, and {type(tokenizer).__name__}, which transformers takes without it, does not split texts "
            f"as tokenizer.json says; expected {SETTINGS}: restore it, or take it from where the model comes from"
        )


def check_special_tokens(path: Path, tokenizer: PreTrainedTokenizerBase, n_tokens: int, ends: Collection[int]) -> None:
    """Raise CheckpointError where a text would begin or end with a token that the model does not know as such.

    Args: n_tokens: that the model knows.    ends: tokens at which the model itself ends; empty = it does not say.
    """
    for name in ("bos_token", "eos_token"):
        number = getattr(tokenizer, f"{name}_id")
        if number is not None and number >= n_tokens:
            raise CheckpointError(
                f"{path}: found {name} {getattr(tokenizer, name)!r} with the id {number}; expected one below {n_tokens}, which the "
                f"model knows: is {SETTINGS} missing, or another model's?"
            )
    if ends and tokenizer.eos_token_id not in ends and not (Path(tokenizer.name_or_path) / SETTINGS).is_file():
        raise CheckpointError(
            f"{path}: found no {SETTINGS}, and without it texts would end with {tokenizer.eos_token!r} (id {tokenizer.eos_token_id}), "
            f"where the model ends with id {', '.join(map(str, ends))}; expected {SETTINGS}: restore it, or take it from where the "
            "model comes from"
        )
