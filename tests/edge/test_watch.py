"""The interfaces are asked for when they may have changed, and not otherwise."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

import ifaddr
import pytest

from d8mesh.edge.network import watch
from d8mesh.edge.network.watch import RELOOK_S, Adapters
from tests.end_to_end.hosts import available

ROOT: Final = Path(__file__).resolve().parents[2]
#: Runs in a network namespace of its own: prints the addresses, and how often they were asked
#: for, after each of three turns: as it was, unchanged, with one address more.
SCRIPT: Final = """
import subprocess, ifaddr
from d8mesh.edge.network.watch import adapters
looks = 0
look = ifaddr.get_adapters
def counted():
    global looks
    looks += 1
    return look()
ifaddr.get_adapters = counted
def turn():
    found = sorted(str(ip.ip) for each in adapters() for ip in each.ips if ip.is_IPv4)
    print(looks, found)
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
adapters(); turn(); turn()
subprocess.run(["ip", "address", "add", "10.9.8.7/32", "dev", "lo"], check=True)
turn(); turn()
"""


class Bell:
    """A netlink socket that says what a test wants."""

    def __init__(self, *said: bytes | OSError) -> None:
        self.said = list(said)
        self.is_closed = False

    def recv(self, size: int) -> bytes:
        assert not self.is_closed
        if not self.said:
            raise BlockingIOError
        said = self.said.pop(0)
        if isinstance(said, OSError):
            raise said
        return said[:size]

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every look at the system's interfaces."""
    found: list[int] = []

    def look() -> list[object]:
        found.append(1)
        return []

    monkeypatch.setattr(ifaddr, "get_adapters", look)
    return found


def bell_is(monkeypatch: pytest.MonkeyPatch, *bells: Bell | None) -> None:
    left = list(bells)
    monkeypatch.setattr(watch, "_subscribe", lambda: left.pop(0))


def test_while_nothing_is_told_the_system_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, looks: list[int]
) -> None:
    bell = Bell()
    bell_is(monkeypatch, bell)
    adapters = Adapters()
    for _ in range(5):
        adapters()
    assert len(looks) == 1
    bell.said = [b"a link", b"an address"]
    adapters()
    adapters()
    assert len(looks) == 2, "once for all that had been told"


def test_a_system_that_never_tells_is_asked_now_and_then(
    monkeypatch: pytest.MonkeyPatch, looks: list[int]
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    bell_is(monkeypatch, Bell())
    adapters = Adapters()
    adapters()
    now += RELOOK_S - 0.1
    adapters()
    assert len(looks) == 1
    now += 0.1
    adapters()
    assert len(looks) == 2


def test_without_such_a_socket_the_system_is_asked_each_time(
    monkeypatch: pytest.MonkeyPatch, looks: list[int]
) -> None:
    bell_is(monkeypatch, None)
    adapters = Adapters()
    adapters()
    adapters()
    assert len(looks) == 2


def test_notices_that_were_dropped_are_a_change(
    monkeypatch: pytest.MonkeyPatch, looks: list[int]
) -> None:
    full, fresh = Bell(), Bell()
    bell_is(monkeypatch, full, fresh)
    adapters = Adapters()
    adapters()
    full.said = [OSError(errno.ENOBUFS, "no buffer space")]
    adapters()
    adapters()
    assert (len(looks), full.is_closed, fresh.is_closed) == (2, True, False)


def test_a_child_of_a_fork_listens_for_itself(
    monkeypatch: pytest.MonkeyPatch, looks: list[int]
) -> None:
    of_parent, of_child = Bell(), Bell()
    bell_is(monkeypatch, of_parent, of_child)
    adapters = Adapters()
    adapters()
    monkeypatch.setattr("os.getpid", lambda: -1)
    adapters()
    adapters()
    assert (len(looks), of_parent.is_closed, of_child.is_closed) == (2, True, False)


def test_what_was_closed_begins_anew(monkeypatch: pytest.MonkeyPatch, looks: list[int]) -> None:
    first, second = Bell(), Bell()
    bell_is(monkeypatch, first, second)
    adapters = Adapters()
    adapters()
    adapters.close()
    assert first.is_closed
    adapters()
    assert len(looks) == 2


def test_a_look_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[object] = [[], OSError("no"), []]

    def look() -> object:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(ifaddr, "get_adapters", look)
    bell = Bell()
    bell_is(monkeypatch, bell)
    adapters = Adapters()
    adapters()
    bell.said = [b"news"]
    with pytest.raises(OSError, match="no"):
        adapters()
    assert adapters() == []
    assert not answers


@pytest.mark.skipif(sys.platform != "linux", reason="netlink is Linux'")
def test_this_system_lets_us_listen() -> None:
    bell = watch._subscribe()
    assert bell is not None
    assert bell.family == socket.AF_NETLINK
    bell.close()


@pytest.mark.skipif(bool(available()), reason=available() or "")
def test_an_address_that_comes_is_told_at_once() -> None:
    ran = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", SCRIPT],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    before, after = "['127.0.0.1']", "['10.9.8.7', '127.0.0.1']"
    assert ran.stdout.splitlines() == [f"1 {before}", f"1 {before}", f"2 {after}", f"2 {after}"]
