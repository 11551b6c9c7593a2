"""Too slow, too many, or no room: who does that is turned away, and nobody else notices.

The numbers are those of the list of bad inputs in `docs/SECURITY.md`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from bench.processes import raise_descriptor_limit
from d8mesh.http.connection import BODY_S, HEADERS_S
from d8mesh.http.server import MAX_PER_ADDRESS
from tests.end_to_end.processes import until
from tests.security.abuse import Abused, abused_mesh
from tests.security.door_cases import REST, check_form
from tests.security.raw_http import answer_of, head

TASK: Final = {"type": "nobody", "data": {}}
#: That dribble at the same time.
DRIBBLERS: Final = 300
#: One byte of each so often: many within every deadline.
DRIBBLE_S: Final = 0.5
#: A disk has so much less before it is nearly full.
BALLAST_MB: Final = 1500
#: Beyond the longest deadline, on a slow machine.
OVER_S: Final = 30.0
#: A second address of this machine (Linux): its connections count apart.
ELSEWHERE: Final = "127.0.0.9"
linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="only there every address of 127.0.0.0/8 is this machine's"
)


@pytest.fixture(scope="module")
def abused() -> Iterator[Abused]:
    with abused_mesh() as made:
        yield made


@contextlib.contextmanager
def connections(abused: Abused, count: int, source: str) -> Iterator[list[socket.socket]]:
    """Have so many connections from an address."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                socket.create_connection(abused.http.address, OVER_S, source_address=(source, 0))
            )
            for _ in range(count)
        ]


@pytest.mark.slow
@pytest.mark.timeout(240)
@linux_only
def test_08_who_dribbles_heads_or_bodies_is_cut_off_by_the_deadlines(abused: Abused) -> None:
    """Half of them never end their head, half never their body; a silent one is no refusal."""
    begun = head("POST", REST.path, "Content-Type: application/json", "Content-Length: 1000")
    with (
        abused.refused("rest", "http.timeout", times=DRIBBLERS),
        connections(abused, DRIBBLERS + 1, ELSEWHERE) as open_now,
    ):
        *dribblers, silent = open_now
        for n, each in enumerate(dribblers):
            each.sendall(begun[:-2] + b"X-Slow: " if n % 2 else begun)
        begun_at = time.monotonic()
        left = set(dribblers)
        while left:
            assert time.monotonic() - begun_at < BODY_S + OVER_S, f"{len(left)} are still there"
            abused.goes_on()
            time.sleep(DRIBBLE_S)
            left = {each for each in left if _dribbles(each)}
        assert time.monotonic() - begun_at > HEADERS_S / 2
        assert answer_of(silent).status == 0  # and it is closed


def _dribbles(connection: socket.socket) -> bool:
    """Send one byte more; False: the other side has closed."""
    try:
        connection.sendall(b"x")
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            return bool(connection.recv(1000))
        connection.setblocking(True)
    except OSError:
        return False
    return True


@linux_only
@pytest.mark.skipif(
    raise_descriptor_limit(2 * MAX_PER_ADDRESS) < MAX_PER_ADDRESS + 200,
    reason="this process may not have so many connections",
)
def test_08_an_address_has_its_share_of_connections_and_others_theirs(abused: Abused) -> None:
    with connections(abused, MAX_PER_ADDRESS, ELSEWHERE):
        with abused.refused("rest", "access.flood"), connections(abused, 1, ELSEWHERE) as (one,):
            check_form(answer_of(one), REST, 429)
        assert abused.http.ask("GET", "/api/tasks").status == 200
    until(lambda: _is_let_in(abused), "room again")


def _is_let_in(abused: Abused) -> bool:
    with connections(abused, 1, ELSEWHERE) as (one,):
        one.sendall(head("GET", "/health"))
        return answer_of(one).status == 200


def test_14_a_full_queue_takes_no_more_and_says_when_to_come_again() -> None:
    with abused_mesh(settings={"TASK_QUEUE_SIZE": "5"}) as abused:
        before, told = abused.rejected(), abused.http.post(REST.path, TASK)
        while told.status == 201:
            before = abused.rejected()
            told = abused.http.post(REST.path, TASK)
        check_form(told, REST, 429)
        assert int(told.field("retry-after") or 0) >= 1
        changed = abused.rejected() - before
        assert changed["rest", "queue.full"] == 1
        assert {code for _, code in changed} == {"queue.full"}  # the neighbour is told so too
        # The neighbour's own tasks wait for room: it goes on once there is some.
        for task in abused.http.ask("GET", "/api/tasks?type=nobody").json["tasks"]:
            assert abused.http.ask("POST", f"/api/tasks/{task['task_id']}/cancel").status == 200
        abused.goes_on()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no way to fill a disk at once")
def test_14_a_disk_that_is_nearly_full_takes_no_task_and_says_so(tmp_path: Path) -> None:
    """The reserve is nearly all that is free; a file takes the rest, and lets it go again."""
    free_mb = shutil.disk_usage(tempfile.gettempdir()).free // 1_000_000
    if free_mb < 3 * BALLAST_MB:
        pytest.skip("this disk is too full for it")
    settings = {"D8_DISK_RESERVE_MB": str(free_mb - BALLAST_MB)}
    with abused_mesh(settings=settings) as abused:
        ballast = tmp_path / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 2 * BALLAST_MB * 1_000_000)
        until(lambda: abused.http.ask("GET", "/health").status == 503, "the disk is low")
        assert abused.http.ask("GET", "/health").json["is_accepting"] is False
        before = abused.rejected()
        told = abused.http.post(REST.path, TASK)
        check_form(told, REST, 507)
        assert int(told.field("retry-after") or 0) >= 1
        changed = abused.rejected() - before
        assert changed["rest", "disk.low"] == 1
        assert {code for _, code in changed} == {"disk.low"}
        ballast.unlink()
        abused.goes_on()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no process can be paused here")
def test_14_while_the_broker_does_not_answer_nothing_is_taken(abused: Abused) -> None:
    broker = abused.node("_broker").process
    before = abused.rejected()
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        until(lambda: abused.http.ask("GET", "/api/stats").status == 503, "the broker is missed")
        told = abused.http.post(REST.path, TASK)
        check_form(told, REST, 503)
        assert int(told.field("retry-after") or 0) >= 1
        assert abused.http.ask("GET", "/health").status == 503
    finally:
        os.kill(broker.pid, signal.SIGCONT)
    abused.goes_on()
    assert {code for _, code in abused.rejected() - before} <= {
        "broker.unavailable",
        "wait.timeout",
    }
