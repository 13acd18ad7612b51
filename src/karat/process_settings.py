"""Where and how a process works, by name: its device, its way to decode and to attend.

Knows words; whether a machine can do so, `devices` and `lm.ways` know.
"""

from __future__ import annotations

import re
from typing import Literal

from karat.errors import ConfigError

AUTO = "auto"
NO_PLACES = ("meta", "gpu")
"""Names that look like a device's: on torch's `meta` nothing is computed, and no accelerator is called `gpu`."""
Decode = Literal["auto", "plain", "steps", "compiled", "graph"]
"""plain = rows are dropped as they end; the others = steps of static shapes in segments: as they are, compiled, recorded."""
Attending = Literal["auto", "plain"]
"""Over trees: auto = FlexAttention on devices that have it, where its trial agrees; plain = never."""


def named(asked: str) -> tuple[str, int | None]:
    """The kind and number in a device's name.

    >>> named("cuda:1"), named("auto")
    (('cuda', 1), ('auto', None))
    """
    if asked == AUTO:
        return AUTO, None
    found = re.fullmatch(r"([a-z]+)(?::(\d{1,6}))?", asked)
    if found is None or found[1] in NO_PLACES or (found[1] == "cpu" and int(found[2] or 0)):
        raise ConfigError(
            f"device: found {asked!r}; expected auto, cpu, or an accelerator as torch names it: cuda, cuda:1"
        )
    return found[1], None if found[2] is None else int(found[2])
