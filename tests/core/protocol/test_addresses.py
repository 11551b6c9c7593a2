"""Which addresses may take part, their order, and Host headers."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d8mesh.core.protocol.addresses import (
    LOOPBACK,
    MAX_CANDIDATES,
    candidates,
    endpoint,
    host_is_allowed,
    host_of,
    is_address,
    is_admissible,
    is_loopback,
    parse_endpoint,
)
from d8mesh.errors import ConfigError

INSIDE = [
    "127.0.0.1",
    "127.8.8.8",
    "10.0.0.1",
    "10.255.255.254",
    "172.16.0.1",
    "172.31.255.1",
    "192.168.0.7",
    "169.254.3.4",
    "::1",
    "fe80::1",
    "fe80::1%eth0",
    "[fe80::1]",
    "fd00::2",
    "fc00::1",
    "::ffff:192.168.1.9",
]
OUTSIDE = [
    "8.8.8.8",
    "172.15.0.1",
    "172.32.0.1",
    "192.169.0.1",
    "11.0.0.1",
    "100.64.0.1",
    "100.127.1.1",
    "0.0.0.0",
    "0.1.2.3",
    "255.255.255.255",
    "240.0.0.1",
    "224.0.0.251",
    "239.1.2.3",
    "203.0.113.5",
    "198.18.0.1",
    "169.254.169.254",
    "169.254.170.2",
    "::",
    "ff02::fb",
    "2001:db8::1",
    "2606:4700::1111",
    "fd00:ec2::254",
    "::ffff:8.8.8.8",
    "::ffff:169.254.169.254",
    "64:ff9b::a00:1",
    "2002:a00:1::1",
    "::10.0.0.1",
    "fec0::1",
]
NOT_ADDRESSES = ["", "localhost", "10.0.0", "010.0.0.1", "10.0.0.1/8", "1" * 5000, "[", "%", "[]"]


@pytest.mark.parametrize("address", INSIDE)
def test_private_link_local_and_loopback_addresses_may_take_part(address: str) -> None:
    assert is_admissible(address)


@pytest.mark.parametrize("address", [*OUTSIDE, *NOT_ADDRESSES])
def test_all_other_addresses_may_not(address: str) -> None:
    assert not is_admissible(address)


@given(st.ip_addresses())
def test_nothing_that_the_internet_routes_is_admissible(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    assert not (address.is_global and is_admissible(str(address)))
    assert not (address.is_multicast and is_admissible(str(address)))


@given(st.ip_addresses(v=4))
def test_an_address_mapped_into_ipv6_is_judged_as_itself(address: ipaddress.IPv4Address) -> None:
    assert is_admissible(f"::ffff:{address}") == is_admissible(str(address))


@given(st.text(max_size=60))
def test_no_text_breaks_the_readers(text: str) -> None:
    is_admissible(text)
    is_loopback(text)
    host = host_of(text)
    assert host is None or host_of(f"[{host}]" if ":" in host else host) == host
    try:
        address, port, _ = parse_endpoint(text)
    except ConfigError:
        return
    assert parse_endpoint(endpoint(address, port)) == (address, port, None)


def test_loopback_comes_first_then_ipv4_then_ipv6() -> None:
    given_addresses = ["fd00::1", "192.168.1.2", "8.8.8.8", "127.0.0.1", "10.0.0.1", "10.0.0.1"]
    ordered = ("127.0.0.1", "192.168.1.2", "10.0.0.1", "fd00::1")
    assert candidates(given_addresses, own=given_addresses) == ordered


def test_a_node_on_this_machine_is_tried_on_loopback_first() -> None:
    own = ["10.0.0.5", LOOPBACK]
    assert candidates(["10.0.0.5", "192.168.1.5"], own=own) == (
        LOOPBACK,
        "10.0.0.5",
        "192.168.1.5",
    )
    assert candidates([LOOPBACK], own=[LOOPBACK]) == (LOOPBACK,)


def test_loopback_of_another_machine_is_not_tried() -> None:
    assert candidates([LOOPBACK, "10.0.0.9"], own=["10.0.0.5"]) == ("10.0.0.9",)
    assert candidates([LOOPBACK], own=[]) == ()


def test_candidates_are_bounded_and_admissible() -> None:
    many = [f"10.0.{n}.1" for n in range(100)]
    assert len(candidates(["8.8.8.8", "224.0.0.1", *many], own=[])) == MAX_CANDIDATES
    assert candidates(["8.8.8.8", "169.254.169.254"], own=[]) == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1:7010", ("10.0.0.1", 7010)),
        ("tcp://10.0.0.1:7010", ("10.0.0.1", 7010)),
        ("[fe80::1%eth0]:1", ("fe80::1%eth0", 1)),
        ("pi.local:65535", ("pi.local", 65535)),
    ],
)
def test_an_endpoint_is_read_and_written(text: str, expected: tuple[str, int]) -> None:
    assert parse_endpoint(text) == (*expected, None)
    assert endpoint(*expected).removeprefix("tcp://") == text.removeprefix("tcp://")


def test_an_endpoint_may_bring_the_key_of_who_is_there() -> None:
    read = parse_endpoint("tcp://[fe80::1%eth0]:7010?key=" + "6b" * 32)
    assert read == ("fe80::1%eth0", 7010, b"k" * 32)


@pytest.mark.parametrize(
    "text",
    [
        *("", "10.0.0.1", ":7010", "10.0.0.1:0", "a:65536", "::1:7010", "[x]:1", "a:1/", "a:１"),
        *("a:1?key=", "a:1?key=" + "0" * 63, "a:1?key=" + "0" * 65, "a:1?key=" + "G" * 64),
        "a:1&key=" + "0" * 64,
    ],
)
def test_a_bad_endpoint_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(ConfigError, match="expected ADDRESS:PORT"):
        parse_endpoint(text)


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("localhost", "localhost"),
        ("Pi.Local.:7001", "pi.local"),
        ("192.168.1.2:80", "192.168.1.2"),
        ("[::1]:7001", "::1"),
        ("[FE80:0::1]", "fe80::1"),
        ("[::ffff:10.0.0.1]", "10.0.0.1"),
    ],
)
def test_a_host_header_is_reduced_to_its_host(header: str, host: str) -> None:
    assert host_of(header) == host


@pytest.mark.parametrize(
    "header",
    [
        "",
        ":7001",
        "a b",
        "a:b",
        "a:99999",
        "a,b",
        "a/b",
        "u@a",
        "a..b",
        ".",
        "[::1",
        "::1",
        "[x:y]",
        "a\r\nb",
        "é",
        "a" * 254,
        "a" * 64,
        "[1:2]",
        "a:1:2",
    ],
)
def test_a_malformed_host_header_is_told_apart_from_a_foreign_one(header: str) -> None:
    assert host_of(header) is None


OWN = frozenset({"pi", "pi.local", "192.168.1.2", "fd00::2"})


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "127.1.2.3",
        "::1",
        "pi",
        "pi.local",
        "192.168.1.2",
        "fd00::2",
        "orchestrator",
        "d8.example.org",
        "10.9.9.9",
        "fd00::9",
        "8.9.9.9",
    ],
)
def test_our_own_names_and_the_allowed_ones_are_ours(host: str) -> None:
    assert host_is_allowed(host, OWN, ["D8.example.org", "10.9.9.9", "fd00::9", "8.9.9.9"])


@pytest.mark.parametrize(
    "host",
    [
        "192.168.1.3",
        "10.0.0.1",
        "172.31.9.9",
        "169.254.3.4",
        "100.64.0.9",
        "fd00::3",
        "fe80::3",
        "host.docker.internal",
        "host.containers.internal",
    ],
)
def test_the_machine_of_a_container_may_be_asked_by_its_private_address(host: str) -> None:
    assert host_is_allowed(host, OWN, [])


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "8.8.8.8",
        "2001:db8::3",
        "169.254.169.254",
        "0.0.0.0",
        "100.128.0.1",
        "other.local",
        "x.d8.example.org",
        "localhost.evil.example",
        "pi.local.evil.example",
        "evil.internal",
        "192.168.1.3.evil.example",
        "127.0.0.1.nip.io",
    ],
)
def test_a_foreign_host_is_refused(host: str) -> None:
    assert not host_is_allowed(host, OWN, ["d8.example.org"])


def test_a_name_is_no_address() -> None:
    assert is_address("10.0.0.1")
    assert is_address("[fe80::1%eth0]")
    assert not is_address("localhost")
