"""`Client.call`: one task and its result on the caller's own thread, with a real broker."""

from __future__ import annotations

import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from d8mesh.core.client.submission import Submission
from d8mesh.core.protocol.messages import Group
from d8mesh.core.protocol.route import Route
from d8mesh.errors import (
    InvalidTaskError,
    NodeClosedError,
    QueueFullError,
    TaskFailedError,
    WaitTimeoutError,
)
from d8mesh.nodes.client import Client, direct_call
from d8mesh.nodes.client.direct_call import DirectCall, DirectCalls
from tests.nodes.mesh import PATIENCE_S, Mesh, mesh_in, until


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with mesh_in(tmp_path) as mesh:
        yield mesh


class Counted:
    """A worker whose handlers note how often each task ran, and may be held up."""

    def __init__(self, mesh: Mesh, port: int) -> None:
        self.runs: Counter[int] = Counter()
        self.begun, self.may_end = threading.Event(), threading.Event()
        worker = mesh.worker(port)
        worker.register("count", self.count)
        worker.register("hold", self.hold)
        worker.register("fail", self.fail)
        mesh.run(worker)

    def count(self, data: dict[str, Any]) -> dict[str, Any]:
        self.runs[data["n"]] += 1
        return {"n": data["n"]}

    def hold(self, data: dict[str, Any]) -> dict[str, Any]:
        self.begun.set()
        assert self.may_end.wait(PATIENCE_S)
        return self.count(data)

    def fail(self, data: dict[str, Any]) -> None:
        raise ValueError("this one always fails")


def connected(mesh: Mesh, port: int) -> Client:
    client = mesh.client(port)
    assert client.wait_connected(PATIENCE_S)
    return client


def served(mesh: Mesh) -> tuple[int, Counted, Client]:
    """A broker's port, a worker and a client."""
    port = mesh.broker()
    return port, Counted(mesh, port), connected(mesh, port)


def lines_of(client: Client) -> list[DirectCall]:
    return list(client.node.direct_calls._idle)


def client_threads() -> Counter[str]:
    return Counter(t.name for t in threading.enumerate() if t.name in ("d8-client", "d8-reconnect"))


def restart(mesh: Mesh, port: int) -> None:
    mesh.stop_broker(*mesh.brokers[-1])
    mesh.broker(port=port)


def call_aside(client: Client, kind: str, n: int) -> tuple[threading.Thread, list[object]]:
    """Call from a thread of its own; what came of it is put into the list."""
    ended: list[object] = []

    def call() -> None:
        try:
            ended.append(client.call(kind, {"n": n}, timeout=PATIENCE_S)["output"])
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    return thread, ended


def test_calls_return_their_own_results_over_one_connection(mesh: Mesh) -> None:
    _, counted, client = served(mesh)
    for n in range(200):
        assert client.call("count", {"n": n}, timeout=PATIENCE_S)["output"] == {"n": n}
    assert counted.runs == Counter(range(200))
    (line,) = lines_of(client)
    line._tell()
    line.session.check()
    assert not line.session.is_bound  # nothing is kept of what is over
    assert len({body["task_id"] for body in client.tasks(state="completed")}) == 200


def test_a_failure_is_raised_and_the_connection_is_kept(mesh: Mesh) -> None:
    _, _, client = served(mesh)
    for _ in range(2):
        with pytest.raises(TaskFailedError, match="this one always fails"):
            client.call("fail", {}, max_attempts=1, timeout=PATIENCE_S)
    assert len(lines_of(client)) == 1
    with pytest.raises(InvalidTaskError):
        client.call("count", {"n": 1}, priority=11)
    with pytest.raises(InvalidTaskError):
        client.call("count", {"n": 1}, timeout=float("nan"))


def test_calls_of_many_threads_do_not_mix(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_call, "MAX_DIRECT_CALLS", 3)
    _, counted, client = served(mesh)
    calls = [call_aside(client, "hold", n) for n in range(5)]
    until(lambda: client.node.submitter._next_n == 2)  # those have gone the shared way
    assert client.node.direct_calls._count == 3
    counted.may_end.set()
    for n, (thread, ended) in enumerate(calls):
        thread.join(PATIENCE_S)
        assert ended == [{"n": n}]
    assert counted.runs == Counter(range(5))
    assert client.node.direct_calls._count == len(lines_of(client)) == 3
    monkeypatch.setattr(direct_call, "UNUSED_S", 0.0)
    assert client.call("count", {"n": 5}, timeout=PATIENCE_S)["output"] == {"n": 5}
    assert client.node.direct_calls._count == len(lines_of(client)) <= 1


def test_calls_go_where_the_client_is_now(mesh: Mesh) -> None:
    here, there = mesh.broker(), mesh.broker("other")
    Counted(mesh, here)
    Counted(mesh, there)
    client = connected(mesh, here)
    client.call("count", {"n": 1}, timeout=PATIENCE_S)
    route = Route.given(mesh.endpoint(there))
    group = Group("count", 5, [msgspec.msgpack.encode({"n": 2})])
    assert client.node.direct_calls.call(route, group, PATIENCE_S) is not None
    (line,) = lines_of(client)
    assert line.route == route
    assert client.node.direct_calls._count == 1


def test_another_orchestrator_in_place_of_the_first_serves_on(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_call, "GREET_AGAIN_S", 0.0)
    port, _, client = served(mesh)
    client.call("count", {"n": 1}, timeout=PATIENCE_S)
    (line,) = lines_of(client)
    first = line.broker_id
    mesh.stop_broker(*mesh.brokers[-1])
    until(lambda: not client.node.session.is_up)
    mesh.broker("other", port=port, keys_of="o")
    assert client.wait_connected(PATIENCE_S)
    assert client.call("count", {"n": 2}, timeout=PATIENCE_S)["output"] == {"n": 2}
    assert lines_of(client) == [line]
    assert line.broker_id not in ("", first)


def test_a_wait_that_is_over_says_so_and_the_task_goes_on(mesh: Mesh) -> None:
    _, counted, client = served(mesh)
    late = []
    for n in range(3):
        with pytest.raises(WaitTimeoutError, match=r"within 0\.4 s") as over:
            client.call("hold", {"n": n}, timeout=0.4)
        late.append(client.task(str(over.value).split()[3]))
    (line,) = lines_of(client)  # it serves on
    assert not line.session.is_bound
    counted.may_end.set()
    for n, task in enumerate(late):
        assert task.result(PATIENCE_S)["output"] == {"n": n}
    assert client.call("count", {"n": 3}, timeout=PATIENCE_S)["output"] == {"n": 3}
    assert client.call("count", {"n": 4}, timeout=10**400)["output"] == {"n": 4}
    assert counted.runs == Counter(range(5))
    assert lines_of(client) == [line]


def test_a_full_queue_is_said(mesh: Mesh) -> None:
    port = mesh.broker(queue_size=1)
    client = connected(mesh, port)
    client.submit("nobody", {}).wait_accepted(PATIENCE_S)
    with pytest.raises(QueueFullError):
        client.call("nobody", {}, timeout=1.5)


def test_a_call_outlives_a_restart_of_the_orchestrator(mesh: Mesh) -> None:
    port, counted, client = served(mesh)
    thread, ended = call_aside(client, "hold", 1)
    assert counted.begun.wait(PATIENCE_S)
    restart(mesh, port)
    counted.may_end.set()
    thread.join(PATIENCE_S)
    assert ended == [{"n": 1}]
    assert counted.runs[1] == 1
    assert client.call("count", {"n": 2}, timeout=PATIENCE_S)["output"] == {"n": 2}


def test_a_restart_between_two_calls_costs_none(mesh: Mesh) -> None:
    port, counted, client = served(mesh)
    for n in range(3):
        assert client.call("count", {"n": n}, timeout=PATIENCE_S)["output"] == {"n": n}
        restart(mesh, port)
    assert client.call("count", {"n": 3}, timeout=PATIENCE_S)["output"] == {"n": 3}
    assert counted.runs == Counter(range(4))


@pytest.mark.skipif(sys.platform == "win32", reason="a signal to oneself")
def test_an_interrupted_call_leaves_nothing_behind(mesh: Mesh) -> None:
    _, counted, client = served(mesh)

    def interrupt() -> None:
        assert counted.begun.wait(PATIENCE_S)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        client.call("hold", {"n": 1}, timeout=PATIENCE_S)
    assert client.node.direct_calls._count == 0
    counted.may_end.set()
    assert client.call("count", {"n": 2}, timeout=PATIENCE_S)["output"] == {"n": 2}
    until(lambda: counted.runs[1] == 1)


def test_closing_the_client_ends_its_calls(mesh: Mesh) -> None:
    _, counted, client = served(mesh)
    thread, ended = call_aside(client, "hold", 1)
    assert counted.begun.wait(PATIENCE_S)
    client.close()
    thread.join(PATIENCE_S)
    assert isinstance(ended[0], NodeClosedError)
    counted.may_end.set()
    with pytest.raises(NodeClosedError):
        client.call("count", {"n": 2})
    assert client.node.direct_calls._count == 0


def test_what_ends_after_the_close_is_let_go(mesh: Mesh) -> None:
    _, counted, client = served(mesh)
    thread, ended = call_aside(client, "hold", 1)
    assert counted.begun.wait(PATIENCE_S)
    client.node.direct_calls.close()
    counted.may_end.set()
    thread.join(PATIENCE_S)
    assert ended == [{"n": 1}]
    assert (client.node.direct_calls._count, client.node.direct_calls._shared) == (0, None)
    assert client.call("count", {"n": 2}, timeout=PATIENCE_S)["output"] == {"n": 2}


def test_a_lost_direct_call_goes_on_elsewhere_and_runs_nothing_twice(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, counted, client = served(mesh)
    look = DirectCall._look

    def lost(line: DirectCall, now: float) -> None:
        look(line, now)
        raise direct_call.DirectCallLostError("for the test")

    go_on, waits = DirectCalls._go_on, list[float]()

    def noted(
        lines: DirectCalls, line: DirectCall, submission: Submission, timeout_s: float
    ) -> Any:
        waits.append(timeout_s)
        return go_on(lines, line, submission, timeout_s)

    monkeypatch.setattr(DirectCall, "_look", lost)
    monkeypatch.setattr(DirectCalls, "_go_on", noted)
    threads = client_threads()
    thread, ended = call_aside(client, "hold", 1)
    until(lambda: client_threads() != threads)  # it goes on elsewhere
    assert counted.begun.wait(PATIENCE_S)
    counted.may_end.set()
    thread.join(PATIENCE_S)
    assert ended == [{"n": 1}]
    assert counted.runs[1] == 1
    assert client.node.direct_calls._count == 0
    assert client_threads() == threads
    counted.may_end.clear()
    with pytest.raises(WaitTimeoutError, match=r"within 1\.25 s"):
        client.call("hold", {"n": 2}, timeout=1.25)
    assert 0 < waits[-1] < 1.25
    assert client_threads() == threads
    counted.may_end.set()
