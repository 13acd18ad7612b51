"""The first admin: no account and no password is there by default, only a link that the terminal prints.

Knows the store's own secret and whether an admin exists; the link works until there is one.
"""

from __future__ import annotations

import base64
import hmac

from karat.feedback.keys import secret_key
from karat.feedback.people.accounts import Account, accounts, check_password, make_account, set_password
from karat.feedback.store import Store


def setup_token(store: Store) -> str | None:
    """The token of the link that makes the first admin, or None where there is one already."""
    if any(account.role == "admin" for account in accounts(store)):
        return None
    return base64.urlsafe_b64encode(secret_key(store, "setup")).decode().rstrip("=")


def setup_allowed(store: Store, token: str) -> bool:
    """True = the token is right and there is no admin yet."""
    right = setup_token(store)
    return right is not None and hmac.compare_digest(right.encode(), token.encode())


def make_first_admin(store: Store, login: str, password: str, *, now: float) -> Account:
    """The first admin, with a password. Raises: InputError for a login or password that cannot be used."""
    check_password(password, login)
    account = make_account(store, "admin", login=login, now=now)
    set_password(store, account.id, password, now=now)
    return account
