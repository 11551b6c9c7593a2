"""Whose word is taken for whom a request is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d8mesh.http.answers import Refusal
from d8mesh.http.proxies import MAX_FORWARDED, Forwarded, TrustedProxies

PROXY = "10.0.0.1"
PROXIES = TrustedProxies([PROXY, "10.0.0.2", "fd00::1"])


def peer_told(row: str, peer: str = PROXY) -> str:
    told = PROXIES.read(peer, {"x-forwarded-for": row})
    assert told is not None
    return told.peer


@pytest.mark.parametrize(
    ("row", "peer"),
    [
        ("192.168.1.9", "192.168.1.9"),
        ("127.0.0.1, 192.168.1.9", "192.168.1.9"),
        ("8.8.8.8,127.0.0.1, 192.168.1.9 , 10.0.0.2", "192.168.1.9"),
        ("192.168.1.9, nonsense, 10.0.0.3", "10.0.0.3"),
        ("10.0.0.2, 10.0.0.1", "10.0.0.2"),
        ("192.168.1.9:5000", "192.168.1.9"),
        ("::ffff:192.168.1.9", "192.168.1.9"),
        ("[fe80::1]:80", "fe80::1"),
        ("[fe80::2]", "fe80::2"),
        ("FE80:0:0::3, fd00:0::1", "fe80::3"),
    ],
)
def test_the_last_that_is_no_proxy_is_who_asks(row: str, peer: str) -> None:
    assert peer_told(row) == peer
    assert peer_told(row, "fd00:0:0::1") == peer
    assert peer_told(row, "::ffff:10.0.0.1") == peer


@pytest.mark.parametrize("peer", ["10.0.0.9", "127.0.0.1", "", "fd00::2"])
def test_from_anybody_else_it_is_passed_over(peer: str) -> None:
    fields = {"x-forwarded-for": "192.168.1.9", "x-forwarded-host": "evil.example"}
    assert PROXIES.read(peer, fields) is None
    assert TrustedProxies().read(peer, fields) is None


def test_a_proxy_that_asks_for_itself_is_itself() -> None:
    assert PROXIES.read(PROXY, {}) is None
    assert PROXIES.read(PROXY, {"x-forwarded-for": "", "x-forwarded-host": "x"}) is None


@pytest.mark.parametrize("row", ["unknown", "192.168.1.9,", "1.2.3", "1.2.3.4.5", "a" * 9000])
def test_what_is_no_address_is_refused(row: str) -> None:
    with pytest.raises(Refusal, match="expected an address") as raised:
        PROXIES.read(PROXY, {"x-forwarded-for": row})
    assert raised.value.code == "http.bad_request"
    assert len(str(raised.value)) < 200


def test_name_and_scheme_are_those_that_the_nearest_proxy_tells() -> None:
    fields = {"x-forwarded-for": "192.168.1.9"}
    told = fields | {"x-forwarded-host": "evil, d8.example:443", "x-forwarded-proto": "http, HTTPS"}
    assert PROXIES.read(PROXY, told) == Forwarded("192.168.1.9", "d8.example:443", "https")
    told = fields | {"x-forwarded-proto": "gopher"}
    assert PROXIES.read(PROXY, told) == Forwarded("192.168.1.9", "", "")


def test_a_row_without_end_is_looked_through_for_a_while() -> None:
    assert peer_told("192.168.1.9, " + "10.0.0.2, " * 1000 + "10.0.0.2") == "10.0.0.2"
    assert peer_told("192.168.1.9, " + "10.0.0.2, " * (MAX_FORWARDED - 2) + PROXY) == "192.168.1.9"


@given(st.text(st.characters(max_codepoint=255), max_size=60), st.ip_addresses().map(str))
def test_whatever_stands_before_the_last_address_changes_nothing(junk: str, address: str) -> None:
    told = PROXIES.read(PROXY, {"x-forwarded-for": f"{junk},{address}"})
    plain = PROXIES.read(PROXY, {"x-forwarded-for": address})
    if plain is not None and plain.peer not in (PROXY, "10.0.0.2", "fd00::1"):
        assert told == plain
