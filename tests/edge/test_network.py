"""Interfaces, reachable addresses, and who holds a port: on this machine's loopback."""

from __future__ import annotations

import http.server
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from d8mesh.core.addresses import host_is_allowed, host_of, is_admissible
from d8mesh.edge import network
from d8mesh.edge.network import (
    InterfaceAddress,
    ask_health,
    find_way,
    find_way_by_url,
    first_reachable,
    machine_id,
    own_names,
    port_holder,
    usable_addresses,
)
from d8mesh.errors import BrokerUnavailableError


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def machine_with(monkeypatch: pytest.MonkeyPatch, **cards: list[str]) -> None:
    """Let the operating system report these interfaces (``docker0=["172.17.0.1"]``)."""
    adapters = [
        SimpleNamespace(
            nice_name=name.replace("__", "-"),
            index=index,
            ips=[SimpleNamespace(ip=(ip, 0, 0) if ":" in ip else ip) for ip in ips],
        )
        for index, (name, ips) in enumerate(cards.items())
    ]
    monkeypatch.setattr(network, "adapters", lambda: adapters)


def addresses(*interfaces: str) -> list[str]:
    return [each.address for each in usable_addresses(interfaces)]


def test_what_this_machine_has_is_admissible() -> None:
    found = usable_addresses()
    assert found
    assert all(is_admissible(each.address) for each in found)


def test_limited_to_loopback_there_is_nothing_else() -> None:
    assert addresses("127.0.0.1") == ["127.0.0.1"]


def test_container_bridges_are_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(
        monkeypatch,
        lo=["127.0.0.1", "::1"],
        eth0=["172.17.0.9", "fe80::1", "fd00::1"],
        docker0=["172.17.0.1"],
        br__0123456789ab=["172.18.0.1"],
        virbr0=["192.168.122.1"],
        veth12ab34f=["169.254.1.1"],
        br0=["192.168.1.10"],
        veth1=["10.7.0.2"],
    )
    assert addresses() == ["192.168.1.10", "172.17.0.9", "10.7.0.2"]
    assert addresses("docker0") == ["172.17.0.1"], "named, it is wanted"
    assert addresses("192.168.1.10", "eth0") == ["192.168.1.10", "172.17.0.9"]


def test_an_offline_machine_has_its_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(
        monkeypatch, lo=["127.0.0.1", "::1"], eth0=["8.8.4.4", "fe80::1"], docker0=["172.17.0.1"]
    )
    assert usable_addresses() == (InterfaceAddress("lo", "127.0.0.1"),)


def test_ipv6_is_used_where_there_is_no_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(monkeypatch, lo=["127.0.0.1", "::1"], eth0=["fd00::2", "fe80::1"])
    assert addresses() == ["fd00::2"]


def test_an_interface_that_is_not_there_gives_nothing() -> None:
    assert addresses("nonesuch0") == []


def test_a_request_by_each_of_our_own_names_is_ours() -> None:
    names = own_names()
    assert {"127.0.0.1", socket.gethostname().lower().rstrip(".")} <= names
    for name in names:
        host = host_of(f"[{name}]:7001" if ":" in name else f"{name}:7001")
        assert host is not None
        assert host_is_allowed(host, names, ())


def test_the_address_that_accepts_is_found(listener: socket.socket, free_port: int) -> None:
    port = listener.getsockname()[1]
    dead, alive = ("127.0.0.1", free_port), ("127.0.0.1", port)
    assert first_reachable([dead, alive], deadline_s=30) == alive


def test_of_several_that_accept_one_is_taken_and_all_are_closed(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    first, second = ("127.0.0.1", port), ("127.0.0.2", port)
    found = first_reachable([first, second] if sys.platform == "linux" else [first], deadline_s=30)
    assert found == first
    listener.settimeout(30)
    peer, _ = listener.accept()
    with peer:
        peer.settimeout(30)
        assert peer.recv(1) == b""


def test_nothing_reachable_is_told_at_once_or_at_the_deadline(free_port: int) -> None:
    assert first_reachable([], deadline_s=30) is None
    assert first_reachable([("127.0.0.1", free_port)], deadline_s=30) is None
    assert first_reachable([("nonsense::", 1), ("127.0.0.1", free_port)], deadline_s=30) is None
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:
        full = [socket.socket() for _ in range(4)]
        for each in full:
            each.setblocking(False)
            each.connect_ex(deaf.getsockname())
        before = time.monotonic()
        first_reachable([deaf.getsockname()], deadline_s=0.2)
        assert time.monotonic() - before < 30
        for each in full:
            each.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_the_holder_of_a_port_is_named(listener: socket.socket, free_port: int) -> None:
    holder = port_holder(listener.getsockname()[1])
    assert holder is not None
    assert f"(process {os.getpid()})" in holder
    assert port_holder(free_port) is None


def test_this_machine_stays_itself() -> None:
    assert machine_id() == machine_id()
    assert len(machine_id()) == 16
    int(machine_id(), 16)


class _Health(http.server.BaseHTTPRequestHandler):
    body: bytes = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay quiet."""


@pytest.fixture
def health() -> Iterator[tuple[str, int]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Health)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    port = int(server.server_address[1])
    yield f"http://127.0.0.1:{port}", port
    server.shutdown()
    thread.join()
    server.server_close()


def test_zeromq_is_the_way_while_its_port_lets_us_through(
    listener: socket.socket, free_port: int, health: tuple[str, int]
) -> None:
    broker_port = listener.getsockname()[1]
    way = find_way(["127.0.0.1"], broker_port, health[1], deadline_s=30)
    assert way is not None
    assert (way.endpoint, way.is_http) == (f"tcp://127.0.0.1:{broker_port}", False)
    way = find_way(["127.0.0.1"], free_port, health[1], deadline_s=30)
    assert way is not None
    assert (way.endpoint, way.is_http) == (health[0], True)
    assert find_way(["127.0.0.1"], free_port, None, deadline_s=30) is None


def test_a_url_leads_to_the_broker_that_its_health_names(
    listener: socket.socket, free_port: int, health: tuple[str, int]
) -> None:
    url, broker_port = health[0], listener.getsockname()[1]
    _Health.body = json.dumps({"broker_port": broker_port}).encode()
    assert find_way_by_url(url, deadline_s=30).endpoint == f"tcp://127.0.0.1:{broker_port}"
    _Health.body = json.dumps({"broker_port": free_port}).encode()
    assert find_way_by_url(url, deadline_s=30).endpoint == url


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"broker_port": "x"}'])
def test_what_is_no_orchestrator_is_said_so(body: bytes, health: tuple[str, int]) -> None:
    _Health.body = body
    with pytest.raises(BrokerUnavailableError, match="orchestrator"):
        ask_health(health[0], deadline_s=30)


def test_a_url_where_nobody_answers_is_said_so(free_port: int) -> None:
    with pytest.raises(BrokerUnavailableError, match="no orchestrator answers"):
        ask_health(f"http://127.0.0.1:{free_port}", deadline_s=30)
