"""Interfaces, reachable addresses, and who holds a port: on this machine's loopback."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import platformdirs
import pytest

from d8mesh.apps.demo import free_ports
from d8mesh.core.protocol.addresses import host_is_allowed, host_of, is_admissible
from d8mesh.edge import network
from d8mesh.edge.network import (
    InterfaceAddress,
    bind,
    first_reachable,
    host_name,
    is_taken_unseen,
    machine,
    machine_id,
    own_names,
    port_holder,
    ports,
    unknown_interfaces,
    usable_addresses,
)
from d8mesh.edge.network.machine import MAX_HOST_CHARS


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def free_port() -> int:
    return free_ports(1)[0]


def machine_with(monkeypatch: pytest.MonkeyPatch, **cards: list[str]) -> None:
    """Let the operating system report these interfaces (``docker0=["172.17.0.1"]``)."""
    adapters = [
        SimpleNamespace(
            name=name.replace("__", "-"),
            nice_name=name.replace("__", "-"),
            index=index,
            ips=[
                SimpleNamespace(
                    ip=(ip, 0, 0) if ":" in ip else ip, nice_name=name.replace("__", "-")
                )
                for ip in ips
            ],
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


def windows_with(monkeypatch: pytest.MonkeyPatch, **cards: tuple[str, str]) -> None:
    """Let Windows report these cards, as `ifaddr` has them: (description, name -> address)."""
    adapters = [
        SimpleNamespace(
            name=b"{GUID}" + description.encode(),
            nice_name=description,
            index=index,
            ips=[SimpleNamespace(ip=address, nice_name=name.replace("__", "-"))],
        )
        for index, (name, (description, address)) in enumerate(cards.items())
    ]
    monkeypatch.setattr(network, "adapters", lambda: adapters)
    monkeypatch.setattr(sys, "platform", "win32")


def test_windows_cards_go_by_the_names_that_windows_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    hyper_v = "Hyper-V Virtual Ethernet Adapter"
    given = {
        "Ethernet": ("Intel(R) Ethernet Connection I219-V", "192.168.1.10"),
        "Wi-Fi": ("Intel(R) Wi-Fi 6 AX201 160MHz", "192.168.2.10"),
        "vEthernet (WSL (Hyper-V firewall))": (hyper_v, "172.28.16.1"),
        "vEthernet (Default Switch)": (f"{hyper_v} #2", "172.29.16.1"),
        "vEthernet (Extern)": (f"{hyper_v} #3", "10.0.0.5"),
        "VirtualBox Host-Only Network": ("VirtualBox Host-Only Ethernet Adapter", "192.168.56.1"),
        "Loopback Pseudo-Interface 1": ("Software Loopback Interface 1", "127.0.0.1"),
    }
    windows_with(monkeypatch, **given)
    assert addresses() == ["192.168.1.10", "192.168.2.10", "10.0.0.5"]
    assert addresses("Ethernet") == ["192.168.1.10"]
    assert addresses("ethernet", "WI-FI") == ["192.168.1.10", "192.168.2.10"]
    assert addresses("vEthernet (Default Switch)") == ["172.29.16.1"], "named, it is wanted"
    assert usable_addresses(("Wi-Fi",)) == (InterfaceAddress("Wi-Fi", "192.168.2.10"),)
    names = ("Ethernet", "Intel(R) Wi-Fi 6 AX201 160MHz", "10.0.0.5", "Ethernet 7")
    assert unknown_interfaces(names) == ("Ethernet 7",)


def test_macos_links_to_virtual_machines_and_tunnels_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cards = {
        "lo0": ["127.0.0.1", "::1"],
        "en0": ["192.168.1.10"],
        "bridge0": ["10.8.0.1"],
        "bridge100": ["192.168.64.1"],
        "bridge101": ["192.168.65.1"],
        "vmenet0": ["192.168.66.1"],
        "awdl0": ["169.254.7.7"],
        "llw0": ["169.254.8.8"],
        "utun4": ["10.9.0.2"],
    }
    machine_with(monkeypatch, **cards)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert addresses() == ["10.8.0.1", "192.168.1.10"]
    assert addresses("utun4") == ["10.9.0.2"], "named, it is wanted"
    monkeypatch.setattr(sys, "platform", "linux")
    assert "192.168.64.1" in addresses(), "such names mean nothing there"


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


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_the_holder_of_a_port_is_named(
    listener: socket.socket, free_port: int, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    if platform != "linux":
        pytest.importorskip("psutil")
    elif sys.platform != "linux":
        pytest.skip("only Linux has /proc")
    monkeypatch.setattr(sys, "platform", platform)
    holder = port_holder(listener.getsockname()[1])
    assert holder is not None
    assert f"(process {os.getpid()})" in holder
    assert port_holder(free_port) is None


def test_without_psutil_the_holder_is_not_named(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert port_holder(listener.getsockname()[1]) is None


def test_where_a_bind_sees_nothing_a_taken_port_is_found_by_asking(
    listener: socket.socket, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = listener.getsockname()[1]
    assert not is_taken_unseen("0.0.0.0", taken), "Linux and Windows refuse the bind itself"
    monkeypatch.setattr(sys, "platform", "darwin")
    for host in ("0.0.0.0", "127.0.0.1", "::", "*"):
        assert is_taken_unseen(host, taken)
        assert not is_taken_unseen(host, free_port)
    with pytest.raises(OSError, match="in use") as caught:
        bind("0.0.0.0", taken)
    assert caught.value.errno == errno.EADDRINUSE
    bind("127.0.0.1", 0).close()


def test_windows_lets_nobody_share_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sys.platform == "win32" or ports.reuse_option() == socket.SO_REUSEADDR
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", -5, raising=False)
    assert ports.reuse_option() == -5


def test_a_host_name_that_is_no_utf_8_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "caf\udce9\x1b[31m" + "x" * 200)
    name = host_name()
    assert name.startswith("caf\ufffd\ufffd[31mx")
    assert len(name) == MAX_HOST_CHARS
    name.encode("utf-8")
    json.dumps(sorted(own_names()))
    monkeypatch.setattr(machine, "_system_id", lambda: "")
    monkeypatch.setattr(uuid, "getnode", lambda: 1 << 40)  # made up: the name stands for it
    int(machine_id(), 16)


def test_on_macos_the_id_of_the_machine_is_written_down(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(machine, "_system_id", lambda: "")
    monkeypatch.setattr(platformdirs, "user_data_path", lambda *_, **__: tmp_path / "d8mesh")
    first = machine_id()
    monkeypatch.setattr(uuid, "getnode", lambda: 7)  # another card was plugged in
    assert machine_id() == first
    assert [each.name for each in (tmp_path / "d8mesh").iterdir()] == ["machine-id"]
    (tmp_path / "d8mesh" / "machine-id").unlink()
    assert machine_id() != first
    monkeypatch.setattr(platformdirs, "user_data_path", lambda *_, **__: Path(os.devnull) / "x")
    assert machine_id() == machine_id(), "by its card where nothing can be written"


def test_this_machine_stays_itself() -> None:
    assert machine_id() == machine_id()
    assert len(machine_id()) == 16
    int(machine_id(), 16)
