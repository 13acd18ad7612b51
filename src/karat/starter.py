"""A commented configuration, written from the dataclasses that will read it, so that it can never be out of date.

Knows dataclasses whose fields have a string beneath; nothing about what the keys mean.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
import types
import typing
from typing import Any

import yaml

from karat.config import PLACEHOLDER, plain
from karat.errors import ConfigError

WIDTH = 110


def commented_yaml(kind: type, *, choose: str | None = None, filled: Any = None) -> str:
    """Every key of a configuration with its default and what it means, as YAML.

    Args:
        kind: a frozen dataclass of `karat.config`.
        choose: which of the optional sections (default None) to write; the others appear as a comment. Required
            keys without a default get a placeholder.
        filled: a `kind` whose values are written instead of the defaults, which then stand in the comment; None = the defaults.
    Raises: ConfigError where `choose` is none of the optional sections.
    """
    optional = [field.name for field in dataclasses.fields(kind) if _optional_section(kind, field)]
    if choose is not None and choose not in optional:
        raise ConfigError(f"found no optional section {choose!r}; expected one of {', '.join(optional) or 'none'}")
    lines: list[str] = []
    for field in dataclasses.fields(kind):
        section = _optional_section(kind, field)
        if section is None:
            lines += ["", *_entry(kind, field, 0, filled)]
        elif field.name == choose:
            lines += ["", *_section(kind, field, section, 0, getattr(filled, field.name, None))]
        else:
            lines += ["", *(f"# {line}".rstrip() for line in _section(kind, field, section, 0))]
    return "\n".join(lines).lstrip("\n") + "\n"


def _section(owner: type, field: dataclasses.Field, kind: type, indent: int, filled: Any = None) -> list[str]:
    lines = [*_comment(_described(owner).get(field.name, ""), indent), f"{' ' * indent}{field.name}:"]
    for inner in dataclasses.fields(kind):
        lines += _entry(kind, inner, indent + 2, filled)
    return lines


def _entry(owner: type, field: dataclasses.Field, indent: int, filled: Any = None) -> list[str]:
    hint, default = typing.get_type_hints(owner)[field.name], _default(field)
    if default is PLACEHOLDER and dataclasses.is_dataclass(hint):
        return _section(owner, field, hint, indent)
    return _value_entry(owner, field, default, default if filled is None else getattr(filled, field.name), indent)


def _value_entry(owner: type, field: dataclasses.Field, default: Any, value: Any, indent: int) -> list[str]:
    said = _described(owner).get(field.name, "")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        lines = [*_comment(said, indent), f"{' ' * indent}{field.name}:"]
        for inner in dataclasses.fields(value):
            usual = getattr(default, inner.name, _default(inner))
            lines += _value_entry(type(value), inner, usual, getattr(value, inner.name), indent + 2)
        return lines
    usual = "" if value == default else f" Default: {_written(default)}."
    return [*_comment(said + usual, indent), f"{' ' * indent}{field.name}: {_written(value)}"]


def _written(value: Any) -> str:
    text = yaml.safe_dump(plain(value), default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("\n").removesuffix("...").strip()


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return PLACEHOLDER


def _optional_section(owner: type, field: dataclasses.Field) -> type | None:
    hint = typing.get_type_hints(owner)[field.name]
    if field.default is not None or typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return None
    return next((option for option in typing.get_args(hint) if dataclasses.is_dataclass(option)), None)


@functools.cache
def _described(kind: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for entry, below in zip(body.body, body.body[1:], strict=False):
        if not isinstance(entry, ast.AnnAssign) or not isinstance(entry.target, ast.Name):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            found[entry.target.id] = " ".join(below.value.value.split())
    return found


def _comment(text: str, indent: int) -> list[str]:
    start = " " * indent + "# "
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False)
