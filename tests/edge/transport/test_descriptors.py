"""Descriptors of connections: how many a process may have, and whose one of ZeroMQ's is."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from d8mesh.edge.transport.descriptors import duplicate


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
def test_the_limit_of_descriptors_is_raised_and_bounds_the_connections() -> None:
    code = (
        "import resource\n"
        "from d8mesh.edge.transport.descriptors import most_connections, raise_descriptor_limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (300, 2256))\n"
        "print(most_connections(1000))\n"
        "raise_descriptor_limit(500)\n"
        "print(most_connections(1000), resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
        "raise_descriptor_limit(4096)\n"
        "print(most_connections(1000), resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["22", "500", "1256", "1000", "2256"]


@pytest.mark.skipif(sys.platform == "win32", reason="pairs are TCP connections there")
def test_a_descriptor_that_is_another_sockets_by_now_is_nobodys() -> None:
    for one, other in (socket.socketpair(), (socket.socket(), socket.socket())):
        with one, other:
            assert duplicate(one.fileno()) == (None, "")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no port for both here")
def test_at_a_port_of_all_addresses_it_is_known_whose_a_connection_is() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        port = server.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            with socket.create_connection((address, port)), server.accept()[0] as accepted:
                handle, seen = duplicate(accepted.fileno())
                assert handle is not None
                handle.close()
                assert seen == address
