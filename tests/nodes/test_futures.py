"""Tasks as futures, with a real broker and real workers on loopback."""

from __future__ import annotations

import concurrent.futures
import copy
import json
import multiprocessing
import pickle
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from d8mesh.core.client.submission import Submission
from d8mesh.errors import (
    D8Error,
    InvalidTaskError,
    NodeClosedError,
    QueueFullError,
    TaskCancelledError,
    TaskError,
    TaskFailedError,
    UnknownTaskError,
    WaitTimeoutError,
)
from d8mesh.nodes.client import Client, Task, completion_waiters
from d8mesh.nodes.client import client as clients
from d8mesh.nodes.client.cancellations import MAX_UNDER_WAY
from d8mesh.nodes.client.completions import Completions
from d8mesh.nodes.client.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    as_completed,
    wait,
)
from tests.nodes.mesh import PATIENCE_S, Mesh, mesh_in, until

NOBODY = f"{'v' * 16}-0"


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with mesh_in(tmp_path) as mesh:
        yield mesh


class Gate:
    """Handlers that wait until the test lets them go on."""

    def __init__(self, mesh: Mesh, port: int, *, slots: int = 4) -> None:
        self._open: dict[str, threading.Event] = {}
        worker = mesh.worker(port, slots=slots)
        worker.register("gated", self._run)
        worker.register("echo", lambda data: data)
        worker.register("broken", lambda data: {"success": False, "error": "no", "why": 7})
        mesh.run(worker)

    def of(self, name: str) -> threading.Event:
        return self._open.setdefault(name, threading.Event())

    def _run(self, data: dict[str, Any]) -> str:
        assert self.of(data["name"]).wait(PATIENCE_S)
        if data.get("fails"):
            raise ValueError("as told")
        return str(data["name"])

    def open_all(self) -> None:
        for event in list(self._open.values()):
            event.set()


@pytest.fixture
def port(mesh: Mesh) -> int:
    return mesh.broker()


@pytest.fixture
def gate(mesh: Mesh, port: int) -> Iterator[Gate]:
    gate = Gate(mesh, port)
    yield gate
    gate.open_all()


@pytest.fixture
def client(mesh: Mesh, port: int) -> Client:
    client = mesh.client(port)
    assert client.wait_connected(PATIENCE_S)
    return client


def gated(client: Client, gate: Gate, name: str, **more: object) -> Task:
    gate.of(name)
    return client.submit("gated", {"name": name, **more}, max_attempts=1)


# --------------------------------------------------------------------------- one task


def test_a_task_tells_its_outcome_as_a_future_does(client: Client, gate: Gate) -> None:
    good, bad, gone = client.submit("echo"), client.submit("broken", max_attempts=1), client
    assert good.exception(PATIENCE_S) is None
    assert (good.done(), good.cancelled()) == (True, False)
    error = bad.exception(PATIENCE_S)
    assert isinstance(error, TaskFailedError)
    assert (error.result["why"], error.task_id) == (7, bad.id)
    unwanted = gone.submit("nobody")
    assert not unwanted.done()
    assert unwanted.cancel()
    assert (unwanted.done(), unwanted.cancelled()) == (True, True)
    with pytest.raises(TaskCancelledError) as caught:
        unwanted.exception(PATIENCE_S)
    assert caught.value.task_id == unwanted.id
    waiting = gone.submit("nobody")
    with pytest.raises(WaitTimeoutError) as late:
        waiting.exception(0.05)
    assert late.value.task_id == waiting.id
    unknown = client.task(NOBODY)
    assert isinstance(unknown.exception(PATIENCE_S), UnknownTaskError)
    with pytest.raises(UnknownTaskError):
        unknown.cancel()


def test_cancel_says_whether_the_task_is_cancelled_now(client: Client, gate: Gate) -> None:
    done, running, waiting = client.submit("echo"), gated(client, gate, "a"), client.submit("no")
    done.result(PATIENCE_S)
    until(lambda: running.status()["state"] == "running")
    assert [task.cancel() for task in (done, running, waiting)] == [False, True, True]
    assert [task.cancelled() for task in (done, running, waiting)] == [False, True, True]
    assert [task.cancel() for task in (done, running, waiting)] == [False, True, True]
    elsewhere = client.task(done.id)  # this handle has not heard yet how it ended
    assert elsewhere.cancel() is False


def test_a_refused_task_is_done_and_cannot_be_cancelled(mesh: Mesh) -> None:
    client = mesh.client(mesh.broker(queue_size=1))
    client.submit("nobody").wait_accepted(PATIENCE_S)
    called: list[Task] = []
    refused = client.submit("nobody", timeout=1.0)
    refused.add_done_callback(called.append)
    error = refused.exception(PATIENCE_S)
    assert isinstance(error, QueueFullError)
    assert error.task_id == refused.id
    assert (refused.done(), refused.cancel(), refused.cancelled()) == (True, False, False)
    until(lambda: called == [refused])
    assert as_list(as_completed([refused], PATIENCE_S)) == [refused]


def as_list(tasks: Iterator[Task]) -> list[Task]:
    return list(tasks)


def test_none_for_an_option_means_its_default(client: Client, gate: Gate) -> None:
    task = client.submit(
        "echo", None, priority=None, timeout=None, deadline_s=None, max_attempts=None,
        fenced=None, run_at=None, idempotency_key=None,
    )  # fmt: skip
    assert task.result(None)["output"] == {}
    status = task.status(None)
    assert (status["priority"], status["state"]) == (5, "completed")
    assert client.call("echo", None, priority=None)["output"] == {}
    assert task.cancel(None) is False
    assert [each["task_id"] for each in client.tasks(state=None, type=None, timeout=None)]
    assert client.stats(timeout=None)["workers"]["online"] == 1
    with pytest.raises(InvalidTaskError, match="expected a dict"):
        client.submit_many("echo", [None])  # type: ignore[list-item]


# -------------------------------------------------------------------------- callbacks


def test_a_callback_is_called_once_by_the_clients_thread_or_at_once(
    client: Client, gate: Gate
) -> None:
    task = gated(client, gate, "a")
    called: list[tuple[Task, str]] = []
    both = threading.Event()

    def first(task: Task) -> None:
        called.append((task, threading.current_thread().name))

    def second(task: Task) -> None:
        assert task.done()
        assert task.result()["output"] == "a"  # what is there needs no waiting
        both.set()

    task.add_done_callback(first)
    task.add_done_callback(second)
    gate.of("a").set()
    assert both.wait(PATIENCE_S)
    assert called == [(task, "d8-client")]
    task.add_done_callback(first)
    assert called[1:] == [(task, threading.current_thread().name)]


@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit(3)])
def test_what_a_callback_raises_is_logged_and_harms_nothing(
    client: Client, gate: Gate, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(task: Task) -> None:
        raise error

    task, ended = gated(client, gate, "a"), threading.Event()
    task.add_done_callback(raises)
    task.add_done_callback(lambda task: ended.set())
    gate.of("a").set()
    assert ended.wait(PATIENCE_S)
    task.add_done_callback(raises)
    told = [record.message for record in caplog.records if "callback.raised" in record.message]
    assert len(told) == 2
    assert all("raises" in text and type(error).__name__ in text for text in told)
    assert client.submit("echo").result(PATIENCE_S)


def test_a_callback_that_waits_for_its_own_client_is_told_so(client: Client, gate: Gate) -> None:
    task, other = gated(client, gate, "a"), client.submit("nobody")
    caught: list[D8Error] = []
    ended = threading.Event()

    def waits(_: Task) -> None:
        for wait_for in (other.result, other.wait_accepted, other.status, client.flush):
            try:
                wait_for()
            except D8Error as error:
                caught.append(error)
        client.submit("echo").add_done_callback(lambda task: ended.set())  # this may be done

    other.wait_accepted()
    task.add_done_callback(waits)
    gate.of("a").set()
    assert ended.wait(PATIENCE_S)
    assert ["own thread" in str(error) for error in caught] == [True] * 3


#: Ways to wait that a callback may think of; each is given another task of the same client.
WAITS: dict[str, Callable[[Client, Task], object]] = {
    "a key": lambda client, _: client.submit("echo", idempotency_key="a"),
    "many": lambda client, _: client.submit_many("echo", [{}]),
    "map": lambda client, _: list(client.map("echo", [{}])),
    "as_completed": lambda _, other: next(as_completed([other])),
    "wait": lambda _, other: wait([other]),
    "a future": lambda client, _: client.executor("nobody").submit().result(),
    "a stream": lambda _, other: next(other.stream()),
    "a stream from the submit on": lambda client, _: next(
        client.submit("nobody", listen=True).stream()
    ),
}


@pytest.mark.parametrize("way", WAITS)
def test_no_way_of_waiting_in_a_callback_stops_the_client(
    client: Client, gate: Gate, way: str
) -> None:
    task, other = gated(client, gate, "a"), client.submit("nobody")
    other.wait_accepted(PATIENCE_S)
    caught: queue.SimpleQueue[str] = queue.SimpleQueue()

    def waits(_: Task) -> None:
        try:
            WAITS[way](client, other)
        except D8Error as error:
            caught.put(str(error))

    task.add_done_callback(waits)
    gate.of("a").set()
    assert "own thread" in caught.get(timeout=PATIENCE_S)
    assert client.submit("echo").result(PATIENCE_S)


def test_a_callback_that_submits_more_than_there_is_room_for_is_told_so(
    client: Client, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, caught = gated(client, gate, "a"), queue.SimpleQueue[str]()

    def submits(_: Task) -> None:
        try:
            while True:
                client.submit("echo", {"n": 1})
        except D8Error as error:
            caught.put(str(error))

    task.wait_accepted(PATIENCE_S)
    monkeypatch.setattr(completion_waiters, "MAX_PENDING_TASKS", 10)
    task.add_done_callback(submits)
    gate.of("a").set()
    assert "own thread" in caught.get(timeout=PATIENCE_S)
    client.flush(PATIENCE_S)


def test_the_future_of_a_task_may_be_looked_at_in_its_callback(client: Client, gate: Gate) -> None:
    found: queue.SimpleQueue[object] = queue.SimpleQueue()
    future = client.executor("echo").submit(n=1)
    future.add_done_callback(lambda future: found.put(future.result()["output"]))
    assert found.get(timeout=PATIENCE_S) == {"n": 1}


def test_output_that_was_kept_may_be_read_in_a_callback(client: Client, gate: Gate) -> None:
    found: queue.SimpleQueue[list[object]] = queue.SimpleQueue()
    task = client.submit("echo", {"n": 1}, listen=True)
    task.add_done_callback(lambda task: found.put(list(task.stream())))
    assert found.get(timeout=PATIENCE_S) == []


def test_a_task_that_ends_while_a_callback_is_left_for_it_is_not_missed() -> None:
    completions, called = Completions(), []
    submission = Submission("s" * 16, 0, [])
    answers = iter([False, True])  # it ends between the two looks
    completions.add(submission, 0, lambda: called.append(1), lambda: next(answers))
    completions.arrived(submission)  # too late: this one has been called
    completions.release()
    assert called == [1]


def test_callbacks_of_a_client_that_is_closed_are_called_too(
    mesh: Mesh, port: int, gate: Gate
) -> None:
    client = mesh.client(port)
    tasks = [client.submit("nobody") for _ in range(3)]
    called: list[Task] = []
    for task in tasks:
        task.add_done_callback(called.append)
    client.close()
    assert sorted(task.id for task in called) == sorted(task.id for task in tasks)
    assert all(task.done() and not task.cancelled() for task in tasks)
    with pytest.raises(NodeClosedError):
        tasks[0].result()
    assert isinstance(tasks[0].exception(), NodeClosedError)
    tasks[0].add_done_callback(called.append)
    assert called[3:] == [tasks[0]]
    assert wait(tasks, PATIENCE_S).done == set(tasks)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_callbacks_of_a_client_that_dies_are_called_too(client: Client) -> None:
    task, ended = client.submit("nobody"), threading.Event()
    task.wait_accepted(PATIENCE_S)
    task.add_done_callback(lambda task: ended.set())

    def die(now: float) -> list[Any]:
        raise RuntimeError("a fault of ours")

    client.node.runner.do(die)
    assert ended.wait(PATIENCE_S)
    assert task.done()
    with pytest.raises(NodeClosedError, match="a fault of ours"):
        task.result()


# -------------------------------------------------------------------------- many tasks


def test_tasks_are_yielded_as_they_are_done(client: Client, gate: Gate) -> None:
    first, second, third = (gated(client, gate, name) for name in "abc")
    done = client.submit("echo")
    done.result(PATIENCE_S)
    race = as_completed([first, second, third, done, first], timeout=PATIENCE_S)
    assert next(race) is done
    for task, name in ((third, "c"), (first, "a"), (second, "b")):
        gate.of(name).set()
        assert next(race) is task
    assert as_list(race) == []
    assert as_list(as_completed([])) == []


def test_as_completed_over_ten_thousand_tasks_yields_each_once(client: Client, gate: Gate) -> None:
    tasks = client.submit_many("echo", [{"n": n} for n in range(10_000)])
    seen = [task.result()["output"]["n"] for task in as_completed(tasks, PATIENCE_S)]
    assert sorted(seen) == list(range(10_000))
    assert wait(tasks, PATIENCE_S) == (set(tasks), set())


def test_tasks_of_several_clients_are_waited_for_together(
    mesh: Mesh, port: int, client: Client, gate: Gate
) -> None:
    other = mesh.client(port)
    tasks = [each.submit("echo", {"n": n}) for n in range(50) for each in (client, other)]
    tasks.append(client.task(tasks[1].id))
    assert set(as_completed(tasks, PATIENCE_S)) == set(tasks)
    with pytest.raises(InvalidTaskError, match="saw Future, expected tasks of a Client"):
        as_completed([concurrent.futures.Future()])  # type: ignore[list-item]


def test_a_wait_for_many_that_is_over_says_so_and_leaves_nothing(
    client: Client, gate: Gate
) -> None:
    tasks = [gated(client, gate, "a"), client.submit("nobody"), client.submit("echo")]
    race = as_completed(tasks, timeout=0.5)
    assert next(race) is tasks[2]
    with pytest.raises(WaitTimeoutError, match=r"2 of 3 tasks are not done within 0\.5 s"):
        list(race)
    left = as_completed(tasks)
    next(left)
    del left  # as a `break` out of the loop does
    assert wait(tasks, timeout=0) == ({tasks[2]}, {tasks[0], tasks[1]})
    assert client.node.completions._calls == {}
    for bad in ("5", float("nan")):
        with pytest.raises(InvalidTaskError, match="timeout: saw"):
            wait(tasks, bad)  # type: ignore[arg-type]
        with pytest.raises(InvalidTaskError, match="timeout: saw"):
            as_completed(tasks, bad)  # type: ignore[arg-type]


def test_wait_returns_when_it_was_told_to(client: Client, gate: Gate) -> None:
    a, b, c = gated(client, gate, "a"), gated(client, gate, "b", fails=True), client.submit("no")
    d = gated(client, gate, "d")
    gate.of("a").set()
    done, running = wait([a, b, c, d], PATIENCE_S, return_when=FIRST_COMPLETED)
    assert (done, running) == ({a}, {b, c, d})
    c.cancel()  # ended, but by no fault
    threading.Timer(0.1, gate.of("b").set).start()
    done, running = wait([a, b, c, d], PATIENCE_S, FIRST_EXCEPTION)
    assert (done, running) == ({a, b, c}, {d})
    gate.of("d").set()
    result = wait(iter([a, b, c, d]), PATIENCE_S, return_when=ALL_COMPLETED)
    assert (result.done, result.not_done) == ({a, b, c, d}, set())
    with pytest.raises(InvalidTaskError, match="return_when: saw 'ANY'"):
        wait([a], return_when="ANY")
    assert concurrent.futures.FIRST_EXCEPTION == FIRST_EXCEPTION


# ----------------------------------------------------------------------------- dropping


def test_what_is_dropped_is_cancelled_however_many_and_whenever(
    mesh: Mesh, client: Client, gate: Gate
) -> None:
    tasks = [client.submit("nobody") for _ in range(3 * MAX_UNDER_WAY)]  # hardly sent by now
    tasks += client.submit_many("nobody", [{}] * 50)
    for task in tasks:
        client.node.drop(task.submission, task.index)
    assert client.node.wait_dropped(PATIENCE_S)
    assert all(task.status()["state"] == "cancelled" for task in tasks)


def test_what_was_dropped_before_the_client_is_closed_is_cancelled(mesh: Mesh, port: int) -> None:
    with mesh.client(port) as client:
        assert client.wait_connected(PATIENCE_S)
        tasks = [client.submit("nobody") for _ in range(300)]
        for task in tasks:
            client.node.drop(task.submission, task.index)
    other = mesh.client(port)
    assert {body["state"] for body in other.tasks()} == {"cancelled"}


# ---------------------------------------------------------------------------- pickling


class Health:
    """A REST port that does no more than name the broker's: what ORCHESTRATOR_URL needs."""

    def __init__(self, port: int, server_key: bytes) -> None:
        told = {"broker_port": port, "server_key": server_key.hex()}

        def application(environ: Any, start_response: Any) -> Any:
            assert Request(environ).path == "/health"
            return Response(json.dumps(told))(environ, start_response)

        self.http = make_server("127.0.0.1", 0, application, threaded=True)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,))
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join(PATIENCE_S)
        self.http.server_close()


@pytest.fixture
def environment(
    mesh: Mesh, port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    """The settings of this process lead to the mesh."""
    health = Health(port, mesh.key(port))
    monkeypatch.setenv("ORCHESTRATOR_URL", health.url)
    monkeypatch.setenv("D8_MESH", mesh.mesh)
    monkeypatch.setenv("D8_INTERFACES", "127.0.0.1")
    monkeypatch.setenv("D8_DATA_DIR", str(tmp_path / "own"))
    try:
        yield
    finally:
        if clients._own is not None:
            clients._own.close()
        health.close()


def _result_of(task: Task, answers: multiprocessing.SimpleQueue[Any]) -> None:
    answers.put((task.id, task.result(PATIENCE_S)["output"]))


def test_a_pickled_task_opens_itself_where_it_is_unpickled(
    client: Client, gate: Gate, environment: None
) -> None:
    task = gated(client, gate, "a")
    task.wait_accepted(PATIENCE_S)
    again = pickle.loads(pickle.dumps(task))  # noqa: S301 - our own
    assert type(again) is Task
    assert (again.id, repr(again)) == (task.id, repr(task))
    assert not again.done()
    assert again.client is not client
    gate.of("a").set()
    assert again.result(PATIENCE_S)["output"] == "a"
    assert again.status(PATIENCE_S)["state"] == "completed"
    more = pickle.loads(pickle.dumps([task, again]))  # noqa: S301
    assert set(as_completed(more, PATIENCE_S)) == set(more)
    assert more[0].client is again.client  # one for all of them
    again.node.close()
    later = pickle.loads(pickle.dumps(task))  # noqa: S301
    assert later.result(PATIENCE_S)["output"] == "a"  # through another one


@pytest.mark.skipif(sys.platform == "win32", reason="the handlers' test module is not importable")
def test_a_task_can_be_handed_to_another_process(
    client: Client, gate: Gate, environment: None
) -> None:
    task = client.submit("echo", {"x": 1})
    task.wait_accepted(PATIENCE_S)
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.SimpleQueue()
    child = spawn.Process(target=_result_of, args=(task, answers))
    child.start()
    child.join(PATIENCE_S)
    assert child.exitcode == 0
    assert answers.get() == (task.id, {"x": 1})


def test_an_unpickled_task_can_be_opened_by_a_client(client: Client, gate: Gate) -> None:
    task = client.submit("echo", {"x": 1})
    task.wait_accepted(PATIENCE_S)
    again = client.task(pickle.loads(pickle.dumps(task)))  # noqa: S301
    assert again.client is client
    assert again.result(PATIENCE_S)["output"] == {"x": 1}


def test_a_copy_of_a_handle_is_the_handle(client: Client) -> None:
    task = client.submit("nobody")
    assert copy.copy(task) is task
    assert copy.deepcopy({"task": [task]})["task"][0] is task


# ---------------------------------------------------------------------- errors, overview


def test_every_error_of_one_task_names_it(mesh: Mesh, client: Client, gate: Gate) -> None:
    failed = client.submit("broken", max_attempts=1)
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: failed.result(PATIENCE_S), failed.id),
        (client.task(NOBODY).result, NOBODY),
        (client.task(NOBODY).status, NOBODY),
        (client.task(NOBODY).cancel, NOBODY),
        (lambda: list(client.map("broken", [{}], max_attempts=1)), ""),
        (lambda: client.call("broken", max_attempts=1), ""),
        (lambda: client.call("nobody", timeout=0.2), ""),
        (lambda: next(client.map("nobody", [{}], timeout=0.2)), ""),
    ]
    for call, task_id in calls:
        with pytest.raises((TaskError, WaitTimeoutError)) as caught:
            call()
        told = caught.value.task_id
        assert told == task_id or (not task_id and client.task(told).status()["task_id"] == told)
        again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
        assert (str(again), again.task_id) == (str(caught.value), told)


def test_workers_and_stats_are_what_the_orchestrator_says(client: Client, gate: Gate) -> None:
    client.submit("echo").result(PATIENCE_S)
    (worker,) = client.workers()
    assert worker["status"] == "online"
    assert worker["capabilities"]["task_types"] == ["broken", "echo", "gated"]
    assert (worker["slots"], worker["tasks_completed"], worker["dialect"]) == (4, 1, "mesh")
    stats = client.stats()
    assert (stats["workers"]["online"], stats["tasks"]["completed"]) == (1, 1)
    assert stats["performance"]["success_rate"] == 100


def test_data_of_other_libraries_arrives_as_json(client: Client, gate: Gate) -> None:
    class Half(float):
        """As numpy.float64."""

    result = client.submit("echo", {"loss": Half(0.5), "at": (1, 2)}).result(PATIENCE_S)
    assert result["output"] == {"loss": 0.5, "at": [1, 2]}
    task = client.submit_many("echo", [{"loss": Half(0.5)}])[0]
    assert task.result(PATIENCE_S)["output"] == {"loss": 0.5}
    assert client.call("echo", {"loss": Half(2)})["output"] == {"loss": 2.0}


def test_waiting_for_many_costs_the_same_for_each(client: Client, gate: Gate) -> None:
    """Each of ten thousand, among ten thousand: with a look at all of them this takes ages."""
    tasks = client.submit_many("nobody", [{}] * 10_000)
    begun = time.monotonic()
    for task in tasks:
        task.when_done(gate.open_all)
        client.node.completions.discard(task.submission, task.index, gate.open_all)
    assert time.monotonic() - begun < PATIENCE_S / 3
    assert client.node.completions._calls == {}


def test_a_task_is_explained_and_models_are_told(client: Client) -> None:
    task = client.submit("nobody_explains_this")
    task.wait_accepted(PATIENCE_S)
    told = client.explain(task.id)
    assert told["summary"] == task.status()["reason"]
    assert told["remedies"][0]["text"] == "start a worker that offers 'nobody_explains_this'"
    task.cancel()
    assert client.models()["models"] == []
    with pytest.raises(UnknownTaskError):
        client.explain("0123456789abcdef-99")
