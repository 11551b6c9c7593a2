"""Partial output as server-sent events."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from d8mesh.core.protocol.messages import Stream
from d8mesh.doors.rest import streams
from d8mesh.doors.waiting import Doorbell
from d8mesh.handlers import TaskContext
from d8mesh.http.events import SSE, stream
from d8mesh.nodes.client import stream_buffer
from d8mesh.nodes.client.stream_buffer import KeptOutput
from d8mesh.nodes.client.streams import Position
from tests.doors.rest_calls import Rest, rest_in
from tests.nodes.mesh import Mesh, until

pack = msgspec.msgpack.encode


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rest]:
    with rest_in(tmp_path_factory.mktemp("rest")) as rest:
        yield rest


def events_in(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return (name, data) of each event of a stream."""
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line and not line.startswith(":")]
        if lines:
            assert lines[0].startswith("event: ")
            assert lines[1].startswith("data: ")
            found.append((lines[0][7:], json.loads(lines[1][6:])))
    return found


def test_a_task_is_heard_from_its_first_output_to_its_end(tmp_path: Path) -> None:
    may_go_on = threading.Event()

    def speak(data: Mapping[str, Any], context: TaskContext) -> str:
        while not may_go_on.wait(0.02):  # what nobody listens to is kept nowhere
            context.emit("uno ")
            context.emit({"step": 2})
        context.emit("ñandú\n\nevent: x")
        return "end"

    with ExitStack() as stack:
        mesh = Mesh(tmp_path, stack)
        port = mesh.broker()
        rest = Rest(mesh, port, stack)
        worker = mesh.worker(port)
        worker.register("speak", speak)
        mesh.run(worker)
        task_id = rest.submit("speak")
        answer = rest.open(f"/api/tasks/{task_id}/stream")
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "text/event-stream"
        text = ""
        for part in answer:
            text += part
            if '"step"' in text and "uno" in text:
                may_go_on.set()
        *chunks, done = events_in(text)
        assert done[0] == "done"
        assert done[1]["state"] == "completed"
        assert done[1]["result"]["output"] == "end"
        assert {name for name, _ in chunks} == {"chunk"}
        seqs = [body["seq"] for _, body in chunks]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
        assert {"step": 2} in [body.get("data") for _, body in chunks]
        texts = "".join(body.get("text", "") for _, body in chunks)
        assert "ñandú\n\nevent: x" in texts


def test_a_task_submitted_with_listen_is_heard_whole_during_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "ALIVE_S", 0.05)
    monkeypatch.setattr(streams, "FINISHED_LOOK_S", 0.1)
    may_end = threading.Event()

    def speak(data: Mapping[str, Any], context: TaskContext) -> str:
        for n in range(100):
            context.emit(n)
        may_end.wait(20)
        return "end"

    with ExitStack() as stack:
        mesh = Mesh(tmp_path, stack)
        port = mesh.broker()
        rest = Rest(mesh, port, stack)
        worker = mesh.worker(port)
        worker.register("speak", speak)
        mesh.run(worker)
        task_id = rest.submit("speak", listen=True)
        kept = rest.client.kept_output(task_id)
        assert kept is not None
        until(lambda: sum(len(part.payloads) for part in kept.read(0, 0.0)[1]) == 100)
        text = ""
        for part in rest.open(f"/api/tasks/{task_id}/stream"):
            text += part
            if ": alive" in text:
                may_end.set()
        for told in (text, rest.get(f"/api/tasks/{task_id}/stream").text):
            *chunks, done = events_in(told)
            assert [body["seq"] for _, body in chunks] == list(range(100))
            assert (done[0], done[1]["result"]["output"]) == ("done", "end")
        batch = {"tasks": [{"type": "speak", "data": {}, "listen": True}] * 2}
        body = rest.post("/api/tasks/submit_batch", batch).json
        for each in body["task_ids"]:
            assert len(events_in(rest.get(f"/api/tasks/{each}/stream").text)) == 101
        del batch["tasks"][0]["listen"]
        batch["tasks"] = [batch["tasks"][0], {"type": "speak", "data": {}, "listen": True}]
        assert rest.post("/api/tasks/submit_batch", batch).status_code == 400


def test_a_piece_that_is_missing_is_an_event() -> None:
    pack = msgspec.msgpack.encode
    told = [Stream("x", 1, 3, [pack("d")]), Stream("x", 1, 6, [pack("g")])]
    names = [(name, body.get("count")) for name, body in heard(*told, None)]
    assert names[:3] == [("chunk", None), ("missed", 2), ("chunk", None)]


def test_a_finished_task_is_done_at_once(rest: Rest) -> None:
    task_id = rest.submit()
    rest.post(f"/api/tasks/{task_id}/cancel")
    ((name, body),) = events_in(rest.get(f"/api/tasks/{task_id}/stream").text)
    assert (name, body["state"]) == ("done", "cancelled")


def test_no_proxy_holds_back_a_stream_or_a_wait(rest: Rest) -> None:
    task_id = rest.submit()
    rest.register("w-polling", "w-polling-type")
    for path in (
        f"/api/tasks/{task_id}/stream",
        f"/api/tasks/{task_id}/wait?timeout_s=0",
        "/api/workers/w-polling/tasks",
        "/api/nowhere",
    ):
        answer = rest.open(path)
        assert answer.headers["X-Accel-Buffering"] == "no", path
        assert answer.headers["Cache-Control"] == "no-store", path
        answer.leave()
    rest.post(f"/api/tasks/{task_id}/cancel")


def test_cancelling_ends_the_stream(rest: Rest) -> None:
    task_id = rest.submit()
    parts = iter(rest.open(f"/api/tasks/{task_id}/stream"))
    assert next(parts) == ": listening\n\n"
    rest.post(f"/api/tasks/{task_id}/cancel")
    assert events_in("".join(parts))[-1][1]["state"] == "cancelled"


def test_a_silent_task_still_shows_that_we_live(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "ALIVE_S", 0.05)
    answer = rest.open(f"/api/tasks/{rest.submit()}/stream")
    parts = iter(answer)
    assert [next(parts) for _ in range(3)][1:] == [": alive\n\n"] * 2
    answer.leave()


def test_an_end_that_was_missed_is_asked_for(rest: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "ALIVE_S", 0.05)
    monkeypatch.setattr(streams, "FINISHED_LOOK_S", 0.1)
    monkeypatch.setattr(rest.client, "listen", lambda task_id, on_event: lambda: None)
    task_id = rest.submit()
    parts = iter(rest.open(f"/api/tasks/{task_id}/stream"))
    next(parts)
    rest.post(f"/api/tasks/{task_id}/cancel")
    assert events_in("".join(parts))[-1][0] == "done"


def test_who_is_gone_is_listened_for_no_longer(rest: Rest) -> None:
    task_id = rest.submit()
    listeners = rest.mesh.brokers[0][0]._dispatcher.state.listeners
    path = f"/api/tasks/{task_id}/stream"
    first, second = rest.open(path), rest.open(path)
    for each in (first, second):
        next(iter(each))
    until(lambda: task_id in listeners)
    first.leave()
    rest.get("/health")
    assert task_id in listeners
    second.leave()
    until(lambda: task_id not in listeners)


def test_streams_are_bounded_and_their_places_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_STREAMS", 20)
    with rest_in(tmp_path) as rest:
        path = f"/api/tasks/{rest.submit()}/stream"
        for _ in range(2):
            answers = [rest.open(path) for _ in range(streams.MAX_STREAMS)]
            assert {next(iter(answer)) for answer in answers} == {": listening\n\n"}
            refused = rest.get(path)
            assert refused.status_code == 429
            assert refused.headers["Retry-After"]
            for answer in answers:
                answer.leave()


def test_an_unknown_task_has_no_stream(rest: Rest) -> None:
    assert rest.get("/api/tasks/0123456789abcdef-0/stream").status_code == 404


def nobody(listen: Any = None) -> Any:
    """Return a client that keeps nothing and hears what `listen` tells."""
    return SimpleNamespace(
        kept_output=lambda task_id: None,
        hear=lambda task_id, on_stream: lambda: None,
        listen=listen,
        loop=asyncio.get_running_loop(),
    )


async def finished(task_id: str) -> dict[str, Any]:
    return {"completed_at": 1.0}


async def not_finished(task_id: str) -> dict[str, Any]:
    return {"completed_at": None}


def heard(*told: Stream | None) -> list[tuple[str, dict[str, Any]]]:
    """Return the events of a task of which this is heard."""

    def listen(task_id: str, on_event: Any) -> Any:
        for each in told:
            on_event(each)
        return lambda: None

    async def text() -> str:
        calls = streams.StreamCalls(nobody(listen), finished)
        body = stream(calls._events("x", is_over=False), SSE).body
        assert isinstance(body, AsyncGenerator)
        return b"".join([part async for part in body]).decode()

    return events_in(asyncio.run(text()))


def test_a_new_attempt_is_a_restart_and_repeats_are_left_out() -> None:
    events = heard(
        Stream("x", 1, 0, [pack("a"), pack("b")]),
        Stream("x", 1, 1, [pack("b"), pack("c")]),
        Stream("x", 2, 0, []),
        Stream("x", 2, 0, [pack("A")]),
        Stream("x", 3, 0, [pack([1])]),
        None,
    )
    assert events == [
        ("chunk", {"attempt": 1, "seq": 0, "text": "a"}),
        ("chunk", {"attempt": 1, "seq": 1, "text": "b"}),
        ("chunk", {"attempt": 1, "seq": 2, "text": "c"}),
        ("restart", {"attempt": 2}),
        ("chunk", {"attempt": 2, "seq": 0, "text": "A"}),
        ("restart", {"attempt": 3}),
        ("chunk", {"attempt": 3, "seq": 0, "data": [1]}),
        ("done", {"completed_at": 1.0}),
    ]


def test_a_text_may_hold_what_some_readers_take_for_the_end_of_a_line() -> None:
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\rj\nk"
    (chunk, _) = heard(Stream("x", 1, 0, [pack(text)]), None)  # read with str.splitlines
    assert chunk == ("chunk", {"attempt": 1, "seq": 0, "text": text})


def test_a_reader_that_is_too_slow_is_told_what_it_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_buffer, "MAX_TASK_BYTES", 2 * stream_buffer.PIECE_BYTES)

    async def read() -> list[tuple[str, dict[str, Any]]]:
        kept, calls = KeptOutput(), streams.StreamCalls(nobody(), not_finished)
        bell = Doorbell(asyncio.get_running_loop())
        source = calls._heard("x", kept, Position(is_whole=False), bell)
        found = []
        for n in range(5):
            kept.hear(Stream("x", 1, n, [pack(str(n))]))
            if not n:
                found.append(await anext(source))
        kept.hear(None)
        found += [item async for item in source]
        return [(item.name, item.body) for item in found if not isinstance(item, str)]

    assert [(name, body.get("count")) for name, body in asyncio.run(read())] == [
        ("chunk", None),
        ("missed", 3),
        ("chunk", None),
    ]


def test_all_readers_of_a_message_share_its_events() -> None:
    async def read() -> None:
        calls, heard = streams.StreamCalls(nobody(), not_finished), Stream("x", 1, 0, [pack("a")])
        first, again = (list(calls._events_of(heard, Position(is_whole=True))) for _ in range(2))
        assert first == again == [first[0]]
        other = Stream("x", 1, 0, [pack("b")])
        (event,) = calls._events_of(other, Position(is_whole=True))
        assert event.body["text"] == "b"

    asyncio.run(read())


def test_a_late_reader_is_told_what_the_first_has_heard(rest: Rest) -> None:
    task_id = rest.submit()
    first = rest.open(f"/api/tasks/{task_id}/stream")
    next(iter(first))
    rest.loop.loop.call_soon_threadsafe(
        rest.client.runner.listeners.hear, Stream(task_id, 1, 4, [pack("heard before")])
    )
    assert "heard before" in next(iter(first))
    late = iter(rest.open(f"/api/tasks/{task_id}/stream"))
    assert "heard before" in [next(late) for _ in range(2)][1]
    rest.post(f"/api/tasks/{task_id}/cancel")
    assert events_in("".join(late))[-1][0] == "done"


def test_many_readers_are_woken_some_in_each_turn() -> None:
    async def wake() -> list[int]:
        loop = asyncio.get_running_loop()
        readers = [Doorbell(loop) for _ in range(2 * streams.WOKEN_AT_ONCE + 1)]
        sleeps = [asyncio.ensure_future(reader.is_rung(30.0)) for reader in readers]
        await asyncio.sleep(0)
        bells = streams._Bells(loop)
        for reader in readers:
            bells.ring(reader)
        counts = []
        while not all(each.done() for each in sleeps):
            await asyncio.sleep(0)
            counts.append(sum(each.done() for each in sleeps))
        assert all(each.result() for each in sleeps)
        return counts

    counts = asyncio.run(wake())
    steps = [after - before for before, after in itertools.pairwise([0, *counts])]
    assert max(steps) <= streams.WOKEN_AT_ONCE
