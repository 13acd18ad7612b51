"""Addresses of servers, looked at before anything is asked of them.

Knows how an address is written; asks nobody.
"""

from __future__ import annotations

from urllib.parse import urlsplit


def is_address(url: str) -> bool:
    """Whether a text is an address that can be asked: http or https, a host, and a port that is a number."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # half of an IPv6 address, or a port that is none
        return False
