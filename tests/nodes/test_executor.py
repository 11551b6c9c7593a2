"""The executor under the idioms of `concurrent.futures` and asyncio, over a real mesh."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from d8mesh.errors import InvalidTaskError, NodeClosedError, TaskFailedError
from d8mesh.nodes.client import Client
from d8mesh.nodes.client.executor import TaskExecutor
from tests.nodes.mesh import PATIENCE_S, Mesh, mesh_in, until


class Gate:
    """A worker whose handlers wait until the test lets them go on."""

    def __init__(self, mesh: Mesh, port: int) -> None:
        self.is_open = threading.Event()
        worker = mesh.worker(port, slots=4)
        worker.register("square", lambda data: data["n"] ** 2)
        worker.register("gated", self._run)
        mesh.run(worker)

    def _run(self, data: dict[str, Any]) -> dict[str, Any]:
        assert self.is_open.wait(PATIENCE_S)
        return data


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with mesh_in(tmp_path) as mesh:
        yield mesh


@pytest.fixture
def port(mesh: Mesh) -> int:
    return mesh.broker()


@pytest.fixture
def gate(mesh: Mesh, port: int) -> Iterator[Gate]:
    gate = Gate(mesh, port)
    yield gate
    gate.is_open.set()


@pytest.fixture
def client(mesh: Mesh, port: int) -> Client:
    client = mesh.client(port)
    assert client.wait_connected(PATIENCE_S)
    return client


@pytest.fixture
def square(client: Client, gate: Gate) -> TaskExecutor:
    return client.executor("square", max_attempts=1)


def n_of(n: int) -> dict[str, int]:
    return {"n": n}


# ---------------------------------------------------------------------------- submitting


@pytest.mark.parametrize(
    "submit",
    [
        lambda ex: ex.submit({"n": 7}),
        lambda ex: ex.submit(n=7),
        lambda ex: ex.submit(None, {"n": 7}),
        lambda ex: ex.submit(None, n=7),
        lambda ex: ex.submit({"m": 1}, n=7),
        lambda ex: ex.submit(dict, n=7),
        lambda ex: ex.submit(n_of, 7),
        lambda ex: ex.submit(lambda a, *, b: {"n": a + b}, 3, b=4),
    ],
)
def test_what_is_submitted_becomes_the_tasks_data(
    square: TaskExecutor, submit: Callable[[TaskExecutor], concurrent.futures.Future[Any]]
) -> None:
    future = submit(square)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(PATIENCE_S)["output"] == 49
    assert (future.done(), future.running(), future.cancelled()) == (True, False, False)
    assert future.exception() is None


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((pow, 2, 3), "'pow' returned int, expected a dict: .* the work is done by the handler"),
        (("square", {"n": 1}), "saw str, dict, expected one dict"),
        (({"n": 1}, {"n": 2}), "saw dict, dict, expected one dict"),
        ((None, 5), "saw int, expected one dict"),
        (({"n": b"x"},), "data.n: saw bytes"),
    ],
)
def test_what_makes_no_data_is_refused_at_once(
    square: TaskExecutor, args: tuple[Any, ...], said: str
) -> None:
    with pytest.raises(InvalidTaskError, match=said):
        square.submit(*args)
    square.shutdown()  # nothing is left that it could wait for


def test_a_type_or_an_option_that_is_wrong_is_refused_when_it_is_made(client: Client) -> None:
    with pytest.raises(InvalidTaskError, match="type"):
        client.executor("")
    with pytest.raises(InvalidTaskError, match="priority: saw 11"):
        client.executor("square", priority=11)


def test_the_future_knows_its_task(square: TaskExecutor, client: Client) -> None:
    future = square.submit(n=3)
    assert future.task.result(PATIENCE_S)["output"] == 9
    assert client.task(future.task.id).status()["type"] == "square"


def test_a_failure_is_the_futures_exception(square: TaskExecutor) -> None:
    future = square.submit(m=3)
    error = future.exception(PATIENCE_S)
    assert isinstance(error, TaskFailedError)
    assert error.task_id == future.task.id
    with pytest.raises(TaskFailedError, match="KeyError"):
        future.result()


# ------------------------------------------------------------- concurrent.futures' idioms


def test_futures_are_waited_for_by_the_standard_library(square: TaskExecutor) -> None:
    futures = {square.submit(n=n): n for n in range(500)}
    for future in concurrent.futures.as_completed(futures, PATIENCE_S):
        assert future.result()["output"] == futures[future] ** 2  # type: ignore[index]
    assert concurrent.futures.wait(futures, PATIENCE_S).not_done == set()


def test_map_is_the_standard_one(square: TaskExecutor) -> None:
    for results in (
        square.map(n_of, range(300), timeout=PATIENCE_S),
        square.map(None, ({"n": n} for n in range(300))),  # type: ignore[arg-type]
        square.map(lambda a, b: {"n": a * b}, range(300), [1] * 300, chunksize=50),
    ):
        assert [result["output"] for result in results] == [n * n for n in range(300)]
    with pytest.raises(TaskFailedError, match="KeyError"):
        list(square.map(lambda n: {"m": n}, range(3)))


def test_leaving_the_block_waits_for_all(square: TaskExecutor, client: Client) -> None:
    with square as executor:
        futures = [executor.submit(n=n) for n in range(100)]
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="after shutdown"):
        square.submit(n=1)
    assert client.submit("square", {"n": 2}).result(PATIENCE_S)["output"] == 4  # it stays open


def test_cancelling_a_future_cancels_its_task(client: Client, gate: Gate) -> None:
    executor = client.executor("gated")
    running, waiting = executor.submit(n=1), executor.submit(n=2)
    until(lambda: running.task.status()["state"] == "running")
    assert running.cancel()
    assert running.cancelled()
    with pytest.raises(concurrent.futures.CancelledError):
        running.result(PATIENCE_S)
    until(lambda: running.task.status()["state"] == "cancelled")
    assert concurrent.futures.wait([running], PATIENCE_S).done == {running}
    assert list(concurrent.futures.as_completed([running], PATIENCE_S)) == [running]
    gate.is_open.set()
    assert waiting.result(PATIENCE_S)["output"] == {"n": 2}
    assert not waiting.cancel()
    executor.shutdown()


def test_who_waits_hears_that_a_future_is_cancelled(client: Client, gate: Gate) -> None:
    future = client.executor("gated").submit(n=1)
    threading.Timer(0.1, future.cancel).start()
    assert list(concurrent.futures.as_completed([future], PATIENCE_S)) == [future]


def test_a_task_that_others_cancel_is_a_cancelled_future(client: Client, gate: Gate) -> None:
    future = client.executor("nobody").submit(n=1)
    assert client.task(future.task.id).cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(PATIENCE_S)
    assert future.cancelled()


def test_shutdown_may_cancel_what_is_not_done(client: Client, gate: Gate) -> None:
    executor = client.executor("gated")
    futures = [executor.submit(n=n) for n in range(200)]
    executor.shutdown(wait=True, cancel_futures=True)
    assert all(future.cancelled() for future in futures)
    assert {future.task.status()["state"] for future in futures} == {"cancelled"}


def test_shutdown_need_not_wait(client: Client, gate: Gate) -> None:
    executor = client.executor("gated")
    future = executor.submit(n=1)
    executor.shutdown(wait=False)
    assert not future.done()
    gate.is_open.set()
    assert future.result(PATIENCE_S)["output"] == {"n": 1}


def test_a_map_that_ends_early_cancels_the_rest(client: Client, gate: Gate) -> None:
    executor = client.executor("gated")
    with pytest.raises(TimeoutError):
        list(executor.map(n_of, range(20), timeout=0.2))
    executor.shutdown()  # all of them are cancelled, so this does not wait
    assert client.node.wait_dropped(PATIENCE_S)
    assert {body["state"] for body in client.tasks(type="gated")} == {"cancelled"}


def test_the_futures_of_a_closed_client_end(mesh: Mesh, port: int, gate: Gate) -> None:
    client = mesh.client(port)
    executor = client.executor("gated")
    future = executor.submit(n=1)
    client.close()
    assert isinstance(future.exception(PATIENCE_S), NodeClosedError)
    executor.shutdown()
    with pytest.raises(NodeClosedError):
        client.executor("gated").submit(n=1)


# ---------------------------------------------------------------------------- asyncio


def test_asyncio_awaits_tasks_through_the_executor(square: TaskExecutor) -> None:
    async def use() -> None:
        loop = asyncio.get_running_loop()
        loop.set_debug(True)  # it looks whether what it is given can be called
        assert (await loop.run_in_executor(square, n_of, 4))["output"] == 16
        futures = [asyncio.wrap_future(square.submit(n=n)) for n in range(100)]
        results = await asyncio.gather(*futures)
        assert [result["output"] for result in results] == [n * n for n in range(100)]

    asyncio.run(use())


def test_cancelling_what_awaits_it_cancels_the_task(client: Client, gate: Gate) -> None:
    future = client.executor("gated").submit(n=1)

    async def use() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(future), 0.1)

    asyncio.run(use())
    assert future.cancelled()
    until(lambda: future.task.status()["state"] == "cancelled")
