"""The Python client with a real broker and real workers on loopback."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import queue
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from d8mesh.config import Config
from d8mesh.core.client.effects import Output
from d8mesh.core.client.submission import Submission
from d8mesh.core.protocol.codec import decode_to_worker, encode
from d8mesh.core.protocol.messages import SUCCEEDED, Group, Results, Stream, Work, WorkerHello
from d8mesh.doors.tunnel import Exchange, tunnel_door
from d8mesh.edge.network import bind
from d8mesh.errors import (
    BrokerUnavailableError,
    ConfigError,
    D8Error,
    ForbiddenError,
    InvalidTaskError,
    KeyConflictError,
    NodeClosedError,
    NotAcknowledgedError,
    QueueFullError,
    TaskCancelledError,
    TaskFailedError,
    UnknownTaskError,
    VersionError,
    WaitTimeoutError,
)
from d8mesh.handlers import TaskContext
from d8mesh.http.answers import Response, answer
from d8mesh.http.application import Application
from d8mesh.http.guard import Guard, Rejections
from d8mesh.http.routes import Door as HttpDoor
from d8mesh.http.routes import HttpRoute, Request
from d8mesh.http.server import Server
from d8mesh.nodes.client import RESTARTED, Client
from d8mesh.nodes.client.futures import wait as wait_for
from d8mesh.nodes.client.outputs import listen as listen_to
from d8mesh.nodes.client.streams import Missed, StreamDeduplicator
from d8mesh.nodes.reconnector.search import Search
from tests.http.calls import LoopThread
from tests.keyed import link_to
from tests.nodes.mesh import PATIENCE_S, Mesh, free_port, mesh_in, until

NOBODY = f"{'v' * 16}-0"


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with mesh_in(tmp_path) as mesh:
        yield mesh


def echoing(mesh: Mesh, port: int) -> None:
    worker = mesh.worker(port)
    worker.register("echo", lambda data: data)
    mesh.run(worker)


def connected(mesh: Mesh, port: int) -> Client:
    client = mesh.client(port)
    assert client.wait_connected(PATIENCE_S)
    return client


def is_waiting_for(client: Client, count: int) -> Callable[[], bool]:
    return lambda: client.node.waiters.waiting == count


# ------------------------------------------------------------------------ everyday use


def test_tasks_are_submitted_and_their_results_come_back(mesh: Mesh) -> None:
    port = mesh.broker()
    echoing(mesh, port)
    with mesh.client(port) as client:
        task = client.submit("echo", {"text": "ñ", "list": [1, 2.5, None, {"a": True}]})
        result = task.result(PATIENCE_S)
        assert result["success"] is True
        assert result["output"] == {"text": "ñ", "list": [1, 2.5, None, {"a": True}]}
        assert task.done()
        status = task.status()
        assert (status["status"], status["task_id"]) == ("completed", task.id)
        assert status["result"]["output"] == result["output"]


def test_results_of_many_come_in_order_whatever_their_number(mesh: Mesh) -> None:
    port = mesh.broker()
    echoing(mesh, port)
    client = mesh.client(port)
    assert list(client.map("echo", [], timeout=PATIENCE_S)) == []
    results = client.map("echo", ({"n": n} for n in range(3500)), timeout=PATIENCE_S)
    assert [result["output"]["n"] for result in results] == list(range(3500))
    tasks = [client.submit("echo", {"n": n}) for n in range(3500)]
    assert [task.result(PATIENCE_S)["output"]["n"] for task in tasks] == list(range(3500))
    assert len({task.id for task in tasks}) == 3500


def test_map_submits_at_once_even_if_nobody_looks_at_the_results(mesh: Mesh) -> None:
    client = connected(mesh, mesh.broker())
    client.map("nobody", [{}] * 3)
    assert client.ask("health", {})["tasks_pending"] == 3


def test_many_threads_share_a_client(mesh: Mesh) -> None:
    port = mesh.broker()
    echoing(mesh, port)
    client = mesh.client(port)
    outputs: list[int] = []

    def use(start: int) -> None:
        kind = {"priority": 1 + start % 10}
        tasks = [client.submit("echo", {"n": start + n}, **kind) for n in range(200)]  # type: ignore[arg-type]
        tasks += client.submit_many("echo", [{"n": start + 200 + n} for n in range(200)])
        outputs.extend(task.result(PATIENCE_S)["output"]["n"] for task in tasks)

    threads = [threading.Thread(target=use, args=(n * 400,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(outputs) == list(range(3200))
    assert client.node.waiters.waiting == 0


def test_what_was_delivered_is_forgotten(mesh: Mesh) -> None:
    port = mesh.broker()
    echoing(mesh, port)
    client = mesh.client(port)

    def submissions() -> int:
        gc.collect()
        return sum(type(each) is Submission for each in gc.get_objects())

    before = submissions()
    for _ in client.map("echo", [{"x": 1}] * 3000, timeout=PATIENCE_S):
        pass
    client.submit("echo", {}).result(PATIENCE_S)
    until(lambda: submissions() <= before)


# ------------------------------------------------------------ failures, cancels, waits


@pytest.mark.parametrize("rubbish", [b"", b"\xc0", b"\x93", b"\xa1x"])
def test_a_result_that_is_no_object_is_a_failure(mesh: Mesh, rubbish: bytes) -> None:
    """What a worker of somebody else's making may send."""
    port = mesh.broker()
    client = connected(mesh, port)
    link = link_to(port, server_key=mesh.key(port))
    said = WorkerHello(1, mesh.mesh, "foreign", "b", "t", "x", "h", 0, ["odd"], [], 1, 1, [], [])
    link.send(encode(said))
    task = client.submit("odd", {})
    work: list[Work] = []

    def has_work() -> bool:
        work.extend(m for f in link.receive(9) if isinstance(m := decode_to_worker(f), Work))
        return bool(work)

    until(has_work)
    (group,) = work[0].groups
    link.send(encode(Results(1, 1, group.ids, group.tokens, bytes([SUCCEEDED]), [rubbish])))
    with pytest.raises(TaskFailedError, match="no object"):
        task.result(PATIENCE_S)
    assert task.status()["result"]["success"] is False
    link.close()


def test_a_failure_is_raised_with_its_result(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port)
    worker.register("broken", lambda data: {"success": False, "error": "no", "why": 7})
    mesh.run(worker)
    client = mesh.client(port)
    with pytest.raises(TaskFailedError, match="no") as caught:
        client.submit("broken", {}, max_attempts=1).result(PATIENCE_S)
    assert caught.value.result["why"] == 7
    with pytest.raises(TaskFailedError):
        list(client.map("broken", [{}], timeout=PATIENCE_S))


def test_a_waiting_task_is_cancelled_at_once_even_just_after_its_submit(mesh: Mesh) -> None:
    client = mesh.client(mesh.broker())
    task = client.submit("nobody", {})
    assert task.cancel() is True
    with pytest.raises(TaskCancelledError):
        task.result(PATIENCE_S)
    assert task.cancel() is True
    assert (task.status()["status"], task.status()["state"]) == ("failed", "cancelled")


def test_a_wait_that_is_over_leaves_the_task_and_nothing_else(mesh: Mesh) -> None:
    port = mesh.broker()
    client = mesh.client(port)
    task = client.submit("echo", {"n": 1})
    for wait_s in (0, 0.01):
        with pytest.raises(WaitTimeoutError):
            task.result(wait_s)
    task.wait_accepted(PATIENCE_S)
    assert client.node.waiters.waiting == 0
    echoing(mesh, port)
    assert task.result(PATIENCE_S)["output"] == {"n": 1}


@pytest.mark.parametrize("bad", [float("nan"), "x", True, [1]])
def test_a_wait_that_is_no_number_is_refused_everywhere(mesh: Mesh, bad: Any) -> None:
    client = connected(mesh, mesh.broker())
    task = client.submit("nobody", {})
    for wait in (
        task.result,
        task.wait_accepted,
        task.status,
        task.cancel,
        client.wait_connected,
        client.flush,
        client.close,
        lambda wait_s: next(task.stream(wait_s)),
        lambda wait_s: client.submit("nobody", {}, timeout=wait_s),
        lambda wait_s: client.submit_many("nobody", [{}], timeout=wait_s),
        lambda wait_s: client.map("nobody", [{}], timeout=wait_s),
        lambda wait_s: client.ask("health", {}, timeout=wait_s),
        lambda wait_s: list(client.tasks(timeout=wait_s)),
        lambda wait_s: client.replay(task.id, timeout=wait_s),
    ):
        with pytest.raises(InvalidTaskError, match="timeout: saw "):
            wait(bad)
    assert client.ask("health", {})["tasks_pending"] == 1


def test_a_wait_may_be_longer_than_any_machine_runs(mesh: Mesh) -> None:
    client = connected(mesh, mesh.broker())
    for long_s in (1e30, float("inf")):
        assert client.wait_connected(long_s)
        assert client.ask("health", {}, timeout=long_s)
        client.submit("nobody", {}, timeout=long_s).wait_accepted(long_s)


def test_a_part_of_a_wait_is_told_as_the_whole(mesh: Mesh) -> None:
    client = connected(mesh, mesh.broker())
    with pytest.raises(WaitTimeoutError, match=r"^the result of \S+ has not come within 0\.3 s: "):
        list(client.map("nobody", [{}], timeout=0.3))


@pytest.mark.parametrize("model", [5, "a b", "../../x", ["llama"], "m" * 129])
def test_a_wish_that_is_no_model_is_refused_as_over_rest(mesh: Mesh, model: Any) -> None:
    client = mesh.client(mesh.broker())
    data = {"messages": [], "model": model}
    with pytest.raises(InvalidTaskError, match=r"^data\.model: saw "):
        client.submit("agent_action", data)
    with pytest.raises(InvalidTaskError, match=r"^data\.model: saw "):
        client.submit_many("code_generation", [{"model": None}, data])
    client.submit("no_llm", {"model": model}).wait_accepted(PATIENCE_S)
    with pytest.raises(InvalidTaskError, match="type: saw"):
        client.submit(["echo"], {})  # type: ignore[arg-type]


def test_a_place_that_is_no_text_is_refused() -> None:
    for given in ({"url": 5}, {"endpoint": 7010}):
        with pytest.raises(ConfigError, match="expected a text"):
            Client(config=Config(), **given)  # type: ignore[arg-type]


def test_a_task_of_another_process_is_opened_by_its_id(mesh: Mesh) -> None:
    port = mesh.broker()
    task = mesh.client(port).submit("echo", {"n": 1})
    task.wait_accepted(PATIENCE_S)
    other = mesh.client(port)
    again = other.task(task.id)
    assert again.id == task.id
    echoing(mesh, port)
    assert again.result(PATIENCE_S)["output"] == {"n": 1}
    assert other.task(task.id).result(PATIENCE_S)["output"] == {"n": 1}


def test_unknown_tasks_are_said_to_be_unknown(mesh: Mesh) -> None:
    client = mesh.client(mesh.broker())
    for what in (
        client.task(NOBODY).result,
        client.task(NOBODY).status,
        client.task(NOBODY).cancel,
    ):
        with pytest.raises(UnknownTaskError):
            what(PATIENCE_S)
    for text in ("", "x", "../../etc", "v" * 16, f"{'v' * 16}--1", f"{'V' * 16}-1"):
        with pytest.raises(UnknownTaskError):
            client.task(text)


# -------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([1], "expected a dict"),
        ("text", "expected a dict"),
        ({1: 2}, "key of type int"),
        ({"a": {"b": {2: 3}}}, "data.a.b"),
        ({"a": {"b": b"bytes"}}, "data.a.b: saw bytes"),
        ({"a": math.nan}, "data.a"),
        ({"a": [1.0, math.inf]}, "data.a"),
        ({"a": 2**64}, "64 bits"),
        ({"a": {1, 2}}, "saw set"),
        ({"a": object()}, "saw object"),
        ({"a": "\ud800"}, "cannot be sent"),
        ({"\udfff": 1}, "cannot be sent"),
    ],
)
def test_data_that_is_no_json_object_is_refused_with_its_place(data: Any, said: str) -> None:
    with Client(endpoint="tcp://127.0.0.1:1") as client:
        with pytest.raises(InvalidTaskError, match=said):
            client.submit("echo", data)
        with pytest.raises(InvalidTaskError, match=said):
            client.submit_many("echo", [data])


def test_data_that_contains_itself_is_refused() -> None:
    data: dict[str, Any] = {}
    data["self"] = data
    with Client(endpoint="tcp://127.0.0.1:1") as client, pytest.raises(InvalidTaskError):
        client.submit("echo", data)


@pytest.mark.parametrize(
    "options",
    [
        {"type": ""},
        {"type": "x" * 129},
        {"type": 5},
        {"type": "\ud800"},
        {"priority": 0},
        {"priority": 11},
        {"priority": True},
        {"priority": "5"},
        {"deadline_s": -1},
        {"deadline_s": math.nan},
        {"deadline_s": "soon"},
        {"max_attempts": 101},
        {"max_attempts": 1.5},
        {"run_at": "tomorrow"},
        {"run_at": math.inf},
        {"idempotency_key": "x" * 129},
        {"idempotency_key": 7},
        {"nonsense": 1},
    ],
)
def test_options_out_of_range_are_refused_with_their_name(options: dict[str, Any]) -> None:
    (name,) = options
    with Client(endpoint="tcp://127.0.0.1:1") as client:
        with pytest.raises(InvalidTaskError, match=name):
            client.submit(**{"type": "echo", "data": {}, **options})


def test_an_orchestrator_of_another_version_is_told_of_as_such(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("core.broker.hello_rules", "core.protocol.messages"):
        monkeypatch.setattr(f"d8mesh.{module}.VERSIONS", (2,))
    client = mesh.client(mesh.broker())
    with pytest.raises(VersionError, match="version 1: spoken here are 2"):
        client.ask("health", {}, timeout=PATIENCE_S)


def test_a_bad_question_is_the_callers_error_and_the_client_lives(mesh: Mesh) -> None:
    client = connected(mesh, mesh.broker())
    for args in ({"id": object()}, {"id": "\ud800"}):
        with pytest.raises(InvalidTaskError):
            client.ask("status", args)
    with pytest.raises(ForbiddenError):
        client.ask("everything", {})
    assert client.ask("health", {})["is_accepting"] is True


def test_groups_are_taken_all_or_none_within_what_a_message_may_carry(mesh: Mesh) -> None:
    client = connected(mesh, mesh.broker())
    groups = [Group("a", 5, [b"\x80"] * 2), Group("b", 5, [b"\x80"])]
    enqueue = client.node.submitter.enqueue
    submission = enqueue(groups, PATIENCE_S, is_watched=False)
    client.flush(PATIENCE_S)
    assert submission.count == 3
    assert not submission.is_repeat
    for groups in ([], [Group("a", 5, [])], [Group("a", 5, [b"\x80"] * 10_001)]):
        with pytest.raises(InvalidTaskError):
            enqueue(groups, PATIENCE_S)
    assert client.ask("health", {})["tasks_pending"] == 3


def test_tasks_that_many_threads_submit_at_once_are_each_acknowledged_as_their_own(
    mesh: Mesh,
) -> None:
    port = mesh.broker()
    client = connected(mesh, port)
    told: dict[str, int] = {}

    def submit(number: int) -> None:
        for n in range(5):
            kind = "other" if n == 2 else "echo"  # of another kind: it cannot travel with them
            payload = msgspec.msgpack.encode({"n": number * 5 + n})
            place = client.node.submitter.append(
                Group(kind, 5, []), payload, PATIENCE_S, is_watched=False
            )
            client.node.waiters.wait_settled(place[0], PATIENCE_S)
            told[place[0].task_id(place[1])] = number * 5 + n

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(told) == 80
    assert client.ask("health", {})["tasks_pending"] == 80
    worker = mesh.worker(port)
    for kind in ("echo", "other"):
        worker.register(kind, lambda data: data)
    mesh.run(worker)
    for task_id, number in told.items():
        assert client.task(task_id).result(PATIENCE_S)["output"] == {"n": number}


def test_an_idempotency_key_gives_the_same_task_again(mesh: Mesh) -> None:
    port = mesh.broker()
    one, two = mesh.client(port), mesh.client(port)
    first = one.submit("echo", {"n": 1}, idempotency_key="k")
    assert one.submit("echo", {"n": 1}, idempotency_key="k").id == first.id
    again = two.submit("echo", {"n": 1}, idempotency_key="k")
    assert again.id == first.id
    with pytest.raises(KeyConflictError):
        two.submit("echo", {"n": 2}, idempotency_key="k")
    echoing(mesh, port)
    assert again.result(PATIENCE_S) == first.result(PATIENCE_S)


def test_a_full_queue_is_waited_for_and_then_said(mesh: Mesh) -> None:
    port = mesh.broker(queue_size=10)
    client = connected(mesh, port)
    client.submit_many("echo", [{}] * 10)
    at_once, _ = client.node.submitter.append(Group("echo", 5, []), b"\x80", None, is_watched=False)
    with pytest.raises(QueueFullError, match="TASK_QUEUE_SIZE"):
        client.node.waiters.wait_settled(at_once, PATIENCE_S)
    with pytest.raises(QueueFullError):
        client.submit_many("echo", [{}], timeout=1.0)
    task = client.submit("echo", {}, timeout=0.6)
    with pytest.raises(QueueFullError):
        task.result(PATIENCE_S)
    with pytest.raises(QueueFullError):
        client.flush(PATIENCE_S)
    patient = client.submit("echo", {"n": "patient"})
    echoing(mesh, port)
    assert patient.result(PATIENCE_S)["output"] == {"n": "patient"}
    client.flush(PATIENCE_S)
    assert client.ask("stats", {})["tasks"]["completed"] == 11


# ----------------------------------------------------------------------------- streams


def test_output_is_streamed_to_all_who_listen_each_part_once(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port)
    is_heard, go_on = threading.Event(), threading.Event()

    @worker.task("talk")
    def talk(data: dict[str, Any], context: TaskContext) -> str:
        while not is_heard.wait(0.02):
            context.emit("?")  # goes nowhere until somebody listens
        for n in range(3):
            context.emit(f"part {n}" if n % 2 else {"n": n})
        assert go_on.wait(PATIENCE_S)
        context.emit("the last")
        return "said"

    mesh.run(worker)
    client = mesh.client(port)
    task = client.submit("talk", {})
    heard: list[list[Any]] = [[], []]
    parts: list[Stream | None] = []

    def listen(mine: list[Any]) -> None:
        for part in task.stream(PATIENCE_S):
            mine.append(part)  # seen from outside as it grows

    def hear(stream: Stream | None) -> None:
        parts.append(stream)
        is_heard.set()

    threads = [threading.Thread(target=listen, args=(mine,)) for mine in heard]
    threads[0].start()
    until(lambda: client.node.runner.listeners.tasks)
    stop = listen_to(client.node.runner, task.id, hear)
    until(lambda: b"\xa6part 1" in b"".join(p for s in parts if s for p in s.payloads))
    stop()
    threads[1].start()
    again: list[Stream | None] = []
    listen_to(client.node.runner, task.id, again.append)
    until(lambda: again and heard[1])  # who comes late is told what there was
    go_on.set()
    assert task.result(PATIENCE_S)["output"] == "said"
    for thread, mine in zip(threads, heard, strict=True):
        thread.join(PATIENCE_S)
        assert [part for part in mine if part != "?"] == [{"n": 0}, "part 1", {"n": 2}, "the last"]
    until(lambda: again[-1] is None)
    assert None not in parts


def test_a_stream_of_a_finished_task_ends_at_once(mesh: Mesh) -> None:
    port = mesh.broker()
    echoing(mesh, port)
    client = mesh.client(port)
    task = client.submit("echo", {})
    task.result(PATIENCE_S)
    assert list(task.stream(PATIENCE_S)) == []
    assert list(client.task(NOBODY).stream(PATIENCE_S)) == []


def test_a_stream_shows_a_new_attempt_and_can_be_given_up(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port)
    listening = threading.Event()

    @worker.task("twice")
    def twice(data: dict[str, Any], context: TaskContext) -> str:
        assert listening.wait(PATIENCE_S)
        context.emit(f"attempt {context.attempt}")
        if context.attempt == 1:
            raise ValueError("once more")
        return "done"

    client = mesh.client(port)
    task = client.submit("twice", {})
    task.wait_accepted(PATIENCE_S)
    with pytest.raises(WaitTimeoutError):
        next(task.stream(0.01))
    stream = task.stream(PATIENCE_S)
    heard: list[Any] = []
    thread = threading.Thread(target=lambda: heard.extend(stream))
    thread.start()
    until(lambda: task.id in client.node.runner.listeners.tasks)
    mesh.run(worker)
    until(lambda: task.status()["status"] != "pending")
    listening.set()
    thread.join(PATIENCE_S)
    assert heard == ["attempt 1", RESTARTED, "attempt 2"]
    assert repr(heard[1]) == "RESTARTED"


def test_a_listener_that_raises_harms_nobody(mesh: Mesh) -> None:
    port = mesh.broker()
    client = mesh.client(port)
    task = client.submit("echo", {})
    ended: list[Stream | None] = []

    def broken(stream: Stream | None) -> None:
        raise RuntimeError

    listen_to(client.node.runner, task.id, broken)
    listen_to(client.node.runner, task.id, ended.append)
    echoing(mesh, port)
    until(lambda: ended == [None])
    assert client.submit("echo", {"n": 2}).result(PATIENCE_S)["output"] == {"n": 2}


def test_an_deduplicator_leaves_out_what_it_heard() -> None:
    heard: list[Stream | None] = []
    ear = StreamDeduplicator(heard.append)

    def hear(attempt: int, first: int, *payloads: bytes) -> None:
        ear(Stream(NOBODY, attempt, first, list(payloads)))

    hear(1, 0, b"a", b"b")
    hear(1, 0, b"a", b"b")
    hear(1, 1, b"b", b"c")
    hear(1, 0)
    hear(1, 5, b"f")
    hear(2, 0)
    hear(2, 0, b"x")
    ear(None)
    told = [None if s is None else (s.attempt, s.first_seq, s.payloads) for s in heard]
    assert told == [
        (1, 0, [b"a", b"b"]),
        (1, 2, [b"c"]),
        (1, 5, [b"f"]),
        (2, 0, []),
        (2, 0, [b"x"]),
        None,
    ]


# ------------------------------------------------------------------ broker away, back


def test_a_broker_that_comes_back_finds_everything_again(mesh: Mesh) -> None:
    port = mesh.broker()
    echoing(mesh, port)
    client = connected(mesh, port)
    before = client.submit_many("later", [{"n": n} for n in range(500)])
    broker, thread = mesh.brokers[-1]
    mesh.stop_broker(broker, thread)
    meanwhile = [client.submit("echo", {"n": n}) for n in range(2500)]
    assert not any(task.done() for task in meanwhile)
    with pytest.raises(WaitTimeoutError):
        meanwhile[0].wait_accepted(0.01)
    with pytest.raises(WaitTimeoutError):
        client.flush(0.01)
    mesh.broker(port=port)
    worker = mesh.worker(port)
    worker.register("later", lambda data: data)
    mesh.run(worker)
    assert [task.result(PATIENCE_S)["output"]["n"] for task in meanwhile] == list(range(2500))
    assert [task.result(PATIENCE_S)["output"]["n"] for task in before] == list(range(500))
    assert client.ask("stats", {})["tasks"]["completed"] == 3000


def test_without_an_orchestrator_questions_end_and_submits_are_bounded() -> None:
    client = Client(endpoint=f"tcp://127.0.0.1:{free_port()}")
    assert not client.wait_connected(0.05)
    assert not client.is_connected
    with pytest.raises(BrokerUnavailableError):
        client.ask("health", {}, timeout=0.05)
    megabyte = {"x": "x" * 1_000_000}

    def submit_all() -> None:
        for _ in range(2000):
            client.submit("echo", megabyte, timeout=0.05)

    with pytest.raises(WaitTimeoutError, match="room"):
        submit_all()
    begun = time.monotonic()
    with pytest.raises(NotAcknowledgedError, match="refused"):
        client.close(0.2)
    assert time.monotonic() - begun < 8


def test_another_mesh_is_refused_and_said_to_who_waits(mesh: Mesh) -> None:
    port = mesh.broker()
    config = Config(mesh="another", interfaces=("127.0.0.1",))
    with Client(endpoint=mesh.endpoint(port), config=config) as client:
        with pytest.raises(ForbiddenError, match="another"):
            client.ask("health", {}, timeout=PATIENCE_S)
        with pytest.raises(ForbiddenError, match="another"):
            client.submit("echo", {}).result(PATIENCE_S)


@pytest.mark.parametrize("url", ["nonsense://x", "http://", "http://h:99999", "http://u:p@h"])
def test_an_impossible_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigError, match="ORCHESTRATOR_URL"):
        Client(url)


def test_an_impossible_endpoint_is_refused_at_once() -> None:
    with pytest.raises(ConfigError):
        Client(endpoint="nonsense")


# ----------------------------------------------------------------------------- closing


def test_closing_waits_for_acknowledgements_and_ends_who_still_waits(mesh: Mesh) -> None:
    port = mesh.broker()
    client = connected(mesh, port)
    tasks = [client.submit("nobody", {}) for _ in range(100)]
    client.flush(PATIENCE_S)  # of others nobody knows yet
    ended: list[type[BaseException]] = []

    def wait(what: Callable[[], object]) -> None:
        try:
            what()
        except Exception as error:
            ended.append(type(error))

    waits: list[Callable[[], object]] = [
        lambda: tasks[0].result(),
        lambda: list(tasks[1].stream()),
        lambda: client.task(tasks[2].id).result(),
    ]
    threads = [threading.Thread(target=wait, args=(what,)) for what in waits]
    for thread in threads:
        thread.start()
    until(is_waiting_for(client, 2))
    client.close()
    client.close()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert ended == [NodeClosedError] * 3
    with pytest.raises(NodeClosedError):
        client.submit("echo", {})
    with pytest.raises(NodeClosedError):
        client.ask("health", {})
    assert mesh.client(port).ask("health", {})["tasks_pending"] == 100


def test_a_closed_client_leaves_no_thread_behind(mesh: Mesh) -> None:
    port = mesh.broker()
    before = set(threading.enumerate())
    client = connected(mesh, port)
    client.close()
    until(lambda: set(threading.enumerate()) <= before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks there")
def test_a_client_says_that_it_did_not_survive_a_fork(mesh: Mesh) -> None:
    client = connected(mesh, mesh.broker())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:  # pragma: no cover: another process
        code = 1
        with contextlib.suppress(BaseException):
            try:
                client.submit("echo", {})
            except NodeClosedError as error:
                code = 0 if "fork" in str(error) else 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    client.submit("echo", {}).wait_accepted(PATIENCE_S)


# ------------------------------------------------------------------- finding the mesh


class Door:
    """An orchestrator's REST port that names a broker port which is shut, until it opens."""

    def __init__(self, mesh: Mesh, port: int) -> None:
        self.endpoint, self.shown_port = mesh.endpoint(port), free_port()
        self.broker_port, self.server_key = port, mesh.key(port)
        self.posts = 0
        self.loop = LoopThread()
        self.loop.run(self._begin())
        self.url = f"http://127.0.0.1:{self.server.ports[0]}"
        self.listener: socket.socket | None = None

    async def _begin(self) -> None:
        self.exchange = Exchange(self.endpoint)
        tunnel = tunnel_door(self.exchange)
        health = HttpDoor(routes=[HttpRoute(rule="/health", call=self._health)])
        tunnel = replace(tunnel, before=self._count)
        application = Application([health, tunnel], Guard(), Rejections())
        bound = bind("127.0.0.1", 0)
        self.server = Server(application, [bound], lambda peer: True, Rejections())
        await self.server.start()

    async def _health(self, request: Request) -> Response:
        return answer({"broker_port": self.shown_port, "server_key": self.server_key.hex()})

    async def _count(self, request: Request) -> None:
        self.posts += 1

    def open(self) -> None:
        """Let the broker's port through."""
        self.listener = socket.create_server(("127.0.0.1", self.shown_port))
        thread = threading.Thread(target=self._accept, args=(self.listener,), daemon=True)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = listener.accept()
                there = socket.create_connection(("127.0.0.1", self.broker_port))
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=_carry, args=pair, daemon=True).start()

    def close(self) -> None:
        if self.listener is not None:
            self.listener.close()
        self.loop.run(self.server.close())
        self.loop.run(self.exchange.close())
        self.loop.close()


def _carry(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError), source:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def test_where_only_http_passes_the_session_goes_on_there_and_moves_up_later(
    mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    port = mesh.broker()
    echoing(mesh, port)
    door = Door(mesh, port)
    try:
        with Client(door.url, config=mesh.config()) as client:
            assert client.wait_connected(PATIENCE_S)
            results = client.map("echo", [{"n": n} for n in range(3000)], timeout=PATIENCE_S)
            assert [result["output"]["n"] for result in results] == list(range(3000))
            assert "exchange.used" in caplog.text
            waiting = client.submit("later", {})
            waiting.wait_accepted(PATIENCE_S)
            door.open()
            until(lambda: not client.is_over_http and client.is_connected)
            posts = door.posts
            results = client.map("echo", [{"n": n} for n in range(100)], timeout=PATIENCE_S)
            assert sum(1 for _ in results) == 100
            assert door.posts <= posts + 2  # the polls that were open
            worker = mesh.worker(port)
            worker.register("later", lambda data: "now")
            mesh.run(worker)
            assert waiting.result(PATIENCE_S)["output"] == "now"
    finally:
        door.close()


@pytest.mark.skipif(sys.platform == "win32", reason="multicast on loopback")
def test_the_mesh_is_found_without_being_told_where(mesh: Mesh) -> None:
    port = mesh.broker(is_announced=True)
    echoing(mesh, port)
    with Client(config=mesh.config()) as client:
        assert client.submit("echo", {"n": 1}).result(PATIENCE_S)["output"] == {"n": 1}
        mesh.stop_broker(*mesh.brokers[-1])
        task = client.submit("echo", {"n": 2})
        echoing(mesh, mesh.broker(is_announced=True))
        assert task.result(PATIENCE_S)["output"] == {"n": 2}


@pytest.mark.skipif(sys.platform == "win32", reason="multicast on loopback")
def test_a_client_stays_with_the_orchestrator_that_knows_its_tasks(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one of the mesh would call them unknown, which is final."""
    mesh.broker("a", is_announced=True)
    tries: list[object] = []
    look = Search._by_known

    def counted(search: Search) -> object:
        tries.append(search)
        return look(search)

    with Client(config=mesh.config()) as client:
        assert client.wait_connected(PATIENCE_S)
        mesh.broker("b", is_announced=True, keys_of="a")
        until(lambda: len(client.node.reconnector.search.known.told) == 2)
        task = client.submit("later", {"n": 1})
        task.wait_accepted(PATIENCE_S)
        mesh.stop_broker(*mesh.brokers[0])
        monkeypatch.setattr(Search, "_by_known", counted)
        until(lambda: len(tries) >= 5)
        worker = mesh.worker(mesh.broker("a", is_announced=True))
        worker.register("later", lambda data: data)
        mesh.run(worker)
        assert task.result(PATIENCE_S)["output"] == {"n": 1}


def test_a_timeout_is_taken_under_its_earlier_name_too(mesh: Mesh) -> None:
    client = mesh.client(free_port())
    with pytest.raises(InvalidTaskError, match="timeout: saw nan"):
        client.flush(timeout_s=float("nan"))  # type: ignore[call-arg]


def test_a_task_that_is_listened_to_from_its_submit_on_misses_nothing(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port, slots=1)

    def speak(data: dict[str, Any], context: TaskContext) -> str:
        for n in range(int(data["n"])):
            context.emit(n)
        return "end"

    worker.register("speak", speak)
    mesh.run(worker)
    client = mesh.client(port)
    tasks = [client.submit("speak", {"n": n}, listen=True) for n in (50, 0, 2000)]
    late = client.submit("speak", {"n": 300}, listen=True, idempotency_key="k")
    for task in (*tasks, late):
        task.result(PATIENCE_S)
    for task, count in zip((*tasks, late), (50, 0, 2000, 300), strict=True):
        for _ in range(2):
            assert list(task.stream(PATIENCE_S)) == list(range(count))
    again = client.submit("speak", {"n": 300}, listen=True, idempotency_key="k")
    assert (again.id, list(again.stream(PATIENCE_S))) == (late.id, list(range(300)))
    many = client.submit_many("speak", [{"n": 3}] * 5, listen=True)
    assert [list(task.stream(PATIENCE_S)) for task in many] == [[0, 1, 2]] * 5
    client.node.runner.stream_buffer.keep_s = 0.0
    assert list(tasks[0].stream(PATIENCE_S)) == [Missed(None)]
    with pytest.raises(WaitTimeoutError, match="has not come within"):
        list(client.submit("nobody", {}, listen=True).stream(0.1))


def test_the_warnings_of_a_submit_reach_its_caller_and_once_the_log(
    mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    client = mesh.client(mesh.broker())
    for _ in range(3):
        task = client.submit("nobody", {})
        task.wait_accepted(PATIENCE_S)
        assert task.warnings == ("no worker in the mesh offers 'nobody': no worker is there",)
    told = [each for each in caplog.records if "submit.warning" in each.getMessage()]
    assert [each.levelname for each in told] == ["WARNING"]


def test_newest_first_and_all_there_is_to_know_of_a_task(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port, slots=1)

    def fail(data: dict[str, Any]) -> None:
        raise ValueError("no")

    worker.register("fail", fail, backoff=0.0)
    mesh.run(worker)
    client = mesh.client(port)
    tasks = [client.submit("fail", {"n": n}, max_attempts=2) for n in range(3)]
    for task in tasks:
        with pytest.raises(TaskFailedError):
            task.result(PATIENCE_S)
    assert [body["task_id"] for body in client.tasks(newest_first=True)] == [
        task.id for task in reversed(tasks)
    ]
    full = tasks[1].status(full=True)
    assert full["data"] == {"n": 1}
    told = [(each["attempt"], each["error"], each["pause_s"]) for each in full["history"]]
    assert told == [(1, "ValueError: no", 0.0), (2, "ValueError: no", 0.0)]


def test_nobody_waits_for_the_connection_of_a_closed_client(mesh: Mesh) -> None:
    client = mesh.client(free_port())
    ended: queue.SimpleQueue[D8Error] = queue.SimpleQueue()

    def waits() -> None:
        try:
            client.wait_connected()
        except D8Error as error:
            ended.put(error)

    thread = threading.Thread(target=waits)
    thread.start()
    client.close()
    thread.join(PATIENCE_S)
    assert isinstance(ended.get(timeout=PATIENCE_S), NodeClosedError)
    with pytest.raises(NodeClosedError):
        client.wait_connected()


def test_thousands_of_tasks_are_opened_and_asked_for_at_once(mesh: Mesh) -> None:
    port = mesh.broker()
    client = mesh.client(port)
    ids = [task.id for task in client.submit_many("nobody", [{}] * 3000)]
    other = mesh.client(port)
    assert other.wait_connected(PATIENCE_S)
    held, go_on = threading.Event(), threading.Event()

    def hold(now: float) -> list[Output]:  # so that all of it is one turn
        held.set()
        assert go_on.wait(PATIENCE_S)
        return []

    other.node.runner.do(hold)
    assert held.wait(PATIENCE_S)
    tasks = [other.task(task_id) for task_id in ids]
    for task in tasks:
        other.node.drop(task.submission, 0)
    go_on.set()
    # Sooner than anything that got lost is said again (RESEND_S, REWATCH_S).
    done, not_done = wait_for(tasks, 9.0)
    assert (len(done), len(not_done)) == (3000, 0)
    assert all(task.cancelled() for task in tasks)


@pytest.mark.parametrize(
    ("given", "error"), [("zzz", UnknownTaskError), (3, InvalidTaskError), (None, InvalidTaskError)]
)
def test_what_is_no_id_of_a_task_opens_none(given: Any, error: type[D8Error]) -> None:
    with Client(endpoint="tcp://127.0.0.1:9", config=Config(interfaces=("lo",))) as client:
        with pytest.raises(error):
            client.task(given)
