"""Commands of accounts: make them, give out links and tokens, change roles, lock and unlock, list.

What changes an account is written into the admin log, as the page Accounts does. Knows accounts; nothing about pages.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from karat.cli.links import link_begins
from karat.cli.options import MOST, PEOPLE, AsJson, StoreOrRun, answer, app, store_address, store_or_new
from karat.errors import ConfigError, StoreError

Role = Literal["annotator", "expert", "auditor", "admin"]
Who = Annotated[str, typer.Argument(metavar="WHO", help="A pseudonym, login or account id.")]
MOST_TOKEN_HOURS = 1_000.0
people = typer.Typer(help="Accounts of raters, experts, auditors and admins, and the links that let them in.")
app.add_typer(people, name="people", rich_help_panel=PEOPLE)


@people.command("add", epilog="Example: karat people add karat.db --role annotator --n 20")
def people_add(
    run_or_store: StoreOrRun,
    role: Annotated[Role, typer.Option(help="What the account may do.")] = "annotator",
    login: Annotated[str, typer.Option(help="Name to sign in with, where a password will be set.")] = "",
    contact: Annotated[str, typer.Option(help="How to reach the person; shown to admins only.")] = "",
    n: Annotated[int, typer.Option(max=MOST, help="How many accounts.")] = 1,
    url: Annotated[str, typer.Option(help="Address that the links begin with; empty = the server's.")] = "",
    days: Annotated[float, typer.Option(help="How long a link lives.")] = 14.0,
    as_json: AsJson = False,
) -> None:
    """Make accounts and print one link for each; whoever opens it is signed in."""
    from karat.feedback.people.accounts import check_days, invite, log, make_account
    from karat.feedback.people.door import check_address
    from karat.feedback.people.roles import COMMAND_LINE
    from karat.feedback.store import open_store

    check_days(days)
    check_address(url)
    if n < 1 or (n > 1 and (login or contact)):
        raise ConfigError(f"people add: found --n {n}; expected 1 or more, and 1 with --login or --contact")
    made, now = [], time.time()
    with open_store(store_or_new(run_or_store)) as store:
        for _ in range(n):
            account = make_account(store, role, now=now, login=login or None, contact=contact or None)
            link = f"/invite/{invite(store, account.id, now=now, days=days)}"
            log(store, COMMAND_LINE, "account made", account.id, role, now=now)
            made.append({"account": account.id, "annotator": account.annotator, "role": role, "link": link})
        begins = link_begins(store, url)  # which may say what it assumes: not where a login was refused
    made = [{**one, "link": f"{begins}{one['link']}"} for one in made]
    answer(as_json, {"accounts": made}, [f"{one['annotator'] or one['role']}  {one['link']}" for one in made])


@people.command("link", epilog="Example: karat people link karat.db rater-4f2a81c09d")
def people_link(
    run_or_store: StoreOrRun,
    who: Who,
    url: Annotated[str, typer.Option(help="Address that the link begins with; empty = the server's.")] = "",
    days: Annotated[float, typer.Option(help="How long the link lives.")] = 14.0,
    as_json: AsJson = False,
) -> None:
    """Issue a new link for somebody; the older one dies."""
    from karat.feedback.people.accounts import accounts, invite, log
    from karat.feedback.people.roles import COMMAND_LINE
    from karat.feedback.store import open_store

    now = time.time()
    with open_store(store_address(run_or_store), create=False) as store:
        found = _named(accounts(store), who)
        link = f"{link_begins(store, url)}/invite/{invite(store, found.id, now=now, days=days)}"
        log(store, COMMAND_LINE, "link made", found.id, now=now)
    answer(as_json, {"account": found.id, "link": link}, [link])


@people.command("token", epilog="Example: export KARAT_TOKEN=$(karat people token karat.db boss)")
def people_token(
    run_or_store: StoreOrRun,
    who: Who,
    hours: Annotated[float, typer.Option(help="How long the token lives.", max=MOST_TOKEN_HOURS)] = 12.0,
    as_json: AsJson = False,
) -> None:
    """Issue a token with which a program does what an account may do; it is written down, and ends with a change of role."""
    from karat.feedback.people.accounts import accounts, log, open_session
    from karat.feedback.people.roles import COMMAND_LINE
    from karat.feedback.store import open_store

    if not hours > 0:
        raise ConfigError(f"people token: found --hours {hours:g}; expected more than 0: it would be dead at once")
    now = time.time()
    with open_store(store_address(run_or_store), create=False) as store:
        found = _named(accounts(store), who)
        token = open_session(store, found.id, now=now, kind="api", hours=hours)
        log(store, COMMAND_LINE, "token issued", found.id, f"for {hours:g} hours", now=now)
    answer(as_json, {"account": found.id, "role": found.role, "token": token, "hours": hours}, [token])


@people.command("role", epilog="Example: karat people role karat.db rater-4f2a81c09d expert")
def people_role(
    run_or_store: StoreOrRun,
    who: Who,
    role: Annotated[Role, typer.Argument(metavar="ROLE", help="What the account may do from now on.")],
    as_json: AsJson = False,
) -> None:
    """Give an account another role; its sessions and links end, and the change is written down."""
    from karat.feedback.people.accounts import accounts
    from karat.feedback.people.roles import COMMAND_LINE, change_role
    from karat.feedback.store import open_store

    with open_store(store_address(run_or_store), create=False) as store:
        before = _named(accounts(store), who)
        now = change_role(store, before.id, role, by=COMMAND_LINE, now=time.time())
    done = {"account": now.id, "annotator": now.annotator, "role": now.role, "before": before.role}
    answer(as_json, done, [f"{now.annotator or now.login or now.id}: {before.role} → {now.role}"])


@people.command("lock", epilog="Example: karat people lock karat.db rater-4f2a81c09d")
def people_lock(run_or_store: StoreOrRun, who: Who, as_json: AsJson = False) -> None:
    """Keep somebody out: sessions and links end at once, what was judged stays; it is written down."""
    from karat.feedback.people.roles import lock

    _set_state(run_or_store, who, lock, as_json)


@people.command("unlock", epilog="Example: karat people unlock karat.db rater-4f2a81c09d")
def people_unlock(run_or_store: StoreOrRun, who: Who, as_json: AsJson = False) -> None:
    """Let somebody in again, by her password or a new link; it is written down."""
    from karat.feedback.people.roles import unlock

    _set_state(run_or_store, who, unlock, as_json)


def _set_state(run_or_store: str, who: str, change: Callable[..., Any], as_json: bool) -> None:
    from karat.feedback.people.accounts import accounts
    from karat.feedback.people.roles import COMMAND_LINE
    from karat.feedback.store import open_store

    with open_store(store_address(run_or_store), create=False) as store:
        now = change(store, _named(accounts(store), who).id, by=COMMAND_LINE, now=time.time())
    done = {"account": now.id, "annotator": now.annotator, "state": now.state}
    answer(as_json, done, [f"{now.annotator or now.login or now.id}: {now.state}"])


def _named(accounts: list[Any], who: str) -> Any:
    """The account of a pseudonym, login or id. Raises: StoreError where there is none."""
    for one in accounts:
        if who in (one.id, one.login, one.annotator):
            return one
    raise StoreError(f"people: found nobody called {who!r}; `karat people list` shows who there is")


@people.command("list", epilog="Example: karat people list karat.db --json")
def people_list(run_or_store: StoreOrRun, as_json: AsJson = False) -> None:
    """Who may sign in: role, pseudonym, login or participant's id, state."""
    from karat.feedback.people.accounts import accounts
    from karat.feedback.store import open_store

    with open_store(store_address(run_or_store), create=False) as store:
        found = accounts(store)
    lines = [
        f"{one.role:<10} {one.annotator or '-':<24} {one.login or one.outside.get('participant') or '-':<26} {one.state}"
        for one in found
    ]
    answer(as_json, {"accounts": [dataclasses.asdict(one) for one in found]}, lines or ["nobody yet"])
