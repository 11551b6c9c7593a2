"""Access tokens of HTTP: what a person or a program shows instead of the mesh key.

Of a token only its digest is kept. It has 256 random bits, so nobody finds it by trying, and one
fast hash is enough. Not to be mixed up with `tokens`, which are the attempts'.
"""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from typing import Final

import msgspec

#: How every token begins, so that people, and programs that look for secrets, know one.
TOKEN_PREFIX: Final = "d8_"
#: Random bytes of a token.
SECRET_BYTES: Final = 32
#: Hex digits that stand for a token where it is counted.
ID_CHARS: Final = 16
#: Requests of a limit at most: each allowed one is remembered for its period.
MAX_LIMIT: Final = 100_000
_PERIODS_S: Final = {"min": 60, "h": 3600}
_LIMIT: Final = re.compile(r"([1-9][0-9]{0,5})/(min|h)", re.ASCII)
_TOKEN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}", re.ASCII)


class TokenScope(StrEnum):
    """What somebody may do over HTTP."""

    SUBMIT = "submit"  #: submit tasks, see them and their results
    WORK = "work"  #: be a worker: poll, report, the tunnel
    CHAT = "chat"  #: the doors of language models, files and batches
    ADMIN = "admin"  #: everything: who may join, changes of models, and all of the above
    LINK = "link"  #: one link of the tunnel: no token has this, but what our own nodes show there


#: What tokens may be for.
ALL_SCOPES: Final = frozenset(TokenScope) - {TokenScope.LINK}
ADMIN_ONLY: Final = frozenset({TokenScope.ADMIN})


class RateLimit(msgspec.Struct, frozen=True):
    """At most so many requests within any period of so many seconds."""

    requests: int
    period_s: int

    def __str__(self) -> str:
        """Return it as people write it: ``60/min``."""
        units = {seconds: unit for unit, seconds in _PERIODS_S.items()}
        return f"{self.requests}/{units.get(self.period_s, f'{self.period_s}s')}"


class AccessToken(msgspec.Struct, frozen=True, kw_only=True):
    """One token, as it is kept. Times are Unix seconds."""

    name: str
    digest: str
    scopes: tuple[TokenScope, ...]
    limit: RateLimit | None = None
    created_at: float
    revoked_at: float | None = None

    @property
    def id(self) -> str:
        """What stands for it where it is counted; a name may be given again."""
        return self.digest[:ID_CHARS]


class TokenUsage(msgspec.Struct):
    """What was asked with one token; `last_used_at` is in Unix seconds."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    last_used_at: float = 0.0


def secret_of(random: bytes) -> str:
    """Return the token that is made of `SECRET_BYTES` random bytes."""
    return f"{TOKEN_PREFIX}{random.hex()}"


def digest_of(secret: str) -> str:
    """Return what is kept of a token, or of anything that may be one."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def is_token_name(text: str) -> bool:
    """Return whether a token may be called so."""
    return _TOKEN_NAME.fullmatch(text) is not None


def limit_of(text: str) -> RateLimit:
    """Return the limit that a text means: ``60/min`` or ``1000/h``.

    Raises:
        ValueError: it means none.
    """
    found = _LIMIT.fullmatch(text)
    if found is None or int(found[1]) > MAX_LIMIT:
        raise ValueError(text)
    return RateLimit(int(found[1]), _PERIODS_S[found[2]])
