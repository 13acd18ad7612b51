"""How the server is set up: where it listens, what it calls itself, and how much it takes from a stranger.

Knows addresses, cookies' names and limits. Knows nothing about requests, accounts or the store.
"""

from __future__ import annotations

import functools
import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from karat.errors import ConfigError

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
"""Names by which a browser on the same machine may call the server."""


@dataclass(frozen=True)
class ServerSettings:
    """Settings of one server, the same in all of its workers."""

    host: str = "127.0.0.1"
    """Address it listens on; anything but loopback needs a public_url with https."""
    port: int = 8000
    """Port it listens on; 0 = any free one."""
    public_url: str = ""
    """What people type, `https://judge.example.org`; "" = http://host:port."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies whose X-Forwarded-For is believed; () = nobody's is."""
    arena: tuple[str, ...] = ()
    """Names of two policies that answer raters from a thread beside the server; () = none. They stay on the server."""
    runs: tuple[str, ...] = ()
    """Directories of runs, or of directories that hold some: where an erasure looks for what fed on a person's answers."""
    session_hours: float = 12.0
    """How long a sign-in lasts, hours."""
    most_body_bytes: int = 2_000_000
    """Largest request body, bytes."""
    most_import_bytes: int = 64_000_000
    """Largest body of an import by an admin, bytes."""
    most_fields: int = 2_000
    """Most fields of one form."""
    body_s: float = 30.0
    """Seconds within which a body must have come in."""
    attempt_window_s: float = 900.0
    """Window over which attempts to sign in are counted, seconds."""
    attempts_per_account: int = 10
    """Most attempts for one login in a window."""
    attempts_per_address: int = 100
    """Most attempts from one address in a window: a class room or office may share one."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.public_url or "http://unused")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise ConfigError(
                f"public_url: found {self.public_url!r}; expected an address without a path, as in https://example.org"
            )
        if self.public_url and not self.secure and not is_loopback(parts.hostname):
            raise ConfigError(
                f"public_url: found {self.public_url!r}, an address of others without a public_url of https; passwords would "
                "travel in the clear: give the proxy TLS and --public-url https://…"
            )
        if not is_loopback(self.host) and not self.secure:
            raise ConfigError(
                f"host: found {self.host!r}, which others can reach, without a public_url of https; passwords would "
                "travel in the clear: put a proxy with TLS in front and give --public-url https://…"
            )
        for proxy in self.trusted_proxies:
            try:
                ipaddress.ip_network(proxy, strict=False)
            except ValueError:
                raise ConfigError(f"trusted_proxies: found {proxy!r}; expected an address or network") from None
        if len(self.arena) not in (0, 2) or len(set(self.arena)) != len(self.arena):
            raise ConfigError(f"arena: found {self.arena}; expected two policies of different names, or none")
        if not 0 <= self.port < 65_536:
            raise ConfigError(f"port: found {self.port}; expected 0 … 65535")

    @property
    def url(self) -> str:
        """The address people use, without a slash at its end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.public_url.rstrip("/") or f"http://{host}:{self.port}"

    @property
    def secure(self) -> bool:
        """True = people reach it by https, so that cookies may be bound to it."""
        return urlsplit(self.public_url).scheme == "https"

    @property
    def cookie(self) -> str:
        """Name of the session cookie; the prefix makes browsers refuse it over http or from a subdomain."""
        return "__Host-karat" if self.secure else "karat"

    @functools.cached_property
    def origins(self) -> frozenset[str]:
        """Origins whose pages are ours."""
        parts = urlsplit(self.url)
        own = {f"{parts.scheme}://{parts.netloc.lower()}"}
        if parts.hostname is not None and is_loopback(parts.hostname):
            port = f":{parts.port}" if parts.port else ""
            own |= {f"{parts.scheme}://{name}{port}" for name in LOOPBACK_NAMES}
        return frozenset(own)

    @functools.cached_property
    def hosts(self) -> frozenset[str]:
        """Host names that a request may ask for: the public one, and loopback for a proxy on the same machine."""
        return frozenset({(urlsplit(self.url).hostname or "").lower(), *(name.strip("[]") for name in LOOPBACK_NAMES)})


def is_loopback(host: str) -> bool:
    """True = only this machine can reach it."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
