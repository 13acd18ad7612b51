"""What a link begins with, for the commands that print one.

Knows the address of a store's server; makes no link.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from karat.feedback.store import Store


def link_begins(store: Store, url: str) -> str:
    """The address given, else that of the store's server, else its default, which is said on standard error.

    Raises: InputError for an address that no link can begin with.
    """
    from karat.feedback.people.door import check_address, door
    from karat.feedback.web.settings import ServerSettings

    check_address(url)
    known = url or door(store)
    if not known:
        known = ServerSettings().url
        typer.echo(
            f"no server of this store was started yet: {known} is assumed, where `karat serve` stands by default; "
            "give another address by --url, or start the server first",
            err=True,
        )
    return known.rstrip("/")
