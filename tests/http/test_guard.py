"""Foreign peers, hosts and pages are refused before anything is read."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from d8mesh.core.protocol.access_tokens import ALL_SCOPES, TokenScope
from d8mesh.core.protocol.membership import link_pass
from d8mesh.http import guard
from d8mesh.http.access import KnownTokens
from d8mesh.http.answers import Refusal
from d8mesh.http.guard import Guard, OwnHosts, Rejections
from d8mesh.http.origins import Origins, no_origin
from tests.http.tokens import token_of

OWN = "127.0.0.1:7001"
SETTINGS = ("allows_public", "is_closed", "secret", "tokens")


def code_of(
    *,
    host: str | None = OWN,
    peer: str = "192.168.1.9",
    version: str = "1.1",
    has_pages: bool = False,
    **more: Any,
) -> str:
    """Return the code of the refusal; what is no setting is a header.

    has_pages: the door is one that pages of other origins may use.
    """
    settings = {name: more.pop(name) for name in SETTINGS if name in more}
    keys = [more.pop("key")] if "key" in more else []
    asked = Guard(more.pop("allowed_hosts", ()), keys=keys, **settings)
    fields = {name.replace("_", "-"): str(value) for name, value in more.items()}
    if host is not None:
        fields["host"] = host
    origins = Origins(("https://chat.example.org",)) if has_pages else no_origin
    try:
        asked.check(peer, version, fields, origins)
        asked.access_of(peer, fields)
    except Refusal as refusal:
        return refusal.code
    return ""


@pytest.mark.parametrize(
    "peer", ["127.0.0.1", "10.1.2.3", "172.16.0.9", "192.168.1.9", "169.254.3.4", "::1", "fe80::1"]
)
def test_peers_of_private_networks_pass(peer: str) -> None:
    assert code_of(peer=peer) == ""


@pytest.mark.parametrize("peer", ["8.8.8.8", "100.64.1.1", "2001:db8::1", "169.254.169.254", ""])
def test_other_peers_are_refused(peer: str) -> None:
    assert code_of(peer=peer) == "http.peer"


def test_a_forwarded_address_counts_for_nothing() -> None:
    assert code_of(peer="8.8.8.8", x_forwarded_for="10.0.0.1") == "http.peer"
    assert code_of(x_forwarded_for="8.8.8.8", x_forwarded_host="evil.com") == ""


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:7001",
        "127.0.0.1:1",
        "[::1]:7001",
        "orchestrator",
        "D8-BOX:80",
        socket.gethostname(),
        f"{socket.gethostname().partition('.')[0]}.local",
        "192.168.77.9:7001",
        "[fd00::77]:7001",
        "host.docker.internal:7001",
        "host.containers.internal:7001",
        "gateway.docker.internal:7001",
    ],
)
def test_our_own_names_pass(host: str) -> None:
    assert code_of(host=host) == ""


@pytest.mark.parametrize("host", ["evil.com", "evil.com:7001", "8.8.8.8", "localhost.evil.com"])
def test_foreign_hosts_are_refused(host: str) -> None:
    assert code_of(host=host) == "http.host"


@pytest.mark.parametrize("host", ["", "a b", "x:99999", "[::1", "x:y", "a/b", "user@x", "a..b"])
def test_malformed_hosts_are_bad_requests(host: str) -> None:
    assert code_of(host=host) == "http.bad_request"


def test_http_1_0_needs_no_host() -> None:
    assert code_of(host=None) == "http.bad_request"
    assert code_of(host=None, version="1.0") == ""
    assert code_of(host="evil.com", version="1.0") == "http.host"


def test_hosts_can_be_allowed_exactly() -> None:
    allowed = ("d8.example.org",)
    assert code_of(host="d8.example.org:7001", allowed_hosts=allowed) == ""
    assert code_of(host="x.d8.example.org", allowed_hosts=allowed) == "http.host"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    "origin", ["null", "http://evil.com", "http://localhost:3000", "https://", "file://", "x"]
)
def test_pages_from_elsewhere_are_refused_for_every_method(method: str, origin: str) -> None:
    assert code_of(method=method, origin=origin) == "http.origin"


@pytest.mark.parametrize("has_pages", [False, True])
def test_what_a_page_from_elsewhere_shows_or_links_to_is_refused(has_pages: bool) -> None:
    for site in ("cross-site", "same-site", "Cross-Site", "none,cross-site", "sideways"):
        assert code_of(sec_fetch_site=site, has_pages=has_pages) == "http.origin"


def test_our_own_page_and_a_person_at_the_address_bar_pass() -> None:
    assert code_of(origin=f"http://{OWN}", sec_fetch_site="same-origin") == ""
    assert code_of(origin=f"http://{OWN}", sec_fetch_site="cross-site") == "http.origin"
    assert code_of(sec_fetch_site="same-origin") == code_of(sec_fetch_site="none") == ""


@pytest.mark.parametrize("site", ["", "same-site", "cross-site"])
@pytest.mark.parametrize("origin", ["http://localhost:3000", "https://chat.example.org"])
def test_pages_that_a_door_is_for_pass_there_alone(origin: str, site: str) -> None:
    assert code_of(origin=origin, sec_fetch_site=site, has_pages=True) == ""
    assert code_of(origin=origin, sec_fetch_site=site) == "http.origin"


@pytest.mark.parametrize("origin", ["null", "", "http://evil.com", "https://x.chat.example.org"])
def test_other_pages_are_refused_at_a_door_for_pages_too(origin: str) -> None:
    assert code_of(origin=origin, has_pages=True) == "http.origin"
    assert code_of(origin=origin, sec_fetch_site="same-site", has_pages=True) == "http.origin"


def test_a_key_is_asked_for_off_loopback() -> None:
    key = "0123456789abcdef"
    assert code_of(key=key) == "access.token"
    assert code_of(authorization="Bearer wrong", key=key) == "access.token"
    assert code_of(authorization=f"Bearer {key}", key=key) == ""
    assert code_of(x_api_key=key, key=key) == ""
    assert code_of(x_api_key="wrong", authorization=f"bearer {key} ", key=key) == ""
    assert code_of(x_api_key="wrong", key=key) == "access.token"
    assert code_of(authorization=f"Basic {key}", key=key) == "access.token"
    assert code_of(peer="127.0.0.1", key=key) == ""
    assert code_of(peer="8.8.8.8", key=key, allows_public=True) == "access.token"
    assert code_of(peer="8.8.8.8", allows_public=True) == "http.peer"


def test_who_sends_a_key_that_is_none_is_told_so_and_not_to_send_one() -> None:
    asked = Guard((), keys=["0123456789abcdef"])
    for fields, told in (({}, "send its key"), ({"x-api-key": "x"}, "that was sent is none")):
        with pytest.raises(Refusal, match=told):
            asked.access_of("192.168.1.9", fields)


@pytest.mark.parametrize(
    "header",
    ["forwarded", "via", "x_forwarded_for", "x_forwarded_host", "x_forwarded_proto", "x_real_ip"],
)
def test_who_asks_for_somebody_else_is_not_near(header: str) -> None:
    key = "0123456789abcdef"
    forwarded: dict[str, Any] = {header: "127.0.0.1"}
    assert code_of(peer="127.0.0.1", key=key, **forwarded) == "access.token"
    assert code_of(peer="127.0.0.1", key=key, authorization=f"Bearer {key}", **forwarded) == ""
    assert code_of(peer="127.0.0.1", **forwarded) == ""


def test_the_pass_of_a_link_opens_that_link_alone() -> None:
    key, secret, link = "0123456789abcdef", b"s" * 32, "a" * 32
    fields = {"authorization": f"Bearer {link_pass(secret, link)}"}
    asked = Guard(keys=[key], secret=secret)
    access = asked.access_of("192.168.1.9", {**fields, "x-d8-link": link})
    assert access.scopes == {TokenScope.LINK}
    for scopes in ALL_SCOPES:
        with pytest.raises(Refusal):
            access.require({scopes}, asks_always=False)
    shown: dict[str, Any] = {"key": key, "secret": secret, **fields}
    assert code_of(**shown, x_d8_link=link) == ""
    assert code_of(**shown, x_d8_link="b" * 32) == "access.token"
    assert code_of(**shown) == "access.token"
    assert code_of(**{**shown, "secret": b"t" * 32}, x_d8_link=link) == "access.token"


def test_a_closed_mesh_without_a_key_takes_tokens_only() -> None:
    tokens = KnownTokens([token_of("alice"), token_of("bob", revoked_at=1.0)])
    closed: dict[str, Any] = {"is_closed": True, "tokens": tokens}
    assert code_of(**closed) == "access.token"
    assert code_of(peer="127.0.0.1", **closed) == ""
    assert code_of(authorization="Bearer alice", **closed) == ""
    assert code_of(x_api_key="alice", **closed) == ""
    assert code_of(authorization="Bearer alice;priority=9", **closed) == ""
    assert code_of(authorization="Bearer bob", **closed) == "access.revoked"
    assert code_of(authorization="Bearer carol", **closed) == "access.token"


def test_an_open_mesh_knows_tokens_and_leaves_unknown_ones_alone() -> None:
    tokens = KnownTokens([token_of("alice"), token_of("bob", revoked_at=1.0)])
    for peer in ("127.0.0.1", "192.168.1.9"):
        assert code_of(peer=peer, authorization="Bearer ollama", tokens=tokens) == ""
        assert code_of(peer=peer, authorization="Bearer bob", tokens=tokens) == "access.revoked"
        assert code_of(peer=peer, authorization="Bearer alice", tokens=tokens) == ""
    assert tokens.usage[token_of("alice").id].requests == 2


@pytest.mark.parametrize(
    "shown",
    [
        "Bearer", "Bearer ", "Bearer 0123456789abcde", "Bearer 0123456789abcdef0",
        "Bearer 0123456789ABCDEF", "Bearer 0123456789abcdef,Bearer 0123456789abcdef",
        "Bearer 0123456789abcdef\xa0", "Bearer\xa00123456789abcdef", "Bearer \x00",
        "0123456789abcdef",
        "Bearer MDEyMzQ1Njc4OWFiY2RlZg==", "Bearer 0123456789abcde%66", "Token 0123456789abcdef",
        "Bearer \xff\xfe0\x001\x00",
    ],
)  # fmt: skip
def test_what_is_nearly_the_key_is_not_the_key(shown: str) -> None:
    key = "0123456789abcdef"
    assert code_of(authorization=shown, key=key) == "access.token"
    assert code_of(x_api_key=shown, key=key) == ("" if shown == key else "access.token")


def test_what_a_program_says_behind_the_key_is_not_the_key() -> None:
    key = "0123456789abcdef"
    assert code_of(authorization=f"Bearer {key};priority=2", key=key) == ""
    assert code_of(x_api_key=f"{key};priority=2", key=key) == ""
    assert code_of(authorization=f"Bearer {key[1:]};priority=2", key=key) == "access.token"
    assert code_of(authorization=f"Bearer {key};x=2", key=key) == "access.token"
    odd = f"{key};priority=9"
    assert code_of(authorization=f"Bearer {odd}", key=odd) == ""
    assert code_of(authorization=f"Bearer {odd};priority=1", key=odd) == ""


def test_rejections_are_counted_by_reason() -> None:
    rejections = Rejections()
    for _ in range(2):
        rejections.add("http.host", "192.168.1.9", "'evil.com' is not a name of this machine")
    assert rejections.counts() == {"http.host": 2}


def test_an_address_that_this_machine_just_got_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"localhost"}
    monkeypatch.setattr(guard, "own_names", lambda: frozenset(names))
    ours = OwnHosts(["pool.lan"])
    assert "localhost" in ours
    assert "pool.lan" in ours
    assert "8.7.7.7" not in ours
    names.update(("8.7.7.7", "2001:db8::7"))
    assert "8.7.7.7" in ours
    assert "2001:db8::7" in ours
    assert "8.7.7.8" not in ours


def test_strangers_do_not_make_us_look_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def look() -> frozenset[str]:
        looks.append(1)
        return frozenset({"localhost"})

    monkeypatch.setattr(guard, "own_names", look)
    ours = OwnHosts([])
    for _ in range(100):
        assert "evil.example" not in ours
    assert len(looks) <= 2
