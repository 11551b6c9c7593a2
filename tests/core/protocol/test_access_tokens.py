"""Access tokens: their forms, and what they are for."""

from __future__ import annotations

import re

import pytest

from d8mesh.core.protocol.access_tokens import (
    ALL_SCOPES,
    ID_CHARS,
    MAX_LIMIT,
    SECRET_BYTES,
    AccessToken,
    RateLimit,
    TokenScope,
    digest_of,
    is_token_name,
    limit_of,
    secret_of,
)


def token(*scopes: TokenScope) -> AccessToken:
    return AccessToken(name="a", digest=digest_of("s"), scopes=scopes, created_at=1.0)


def test_a_token_has_a_prefix_and_256_bits() -> None:
    secret = secret_of(bytes(range(SECRET_BYTES)))
    assert re.fullmatch(r"d8_[0-9a-f]{64}", secret)
    assert digest_of(secret) != digest_of(secret[:-1])
    assert re.fullmatch(r"[0-9a-f]{64}", digest_of("\ud800 \xff"))


def test_a_token_is_counted_under_a_part_of_its_digest() -> None:
    assert token().id == digest_of("s")[:ID_CHARS]


@pytest.mark.parametrize("text", ["60/min", "1/h", f"{MAX_LIMIT}/min"])
def test_a_limit_is_read_as_it_is_written(text: str) -> None:
    assert str(limit_of(text)) == text


def test_a_limit_has_a_period() -> None:
    assert limit_of("60/min") == RateLimit(60, 60)
    assert limit_of("7/h") == RateLimit(7, 3600)
    assert str(RateLimit(1, 5)) == "1/5s"


@pytest.mark.parametrize(
    "text", ["", "60", "0/min", "-1/min", "1.5/min", "60/s", "60/MIN", " 60/min", "1e3/h",
             f"{MAX_LIMIT + 1}/min", "\u0661/min", "060/min"]
)  # fmt: skip
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        limit_of(text)


def test_a_name_is_one_word() -> None:
    assert all(map(is_token_name, ("alice", "open-webui", "a.b@c_d", "7", "x" * 64)))
    bad = ("", "-a", "a b", "a/b", "x" * 65, "\xe9", "a\n", "--scope")
    assert not any(map(is_token_name, bad))


def test_the_scopes_are_those_of_the_documents() -> None:
    assert {each.value for each in ALL_SCOPES} == {"submit", "work", "chat", "admin"}
