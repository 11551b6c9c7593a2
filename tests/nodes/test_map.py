"""`Client.map` over lists, generators and endless input, with a real mesh."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from d8mesh.errors import (
    InvalidTaskError,
    PayloadTooLargeError,
    TaskCancelledError,
    TaskFailedError,
    WaitTimeoutError,
)
from d8mesh.nodes.client import Client
from d8mesh.nodes.client.mapping import IN_FLIGHT
from tests.nodes.mesh import PATIENCE_S, Mesh, mesh_in, until


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with mesh_in(tmp_path) as mesh:
        yield mesh


@pytest.fixture
def client(mesh: Mesh) -> Client:
    port = mesh.broker()
    worker = mesh.worker(port)
    worker.register("echo", lambda data: data)
    worker.register("odd", _odd)
    mesh.run(worker)
    client = mesh.client(port)
    assert client.wait_connected(PATIENCE_S)
    return client


def _odd(data: dict[str, Any]) -> Any:
    return data if data["n"] % 2 else {"success": False, "error": f"{data['n']} is even"}


class Source:
    """Endless data; counts what was taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[dict[str, int]]:
        for n in itertools.count():
            self.taken = n + 1
            yield {"n": n}


def test_endless_input_is_taken_as_results_are_taken(client: Client) -> None:
    source = Source()
    results = client.map("echo", source, in_flight=10, timeout=PATIENCE_S)
    assert source.taken == 10  # its submission begins now
    for n in range(100):
        assert next(results)["output"] == {"n": n}
        assert n < source.taken <= n + 11
    results.close()
    assert client.node.wait_dropped(PATIENCE_S)
    health = client.ask("health", {})
    assert health["tasks_pending"] + health["tasks_in_progress"] == 0


def test_what_comes_slowly_is_submitted_as_it_comes(client: Client) -> None:
    items: queue.SimpleQueue[dict[str, int] | None] = queue.SimpleQueue()
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def use() -> None:
        for result in client.map("echo", iter(items.get, None), in_flight=1):
            results.put(result["output"]["n"])
        results.put("end")

    thread = threading.Thread(target=use)
    thread.start()
    for n in range(5):
        items.put({"n": n})
        assert results.get(timeout=PATIENCE_S) == n  # nobody waits for a submission to be full
    items.put(None)
    assert results.get(timeout=PATIENCE_S) == "end"
    thread.join(PATIENCE_S)


@pytest.mark.parametrize("in_flight", [1, 2, 7, 1000, 2500, None])
def test_results_are_in_order_whatever_may_be_in_flight(
    client: Client, in_flight: int | None
) -> None:
    count = 2600 if in_flight is None or in_flight >= 1000 else 150
    datas = [{"n": n} for n in range(count)]
    for given in (datas, iter(datas), dict(enumerate(datas)).values()):
        results = client.map("echo", given, in_flight=in_flight, timeout=PATIENCE_S)
        assert [result["output"]["n"] for result in results] == list(range(count))


def test_errors_may_stand_in_their_places(client: Client) -> None:
    cancelled = client.submit("nobody")
    cancelled.cancel()
    results = list(
        client.map("odd", [{"n": n} for n in range(50)], return_exceptions=True, max_attempts=1)
    )
    for n, result in enumerate(results):
        if n % 2:
            assert result["output"] == {"n": n}
        else:
            assert isinstance(result, TaskFailedError)
            assert (str(result), result.result["success"]) == (f"{n} is even", False)
            assert client.task(result.task_id).status()["state"] == "failed"
    mixed: list[Any] = [{"n": 1}, {"n": b"x"}, {"n": 3}, "text", {"n": "x" * 34_000_000}, {"n": 5}]
    for given in (mixed, iter(mixed)):
        told = [
            type(result).__name__ if isinstance(result, Exception) else result["output"]["n"]
            for result in client.map("odd", given, return_exceptions=True, timeout=PATIENCE_S)
        ]
        wrong = InvalidTaskError.__name__
        assert told == [1, wrong, 3, wrong, PayloadTooLargeError.__name__, 5]


def test_a_cancelled_task_is_an_error_too(client: Client) -> None:
    results = client.map("nobody", [{}] * 3, return_exceptions=True)
    (first, *_) = client.tasks(type="nobody")
    client.task(first["task_id"]).cancel()
    assert isinstance(next(results), TaskCancelledError)


def test_the_first_error_ends_it_and_cancels_what_is_in_flight(client: Client) -> None:
    mixed = itertools.chain([{"n": 1}, {"n": 2}], ({"n": 3} for _ in itertools.count()))
    results = client.map("odd", mixed, in_flight=20, max_attempts=1)
    assert next(results)["output"] == {"n": 1}
    with pytest.raises(TaskFailedError, match="2 is even"):
        next(results)
    assert list(results) == []
    assert client.node.wait_dropped(PATIENCE_S)


def test_a_break_out_of_the_loop_cancels_what_is_in_flight(client: Client) -> None:
    datas = [{"n": 0}] * 3000
    results = client.map("nobody", datas, timeout=0.3)
    with pytest.raises(WaitTimeoutError, match=r"^the result of \S+ has not come within 0\.3 s"):
        next(results)
    assert client.node.wait_dropped(PATIENCE_S)
    assert client.stats()["tasks"]["pending"] == 0
    client.map("nobody", datas)  # of one that nobody has begun to iterate all is left
    assert client.stats()["tasks"]["pending"] == 3000


def test_what_is_taken_is_bounded_by_itself(client: Client) -> None:
    source = Source()
    results = client.map("nobody", source)
    assert source.taken == IN_FLIGHT
    until(lambda: client.stats()["tasks"]["pending"] == IN_FLIGHT)
    del results


def test_what_was_delivered_is_forgotten(client: Client) -> None:
    results = client.map("echo", [{"x": "x" * 1000}] * 500, timeout=PATIENCE_S)
    next(results)
    submission = results.gi_frame.f_locals["waiting"][0].submission  # type: ignore[attr-defined]
    for _ in range(400):
        next(results)
    until(lambda: not submission.missing)
    assert [payload is None for payload in submission.payloads] == [True] * 401 + [False] * 99


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"in_flight": 0}, "in_flight: saw 0, expected 1 or more"),
        ({"in_flight": "many"}, "in_flight: saw 'many'"),
        ({"priority": 11}, "priority: saw 11"),
        ({"speed": 9}, "speed: no option of a submit"),
        ({"timeout": "x"}, "timeout: saw 'x'"),
        ({"datas": 5}, "datas: saw int, expected an iterable"),
        ({"datas": {"n": 1}}, "data: saw str, expected a dict"),
        ({"datas": [{"n": 1}, {"n": {1}}]}, r"data\.n: saw set"),
        ({"datas": iter([{"n": 1}, {"n": {1}}])}, r"data\.n: saw set"),
    ],
)
def test_what_is_wrong_is_told_by_the_call(client: Client, more: Any, said: str) -> None:
    datas = more.pop("datas", [{"n": 1}])
    with pytest.raises(InvalidTaskError, match=said):
        client.map("nobody", datas, **more)
    assert client.node.wait_dropped(PATIENCE_S)
    assert client.stats()["tasks"]["pending"] == 0


def test_input_that_raises_ends_it_with_that(client: Client) -> None:
    def broken() -> Iterator[dict[str, int]]:
        yield {"n": 1}
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.map("nobody", broken())
    results = client.map("echo", broken(), in_flight=1)
    assert next(results)["output"] == {"n": 1}
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_options_are_those_of_every_task(client: Client) -> None:
    results = client.map("nobody", [{}] * 2, priority=9, deadline_s=500.0, max_attempts=2)
    until(lambda: len(list(client.tasks(type="nobody"))) == 2)
    assert [body["priority"] for body in client.tasks(type="nobody")] == [9, 9]
    results.close()
