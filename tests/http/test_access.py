"""What a request may do, by what it shows; what tokens use, and their limits."""

from __future__ import annotations

import pytest

from d8mesh.core.protocol.access_tokens import ADMIN_ONLY, RateLimit, TokenScope
from d8mesh.http.access import ANYBODY, NEAR, Access, KnownTokens, is_one_of, shown_in
from d8mesh.http.answers import Refusal
from tests.http.tokens import token_of

CHAT = frozenset({TokenScope.CHAT})
SUBMIT = frozenset({TokenScope.SUBMIT})


def code_of(access: Access, scopes: frozenset[TokenScope], *, asks_always: bool = False) -> str:
    try:
        access.require(scopes, asks_always=asks_always)
    except Refusal as refusal:
        return refusal.code
    return ""


def test_a_token_may_do_what_it_is_for() -> None:
    access = Access(CHAT, is_shown=True, name="alice")
    assert code_of(access, CHAT) == ""
    assert code_of(access, CHAT | SUBMIT) == ""
    assert code_of(access, SUBMIT) == code_of(access, ADMIN_ONLY) == "access.scope"
    admin = Access(ADMIN_ONLY, is_shown=True)
    assert code_of(admin, CHAT) == code_of(admin, ADMIN_ONLY) == ""


def test_the_refusal_names_the_token_and_what_is_needed() -> None:
    with pytest.raises(Refusal, match="the token alice is for chat; this takes admin or submit"):
        Access(CHAT, is_shown=True, name="alice").require(SUBMIT, asks_always=False)


def test_what_always_asks_is_not_for_anybody_of_an_open_mesh() -> None:
    assert code_of(ANYBODY, ADMIN_ONLY) == ""
    assert code_of(ANYBODY, ADMIN_ONLY, asks_always=True) == "access.token"
    assert code_of(NEAR, ADMIN_ONLY) == ""
    assert code_of(NEAR, ADMIN_ONLY, asks_always=True) == "access.token", "any user is near"
    assert code_of(Access(is_shown=True), ADMIN_ONLY, asks_always=True) == ""
    assert code_of(Access(CHAT, is_shown=True), ADMIN_ONLY, asks_always=True) == "access.scope"


def test_a_token_is_found_by_its_secret_alone() -> None:
    tokens = KnownTokens([token_of("alice", secret="d8_secret")])
    found = tokens.find("d8_secret")
    assert found is not None
    assert found.name == "alice"
    for other in ("alice", "d8_secre", "d8_secret ", found.digest, found.id, ""):
        assert tokens.find(other) is None


def test_no_more_requests_than_the_limit_in_any_period() -> None:
    alice = token_of("alice", limit=RateLimit(3, 60))
    tokens = KnownTokens([alice])
    for now in (0.0, 1.0, 59.0):
        tokens.use(alice, now)
    with pytest.raises(Refusal, match="3/min") as refused:
        tokens.use(alice, 59.5)
    assert refused.value.code == "access.limit"
    assert refused.value.headers == {"Retry-After": "1"}
    tokens.use(alice, 60.0)  # that of 0.0 has left the minute
    with pytest.raises(Refusal) as refused:
        tokens.use(alice, 60.5)
    assert refused.value.headers == {"Retry-After": "1"}
    tokens.use(alice, 61.0)
    with pytest.raises(Refusal) as refused:
        tokens.use(alice, 62.0)
    assert refused.value.headers == {"Retry-After": "57"}
    assert tokens.usage[alice.id].requests == 5


def test_a_changed_limit_begins_anew() -> None:
    tokens = KnownTokens([token_of("alice", limit=RateLimit(1, 3600))])
    tokens.use(token_of("alice", limit=RateLimit(1, 3600)), 0.0)
    tokens.use(token_of("alice", limit=RateLimit(2, 3600)), 1.0)
    tokens.use(token_of("alice"), 2.0)


def test_what_models_read_and_write_is_counted() -> None:
    tokens = KnownTokens([token_of("alice")])
    tokens.spend("", input_tokens=5, output_tokens=5)
    tokens.spend("x", input_tokens=0, output_tokens=0)
    assert (tokens.usage, tokens.is_used) == ({}, False)
    tokens.spend("x", input_tokens=5, output_tokens=7)
    tokens.spend("x", input_tokens=1, output_tokens=0)
    assert tokens.is_used
    assert (tokens.usage["x"].input_tokens, tokens.usage["x"].output_tokens) == (6, 7)


def test_who_wants_to_know_is_told_of_each_token_that_ends() -> None:
    ended: list[str] = []
    alice, bob, carol = token_of("alice"), token_of("bob"), token_of("carol", revoked_at=5.0)
    tokens = KnownTokens([alice, bob, carol])
    tokens.on_end.append(ended.append)
    tokens.change([token_of("alice", revoked_at=9.0), carol])
    assert ended == [alice.id, bob.id]
    tokens.change([])
    assert ended == [alice.id, bob.id]


def test_what_is_shown_stands_in_either_header() -> None:
    assert shown_in({}) == shown_in({"authorization": "Basic a"}) == []
    assert shown_in({"authorization": "bearer  a ", "x-api-key": " b"}) == ["a", "b"]
    assert shown_in({"x-api-key": "b;priority=3"}) == ["b;priority=3", "b"]
    assert shown_in({"authorization": "Bearer", "x-api-key": ""}) == []


def test_each_key_is_compared_whole() -> None:
    assert is_one_of(["no", "b"], ["a", "b"])
    assert not is_one_of(["", "aa", "\xe9"], ["a", "b"])
    assert not is_one_of([], ["a"])
    assert not is_one_of(["a"], [])
