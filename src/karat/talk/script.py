"""What is typed into a chat, line by line: messages and commands, from a terminal, a file or a pipe alike.

Knows a conversation and lines of text; how they are shown is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from karat.errors import InputError
from karat.talk.conversation import Conversation, Reply

COMMANDS = {
    "/reset": "forget what was said; the system message stays",
    "/system TEXT": "set the system message and begin anew; without TEXT there is none",
    "/help": "these lines",
    "/quit": "end",
}


@dataclass(frozen=True)
class Exchange:
    """A message and its reply."""

    said: str
    """The message."""
    system: str
    """The system message under which it was said."""
    reply: Reply
    """What came back."""


def talk(
    conversation: Conversation,
    lines: Iterable[str],
    *,
    heard: Callable[[str], None] | None = None,
    note: Callable[[str], None] = lambda _: None,
    forgiving: bool = False,
) -> list[Exchange]:
    """Say the lines one after the other until they end or one is /quit.

    Args:
        lines: messages; a line that begins with "/" is a command of `COMMANDS`, empty lines are passed over.
        heard: gets the pieces of each reply, then a line break.    note: gets what a command has to say.
        forgiving: True = a wrong line is noted and the talk goes on (a person types); False = it is an error.
    Returns: the exchanges.
    Raises: InputError for an unknown command or a message that does not fit, unless `forgiving`.
    """
    exchanges = []
    for line in lines:
        text = line.strip()
        if not text:
            continue
        if text == "/quit":
            break
        try:
            if text.startswith("/"):
                note(obey(conversation, text))
                continue
            reply = conversation.reply(text, heard)
        except InputError as error:
            if not forgiving:
                raise
            note(str(error))
            continue
        if heard is not None:
            heard("\n")
        if reply.n_left_out:
            note(f"({reply.n_left_out} earlier turns no longer fit the context and were not read)")
        exchanges.append(Exchange(text, conversation.system, reply))
    return exchanges


def obey(conversation: Conversation, command: str) -> str:
    """Do what a command says; returns what there is to say about it.

    Raises: InputError for one that is not known.
    """
    name, _, rest = command.partition(" ")
    if name == "/reset":
        conversation.reset()
        return "forgotten"
    if name == "/system":
        conversation.reset()
        conversation.system = rest.strip()
        return "the system message is set" if conversation.system else "there is no system message now"
    if name == "/help":
        return "\n".join(f"{what:<14} {says}" for what, says in COMMANDS.items())
    known = ", ".join(what.split()[0] for what in COMMANDS)
    raise InputError(f"chat: found {name}; expected {known}, or a message that does not begin with /")
