"""Reverse proxies that are trusted: for whom they ask, by which name and in which scheme.

From anybody else such headers are passed over: whoever asks could write anything there.

Source: https://developer.mozilla.org/docs/Web/HTTP/Reference/Headers/X-Forwarded-For
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from ipaddress import ip_address
from typing import Final, NamedTuple

from d8mesh.http.answers import Refusal

#: An address as proxies write it: with a port behind it, perhaps, and an IPv6 one in brackets.
_FORWARDED: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::\d+)?|([0-9.]+):\d+|([0-9A-Fa-f:.]+)")
#: How many proxies in a row are looked through.
MAX_FORWARDED: Final = 32


class Forwarded(NamedTuple):
    """For whom a request was passed on; "" for what was not told."""

    peer: str
    host: str
    scheme: str


class TrustedProxies:
    """The addresses of reverse proxies whose word is taken."""

    def __init__(self, addresses: Collection[str] = ()) -> None:
        self._addresses = frozenset(_plain(each) for each in addresses)

    def read(self, peer: str, fields: Mapping[str, str]) -> Forwarded | None:
        """Return for whom a proxy asks; None: it is none, or asks for itself.

        Of a row of addresses the last that is no proxy's own counts: what stands before it was
        written by whoever asked.

        Raises:
            Refusal: a trusted proxy has written what is no address.
        """
        if not self._addresses or not peer or _plain(peer) not in self._addresses:
            return None
        row = [each.strip() for each in fields.get("x-forwarded-for", "").split(",")]
        if row == [""]:
            return None
        found = ""
        for each in row[: -MAX_FORWARDED - 1 : -1]:
            found = _address_in(each)
            if found not in self._addresses:
                break
        host, scheme = (_last(fields.get(name, "")) for name in _TOLD_BESIDE)
        return Forwarded(found, host, scheme.lower() if scheme.lower() in _SCHEMES else "")


_TOLD_BESIDE: Final = ("x-forwarded-host", "x-forwarded-proto")
_SCHEMES: Final = ("http", "https")


def _last(value: str) -> str:
    """Return what the nearest proxy has added."""
    return value.rpartition(",")[2].strip()


def _address_in(text: str) -> str:
    match = _FORWARDED.fullmatch(text)
    try:
        return _plain(next(filter(None, match.groups()))) if match is not None else _plain(text)
    except ValueError as error:
        raise Refusal(
            "http.bad_request", f"X-Forwarded-For: saw {text[:60]!r}, expected an address"
        ) from error


def _plain(address: str) -> str:
    """Return an address in its usual form; an IPv4 address within IPv6 as itself."""
    found = ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return str(mapped or found)
