"""The broker over a real socket: bad input, restarts, refusals; the queue is intact after all."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import msgpack
import pytest

from d8mesh.core.broker import deferral, dispatcher
from d8mesh.core.broker.store import Question, StoreAnswer
from d8mesh.core.broker.strikes import BURST_STRIKES
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.codec import decode_to_client, encode
from d8mesh.edge.sqlite import files
from d8mesh.edge.transport.keys import new_pair
from d8mesh.errors import JournalBrokenError, JournalError, JournalHeldError
from d8mesh.nodes.broker import ANSWERED_STRIKES, JOURNAL_NAME, Broker
from tests.memory_store import MemoryDisk, MemoryStore
from tests.nodes.mesh import mesh_in
from tests.nodes.running import PATIENCE_S, Running, S, health, submit, until


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path)
    yield made
    made.stop()


GARBAGE = [
    b"", b"\x00", b"\xff" * 100, b"GET / HTTP/1.1\r\n\r\n", b"\x91" * 10_000,
    b"\xdd\xff\xff\xff\xff",
    msgpack.packb([99, "x"]), msgpack.packb([21, 1]), msgpack.packb([10] + [None] * 14),
    msgpack.packb([22, ["x" * 10_000]]), encode(m.Beat(1)),
]  # fmt: skip


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_gets_a_clear_answer_and_harms_nobody(running: Running, garbage: bytes) -> None:
    client, stranger = running.client(), running.link()
    submit(client, 1, 0, 3)
    stranger.send(garbage)
    refused = until(stranger, m.Refused)
    assert (refused.seq, refused.code) == (0, "protocol.invalid")
    body = health(client)
    assert body["tasks_pending"] == 3
    assert body["rejected"] == {"protocol.invalid": 1}


def test_garbage_without_end_is_answered_a_few_times_only(running: Running) -> None:
    client, stranger = running.client(), running.link(new_pair())
    count = int(BURST_STRIKES)  # one more, and the connection would end before it has read
    for _ in range(count):
        stranger.send(b"\xff")
    for _ in range(ANSWERED_STRIKES):
        until(stranger, m.Refused)
    deadline = time.monotonic() + PATIENCE_S
    while health(client)["rejected"] != {"protocol.invalid": count}:
        assert time.monotonic() < deadline
    assert stranger.receive(10) == []


def test_several_frames_in_one_message_are_refused(running: Running) -> None:
    link = running.link()
    link.socket.send_multipart([b"one", b"two"])
    assert "one frame" in until(link, m.Refused).message


def test_an_unknown_version_is_told_which_are_spoken(running: Running) -> None:
    link = running.link()
    link.send(encode(m.ClientHello(7, running.config.mesh, S, "pc")))
    refused = until(link, m.Refused)
    assert refused.code == "protocol.version"
    assert "spoken here are 1" in refused.message


def test_who_says_no_hello_is_told_to(running: Running) -> None:
    link = running.link()
    link.send(encode(m.Watch([])))
    until(link, m.Rehello)


def test_a_worker_that_vanishes_with_its_connection_loses_nothing(running: Running) -> None:
    client, worker = running.client(), running.worker()
    submit(client, 1, 0, 1)
    until(worker, m.Work)
    worker.close()
    running.links.remove(worker)
    submit(client, 2, 1, 5)  # assignments to the gone connection come back
    again = running.worker("w", slots=9, boot_id="another")  # so nothing waits for its lease
    given: set[str] = set()
    while len(given) < 6:
        for group in until(again, m.Work).groups:
            given.update(group.ids)
    assert given == {f"{S}-{n}" for n in range(6)}
    assert health(client)["workers_online"] == 1


@pytest.mark.parametrize("is_talked_to", [False, True])
def test_who_has_what_is_noted_without_another_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_talked_to: bool
) -> None:
    monkeypatch.setattr(dispatcher, "SETTLE_S", 3600.0)  # that would be another commit
    running = Running(tmp_path)
    try:
        worker, client = running.worker(), running.client()
        submit(client, 1, 0)
        until(worker, m.Work)
        held = [f"{S}-0"]
        seen: list[object] = []
        deadline = time.monotonic() + PATIENCE_S
        with contextlib.closing(apsw.Connection(str(tmp_path / JOURNAL_NAME))) as db:
            while not seen:
                assert time.monotonic() < deadline
                if is_talked_to:  # what records nothing puts nothing off
                    worker.send(encode(m.Heartbeat(1, 1, 1, 0, ["echo"], [], held)))
                time.sleep(0.01)
                seen += db.execute("SELECT * FROM handouts").fetchall()
    finally:
        running.stop()


def test_an_answer_of_the_journal_waits_for_no_hand_out_and_for_no_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "SWEEP_S", 3600.0)
    monkeypatch.setattr(deferral, "DEFERRAL_S", 3600.0)
    running = Running(tmp_path)
    try:
        client, worker = running.client(), running.worker(slots=100)
        submit(client, 1, 0, 2)
        until(worker, m.Work)
        submit(client, 10, 10)  # from here on its assignment is owed
        client.send(encode(m.Query(10, "tasks", {"limit": 1})))
        until(client, m.Answer)  # nothing else wakes the broker within the hour
    finally:
        running.stop()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (JournalError("cannot read the journal: disk I/O error"), "disk I/O error"),
        (KeyError("a name of ours"), "the journal cannot be read here"),
    ],
    ids=["of the disk", "of ours"],
)
def test_what_the_store_cannot_read_is_logged_and_no_fault_of_ours_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception, told: str
) -> None:
    class Unreadable(MemoryStore):
        def ask(self, question: Question) -> StoreAnswer:
            raise error

    running = Running(tmp_path, lambda folder, wake: Unreadable(MemoryDisk(), wake))
    try:
        client = running.client()
        with caplog.at_level(logging.ERROR, "d8mesh.broker"):
            client.send(encode(m.Query(10, "status", {"id": f"{S}-0"})))
            answer = until(client, m.Answer)
    finally:
        running.stop()
    assert told in str(answer.body["error"])
    assert "a name of ours" not in str(answer.body)
    assert "journal.unreadable" in caplog.text


def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    first = Running(tmp_path)
    submit(first.client(), 1, 0, 10)
    before = first.broker.ready
    first.stop()
    second = Running(tmp_path)
    try:
        assert second.broker.ready.broker_id == before.broker_id
        assert second.broker.ready.epoch == before.epoch + 1
        client = second.client()
        assert health(client)["tasks_pending"] == 10
        worker = second.worker(slots=10)
        work = until(worker, m.Work)
        ids = [task_id for group in work.groups for task_id in group.ids]
        assert ids == [f"{S}-{n}" for n in range(10)]
    finally:
        second.stop()


def test_a_drain_says_goodbye(tmp_path: Path) -> None:
    running = Running(tmp_path)
    client = running.client()
    running.broker.stop()
    until(client, m.Goodbye)
    running.stop()


def test_a_commit_that_fails_acknowledges_nothing_and_ends_the_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BUSY_MS", 200)
    running = Running(tmp_path)
    client = running.client()
    submit = encode(m.Submit(1, S, 0, [m.Group("echo", 5, [b"\x80"])]))
    other = apsw.Connection(str(tmp_path / "journal.db"))
    other.execute("BEGIN IMMEDIATE")  # nobody else can write
    client.send(submit)
    running.thread.join(PATIENCE_S)
    assert "journal.db" in str(running.error)
    assert not [f for f in client.receive(100) if isinstance(decode_to_client(f), m.Accepted)]
    running.stop()
    other.close()
    again = Running(tmp_path)
    try:
        client = again.client()
        client.send(submit)
        assert until(client, m.Accepted).first == 0
    finally:
        again.stop()


def test_two_on_one_folder_are_refused(running: Running) -> None:
    with pytest.raises(JournalHeldError, match="in use by another orchestrator"):
        Broker(running.config, running.folder)


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"nothing like a database" * 99)
    with pytest.raises(JournalBrokenError):
        Running(tmp_path)


def test_the_next_free_port_is_taken(running: Running, tmp_path: Path) -> None:
    second = Broker(running.config, tmp_path / "second")
    assert second.ready.port > running.broker.ready.port
    second.stop()
    second.run()


def test_a_disk_without_room_refuses_submits_and_recovers(tmp_path: Path) -> None:
    running = Running(tmp_path, disk_reserve_mb=10_000_000)
    try:
        client = running.client()
        deadline = time.monotonic() + PATIENCE_S
        while health(client)["is_accepting"]:
            assert time.monotonic() < deadline
        client.send(encode(m.Submit(1, S, 0, [m.Group("echo", 5, [b"\x80"])])))
        assert until(client, m.Refused).code == "disk.low"
        object.__setattr__(running.config, "disk_reserve_mb", 0)
        while not health(client)["is_accepting"]:
            assert time.monotonic() < deadline
        submit(client, 2, 0)
    finally:
        running.stop()


def test_a_machine_whose_name_is_no_utf_8_takes_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "caf\udce9")
    with mesh_in(tmp_path) as mesh:
        port = mesh.broker()
        worker = mesh.worker(port)
        worker.register("echo", lambda data: data)
        mesh.run(worker)
        client = mesh.client(port)
        assert client.submit("echo", {"x": 1}).result(PATIENCE_S)["output"] == {"x": 1}
        (row,) = client.ask("workers", {})["workers"]
        assert "caf\ufffd" in json.dumps(row, ensure_ascii=False)
