"""What the tests may not do is refused, and noted, before it leaves this machine."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest
import zmq

from tests import conftest
from tests.loopback import Fence

#: For documentation (RFC 5737, RFC 3849): nobody's.
ELSEWHERE, ELSEWHERE_6 = "198.51.100.7", "2001:db8::7"
GROUP = "224.0.0.251"


@pytest.fixture
def fence() -> Iterator[Fence]:
    """Lend the fence of the whole run; what this test tries on purpose is not held against it."""
    yield conftest._fence
    conftest._fence.broken.clear()


@pytest.mark.parametrize("host", [ELSEWHERE, "192.168.1.1", "10.0.0.1"])
def test_what_goes_elsewhere_is_refused_and_noted(fence: Fence, host: str) -> None:
    with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagram:
        for attempt in (
            lambda: stream.connect((host, 7001)),
            lambda: stream.connect_ex((host, 7001)),
            lambda: datagram.sendto(b"x", (host, 5353)),
            lambda: datagram.sendto(b"x", 0, (host, 5353)),
            lambda: datagram.bind((host, 0)),
            lambda: socket.create_connection((host, 7001), timeout=1),
        ):
            noted = len(fence.broken)
            with pytest.raises(OSError, match="the tests stay on loopback"):
                attempt()
            assert len(fence.broken) == noted + 1


def test_ipv6_and_zeromq_are_no_way_out(fence: Fence) -> None:
    if socket.has_ipv6:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as datagram:
            with pytest.raises(OSError, match="the tests stay on loopback"):
                datagram.sendto(b"x", (ELSEWHERE_6, 5353))
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    for place in (f"tcp://{ELSEWHERE}:7010", f"tcp://[{ELSEWHERE_6}]:7010"):
        with pytest.raises(OSError, match="the tests stay on loopback"):
            dealer.connect(place)
    dealer.close(0)
    context.term()


def test_multicast_leaves_by_loopback_or_not_at_all(fence: Fence) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as datagram:
        with pytest.raises(OSError, match="multicast to"):
            datagram.sendto(b"x", (GROUP, 5353))
        joined = socket.inet_aton(GROUP) + socket.inet_aton("192.168.1.1")
        with pytest.raises(OSError, match="a multicast group joined"):
            datagram.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
        with pytest.raises(OSError, match="a multicast group joined"):
            datagram.setsockopt(
                socket.IPPROTO_IP,
                socket.IP_ADD_MEMBERSHIP,
                struct.pack("4s4s", socket.inet_aton(GROUP), b"\0\0\0\0"),
            )


def test_loopback_is_free(fence: Fence) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=30).close()
        socket.create_connection(("localhost", server.getsockname()[1]), timeout=30).close()
    with socket.socket() as everywhere:
        everywhere.bind(("", 0))
    assert fence.broken == []


def test_no_name_service_is_asked() -> None:
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("d8mesh.example.org", 80)


@pytest.mark.parametrize("interfaces", ["", "eth0", "192.168.1.1"])
@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "d8mesh", "status"],
        ["/nowhere/bin/d8mesh", "status"],
    ],
)
def test_a_child_beyond_loopback_is_refused(
    fence: Fence, interfaces: str, command: list[str]
) -> None:
    with pytest.raises(OSError, match="a d8mesh child with D8_INTERFACES="):
        subprocess.run(command, env={**os.environ, "D8_INTERFACES": interfaces}, check=False)
    assert len(fence.broken) == 1


def test_a_host_of_its_own_is_for_the_tests_that_say_so(fence: Fence) -> None:
    with pytest.raises(OSError, match="not marked `namespace`"):
        subprocess.run(["ip", "netns", "exec", "d8-none", "true"], check=False)
