"""Numbers as people read them: estimates, seconds, money, moments. Text only; computes nothing.

What is undefined says so and why; a negative number has a minus sign, not a hyphen.
"""

from __future__ import annotations

import datetime
import re

from karat.records import Estimate

MINUS = "\N{MINUS SIGN}"
THIN = "\N{NARROW NO-BREAK SPACE}"
NOTHING = "–"


def number(value: float | None, digits: int = 0) -> str:
    """A number with thin spaces between thousands; – for None."""
    if value is None:
        return NOTHING
    return f"{value:,.{digits}f}".replace(",", THIN).replace("-", MINUS)


def counted(n: int, one: str, many: str = "") -> str:
    """How many of something, in words that agree.

    >>> counted(1, "task is", "tasks are"), counted(2, "flag")
    ('1 task is', '2 flags')
    """
    return f"{number(n)} {one if n == 1 else many or one + 's'}"


def percent(value: float | None, digits: int = 0) -> str:
    """A share as a percentage; – for None."""
    return NOTHING if value is None else f"{number(100 * value, digits)}{THIN}%"


def point(estimate: Estimate | None, digits: int = 2) -> str:
    """The value alone, "undefined" where there is none."""
    if estimate is None or estimate.value is None:
        return "undefined"
    return number(estimate.value, digits)


def interval(estimate: Estimate | None, digits: int = 2) -> str:
    """The interval as [low, high]; "no interval" where there is none."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return "no interval"
    return f"[{number(estimate.low, digits)}, {number(estimate.high, digits)}]"


def why(estimate: Estimate | None) -> str:
    """How the estimate was come by, or why there is none: one phrase without the word before the colon."""
    if estimate is None:
        return "not measured"
    if estimate.value is not None:
        return estimate.method
    return estimate.method.removeprefix("undefined: ").removeprefix("not estimable: ")


def share(estimate: Estimate | None) -> str:
    """A share with its interval in percent: 55 % [41 %, 68 %]."""
    if estimate is None or estimate.value is None:
        return "undefined"
    text = percent(estimate.value)
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{percent(estimate.low)}, {percent(estimate.high)}]"


def duration(seconds: float | None) -> str:
    """Seconds in the two largest fitting units: 42 s, 3 min 20 s, 5 h 10 min; – for None."""
    if seconds is None:
        return NOTHING
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f}{THIN}s"
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes}{THIN}min" + (f" {rest}{THIN}s" if rest else "")
    hours, rest = divmod(whole, 3600)
    return f"{number(hours)}{THIN}h" + (f" {rest // 60}{THIN}min" if rest >= 60 else "")


def money(amount: float | None, currency: str = "") -> str:
    """An amount with two digits and its currency; – for None."""
    if amount is None:
        return NOTHING
    return f"{number(amount, 2)}{THIN}{currency}".strip()


def moment(seconds: float | None) -> str:
    """A moment to the minute, UTC: 2026-01-31 17:05; – for None."""
    if seconds is None:
        return NOTHING
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M")


def ago(seconds: float | None, now: float) -> str:
    """How long ago a moment was; "not yet" for None."""
    if seconds is None:
        return "not yet"
    return "just now" if now - seconds < 60 else f"{duration(now - seconds)} ago"


def short_id(name: str) -> str:
    """A content id by its kind and its first twelve digits; any other name as it is."""
    found = re.fullmatch(r"([a-z]+:[0-9a-f]{12})[0-9a-f]{20}", name)
    return found[1] if found else name


def shortened(text: str, n: int = 160) -> str:
    """The beginning of a text in one line, with an ellipsis where something was left out."""
    flat = " ".join(text.split())
    return flat if len(flat) <= n else flat[: n - 1].rstrip() + "…"
