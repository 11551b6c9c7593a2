"""Who may ask at all: the peer's address, the Host, the Origin, the key; and what was refused.

Runs before routing, for every method: a page of some web site must reach nothing here,
whatever name it gave itself (DNS rebinding) and whatever it was allowed to send.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Final

from d8mesh.core.protocol.access_tokens import TokenScope
from d8mesh.core.protocol.addresses import (
    host_is_allowed,
    host_of,
    is_address,
    is_admissible,
    is_loopback,
)
from d8mesh.core.protocol.membership import link_pass
from d8mesh.edge.logs import event
from d8mesh.edge.network import own_names
from d8mesh.http.access import (
    ANYBODY,
    CHALLENGE,
    NEAR,
    Access,
    KnownTokens,
    is_one_of,
    shown_in,
)
from d8mesh.http.answers import CLOSES, Refusal
from d8mesh.http.origins import no_origin
from d8mesh.program import command_name

#: The machine's names and addresses are looked up again after this long.
NAMES_S: Final = 5.0
#: They are looked up sooner for a name that is not among them, but not more often than this; for
#: an address at once, which this machine may have got a moment ago.
NAMES_AGAIN_S: Final = 0.5
#: Whoever sends one of these asks for somebody else, who may be anywhere.
_FORWARDING: Final = frozenset(
    {"forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip"}
)
_FORWARDING_PREFIX: Final = "x-forwarded-"
#: What a browser says of where our own pages, or its user, ask from; "": it is no browser, or says
#: nothing. All else is refused, also what nobody has heard of yet.
_SITES_OF_OURS: Final = ("", "none", "same-origin")
#: What the pass of a link opens.
LINK_SCOPES: Final = frozenset({TokenScope.LINK})
_log: Final = logging.getLogger("d8mesh.http")


class Guard:
    """Refuses requests before anything reads them.

    Args:
        keys: what opens everything: the mesh key. With one
            `allows_public` counts, and the mesh is closed.
        secret: of the mesh key: what is made of it opens a link of the tunnel.
        is_closed: whoever is not on this machine has to show a key or a token.
        tokens: the access tokens; None: none is known.
    """

    def __init__(
        self,
        allowed_hosts: Collection[str] = (),
        *,
        keys: Collection[str] = (),
        allows_public: bool = False,
        is_closed: bool = False,
        secret: bytes | None = None,
        tokens: KnownTokens | None = None,
    ) -> None:
        self._own_hosts = OwnHosts(allowed_hosts)
        self._keys = tuple(keys)
        self._is_closed = is_closed or bool(keys)
        self._allows_public = allows_public and bool(keys)
        self._secret = secret
        self._tokens = KnownTokens() if tokens is None else tokens

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
        self.check_host(http_version, fields)
        _check_page(fields, fields.get("host", ""), origins)

    @staticmethod
    def check_program(fields: Mapping[str, str]) -> None:
        """Refuse a browser, for a page may have it ask for a picture that is none.

        To hosts that it does not trust, all but its own machine, it says nothing else of where
        that came from, and no page can have it give another name.
        """
        if fields.get("user-agent", "").startswith("Mozilla/"):
            raise Refusal("http.origin", "this is for programs, and a browser asks for it")

    def access_of(self, peer: str, fields: Mapping[str, str]) -> Access:
        """Return what a request may do, by what it shows and where it comes from, or refuse it.

        Args:
            peer: the address that it came from; of a proxy that is trusted, the one it tells.
        """
        shown = shown_in(fields)
        is_near = is_loopback(peer) and not is_forwarded(fields)
        if not shown:
            if is_near:
                return NEAR
            if self._is_closed:
                raise _closed(
                    "this mesh is closed: send its key, or an access token, as "
                    "Authorization: Bearer"
                )
            return ANYBODY
        if self._is_link(fields.get("x-d8-link"), shown):
            return Access(LINK_SCOPES, is_near=is_near, is_shown=True, name="of a link")
        return self._access_by(shown, is_near=is_near)

    def _is_link(self, link_id: str | None, shown: list[str]) -> bool:
        """Return whether a pass is shown that was made for this link of the tunnel."""
        if self._secret is None or link_id is None:
            return False
        return is_one_of(shown, (link_pass(self._secret, link_id),))

    def _access_by(self, shown: list[str], *, is_near: bool) -> Access:
        if self._keys and is_one_of(shown, self._keys):
            return Access(is_near=is_near, is_shown=True)
        found = [token for token in map(self._tokens.find, shown) if token is not None]
        token = next((each for each in found if each.revoked_at is None), None)
        if token is not None:
            self._tokens.use(token, time.monotonic())
            return Access(frozenset(token.scopes), is_near, True, token.id, token.name)
        if found:
            raise Refusal(
                "access.revoked", f"the token {found[0].name} is revoked", headers=CHALLENGE
            )
        if is_near:  # programs that must send something send anything
            return NEAR
        if self._is_closed:
            raise _closed("this mesh is closed, and the key or token that was sent is none of its")
        return ANYBODY

    def admits(self, peer: str) -> bool:
        """Return whether a peer of this address may ask at all."""
        return self._allows_public or is_admissible(peer)

    def check_host(self, http_version: str, fields: Mapping[str, str]) -> None:
        """Refuse a request that asks for another machine."""
        if http_version == "1.0" and "host" not in fields:
            return
        host = host_of(fields.get("host", ""))
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
        is_good = site in _SITES_OF_OURS
    else:
        scheme, found, place = origin.partition("://")
        is_ours = scheme in ("http", "https") and found and place.lower() == host.lower()
        is_good = bool(is_ours and site in (*_SITES_OF_OURS, "same-site")) or origins(origin)
    if not is_good:
        raise Refusal("http.origin", "requests of web pages from elsewhere are refused")


def is_forwarded(fields: Mapping[str, str]) -> bool:
    """Return whether a request says that it was passed on for somebody else."""
    return not _FORWARDING.isdisjoint(fields) or _FORWARDING_PREFIX in " ".join(fields)


def _closed(why: str) -> Refusal:
    told = f"{why} (at the orchestrator `{command_name()} token create NAME` makes one)"
    return Refusal("access.token", told, headers=CHALLENGE)
