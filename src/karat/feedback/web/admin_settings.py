"""The admin's form of the project's settings: every change is a new version, older ones stay.

Knows what stands in the form and how lines like `hard = 5` are read. What a setting means is
`karat.feedback.documents.ProjectSettings`'s.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.datastructures import FormData
from starlette.requests import Request

from karat.errors import InputError, KaratError
from karat.feedback.documents import SETTINGS, ProjectSettings, documents, project_settings, put_settings, settings_of
from karat.feedback.web.access import Visitor
from karat.feedback.web.desk import Admin, Sent, done, field_of, note, page

TEXTS = ("title", "contact", "locale", "completion_url")
WHOLE = ("repeat_gap", "undo_n", "stop_after")
SHARES = ("gold_rate", "repeat_rate")
FIELDS = (
    *TEXTS, *WHOLE, *SHARES, "lease_minutes", "exposure_cap_per_day", "pay_amount", "pay_currency", "pay_per",
    "budget_judgements", "budget_money", "overlap", "experiments",
)  # fmt: skip
"""Names of the form's fields."""
LABELS = {
    "title": "Name", "contact": "Contact", "locale": "Language", "completion_url": "Completion address", "pay": "Pay",
    "pay_amount": "Amount", "pay_currency": "Currency", "budget": "Most money", "budget_judgements": "Most judgements", "budget_money": "Most money",
    "exposure_cap_per_day": "Disturbing items a day", "lease_minutes": "Minutes for a task", "undo_n": "Changeable submissions",
    "gold_rate": "Gold items, %", "repeat_rate": "Hidden repeats, %", "repeat_gap": "Judgements before a repeat",
    "stop_after": "Equal answers that suffice", "overlap": "Answers wanted, by stratum", "experiments": "Experiments",
}  # fmt: skip
"""What the page calls them, and so what is said of them."""

router = APIRouter(include_in_schema=False)


@router.get("/admin/settings")
def settings_page(request: Request, visitor: Admin, done: str = "") -> Response:
    """The form with what is in force."""
    message = "The settings are stored, and count from now on." if done == "stored" else ""
    return _form(request, visitor, form_of(project_settings(request.app.state.store)), message=message)


@router.post("/admin/settings")
def save_settings(request: Request, visitor: Admin, form: Sent) -> Response:
    """Store the settings as a new version; what does not fit comes back with a message, nothing typed is lost."""
    store, now = request.app.state.store, request.app.state.clock()
    before = project_settings(store)
    try:
        found = _with_arms(settings_from(form), before)
        put_settings(store, found, now=now)
    except KaratError as error:
        typed = {name: field_of(form, name) for name in FIELDS}
        return _form(request, visitor, typed, status=422, message=in_words(error), failed=True)
    note(request, visitor, "settings stored", "settings", _difference(before, found))
    return done("/admin/settings", "stored")


def in_words(error: KaratError) -> str:
    """What does not fit, by the name that the page gives its field."""
    name, colon, rest = str(error).removeprefix("settings.").partition(":")
    return f"{LABELS[name]}:{rest}" if colon and name in LABELS else str(error)


def _with_arms(new: ProjectSettings, before: ProjectSettings) -> ProjectSettings:
    """What arms change is set on the page of experiments; the form of the settings keeps it for the arms that stay."""
    changes = {
        name: {arm: body for arm, body in before.arm_changes.get(name, {}).items() if arm in arms}
        for name, arms in new.experiments.items()
    }
    units = {name: unit for name, unit in before.arm_units.items() if name in new.experiments}
    return dataclasses.replace(
        new, arm_changes={name: bodies for name, bodies in changes.items() if bodies}, arm_units=units
    )


def form_of(settings: ProjectSettings) -> dict[str, str]:
    """The form's fields with what the settings say."""
    pay, budget = settings.pay, settings.budget
    return {
        **{name: getattr(settings, name) for name in TEXTS},
        **{name: str(getattr(settings, name)) for name in WHOLE},
        **{name: _shown(round(100 * getattr(settings, name), 9)) for name in SHARES},
        "lease_minutes": _shown(settings.lease_minutes),
        "exposure_cap_per_day": _shown(settings.exposure_cap_per_day),
        "pay_amount": _shown(pay.amount) if pay else "",
        "pay_currency": pay.currency if pay else "",
        "pay_per": pay.per if pay else "judgement",
        "budget_judgements": _shown(budget.judgements),
        "budget_money": _shown(budget.money),
        "overlap": "\n".join(f"{name} = {n}" for name, n in settings.overlap.items()),
        "experiments": "\n".join(
            f"{name}: " + ", ".join(f"{arm} = {_shown(weight)}" for arm, weight in arms.items())
            for name, arms in settings.experiments.items()
        ),
    }


def settings_from(form: FormData) -> ProjectSettings:
    """The settings that a form says.

    Raises: InputError naming the field that does not fit.
    """
    body: dict[str, Any] = {name: field_of(form, name) for name in TEXTS}
    body |= {name: _whole(form, name) or 0 for name in WHOLE}
    body |= {name: (_number(form, name) or 0.0) / 100 for name in SHARES}
    body["lease_minutes"] = _number(form, "lease_minutes")
    body["exposure_cap_per_day"] = _whole(form, "exposure_cap_per_day")
    amount = _number(form, "pay_amount")
    if amount is not None:
        currency = field_of(form, "pay_currency").upper()
        if not re.fullmatch(r"[A-Z]{3}", currency):
            raise InputError(f"pay: found the currency {currency[:20]!r}; expected three letters such as EUR")
        body["pay"] = {"amount": amount, "currency": currency, "per": field_of(form, "pay_per")}
    body["budget"] = {"judgements": _whole(form, "budget_judgements"), "money": _number(form, "budget_money")}
    body["overlap"] = {
        name: _integer("overlap", text) for name, text in _lines("overlap", field_of(form, "overlap"), "=")
    }
    body["experiments"] = {
        name: {arm: _positive("experiments", text) for arm, text in _lines("experiments", arms.replace(",", "\n"), "=")}
        for name, arms in _lines("experiments", field_of(form, "experiments"), ":")
    }
    if body["lease_minutes"] is None:
        raise InputError("lease_minutes: found nothing; expected minutes, such as 10")
    if body["completion_url"] and urlsplit(body["completion_url"]).scheme != "https":
        raise InputError(f"completion_url: found {body['completion_url'][:80]!r}; expected an address with https://")
    if not re.fullmatch(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*", body["locale"]):
        raise InputError(f"locale: found {body['locale'][:40]!r}; expected a tag such as en or de-AT")
    return settings_of(body)


def _form(
    request: Request,
    visitor: Visitor,
    fields: Mapping[str, str],
    *,
    status: int = 200,
    message: str = "",
    failed: bool = False,
) -> Response:
    versions = documents(request.app.state.store, SETTINGS)
    return page(
        request,
        visitor,
        "admin_settings.html",
        status=status,
        message=message,
        failed=failed,
        fields=fields,
        labels=LABELS,
        versions=list(reversed(versions))[:20],
    )


def _difference(before: ProjectSettings, after: ProjectSettings) -> str:
    changed = [
        f"{one.name}: {getattr(before, one.name)} → {getattr(after, one.name)}"
        for one in dataclasses.fields(ProjectSettings)
        if getattr(before, one.name) != getattr(after, one.name)
    ]
    return "; ".join(changed)[:2000]


def _shown(value: float | None) -> str:
    """A number as the form reads it back: every digit, no exponent."""
    return "" if value is None else format(Decimal(repr(value)).normalize(), "f")


def _whole(form: FormData, name: str) -> int | None:
    text = field_of(form, name)
    return _integer(name, text) if text else None


def _number(form: FormData, name: str) -> float | None:
    text = field_of(form, name).replace(",", ".")
    return _positive(name, text) if text else None


def _integer(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text.strip()):
        raise InputError(f"{name}: found {text[:40]!r}; expected a whole number ≥ 0")
    return int(text)


def _positive(name: str, text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text.strip()):
        raise InputError(f"{name}: found {text[:40]!r}; expected a number ≥ 0")
    return float(text)


def _lines(name: str, text: str, sign: str) -> list[tuple[str, str]]:
    """(left, right) of each line that is not empty."""
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        left, mid, right = line.partition(sign)
        if not mid or not left.strip() or not right.strip():
            raise InputError(f"{name}: found the line {line[:60]!r}; expected a name, {sign!r} and a value")
        found.append((left.strip(), right.strip()))
    return found
