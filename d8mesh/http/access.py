"""Who asks over HTTP, by what a request shows: nothing, the mesh key, or an access token.

Counts what each token asks, and bounds it. Knows no file: `edge.token_file` has the tokens.
"""

from __future__ import annotations

import hmac
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from d8mesh.core.protocol.access_tokens import (
    ALL_SCOPES,
    AccessToken,
    RateLimit,
    TokenScope,
    TokenUsage,
    digest_of,
)
from d8mesh.http.answers import Refusal

#: Ends the key itself in what a program sends as one: ``KEY;priority=2``.
KEY_OPTIONS: Final = ";priority="
#: Blanks around what a header says (RFC 9110); others are part of it.
_HEADER_BLANKS: Final = " \t"
#: Tells what a request without a key, or with a wrong one, needs.
CHALLENGE: Final[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}


@dataclass(frozen=True, slots=True)
class Access:
    """What a request may do.

    is_near: it comes from a program of this machine that asks for itself.
    is_shown: it has shown a key or a token; else it is let in for where it comes from.
    token, name: of the access token that it has shown; "" for none.
    """

    scopes: frozenset[TokenScope] = ALL_SCOPES
    is_near: bool = False
    is_shown: bool = False
    token: str = ""
    name: str = ""

    def require(self, scopes: Collection[TokenScope], *, asks_always: bool) -> None:
        """Refuse what this may not do.

        Args:
            scopes: any of these is enough.
            asks_always: to be let in for where one comes from is not, this machine included: any
                user and container of it is there.
        """
        if asks_always and not self.is_shown:
            raise Refusal(
                "access.token",
                "this takes the mesh key or an access token, also in an open mesh and on this "
                "machine: send it as Authorization: Bearer, or use the command `join` there",
                headers=CHALLENGE,
            )
        if TokenScope.ADMIN not in self.scopes and self.scopes.isdisjoint(scopes):
            needed = " or ".join(sorted({TokenScope.ADMIN, *scopes} - {TokenScope.LINK}))
            has = ", ".join(sorted(self.scopes))
            told = f"the token {self.name} is for {has}; this takes {needed}"
            raise Refusal("access.scope", told)


#: Of a program on this machine, and of anybody in an open mesh.
NEAR: Final = Access(is_near=True)
ANYBODY: Final = Access()


class KnownTokens:
    """The access tokens of this orchestrator, what each has used, and whether it may go on.

    Thread: one; `changed` and `usage` too.
    """

    def __init__(self, tokens: Iterable[AccessToken] = ()) -> None:
        self._by_digest: dict[str, AccessToken] = {}
        self._windows: dict[str, _RequestWindow] = {}
        self.usage: dict[str, TokenUsage] = {}
        #: something was used since this was last set to False
        self.is_used = False
        #: called with the id of each token that is revoked, or gone
        self.on_end: list[Callable[[str], None]] = []
        self.change(tokens)

    def change(self, tokens: Iterable[AccessToken]) -> None:
        """These are the tokens from now on."""
        before = self._by_digest
        self._by_digest = {each.digest: each for each in tokens}
        known = {each.id for each in self._by_digest.values()}
        for gone in self.usage.keys() - known:
            del self.usage[gone]
        for digest, old in before.items():
            new = self._by_digest.get(digest)
            if old.revoked_at is None and (new is None or new.revoked_at is not None):
                self._windows.pop(old.id, None)
                for tell in self.on_end:
                    tell(old.id)

    def find(self, secret: str) -> AccessToken | None:
        """Return the token that this is, revoked or not."""
        # Looked up by a digest: how long that takes tells nothing of any token.
        return self._by_digest.get(digest_of(secret))

    def use(self, token: AccessToken, now: float) -> None:
        """Count one more request with a token, or refuse it.

        Args:
            now: monotonic seconds.
        """
        if token.limit is not None:
            window = self._windows.get(token.id)
            if window is None or window.limit != token.limit:
                window = self._windows[token.id] = _RequestWindow(token.limit)
            wait_s = window.take(now)
            if wait_s:
                raise Refusal(
                    "access.limit",
                    f"the token {token.name} allows {token.limit} requests: come again in "
                    f"{wait_s} s",
                    headers={"Retry-After": str(wait_s)},
                )
        usage = self._usage_of(token.id)
        usage.requests += 1
        usage.last_used_at = time.time()

    def spend(self, token_id: str, /, *, input_tokens: int, output_tokens: int) -> None:
        """Count what models have read and written for a token; "" counts nothing."""
        if token_id and (input_tokens or output_tokens):
            usage = self._usage_of(token_id)
            usage.input_tokens += input_tokens
            usage.output_tokens += output_tokens

    def _usage_of(self, token_id: str) -> TokenUsage:
        self.is_used = True
        return self.usage.setdefault(token_id, TokenUsage())


class _RequestWindow:
    """When the requests of the last period came, as far as they were allowed."""

    __slots__ = ("_times", "limit")

    def __init__(self, limit: RateLimit) -> None:
        self.limit = limit
        self._times: deque[float] = deque()

    def take(self, now: float) -> int:
        """Take a place and return 0, or return the whole seconds until there is one."""
        times, period_s = self._times, self.limit.period_s
        while times and times[0] <= now - period_s:
            times.popleft()
        if len(times) < self.limit.requests:
            times.append(now)
            return 0
        return max(1, math.ceil(times[0] + period_s - now))


def shown_in(fields: Mapping[str, str]) -> list[str]:
    """Return what a request shows as a key, as it is and without what programs add to one."""
    if "authorization" not in fields and "x-api-key" not in fields:
        return []
    scheme, _, token = fields.get("authorization", "").partition(" ")
    given = [token.strip(_HEADER_BLANKS)] if scheme.lower() == "bearer" else []
    if "x-api-key" in fields:  # where Anthropic's clients have it
        given.append(fields["x-api-key"].strip(_HEADER_BLANKS))
    # Programs that can set nothing but a key say there how urgent they are.
    given += [each.rpartition(KEY_OPTIONS)[0] for each in given if KEY_OPTIONS in each]
    return [each for each in given if each]


def is_one_of(shown: Collection[str], keys: Collection[str]) -> bool:
    """Return whether a key is shown; the time that takes tells nothing of the keys."""
    found = False
    for each in shown:
        told = each.encode("utf-8", "replace")
        for key in keys:
            found |= hmac.compare_digest(told, key.encode("utf-8"))
    return found
