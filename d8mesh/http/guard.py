"""Who may ask at all: the peer's address, the Host, the Origin; and what was refused.

Runs before routing, for every method: a page of some web site must reach nothing here,
whatever name it gave itself (DNS rebinding) and whatever it was allowed to send.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Final

from d8mesh.core.protocol.addresses import (
    host_is_allowed,
    host_of,
    is_address,
    is_admissible,
    is_loopback,
)
from d8mesh.edge.logs import event
from d8mesh.edge.network import own_names
from d8mesh.http.answers import CLOSES, Refusal
from d8mesh.http.origins import no_origin

#: The machine's names and addresses are looked up again after this long.
NAMES_S: Final = 5.0
#: They are looked up sooner for a name that is not among them, but not more often than this; for
#: an address at once, which this machine may have got a moment ago.
NAMES_AGAIN_S: Final = 0.5
#: Ends the key itself in what a program sends as one: ``KEY;priority=2``.
KEY_OPTIONS: Final = ";priority="
_log: Final = logging.getLogger("d8mesh.http")


class Guard:
    """Refuses requests before anything reads them.

    key: what whoever is not on this machine has to show; only with one `allows_public` counts.
    """

    def __init__(
        self,
        allowed_hosts: Collection[str] = (),
        *,
        key: str | None = None,
        allows_public: bool = False,
    ) -> None:
        self._own_hosts = OwnHosts(allowed_hosts)
        self._key = key
        self._allows_public = allows_public and bool(key)

    def check(
        self,
        peer: str,
        http_version: str,
        fields: Mapping[str, str],
        origins: Callable[[str], bool] = no_origin,
    ) -> None:
        """Refuse a request or let it pass: only HTTP/1.0, which knows none, needs no Host.

        Args:
            origins: whose pages may ask this, beside our own.
        """
        if not self.admits(peer):
            raise Refusal("http.peer", "only private networks may ask here", headers=CLOSES)
        header = fields.get("host", "")
        if http_version != "1.0" or "host" in fields:
            self._check_host(header)
        _check_page(fields, header, origins)

    @staticmethod
    def check_program(fields: Mapping[str, str]) -> None:
        """Refuse a browser, for a page may have it ask for a picture that is none.

        To hosts that it does not trust, all but its own machine, it says nothing else of where
        that came from, and no page can have it give another name.
        """
        if fields.get("user-agent", "").startswith("Mozilla/"):
            raise Refusal("http.origin", "this is for programs, and a browser asks for it")

    def check_key(self, peer: str, fields: Mapping[str, str]) -> None:
        """Refuse a request that does not show the mesh's key, if there is one."""
        if self._key is not None and not is_loopback(peer):
            _check_token(fields, self._key)

    def admits(self, peer: str) -> bool:
        """Return whether a peer of this address may ask at all."""
        return self._allows_public or is_admissible(peer)

    def _check_host(self, header: str) -> None:
        host = host_of(header)
        if host is None:
            raise Refusal("http.bad_request", "the Host header is missing or malformed")
        if host not in self._own_hosts:
            raise Refusal(
                "http.host",
                f"{host[:100]!r} is not a name of this machine: ask by its address, or add the "
                "name to D8_ALLOWED_HOSTS",
            )


class OwnHosts:
    """The names and addresses of this machine as they are now, and those of a setting."""

    def __init__(self, allowed: Collection[str]) -> None:
        self._allowed = allowed
        self._names: frozenset[str] = frozenset()
        self._names_at = float("-inf")

    def __contains__(self, host: str) -> bool:
        age_s = time.monotonic() - self._names_at
        if age_s < NAMES_S and host_is_allowed(host, self._names, self._allowed):
            return True
        if age_s >= NAMES_AGAIN_S or is_address(host):
            self._names, self._names_at = own_names(), time.monotonic()
        return host_is_allowed(host, self._names, self._allowed)


class Rejections:
    """Counts and logs what was refused; reasons are codes, so there are few of them."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(
        self, code: str, peer: str, why: str, *, level: int = logging.INFO, **more: object
    ) -> None:
        """Count one more, and say so in a line of the log."""
        self._counts[code] += 1
        event(_log, level, "http.refused", peer=peer, **more, code=code, why=why)

    def counts(self) -> dict[str, int]:
        """Return how many of each reason."""
        return dict(self._counts)


def _check_page(fields: Mapping[str, str], host: str, origins: Callable[[str], bool]) -> None:
    """Refuse what a page from elsewhere has its browser ask.

    Without an Origin (a picture, a link, a frame) a browser still says, to hosts that it trusts,
    how the asking page stands to us: `same-site` is another port, or another name of our domain.
    """
    origin, site = fields.get("origin"), fields.get("sec-fetch-site", "").lower()
    if origin is None:
        is_good = site not in ("cross-site", "same-site")
    else:
        scheme, found, place = origin.partition("://")
        is_ours = scheme in ("http", "https") and found and place.lower() == host.lower()
        is_good = bool(is_ours and site != "cross-site") or origins(origin)
    if not is_good:
        raise Refusal("http.origin", "requests of web pages from elsewhere are refused")


def _check_token(fields: Mapping[str, str], key: str) -> None:
    scheme, _, token = fields.get("authorization", "").partition(" ")
    given = [token.strip()] if scheme.lower() == "bearer" else []
    if "x-api-key" in fields:  # where Anthropic's clients have it
        given.append(fields["x-api-key"].strip())
    # Programs that can set nothing but a key say there how urgent they are.
    given += [each.rpartition(KEY_OPTIONS)[0] for each in given if KEY_OPTIONS in each]
    wanted = key.encode("utf-8")
    if not any(hmac.compare_digest(each.encode("utf-8", "replace"), wanted) for each in given):
        raise Refusal(
            "access.token",
            "this mesh has a key: send it as Authorization: Bearer",
            headers={"WWW-Authenticate": "Bearer"},
        )
