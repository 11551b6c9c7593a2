"""The hosts themselves, and discovery between three of them with nothing configured."""

from __future__ import annotations

import json
import queue
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from d8mesh.edge.discovery.listener import MAX_KNOWN
from tests.end_to_end.hosts import NETWORK, Host, Lan, available

if reason := available():
    pytest.skip(reason, allow_module_level=True)

pytestmark = pytest.mark.namespace

ROOT: Final = Path(__file__).resolve().parents[2]
NODE: Final = Path(__file__).with_name("mdns_node.py")
#: Seconds within which a slow, busy machine does it; the figures themselves are milliseconds.
PATIENCE_S: Final = 20.0

LISTENS: Final = """
import socket, sys
with socket.create_server(("0.0.0.0", int(sys.argv[1]))) as server:
    print("up", flush=True)
    while True:
        server.accept()[0].close()
"""
DIALS: Final = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3])).close()
except OSError as error:
    sys.exit(type(error).__name__)
"""


class Node:
    """An `mdns_node` on a host, and what it has said."""

    def __init__(self, host: Host, *args: str) -> None:
        self.process = host.popen(
            [sys.executable, str(NODE), *args],
            env={"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
        )
        self.said: queue.Queue[dict[str, Any]] = queue.Queue()
        self.sightings = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.until(event="started")

    def until(self, **wanted: object) -> dict[str, Any]:
        """Return the next line that has these values."""
        deadline = time.monotonic() + PATIENCE_S
        seen = []
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                line = self.said.get(timeout=left_s)
            except queue.Empty:
                break
            seen.append(line)
            if wanted.items() <= line.items():
                return line
        raise AssertionError(f"never said {wanted}, but {seen[-5:]}")

    def usage(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("usage\n")
        self.process.stdin.flush()
        return self.until(event="usage")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            line = json.loads(text)
            self.sightings += line["event"] == "sighting"
            self.said.put(line)


@pytest.fixture
def lan() -> Iterator[Lan]:
    with Lan(hosts=3) as made:
        yield made


@pytest.fixture
def mesh() -> str:
    return f"test-{secrets.token_hex(4)}"


def listens(host: Host, port: int) -> None:
    process = host.popen([sys.executable, "-c", LISTENS, str(port)])
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"


def reaches(host: Host, address: str, port: int, *, within_s: float = PATIENCE_S) -> bool:
    dial = [sys.executable, "-c", DIALS, address, str(port), str(within_s)]
    return host.run(dial).returncode == 0


def soon(condition: object) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    assert callable(condition)
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_nothing_is_left_of_a_lan_even_after_a_failure() -> None:
    lan = Lan(hosts=2)
    processes = []

    def fail() -> None:
        with lan:
            processes.append(lan.hosts[0].popen(["sleep", "1000"]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert processes[0].poll() is not None
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout.split()
    assert not {host.namespace for host in lan.hosts} & set(left)


def test_a_blocked_port_is_silent_and_its_neighbour_open(lan: Lan) -> None:
    near, far, _ = lan.hosts
    listens(far, 7010)
    listens(far, 7001)
    far.block_tcp(7010, 7019)
    assert not reaches(near, far.address, 7010, within_s=0.5)
    assert reaches(near, far.address, 7001)
    assert reaches(far, far.address, 7010), "a host reaches itself"
    far.unblock_tcp(7010, 7019)
    assert reaches(near, far.address, 7010)


def test_links_addresses_and_partitions_change_and_come_back(lan: Lan) -> None:
    near, far, third = lan.hosts
    for host in (far, third):
        listens(host, 7001)
    near.link_down()
    assert not reaches(near, far.address, 7001, within_s=0.5)
    near.link_up()
    assert soon(lambda: reaches(near, far.address, 7001, within_s=1))

    lan.partition([near, third])
    assert soon(lambda: reaches(near, third.address, 7001, within_s=1))
    assert not reaches(near, far.address, 7001, within_s=0.5)
    lan.heal()
    assert soon(lambda: reaches(near, far.address, 7001, within_s=1))

    lan.unplug(far)
    assert not reaches(near, far.address, 7001, within_s=0.5)
    lan.plug(far)
    assert soon(lambda: reaches(near, far.address, 7001, within_s=1))

    far.change_address(f"{NETWORK}.77")
    assert soon(lambda: reaches(near, f"{NETWORK}.77", 7001, within_s=1))


def test_hosts_see_each_other_with_nothing_configured(lan: Lan, mesh: str) -> None:
    waiting = Node(lan.hosts[1], mesh, "--browse", "ORCHESTRATOR")
    other_mesh = Node(lan.hosts[2], mesh + "x", "--browse", "ORCHESTRATOR")
    orchestrator = Node(
        lan.hosts[0], mesh, "--announce", "ORCHESTRATOR", "boot0", "7010", "--browse", "WORKER"
    )
    seen = waiting.until(event="sighting", boot="boot0")
    assert (seen["addresses"], seen["port"]) == ([lan.hosts[0].address], 7010)

    late = Node(
        lan.hosts[2], mesh, "--browse", "ORCHESTRATOR", "--announce", "WORKER", "boot2", "7200"
    )
    assert late.until(event="sighting", boot="boot0")["id"] == "id-boot0"
    assert orchestrator.until(event="sighting", boot="boot2")["addresses"] == [lan.hosts[2].address]
    orchestrator.stop()
    Node(lan.hosts[0], mesh, "--announce", "ORCHESTRATOR", "boot0", "7010")
    assert waiting.until(event="sighting")["boot"] == "boot0", "told at once after a goodbye"
    assert other_mesh.said.empty()


def test_same_machine_is_dialled_over_loopback(lan: Lan, mesh: str) -> None:
    Node(lan.hosts[0], mesh, "--announce", "ORCHESTRATOR", "boot0", "7010")
    near = Node(lan.hosts[0], mesh, "--browse", "ORCHESTRATOR")
    assert near.until(event="sighting")["addresses"] == ["127.0.0.1", lan.hosts[0].address]


def test_network_that_comes_late_and_changes_is_used(lan: Lan, mesh: str) -> None:
    first, second, _ = lan.hosts
    first._ip("address", "flush", "dev", "eth0")  # nothing but loopback is up
    Node(first, mesh, "--announce", "ORCHESTRATOR", "boot0", "7010")
    near = Node(first, mesh, "--browse", "ORCHESTRATOR")
    assert near.until(event="sighting")["addresses"] == ["127.0.0.1"]
    far = Node(second, mesh, "--browse", "ORCHESTRATOR")
    first.change_address(f"{NETWORK}.1")
    assert far.until(event="sighting", boot="boot0", addresses=[f"{NETWORK}.1"])
    first.change_address(f"{NETWORK}.99")
    assert f"{NETWORK}.99" in far.until(event="sighting", boot="boot0")["addresses"]


def test_what_was_missed_in_a_partition_is_asked_for(lan: Lan, mesh: str) -> None:
    waiting = Node(lan.hosts[1], mesh, "--browse", "ORCHESTRATOR")
    lan.partition([lan.hosts[1]])
    orchestrator = Node(
        lan.hosts[0],
        mesh,
        "--announce",
        "ORCHESTRATOR",
        "boot0",
        "7010",
        "--browse",
        "ORCHESTRATOR",
    )
    # Its three announcements are over when another host has had time to hear them all.
    Node(lan.hosts[2], mesh, "--browse", "ORCHESTRATOR").until(event="sighting", boot="boot0")
    orchestrator.usage()
    time.sleep(1.0)  # the announcements at 0, 0.225 and 0.45 s must be lost
    lan.heal()
    assert waiting.until(event="sighting", boot="boot0")


FLOOD: Final = """
import socket, struct, sys
mesh, count = sys.argv[1], int(sys.argv[2])
def name(text):
    return b"".join(bytes([len(p)]) + p for p in text.encode().split(b".")) + b"\\0"
def record(owner, kind, ttl, data, cls=1):
    return name(owner) + struct.pack("!HHIH", kind, cls, ttl, len(data)) + data
service = "_d8mesh._tcp.local"
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
out.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
out.bind(("", 5353))
def packet(n, ttl):
    own, host = f"rogue{n}.{service}", f"rogue{n}.local"
    pairs = (f"id=rogue{n}", f"boot=rogue{n}", f"mesh={mesh}", "version=1")
    txt = b"".join(bytes([len(p)]) + p.encode() for p in pairs)
    address = bytes([10, 77, n >> 8 & 255, n & 255])
    records = [record(service, 12, ttl, name(own)),
               record(own, 33, ttl, struct.pack("!HHH", 0, 0, 7010) + name(host)),
               record(own, 16, ttl, txt), record(host, 1, ttl, address)]
    return struct.pack("!6H", 0, 0x8400, 0, 4, 0, 0) + b"".join(records)
for n in range(count):
    for ttl in (4500, 0) if len(sys.argv) > 3 else (4500,):
        out.sendto(packet(n, ttl), ("224.0.0.251", 5353))
"""


@pytest.mark.parametrize("goodbyes", [False, True], ids=["services", "goodbyes"])
def test_a_flood_of_services_grows_nothing(lan: Lan, mesh: str, *, goodbyes: bool) -> None:
    waiting = Node(lan.hosts[1], mesh, "--browse", "ORCHESTRATOR")
    flood = [sys.executable, "-c", FLOOD, mesh]
    assert lan.hosts[2].run([*flood, "1000"]).returncode == 0
    before_kb = waiting.usage()["resident_kb"]
    done = lan.hosts[2].run([*flood, "10000", *(["goodbyes"] if goodbyes else [])])
    assert done.returncode == 0, done.stderr
    after = waiting.usage()
    assert after["resident_kb"] - before_kb < 40_000, after
    assert waiting.process.poll() is None
    if not goodbyes:
        assert 0 < waiting.sightings <= 2 * MAX_KNOWN, "candidates are bounded"
