"""Between conversations and token ids: the prompt a model is given, the response it is trained on, and back.

Knows tokenizers and turns; knows nothing about models or tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from karat.errors import InputError
from karat.records import Turn

# For tokenizers without a chat template: the labels of Anthropic's HH dialogues, blank lines between turns.
PLAIN_LABELS = {"system": "System", "user": "Human", "assistant": "Assistant"}


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> list[int]:
    """Token ids of a conversation up to where the assistant speaks.

    With a chat template: the template with its generation prompt. Without: "Human: …" and "Assistant: …" separated by
    blank lines and ending in "Assistant:", behind the tokenizer's BOS token if it has one; text that spells a special
    token is split into pieces. (In a chat template it is read as that token, because the template writes them as text.)

    Raises: InputError for no turn, a conversation that ends with the assistant's turn, or one that the template refuses.
    """
    if not turns or turns[-1].role == "assistant":
        found = "no turn" if not turns else "an assistant turn at the end"
        raise InputError(f"prompt_tokens: found {found}; expected a conversation that the assistant is to continue")
    if tokenizer.chat_template is not None:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
        try:
            encoded = tokenizer.apply_chat_template(messages, **options)
        except TemplateError as error:  # templates refuse what their model was not trained on
            roles = ", ".join(turn.role for turn in turns)
            raise InputError(
                f"chat template of {tokenizer.name_or_path or 'the model'}: found turns of {roles}, which it refuses ({error}); "
                "expected turns as it wants them (some know no system turn)"
            ) from error
        return list(encoded["input_ids"])
    parts = [f"{PLAIN_LABELS[turn.role]}: {turn.content}" for turn in turns]
    text = "\n\n".join([*parts, "Assistant:"])
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return ids if tokenizer.bos_token_id is None else [tokenizer.bos_token_id, *ids]


def response_tokens(tokenizer: PreTrainedTokenizerBase, text: str, eos_id: int) -> list[int]:
    """Token ids of a response with the end token behind it; text that spells a special token is split into pieces.

    The plain template sets one space between "Assistant:" and the response, as the dialogues it is taken from do.
    """
    spaced = text if tokenizer.chat_template is not None or text[:1].isspace() else " " + text
    return [*tokenizer.encode(spaced, add_special_tokens=False, split_special_tokens=True), eos_id]


class TokenMemory:
    """Token ids of the prompts and responses of one tokenizer, each written once: checks score the same texts again."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_id: int, *, most: int = 100_000) -> None:
        """Args: most: texts kept of either sort; the memory is emptied when it is full."""
        self.tokenizer, self.eos_id, self.most = tokenizer, eos_id, most
        self._prompts: dict[tuple[Turn, ...], tuple[int, ...]] = {}
        self._responses: dict[str, tuple[int, ...]] = {}

    def prompt(self, turns: tuple[Turn, ...]) -> tuple[int, ...]:
        """`prompt_tokens`."""
        return self._kept(self._prompts, turns, lambda: prompt_tokens(self.tokenizer, turns))

    def response(self, text: str) -> tuple[int, ...]:
        """`response_tokens`."""
        return self._kept(self._responses, text, lambda: response_tokens(self.tokenizer, text, self.eos_id))

    def _kept(self, known: dict, key: Hashable, make: Callable[[], list[int]]) -> tuple[int, ...]:
        found = known.get(key)
        if found is None:
            if len(known) >= self.most:
                known.clear()
            found = known[key] = tuple(make())
        return found


def response_text(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], eos_ids: Collection[int]) -> str:
    """The text of a response: up to its first end token, special tokens dropped, outer blanks stripped."""
    kept: list[int] = []
    for token in token_ids:
        if token in eos_ids:
            break
        kept.append(token)
    return tokenizer.decode(kept, skip_special_tokens=True).strip()


def room_beside(prompts: Iterable[Sequence[int]], context_length: int) -> int:
    """Tokens that the longest prompt leaves for a response, one place kept for an end token.

    A response that was cut off gets that where it is scored.
    """
    return context_length - 1 - max(map(len, prompts), default=0)


def check_fits(tokens: Sequence[int], max_response: int, context_length: int) -> None:
    """Raise InputError unless the prompt and `max_response` more tokens fit into the context."""
    if len(tokens) + max_response > context_length:
        raise InputError(
            f"found a prompt of {len(tokens)} tokens with room wanted for {max_response} response tokens; expected at "
            f"most {context_length} in all. Shorten the prompt or the response limit"
        )
