"""Announcing and hearing over real multicast, on loopback alone, in a mesh of its own."""

from __future__ import annotations

import os
import queue
import secrets
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from zeroconf import ServiceInfo, Zeroconf

from d8mesh.core.protocol.addresses import LOOPBACK
from d8mesh.edge import discovery as room
from d8mesh.edge.discovery import Announcement, Discovery, NodeKind, Sighting
from d8mesh.edge.discovery.announced import OLLAMA_TYPE, AnnouncedServices

#: Seconds for what takes milliseconds, on a loaded machine.
PATIENCE_S: Final = 20.0
ROOT: Final = Path(__file__).resolve().parents[2]
SERVICE: Final = NodeKind.ORCHESTRATOR.value


class Ears:
    """A `Discovery` and what it has told, in order."""

    def __init__(
        self,
        mesh: str,
        *browse: NodeKind,
        addresses: Callable[[], Collection[str]] = lambda: [LOOPBACK],
    ) -> None:
        self.told: queue.Queue[Any] = queue.Queue()
        self.troubles: queue.Queue[str] = queue.Queue()
        self.discovery = Discovery(
            mesh=mesh,
            addresses=addresses,
            on_sighting=self.told.put,
            browse=browse,
            on_trouble=self.troubles.put,
        )
        self.discovery.start()

    def sighting(self) -> Sighting:
        heard = self.told.get(timeout=PATIENCE_S)
        assert isinstance(heard, Sighting), heard
        return heard


Start = Callable[..., Ears]


@pytest.fixture
def mesh() -> str:
    return f"test-{secrets.token_hex(6)}"


@pytest.fixture
def start(mesh: str) -> Iterator[Start]:
    started: list[Ears] = []

    def make(*browse: NodeKind, of_mesh: str = mesh, **how: Any) -> Ears:
        started.append(Ears(of_mesh, *browse, **how))
        return started[-1]

    yield make
    for each in started:
        each.discovery.close()


def saying(mesh: str, kind: NodeKind = NodeKind.ORCHESTRATOR, **changed: Any) -> Announcement:
    boot = changed.pop("boot_id", secrets.token_hex(8))
    values: dict[str, Any] = {
        "node_id": f"node-{boot}",
        "port": 7010,
        "web_port": 7001,
        "version": "0.1.0",
        **changed,
    }
    return Announcement(kind=kind, mesh=mesh, boot_id=boot, **values)


def holds(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_who_waits_hears_who_comes(mesh: str, start: Start) -> None:
    waiting = start(NodeKind.ORCHESTRATOR)
    said = saying(mesh)
    speaker = start()
    speaker.discovery.announce(said)
    heard = waiting.sighting()
    assert heard == Sighting(
        kind=said.kind,
        node_id=said.node_id,
        boot_id=said.boot_id,
        mesh=mesh,
        addresses=(LOOPBACK,),
        port=7010,
        web_port=7001,
        version="0.1.0",
    )


def test_who_comes_late_hears_who_is_there(mesh: str, start: Start) -> None:
    speaker = start()
    said = saying(mesh, web_port=None)
    speaker.discovery.announce(said)
    assert start(NodeKind.ORCHESTRATOR).sighting().boot_id == said.boot_id
    assert start(NodeKind.ORCHESTRATOR).sighting().web_port is None


def test_both_kinds_are_told_apart_and_nobody_hears_itself(mesh: str, start: Start) -> None:
    orchestrator, worker = start(*NodeKind), start(*NodeKind)
    orchestrator.discovery.announce(saying(mesh, boot_id="aaaa1111"))
    worker.discovery.announce(saying(mesh, NodeKind.WORKER, boot_id="bbbb2222", port=7200))
    assert orchestrator.sighting().boot_id == "bbbb2222"
    assert worker.sighting().boot_id == "aaaa1111"
    third = start(*NodeKind)
    assert {third.sighting().kind, third.sighting().kind} == set(NodeKind)
    assert orchestrator.told.empty()
    assert worker.told.empty()


def test_other_meshes_are_not_told(mesh: str, start: Start) -> None:
    ours = start(NodeKind.ORCHESTRATOR)
    other = start(NodeKind.ORCHESTRATOR, of_mesh=mesh + "-b")
    speaker = start()
    speaker.discovery.announce(saying(mesh + "-b"))
    other.sighting()
    speaker.discovery.announce(saying(mesh, boot_id="cccc3333"))
    assert ours.sighting().boot_id == "cccc3333"


def test_a_new_announcement_takes_the_place_of_the_old_one(mesh: str, start: Start) -> None:
    waiting, speaker = start(NodeKind.ORCHESTRATOR), start()
    speaker.discovery.announce(saying(mesh, boot_id="dddd4444"))
    assert waiting.sighting().port == 7010
    speaker.discovery.announce(saying(mesh, boot_id="dddd4444", port=7011))
    assert waiting.sighting().port == 7011
    speaker.discovery.announce(saying(mesh, boot_id="eeee5555"))
    while (boot_id := waiting.sighting().boot_id) == "dddd4444":
        pass  # an answer that was on its way when it was taken back
    assert boot_id == "eeee5555"


def test_a_process_that_is_killed_is_heard_again_when_it_comes_back(
    mesh: str, start: Start
) -> None:
    waiting = start(NodeKind.ORCHESTRATOR)
    node = ROOT / "tests" / "end_to_end" / "mdns_node.py"
    announcing = ["--announce", "ORCHESTRATOR"]
    for boot in ("ffff0001", "ffff0002"):
        process = subprocess.Popen(
            [sys.executable, str(node), mesh, "--on", LOOPBACK, *announcing, boot, "7010"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        with process:
            assert waiting.sighting().boot_id == boot
            process.kill()


def test_a_network_that_is_absent_is_said_once_and_waited_for(
    mesh: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ADDRESSES_LOOK_S", 0.2)
    there: list[str] = []
    looks = threading.Semaphore(0)

    def addresses() -> list[str]:
        looks.release()
        return list(there)

    late = start(NodeKind.ORCHESTRATOR, addresses=addresses)
    assert "no usable network interface" in late.troubles.get(timeout=PATIENCE_S)
    speaker = start()
    speaker.discovery.announce(saying(mesh))
    looks.acquire(timeout=PATIENCE_S)
    assert looks.acquire(timeout=PATIENCE_S), "it looks again and again"
    there.append(LOOPBACK)
    late.sighting()
    assert late.troubles.empty()


def test_a_look_that_fails_does_not_end_it(
    mesh: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ADDRESSES_LOOK_S", 0.2)
    failures = iter([OSError("no such device")])

    def addresses() -> list[str]:
        for failure in failures:
            raise failure
        return [LOOPBACK]

    speaker = start(addresses=addresses)
    speaker.discovery.announce(saying(mesh))
    assert "no such device" in speaker.troubles.get(timeout=PATIENCE_S)
    start(NodeKind.ORCHESTRATOR).sighting()


def test_closing_is_quick_and_may_come_at_any_time(mesh: str) -> None:
    never = Discovery(mesh=mesh, addresses=lambda: [LOOPBACK])
    never.close()
    at_once = Ears(mesh, NodeKind.WORKER)
    at_once.discovery.close()
    at_once.discovery.close()
    at_once.discovery.announce(saying(mesh))
    assert holds(lambda: all(thread.name != "discovery" for thread in threading.enumerate()))


# ------------------------------------------------------------------- hostile packets


def name(text: str) -> bytes:
    labels = text.rstrip(".").encode().split(b".")
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def record(owner: str, kind: int, data: bytes, ttl: int) -> bytes:
    return name(owner) + struct.pack("!HHIH", kind, 1, ttl, len(data)) + data


def rogue(
    label: str,
    pairs: list[bytes],
    *,
    ip: str = LOOPBACK,
    port: int = 7010,
    of: str = "PSTA",
    ttl: int = 120,
) -> None:
    """Multicast on loopback what a service of this name might say of itself.

    Args:
        of: which records it sends: PTR, SRV, TXT, A by their first letters.
    """
    instance, host = f"{label}.{SERVICE}", f"{label}.local."
    txt = b"".join(bytes([len(each)]) + each for each in pairs)
    all_records = {
        "P": record(SERVICE, 12, name(instance), ttl),
        "S": record(instance, 33, struct.pack("!HHH", 0, 0, port) + name(host), ttl),
        "T": record(instance, 16, txt, ttl),
        "A": record(host, 1, socket.inet_aton(ip), ttl),
    }
    records = [all_records[letter] for letter in of]
    packet = struct.pack("!6H", 0, 0x8400, 0, len(records), 0, 0) + b"".join(records)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
        out.sendto(packet, ("224.0.0.251", 5353))


def pairs_of(mesh: str, boot: str) -> list[bytes]:
    return [f"{k}={v}".encode() for k, v in (("id", boot), ("boot", boot), ("mesh", mesh))] + [
        b"version=1"
    ]


def ready(mesh: str, start: Start) -> Ears:
    """Return ears that certainly listen already."""
    ears, speaker = start(NodeKind.ORCHESTRATOR), start()
    speaker.discovery.announce(saying(mesh))
    ears.sighting()
    return ears


@pytest.mark.parametrize("ip", ["8.8.8.8", "224.0.0.1", "169.254.169.254", "0.0.0.0"])
def test_an_address_that_is_none_of_a_lan_is_said_once_and_ignored(
    ip: str, mesh: str, start: Start
) -> None:
    ears = ready(mesh, start)
    label = f"rogue-{secrets.token_hex(4)}"
    for version in (b"a=1", b"a=2", b"a=3"):
        rogue(label, [*pairs_of(mesh, "rogue"), version], ip=ip)
    assert ip in ears.troubles.get(timeout=PATIENCE_S)
    rogue(f"{label}x", pairs_of(mesh, "good"))
    assert ears.sighting().boot_id == "good"
    assert ears.troubles.empty()


@pytest.mark.parametrize(
    "pairs",
    [
        [b"id=\xff\xfe"],
        [b"id=again"],
        [b"pad%d=" % n + b"x" * 200 for n in range(8)],
        [b"web=none"],
    ],
    ids=["not UTF-8", "twice", "oversize", "no port"],
)
def test_an_odd_txt_record_is_told_of_and_ignored(
    pairs: list[bytes], mesh: str, start: Start
) -> None:
    ears = ready(mesh, start)
    label = f"rogue-{secrets.token_hex(4)}"
    rogue(label, [*pairs_of(mesh, "rogue"), *pairs])
    assert "ignored" in ears.troubles.get(timeout=PATIENCE_S)
    rogue(f"{label}x", pairs_of(mesh, "good"))
    assert ears.sighting().boot_id == "good"


def test_who_comes_back_after_a_goodbye_is_told_of_at_once(mesh: str, start: Start) -> None:
    ears = ready(mesh, start)
    label = f"rogue-{secrets.token_hex(4)}"
    rogue(label, pairs_of(mesh, "one"))
    assert ears.sighting().boot_id == "one"
    rogue(label, [], of="P", ttl=0)
    rogue(f"{label}x", pairs_of(mesh, "other"))
    assert ears.sighting().boot_id == "other"  # so the goodbye was looked at too
    rogue(label, pairs_of(mesh, "one"), of="ATSP")  # the very same packet would be dropped
    assert ears.sighting().boot_id == "one"


def test_port_0_is_ignored(mesh: str, start: Start) -> None:
    ears = ready(mesh, start)
    label = f"rogue-{secrets.token_hex(4)}"
    rogue(label, pairs_of(mesh, "rogue"), port=0)
    assert "port 0" in ears.troubles.get(timeout=PATIENCE_S)
    assert ears.told.empty()


def test_garbage_on_the_port_harms_nobody(mesh: str, start: Start) -> None:
    ears = ready(mesh, start)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
        for size in (0, 1, 11, 12, 500, 8000):
            out.sendto(secrets.token_bytes(size), ("224.0.0.251", 5353))
            out.sendto(
                b"\0\0\x84\0\0\0\xff\xff\0\0\0\0" + b"\xc0\x0c" * size, ("224.0.0.251", 5353)
            )
    rogue(f"after-{secrets.token_hex(4)}", pairs_of(mesh, "good"))
    assert ears.sighting().boot_id == "good"


def test_a_service_that_tells_its_name_alone_is_asked_for_the_rest(mesh: str, start: Start) -> None:
    ears = ready(mesh, start)
    label = f"bit-by-bit-{secrets.token_hex(4)}"
    rogue(label, [], of="P")
    rogue(f"{label}x", pairs_of(mesh, "other"))
    assert ears.sighting().boot_id == "other"  # the name alone was looked at before this one
    rogue(label, pairs_of(mesh, "slow"), of="STA")
    assert ears.sighting().boot_id == "slow"


def test_a_name_without_a_service_is_asked_for_and_given_up(mesh: str, start: Start) -> None:
    ears = ready(mesh, start)
    listener = ears.discovery._listener
    assert listener is not None
    rogue(f"silent-{secrets.token_hex(4)}", [], of="P")
    assert holds(lambda: bool(listener._resolving))
    assert holds(lambda: not listener._resolving)
    assert ears.told.empty()


def test_an_address_that_is_added_later_is_told(mesh: str, start: Start) -> None:
    ears = ready(mesh, start)
    label = f"grows-{secrets.token_hex(4)}"
    rogue(label, pairs_of(mesh, "grows"))
    assert ears.sighting().addresses == (LOOPBACK,)
    rogue(label, [], of="A", ip="10.77.1.2")
    assert set(ears.sighting().addresses) == {LOOPBACK, "10.77.1.2"}


def test_a_callback_that_raises_does_not_end_it(mesh: str, start: Start) -> None:
    heard: queue.Queue[str] = queue.Queue()

    def tell(sighting: Sighting) -> None:
        heard.put(sighting.boot_id)
        raise ZeroDivisionError

    discovery = Discovery(
        mesh=mesh, addresses=lambda: [LOOPBACK], on_sighting=tell, browse=[NodeKind.ORCHESTRATOR]
    )
    discovery.start()
    try:
        speaker = start()
        for boot in ("1111aaaa", "2222bbbb"):
            speaker.discovery.announce(saying(mesh, boot_id=boot))
            assert heard.get(timeout=PATIENCE_S) == boot
    finally:
        discovery.close()


def test_an_announced_ollama_is_heard_and_its_goodbye_too() -> None:
    heard: queue.Queue[Collection[str]] = queue.Queue()
    listener = AnnouncedServices(addresses=lambda: [LOOPBACK], on_change=heard.put)
    listener.start()
    name = f"ollama-{secrets.token_hex(4)}"
    said = Zeroconf(interfaces=[LOOPBACK])
    try:
        info = ServiceInfo(
            OLLAMA_TYPE,
            f"{name}.{OLLAMA_TYPE}",
            port=11434,
            server=f"{name}.local.",
            parsed_addresses=["8.8.8.8", LOOPBACK],
        )
        said.register_service(info)
        url = f"http://{LOOPBACK}:11434"
        while url not in heard.get(timeout=PATIENCE_S):
            pass
        said.unregister_service(info)
        while url in heard.get(timeout=PATIENCE_S):
            pass
    finally:
        said.close()
        listener.close()


def test_where_no_network_is_up_the_listener_says_so_once() -> None:
    troubles: queue.Queue[str] = queue.Queue()
    listener = AnnouncedServices(
        addresses=lambda: [], on_change=lambda urls: None, on_trouble=troubles.put
    )
    listener.start()
    assert "no usable network interface" in troubles.get(timeout=PATIENCE_S)
    listener.close()
    assert troubles.empty()
