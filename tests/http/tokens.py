"""Access tokens for tests."""

from __future__ import annotations

from typing import Any

from d8mesh.core.protocol.access_tokens import AccessToken, TokenScope, digest_of


def token_of(name: str, *scopes: TokenScope, secret: str = "", **more: Any) -> AccessToken:
    """Return a token that is called as its secret, unless that is given; for chats by default."""
    return AccessToken(
        name=name,
        digest=digest_of(secret or name),
        scopes=scopes or (TokenScope.CHAT,),
        created_at=1000.0,
        **more,
    )
