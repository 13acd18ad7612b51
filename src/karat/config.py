"""One YAML file, dotted overrides, and the frozen dataclass they must fit.

An unknown key is an error that names the nearest known one. Knows nothing about what the keys mean: every recipe
declares its own frozen dataclass and validates contradictions in `__post_init__`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from karat.errors import ConfigError

T = TypeVar("T")
PLACEHOLDER = "PLEASE-FILL-IN"
"""What a written configuration has in place of a value that only its reader knows."""

MOST_LEARNING_RATE = 1.0
"""Adam moves each weight by about the learning rate, whatever the gradient's size, and no weight is much larger than 1."""
MOST_WHOLE = 10_000_000
"""Of any whole number but a seed: more is a slip of the hand, and would fill the memory or a day before it is seen."""
SHARES_ROUNDED = 0.011
"""By so much shares may miss 1: .33 three times does."""
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
"""What a value of a type is called."""


class _NoKeyTwice(yaml.SafeLoader):
    """Refuses a key that a section has twice: YAML would take the last one in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node."""
        first: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in first:
                raise ConfigError(
                    f"found the key {name!r} on line {first[name]} and again on line {line}; expected it once"
                )
            first[name] = line
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises: ConfigError when the file is missing, is not YAML, has a key twice or holds something other than a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _NoKeyTwice)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; `karat init` writes a commented configuration") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: found a {type(content).__name__} at the top; expected `key: value` lines")
    return content


def apply_overrides(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of the mapping with `a.b=value` overrides applied; values are read as YAML.

    Raises: ConfigError for an override without `=`, with a value that is not YAML, or through a key that is not a
        mapping.
    """
    result = _copy(config)
    for override in overrides:
        name, separator, text = override.partition("=")
        keys = name.split(".")
        if not separator or not all(keys):
            raise ConfigError(f"--set {override}: expected `key.sub=value`")
        target = result
        for key in keys[:-1]:
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {override}: {key!r} holds a plain value, not a section")
        try:
            target[keys[-1]] = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError) as error:
            raise ConfigError(f"--set {override}: not readable as YAML ({' '.join(str(error).split())})") from None
    return result


def build(kind: type[T], values: Mapping[str, Any], *, at: str = "") -> T:
    """The frozen dataclass that a mapping describes, sections built recursively.

    Args:
        kind: a dataclass; nested dataclasses are sections.    at: dotted path of this section, for messages.
    Raises: ConfigError for an unknown key (with the nearest name), a wrong type, or a missing key without default.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {_dotted(at, near[0])!r}?" if near else f"known here: {', '.join(sorted(fields))}"
            raise ConfigError(f"unknown configuration key {_dotted(at, str(key))!r}; {hint}")
    arguments = {name: _convert(hints[name], value, _dotted(at, name)) for name, value in values.items()}
    missing = [
        name
        for name, field in fields.items()
        if name not in arguments
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"missing configuration key {_dotted(at, missing[0])!r}; expected a value for it")
    return kind(**arguments)


def in_range(
    part: str, config: object, low: float, high: float, *names: str, open_ends: bool = False, hint: str = ""
) -> None:
    """Raise ConfigError for a named field outside [low, high]; None is a choice of its own and passes.

    Args: open_ends: True = low and high themselves are refused, too.    hint: what the error says after what was expected.
    """
    for name in names:
        value = getattr(config, name)
        if value is None or low < value < high or (not open_ends and value in (low, high)):
            continue
        if high == math.inf:
            expected = f"above {low:g}" if open_ends else f"≥ {low:g}"
        else:
            expected = f"between {low:g} and {high:g}" if open_ends else f"{low:g} … {high:g}"
        raise ConfigError(f"{part}.{name}: found {value:g}; expected {expected}{hint}")


def shares_problem(shares: Any) -> str:
    """Why these are neither shares of a whole nor counts, in words; "" = they are.

    Numbers from 0 up that sum to 1 (to a hundredth, as shares are rounded) are shares; whole numbers are counts, whatever
    their sum.

    >>> shares_problem({"town": 0.6, "country": 0.7})
    'found town: 0.6, country: 0.7, in all 1.3; expected shares that sum to 1, or whole counts'
    """
    numbers = list(shares.values()) if isinstance(shares, Mapping) else []
    fine = all(isinstance(one, int | float) and not isinstance(one, bool) and 0 <= one < math.inf for one in numbers)
    total = sum(numbers) if fine else 0
    if not total > 0:
        return f"found {shares!r}; expected category → share, 0 or more"
    if abs(total - 1) <= SHARES_ROUNDED or all(one == int(one) for one in numbers):
        return ""
    said = ", ".join(f"{name}: {one:g}" for name, one in shares.items())
    return f"found {said}, in all {total:g}; expected shares that sum to 1, or whole counts"


def check_shares(place: str, shares: Any) -> None:
    """Raise ConfigError for what are neither shares of a whole nor counts."""
    if problem := shares_problem(shares):
        raise ConfigError(f"{place}: {problem}")


def check_learning_rates(part: str, config: object, *names: str) -> None:
    """Raise ConfigError for a named field that is no learning rate, (0, MOST_LEARNING_RATE]; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value <= MOST_LEARNING_RATE:
            raise ConfigError(
                f"{part}.{name}: found {value:g}; expected above 0 and at most {MOST_LEARNING_RATE:g}: each step moves every "
                "weight by about as much"
            )


def plain(config: Any) -> Any:
    """The nested plain values of a configuration, for manifests."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [plain(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def _convert(hint: Any, value: Any, at: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{at}: found {value!r}; expected a section of `key: value` lines")
        return build(hint, value, at=at)  # type: ignore[type-var]
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(hint, value, at)
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{at}: found {value!r}; expected one of {', '.join(map(str, typing.get_args(hint)))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{at}: found {value!r}; expected a list")
        return tuple(_convert(typing.get_args(hint)[0], item, f"{at}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{at}: found {value!r}; expected `key: value` lines")
        return {
            str(key): _convert(typing.get_args(hint)[1], item, _dotted(at, str(key))) for key, item in value.items()
        }
    return _convert_scalar(hint, value, at)


def _convert_union(hint: Any, value: Any, at: str) -> Any:
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    if value is None and len(options) < len(typing.get_args(hint)):
        return None
    errors: list[ConfigError] = []
    for option in options:
        try:
            return _convert(option, value, at)
        except ConfigError as error:
            errors.append(error)
    raise errors[0]


def _convert_scalar(hint: Any, value: Any, at: str) -> Any:
    if value == PLACEHOLDER:
        raise ConfigError(f"{at}: found {PLACEHOLDER}; expected a value of your own, see the comment above the key")
    if hint is Any:
        return value
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)  # of a text, too: YAML 1.1 reads 1e-4 as one
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        if hint is int and abs(value) > MOST_WHOLE and not at.endswith("seed"):
            raise ConfigError(f"{at}: found {value:,}; expected at most {MOST_WHOLE:,}")
        return value
    found = "nothing" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    raise ConfigError(f"{at}: found {found}; expected {KINDS.get(hint, getattr(hint, '__name__', hint))}")


def _dotted(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _copy(value: Any) -> Any:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, Mapping) else value
