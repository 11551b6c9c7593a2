"""A store that is slow to confirm: the loop goes on, and nothing is promised before its time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from d8mesh.core.broker.effects import Load
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.codec import decode_to_client, decode_to_worker, encode
from d8mesh.core.protocol.task import Assigned, Submitted
from d8mesh.edge.transport.sockets import DealerLink
from d8mesh.nodes import broker
from tests.memory_store import MemoryDisk, MemoryStore
from tests.nodes.running import PATIENCE_S, Running, S, health, submit, until

#: A network's way there and back with a commit in between.
NETWORK_S = 0.05


class Slow:
    """A broker on a store whose commits become durable when its gate is open."""

    def __init__(
        self,
        folder: Path,
        *,
        disk: MemoryDisk | None = None,
        delay_s: float = 0.0,
        fail_at: int = 0,
    ) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.disk = disk or MemoryDisk()

        def open_store(folder: Path, wake: Callable[[], None]) -> MemoryStore:
            self.store = MemoryStore(
                self.disk, wake, delay_s=delay_s, gate=self.gate, fail_at=fail_at
            )
            return self.store

        self.running = Running(folder, open_store)

    def close_gate(self) -> None:
        """Let nothing become durable from now on; what was begun is."""
        wait_for(lambda: self.store.confirmed() == self.store.begun)
        self.gate.clear()

    def stop(self) -> None:
        self.gate.set()
        self.running.stop()


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Slow]:
    made = Slow(tmp_path)
    yield made
    made.stop()


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def submit_only(link: DealerLink, seq: int, first: int, count: int = 1) -> None:
    link.send(encode(m.Submit(seq, S, first, [m.Group("echo", 5, [b"\x80"] * count)])))


def settle(link: DealerLink) -> list[m.Message]:
    """Return what a client was sent up to the answer to a question, which waits for no commit."""
    link.send(encode(m.Query(77, "health", {})))
    heard: list[m.Message] = []
    deadline = time.monotonic() + PATIENCE_S
    while not any(map(_is_settled, heard)):
        assert time.monotonic() < deadline
        heard += [decode_to_client(frame) for frame in link.receive(100)]
    return [each for each in heard if not _is_settled(each)]


def _is_settled(message: m.Message) -> bool:
    return isinstance(message, m.Answer) and message.request == 77


def beat(link: DealerLink, work_seq: int, held: list[str]) -> list[m.Message]:
    """Send a heartbeat, and return what a worker was sent up to the answer to it."""
    link.send(encode(m.Heartbeat(work_seq, 1, len(held), 0, ["echo"], [], held)))
    heard: list[m.Message] = []
    deadline = time.monotonic() + PATIENCE_S
    while not any(isinstance(each, m.Beat) for each in heard):
        assert time.monotonic() < deadline
        heard += [decode_to_worker(frame) for frame in link.receive(100)]
    return [each for each in heard if not isinstance(each, m.Beat)]


def finish(link: DealerLink, seq: int, work: m.Work) -> None:
    (group,) = work.groups
    kinds = bytes([m.SUCCEEDED]) * len(group.ids)
    payloads = [b"\x81\xa7success\xc3"] * len(group.ids)
    link.send(encode(m.Results(seq, 1, group.ids, group.tokens, kinds, payloads)))


def test_the_loop_goes_on_and_acknowledgements_wait(slow: Slow) -> None:
    running = slow.running
    client, other, worker = running.client(), running.client("f" * 16), running.worker()
    slow.close_gate()
    submit_only(client, 1, 0)
    work = until(worker, m.Work)  # promises nothing
    assert work.groups[0].ids == [f"{S}-0"]
    assert beat(worker, 1, [f"{S}-0"]) == []
    assert health(other)["tasks_in_progress"] == 1
    submit_only(client, 2, 1)
    finish(worker, 1, work)
    assert until(worker, m.Work).groups[0].ids == [f"{S}-1"]
    assert settle(client) == []
    assert beat(worker, 2, [f"{S}-1"]) == []
    assert slow.disk.commits == []
    slow.gate.set()
    assert [until(client, m.Accepted).seq for _ in range(2)] == [1, 2]
    assert until(worker, m.Received).seq == 1


def test_a_hand_out_acknowledges_no_result_that_is_not_durable(slow: Slow) -> None:
    """A worker with one slot hears of its results with later assignments."""
    client, worker = slow.running.client(), slow.running.worker()
    submit(client, 1, 0, 4)
    work = until(worker, m.Work)
    slow.close_gate()
    for seq in (1, 2, 3):
        finish(worker, seq, work)
        work = until(worker, m.Work)
        assert work.received == []
    slow.gate.set()
    acknowledged = [until(worker, m.Received).seq for _ in range(2)]
    # The last one is acknowledged with an answer to the worker's next word.
    worker.send(encode(m.Heartbeat(4, 1, 1, 0, ["echo"], [], work.groups[0].ids)))
    acknowledged.append(until(worker, m.Received).seq)
    assert acknowledged == [1, 2, 3]


def test_nothing_overtakes_the_welcome_of_a_worker(slow: Slow) -> None:
    client, running = slow.running.client(), slow.running
    slow.close_gate()
    submit_only(client, 1, 0)
    settle(client)
    worker = running.link()
    mesh = running.config.mesh
    hello = m.WorkerHello(1, mesh, "w", "b", "t", "x", "h", 0, ["echo"], [], 2, 2, [], [])
    worker.send(encode(hello))
    wait_for(lambda: health(client)["tasks_in_progress"] == 1)
    submit_only(client, 2, 1)  # handed out by a later wake-up
    wait_for(lambda: health(client)["tasks_in_progress"] == 2)
    assert worker.receive(10) == []
    slow.gate.set()
    frames: list[bytes] = []
    while len(frames) < 2:
        wait_for(lambda: bool(worker.socket.poll(0)))
        frames += worker.receive(9)
    assert [type(decode_to_worker(frame)) for frame in frames[:2]] == [m.Welcome, m.Work]


def test_questions_are_answered_from_what_is_durable(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Load] = []
    questions = slow.running.broker._questions
    ask = questions.ask

    def note(load: Load) -> None:
        asked.append(load)
        ask(load)

    monkeypatch.setattr(questions, "ask", note)
    client, worker = slow.running.client(), slow.running.worker()
    submit(client, 1, 0)
    work = until(worker, m.Work)
    slow.close_gate()
    finish(worker, 1, work)
    wait_for(lambda: health(client)["tasks_in_progress"] == 0)
    client.send(encode(m.Query(5, "status", {"id": f"{S}-0"})))
    assert settle(client) == []
    assert asked == []
    slow.gate.set()
    assert until(client, m.Answer).body["state"] == "completed"


def test_what_a_commit_that_fails_and_later_ones_held_is_promised_to_nobody(
    tmp_path: Path,
) -> None:
    slow = Slow(tmp_path, fail_at=2)
    client = slow.running.client()
    submit(client, 1, 0)
    slow.close_gate()
    for seq in (2, 3, 4):
        submit_only(client, seq, seq)
        settle(client)
    slow.gate.set()
    slow.running.thread.join(PATIENCE_S)
    assert "the memory is full" in str(slow.running.error)
    assert not [f for f in client.receive(100) if isinstance(decode_to_client(f), m.Accepted)]
    slow.stop()
    again = Slow(tmp_path, disk=slow.disk)
    try:
        client = again.running.client()
        assert health(client)["tasks_pending"] == 1
        assert submit(client, 2, 2).first == 2  # said again it is taken
    finally:
        again.stop()


def test_a_stop_waits_for_what_was_begun(slow: Slow) -> None:
    client = slow.running.client()
    slow.close_gate()
    submit_only(client, 1, 0)
    settle(client)
    slow.running.broker.stop()
    until(client, m.Goodbye)
    assert slow.running.thread.is_alive()
    slow.gate.set()
    assert until(client, m.Accepted).seq == 1


def test_no_more_is_taken_in_than_may_be_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "MAX_HELD", 2)
    slow = Slow(tmp_path)
    try:
        client = slow.running.client()
        slow.close_gate()
        for seq in range(6):
            begun = slow.store.begun
            submit_only(client, seq, seq)
            deadline = time.monotonic() + 0.2
            while slow.store.begun == begun and time.monotonic() < deadline:
                time.sleep(0.002)
        assert slow.store.begun == 2
        slow.gate.set()
        assert [until(client, m.Accepted).seq for _ in range(6)] == list(range(6))
    finally:
        slow.stop()


def test_a_commit_is_measured_once_and_nothing_else_is(slow: Slow) -> None:
    """Neither assignments that are written later nor what only waits for a commit are commits."""
    running = slow.running
    client = running.client()
    submit(client, 1, 0)
    until(running.worker(), m.Work)  # nothing but an assignment is recorded
    slow.close_gate()
    submit_only(client, 2, 1)
    settle(client)
    for request in (5, 6):  # its answer waits for the commit
        client.send(encode(m.Query(request, "status", {"id": f"{S}-9"})))
        settle(client)
    slow.gate.set()
    assert [until(client, m.Answer).request for _ in range(2)] == [5, 6]
    slow.stop()
    measured = running.broker._dispatcher.state.metrics.copy().commit_s
    assert sum(measured.counts) == len(
        [facts for facts in slow.disk.commits if {type(fact) for fact in facts} != {Assigned}]
    )


def test_commits_across_a_network_overlap(tmp_path: Path) -> None:
    slow = Slow(tmp_path, delay_s=NETWORK_S)
    try:
        client = slow.running.client()
        heard: list[m.Message] = []
        for seq in range(20):
            submit_only(client, seq, seq)
            heard += settle(client)  # a wake-up each
        accepted = [each.seq for each in heard if isinstance(each, m.Accepted)]
        accepted += [until(client, m.Accepted).seq for _ in range(20 - len(accepted))]
        assert accepted == list(range(20))
        assert slow.store.most_in_flight > 3
        kept = [fact for facts in slow.disk.commits for fact in facts]
        assert [fact.first for fact in kept if isinstance(fact, Submitted)] == list(range(20))
    finally:
        slow.stop()
