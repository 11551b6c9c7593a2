"""The client for asyncio, with a real broker and real workers on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from d8mesh import AsyncClient, AsyncTask
from d8mesh.config import Config
from d8mesh.core.client import session
from d8mesh.core.protocol.messages import COMPLETED_STATE, UNKNOWN_STATE, Group
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
    WaitTimeoutError,
    WrongLoopError,
)
from d8mesh.handlers import TaskContext
from d8mesh.nodes.client import RESTARTED
from d8mesh.nodes.client.aio import node
from tests.nodes.loops import LOOPS, own_threads, run, until
from tests.nodes.mesh import PATIENCE_S, Mesh, free_port, mesh_in

NOBODY = f"{'v' * 16}-0"
Factory = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with mesh_in(tmp_path) as mesh:
        yield mesh


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Factory:
    return LOOPS[request.param]


def client_of(mesh: Mesh, port: int) -> AsyncClient:
    return AsyncClient(endpoint=mesh.endpoint(port), config=mesh.config())


def echoing(mesh: Mesh, port: int, *types: str) -> None:
    worker = mesh.worker(port)
    for kind in types or ("echo",):
        worker.register(kind, lambda data: data)
    mesh.run(worker)


async def into(found: list[Any], source: AsyncIterator[Any]) -> None:
    async for each in source:
        found.append(each)  # seen from outside as it grows


# ------------------------------------------------------------------------ everyday use


def test_a_task_is_submitted_awaited_and_asked_about(mesh: Mesh, loop: Factory) -> None:
    port = mesh.broker()
    echoing(mesh, port)

    async def program() -> None:
        async with client_of(mesh, port) as client:
            task = await client.submit("echo", {"text": "ñ", "list": [1, 2.5, None]})
            result = await task
            assert result["output"] == {"text": "ñ", "list": [1, 2.5, None]}
            assert await task == await task.result(PATIENCE_S) == result
            assert task.done()
            assert not task.cancelled()
            assert await task.exception() is None
            assert repr(task) == f"<AsyncTask {task.id}>"
            await task.accepted()
            status = await task.status()
            assert (status["status"], status["task_id"]) == ("completed", task.id)
            assert status["result"]["output"] == result["output"]
            assert (await client.call("echo", {"n": 1}))["output"] == {"n": 1}
            assert (await client.call("echo"))["output"] == {}
            assert client.is_connected
            assert not client.is_over_http
            assert await client.wait_connected()
            assert (await client.stats())["tasks"]["completed"] == 3
            (worker,) = await client.workers()
            assert (await client.models())["models"] == []
            assert worker["worker_id"] == status["assigned_to"]
            assert (await client.explain(task.id))["summary"] == "it completed"
            assert await client.task(task.id) == result
            assert [t["state"] async for t in client.tasks(type="echo")] == ["completed"] * 3
            assert [t async for t in client.tasks(state="failed")] == []

    run(program(), loop)


def test_a_thousand_are_awaited_at_once_with_what_asyncio_has(mesh: Mesh, loop: Factory) -> None:
    port = mesh.broker()
    echoing(mesh, port)

    async def program() -> None:
        async with client_of(mesh, port) as client:
            calls = (client.call("echo", {"n": n}) for n in range(1000))
            results = await asyncio.gather(*calls)
            assert [result["output"]["n"] for result in results] == list(range(1000))
            tasks = [await client.submit("echo", {"n": n}) for n in range(1000)]
            results = await asyncio.gather(*tasks)
            assert [result["output"]["n"] for result in results] == list(range(1000))
            tasks = await client.submit_many("echo", ({"n": n} for n in range(1000)))
            found = [(await each)["output"]["n"] for each in asyncio.as_completed(tasks)]
            assert sorted(found) == list(range(1000))
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(client.call("echo", {"n": n})) for n in range(100)]
            assert sum(each.result()["output"]["n"] for each in running) == 4950
            assert client.node.waits.count == 0
            assert (await client.stats())["tasks"]["completed"] == 3100

    run(program(), loop)


def test_asyncio_can_wait_for_tasks_as_for_its_own(mesh: Mesh) -> None:
    port = mesh.broker()
    echoing(mesh, port)

    async def program() -> None:
        async with client_of(mesh, port) as client:
            quick = await client.submit("echo")
            never = await client.submit("nobody")
            both: Any = [quick, never]
            done, pending = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            assert (done, pending) == ({quick}, {never})
            done, pending = await asyncio.wait(both, timeout=0.01)
            assert (done, pending) == ({quick}, {never})
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(never, 0.01)
            assert (await asyncio.wait_for(quick, PATIENCE_S))["success"]

    run(program())


def test_giving_up_a_wait_leaves_the_task_and_the_other_waits(mesh: Mesh) -> None:
    port = mesh.broker()

    async def program() -> None:
        async with client_of(mesh, port) as client:
            task = await client.submit("later", {"n": 1})
            waits = [asyncio.create_task(task.result()) for _ in range(3)]
            await until(lambda: client.node.waits.count == 3)
            waits[0].cancel()
            with pytest.raises(WaitTimeoutError, match=rf"^the result of {task.id} has not .* 0 s"):
                await task.result(0)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await task
            assert not task.done()
            echoing(mesh, port, "later")
            for wait in waits[1:]:
                assert (await wait)["output"] == {"n": 1}
            assert waits[0].cancelled()
            assert client.node.waits.count == 0

    run(program())


def test_a_task_is_cancelled_when_that_is_asked_for(mesh: Mesh) -> None:
    port = mesh.broker()
    echoing(mesh, port)

    async def program() -> None:
        async with client_of(mesh, port) as client:
            task = await client.submit("nobody")
            assert await task.cancel() is True
            with pytest.raises(TaskCancelledError):
                await task
            assert task.cancelled()
            assert await task.cancel() is True
            with pytest.raises(TaskCancelledError):
                await task.exception()
            done = await client.submit("echo")
            await done
            assert await done.cancel() is False
            again = await client.replay(task.id)
            assert again.id != task.id
            assert await again.cancel()

    run(program())


def test_a_callback_is_called_once_by_the_loop_whenever_it_comes(mesh: Mesh) -> None:
    port = mesh.broker()
    told: list[tuple[str, AsyncTask, int]] = []

    async def program() -> None:
        async with client_of(mesh, port) as client:
            task = await client.submit("echo")
            other = await client.submit("nobody")
            names = {name: _teller(told, name) for name in ("early", "gone", "late", "closed")}
            task.add_done_callback(names["early"])
            task.add_done_callback(names["gone"])
            assert task.remove_done_callback(names["gone"]) == 1
            assert task.remove_done_callback(names["late"]) == 0
            other.add_done_callback(names["closed"])
            echoing(mesh, port)
            await task
            task.add_done_callback(names["late"])
            await until(lambda: len(told) == 2)
        await until(lambda: len(told) == 3)
        main = threading.get_ident()
        assert told == [("early", task, main), ("late", task, main), ("closed", other, main)]
        assert other.done()
        with pytest.raises(NodeClosedError):
            await other
        task.add_done_callback(names["gone"])
        await until(lambda: len(told) == 4)

    run(program())


def _teller(told: list[Any], name: str) -> Callable[[AsyncTask], None]:
    return lambda task: told.append((name, task, threading.get_ident()))


def test_tasks_come_in_the_order_in_which_they_end(mesh: Mesh) -> None:
    port = mesh.broker()

    async def program() -> None:
        async with client_of(mesh, port) as client:
            late = await client.submit("late")
            early = [await client.submit("echo") for _ in range(3)]
            found: list[AsyncTask] = []
            echoing(mesh, port)
            with pytest.raises(WaitTimeoutError, match=r"1 tasks has not come within 0\.5 s"):
                await into(found, client.as_completed([late, *early, early[0]], timeout=0.5))
            assert set(found) == set(early)
            echoing(mesh, port, "late")
            assert [task async for task in client.as_completed([late])] == [late]
            assert [task async for task in client.as_completed([])] == []
            async for task in client.as_completed([*early, await client.submit("nobody")]):
                assert task in early
                break

    run(program())


# ------------------------------------------------------------------------------- map


def test_map_takes_any_source_and_keeps_its_order(mesh: Mesh, loop: Factory) -> None:
    port = mesh.broker()
    echoing(mesh, port)

    async def slowly() -> AsyncIterator[dict[str, int]]:
        for n in range(50):
            await asyncio.sleep(0)
            yield {"n": n}

    async def program() -> None:
        async with client_of(mesh, port) as client:
            results = client.map("echo", ({"n": n} for n in range(25_000)), priority=7)
            assert [r["output"]["n"] async for r in results] == list(range(25_000))  # type: ignore[index]
            results = client.map("echo", slowly(), in_flight=3)
            assert [r["output"]["n"] async for r in results] == list(range(50))  # type: ignore[index]
            assert [r async for r in client.map("echo", [])] == []
            tasks = await client.submit_many("echo", slowly())
            assert [(await task)["output"]["n"] for task in tasks] == list(range(50))
            assert await client.submit_many("echo", []) == []

    run(program(), loop)


def test_map_reads_no_further_ahead_than_it_may(mesh: Mesh) -> None:
    port = mesh.broker()
    echoing(mesh, port)
    taken: list[int] = []

    def source() -> Iterator[dict[str, int]]:
        for n in range(1000):
            taken.append(n)
            yield {"n": n}

    async def program() -> None:
        async with client_of(mesh, port) as client:
            results = client.map("echo", source(), in_flight=10)
            count = 0
            async for _ in results:
                count += 1
                assert len(taken) <= count + 10
                if count == 100:
                    break
            await results.aclose()  # type: ignore[attr-defined]
            await asyncio.sleep(0)
            assert len(taken) <= 110
            none: list[Any] = [0, True, "9", 1.5]
            for bad in none:
                with pytest.raises(InvalidTaskError, match="in_flight: saw"):
                    client.map("echo", [], in_flight=bad)

    run(program())


def test_a_source_that_waits_holds_up_no_result(mesh: Mesh) -> None:
    port = mesh.broker()
    echoing(mesh, port)

    async def program() -> None:
        go_on = asyncio.Event()

        async def source() -> AsyncIterator[dict[str, int]]:
            yield {"n": 1}
            await go_on.wait()
            yield {"n": 2}

        async with client_of(mesh, port) as client:
            found = []
            async for result in client.map("echo", source(), timeout=PATIENCE_S):
                found.append(result)
                go_on.set()
            assert len(found) == 2
            go_on.clear()
            with pytest.raises(WaitTimeoutError, match=r"within 0\.2 s"):
                await into([], client.map("echo", source(), timeout=0.2))

    run(program())


def test_map_raises_at_the_first_failure_or_yields_it(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port)
    worker.register("odd", lambda data: {"success": data["n"] % 2 == 0, "error": "odd"})
    mesh.run(worker)
    datas = [{"n": n} for n in range(6)]

    def broken() -> Iterator[dict[str, int]]:
        yield {"n": 0}
        raise ZeroDivisionError

    async def program() -> None:
        async with client_of(mesh, port) as client:
            seen: list[Any] = []
            with pytest.raises(TaskFailedError, match="odd"):
                await into(seen, client.map("odd", datas, max_attempts=1))
            assert len(seen) == 1
            told = client.map("odd", datas, max_attempts=1, return_exceptions=True)
            kinds = [isinstance(each, TaskFailedError) async for each in told]
            assert kinds == [False, True] * 3
            with pytest.raises(ZeroDivisionError):
                await into(seen, client.map("odd", broken(), return_exceptions=True))
            assert len(seen) == 2
            with pytest.raises(InvalidTaskError, match="nonsense"):
                client.map("odd", datas, nonsense=1)  # type: ignore[call-arg]
            with pytest.raises(InvalidTaskError, match="timeout: saw"):
                client.map("odd", datas, timeout=math.nan)

    run(program())


# -------------------------------------------------------------------- what is refused


def test_what_the_other_client_refuses_is_refused_here_with_the_same_words(mesh: Mesh) -> None:
    async def program() -> None:
        async with client_of(mesh, mesh.broker()) as client:
            for data in ([1], {"a": math.nan}, {"a": "\ud800"}, {"a": {1: 2}}):
                with pytest.raises(InvalidTaskError, match="data"):
                    await client.submit("echo", data)  # type: ignore[arg-type]
                with pytest.raises(InvalidTaskError, match="data"):
                    await client.submit_many("echo", [data])  # type: ignore[list-item]
            wrong: list[dict[str, Any]] = [
                {"type": ""},
                {"priority": 0},
                {"deadline_s": -1},
                {"idempotency_key": 7},
                {"nonsense": 1},
                {"timeout": "x"},
            ]
            for options in wrong:
                with pytest.raises(InvalidTaskError, match=next(iter(options))):
                    await client.submit(**{"type": "echo", "data": {}, **options})
            task = await client.submit("nobody")
            bad: Any = "soon"
            for wait in (
                lambda: task.result(bad),
                lambda: task.exception(bad),
                lambda: task.accepted(bad),
                lambda: task.status(bad),
                lambda: task.cancel(bad),
                lambda: anext(task.stream(bad)),
                lambda: client.flush(bad),
                lambda: client.wait_connected(bad),
                lambda: client.ask("health", {}, timeout=bad),
                lambda: client.call("nobody", timeout=bad),
                lambda: client.submit_many("nobody", [{}], timeout=bad),
                lambda: anext(client.as_completed([task], timeout=bad)),
                lambda: client.close(bad),
            ):
                with pytest.raises(InvalidTaskError, match="timeout: saw"):
                    await wait()
            for long_s in (1e30, math.inf):
                assert await client.ask("health", {}, timeout=long_s)
                await task.accepted(long_s)
            with pytest.raises(ForbiddenError):
                await client.ask("everything", {})
            with pytest.raises(UnknownTaskError):
                await client.task(NOBODY)
            with pytest.raises(UnknownTaskError):
                client.task("../../etc")

    run(program())


def test_an_impossible_place_is_refused_at_once() -> None:
    for given in ({"url": 5}, {"endpoint": 7010}, {"url": "nonsense://x"}, {"endpoint": "x"}):
        with pytest.raises(ConfigError):
            AsyncClient(config=Config(), **given)


def test_another_mesh_is_refused_and_said_to_who_waits(mesh: Mesh, loop: Factory) -> None:
    port = mesh.broker()
    config = Config(mesh="another", interfaces=("127.0.0.1",))

    async def program() -> None:
        client = AsyncClient(endpoint=mesh.endpoint(port), config=config)
        with pytest.raises(ForbiddenError, match="another"):
            await client.call("echo")
        with pytest.raises(ForbiddenError, match="another"):
            await client.submit("echo")
        with pytest.raises(NotAcknowledgedError, match=r"^1 task is not ack.*'another'") as caught:
            await client.close()
        assert len(caught.value.task_ids) == 1

    run(program(), loop)


def test_an_idempotency_key_gives_the_same_task_again(mesh: Mesh) -> None:
    port = mesh.broker()

    async def program() -> None:
        async with client_of(mesh, port) as one, client_of(mesh, port) as two:
            first = await one.submit("echo", {"n": 1}, idempotency_key="k")
            again = await two.submit("echo", {"n": 1}, idempotency_key="k")
            assert again.id == first.id
            with pytest.raises(KeyConflictError):
                await two.submit("echo", {"n": 2}, idempotency_key="k")
            echoing(mesh, port)
            assert await again == await first

    run(program())


# ------------------------------------------------------------------------ backpressure


def test_whole_groups_are_submitted_and_how_they_end_is_asked_for_by_id(mesh: Mesh) -> None:
    port = mesh.broker()
    echoing(mesh, port)

    async def program() -> None:
        async with client_of(mesh, port) as client:
            mine = client.node
            group = Group("echo", 5, [msgspec.msgpack.encode({"n": n}) for n in range(2)])
            sent = await mine.submit_groups([group], key="once", timeout_s=PATIENCE_S)
            again = await mine.submit_groups([group], key="once", timeout_s=PATIENCE_S)
            assert (again.ids, sent.is_repeat, again.is_repeat) == (sent.ids, False, True)
            for n, task_id in enumerate(sent.ids):
                ended = await mine.outcome_of(task_id, PATIENCE_S)
                assert ended is not None
                assert ended.state == COMPLETED_STATE
                assert msgspec.msgpack.decode(ended.payload)["output"] == {"n": n}
            alone = await mine.submit_groups([Group("nobody", 5, [b"\x80"])])
            assert await mine.outcome_of(alone.ids[0], 0.05) is None
            unknown = await mine.outcome_of("0" * 16 + "-7", PATIENCE_S)
            assert unknown is not None
            assert unknown.state == UNKNOWN_STATE

    run(program())


def test_a_full_queue_is_waited_for_and_then_said(mesh: Mesh) -> None:
    port = mesh.broker(queue_size=10)

    async def program() -> None:
        async with client_of(mesh, port) as client:
            await client.submit_many("echo", [{}] * 10)
            with pytest.raises(QueueFullError, match="TASK_QUEUE_SIZE"):
                await client.submit_many("echo", [{}], timeout=1.0)
            task = await client.submit("echo", timeout=0.6)
            with pytest.raises(QueueFullError):
                await task
            with pytest.raises(QueueFullError):
                await client.flush(PATIENCE_S)
            patient = await client.submit("echo", {"n": "patient"})
            echoing(mesh, port)
            assert (await patient)["output"] == {"n": "patient"}
            await client.flush(PATIENCE_S)
            assert (await client.stats())["tasks"]["completed"] == 11

    run(program())


def test_who_submits_more_than_there_is_room_for_waits_in_turn(mesh: Mesh) -> None:
    port = free_port()
    megabyte = "x" * 1_000_000

    async def program() -> None:
        async with client_of(mesh, port) as client:
            ended: list[int] = []

            async def submit(number: int) -> None:
                task = await client.submit("echo", {"n": number, "x": megabyte})
                ended.append(number)
                assert (await task)["output"]["n"] == number

            async with asyncio.TaskGroup() as group:
                for number in range(100):
                    group.create_task(submit(number))
                await until(lambda: client.node.waits.count >= 100)
                at_once = len(ended)
                assert 60 <= at_once < 70  # 64 MB
                with pytest.raises(WaitTimeoutError, match=r"^room for more .* within 0\.05 s"):
                    await client.submit("echo", {"x": megabyte}, timeout=0.05)
                late = group.create_task(submit(100))
                await asyncio.sleep(0)
                late.cancel()
                await asyncio.to_thread(mesh.broker, port=port)
                await asyncio.to_thread(echoing, mesh, port)
            assert ended == list(range(100))
            assert client.node.waits.count == 0

    run(program())


# ----------------------------------------------------------------------------- streams


def test_output_is_streamed_as_it_comes_until_the_task_ends(mesh: Mesh, loop: Factory) -> None:
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

    async def program() -> None:
        async with client_of(mesh, port) as client:
            task = await client.submit("talk")
            mesh.run(worker)
            heard = []
            async for part in task.stream(PATIENCE_S):
                is_heard.set()
                if part != "?":
                    heard.append(part)
                if part == {"n": 2}:
                    go_on.set()
            assert heard == [{"n": 0}, "part 1", {"n": 2}, "the last"]
            assert (await task)["output"] == "said"
            assert [part async for part in task.stream(PATIENCE_S)] == []
            assert [part async for part in client.task(NOBODY).stream(PATIENCE_S)] == []
            silent = await client.submit("nobody")
            await silent.accepted(PATIENCE_S)
            with pytest.raises(WaitTimeoutError, match="output of"):
                await anext(silent.stream(0.01))
            assert client.node.waits.count == 0

    run(program(), loop)


def test_output_is_heard_whole_by_who_said_so_in_the_submit(mesh: Mesh, loop: Factory) -> None:
    port = mesh.broker()
    worker = mesh.worker(port)

    @worker.task("count")
    def count(data: dict[str, Any], context: TaskContext) -> str:
        for n in range(1000):
            context.emit(n)
        return "counted"

    async def program() -> None:
        async with client_of(mesh, port) as client:
            task = await client.submit("count", listen=True)
            heard: list[Any] = []
            reading = asyncio.create_task(into(heard, task.stream(PATIENCE_S)))
            mesh.run(worker)
            assert (await task)["output"] == "counted"
            await reading
            late = [piece async for piece in task.stream(PATIENCE_S)]  # as often as one likes
            assert heard == late == list(range(1000))
            (key,) = await client.submit_many("count", [{}], listen=True)
            assert [piece async for piece in key.stream(PATIENCE_S)] == list(range(1000))
            with pytest.raises(InvalidTaskError, match="listen: here come results only"):
                await client.call("count", listen=True)

    run(program(), loop)


def test_a_stream_shows_a_new_attempt(mesh: Mesh) -> None:
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

    async def program() -> None:
        async with client_of(mesh, port) as client:
            task = await client.submit("twice")
            await task.accepted(PATIENCE_S)
            heard: list[Any] = []
            listening_here = asyncio.create_task(into(heard, task.stream(PATIENCE_S)))
            await until(lambda: client.node.waits.count == 1)
            mesh.run(worker)
            await until(lambda: _is_running(task))
            listening.set()
            await listening_here
            assert heard == ["attempt 1", RESTARTED, "attempt 2"]

    run(program())


async def _is_running(task: AsyncTask) -> bool:
    return bool((await task.status())["status"] != "pending")


# ------------------------------------------------------------------ broker away, back


def test_a_broker_that_comes_back_finds_everything_again(mesh: Mesh, loop: Factory) -> None:
    port = mesh.broker()
    echoing(mesh, port)

    async def program() -> None:
        async with client_of(mesh, port) as client:
            before = await client.submit_many("later", [{"n": n} for n in range(500)])
            await asyncio.to_thread(mesh.stop_broker, *mesh.brokers[-1])
            meanwhile = [await client.submit("echo", {"n": n}) for n in range(2500)]
            assert not any(task.done() for task in meanwhile)
            for wait in (meanwhile[0].accepted(0.01), client.flush(0.01)):
                with pytest.raises(WaitTimeoutError):
                    await wait
            with pytest.raises(BrokerUnavailableError):
                await client.ask("health", {}, timeout=0.05)
            await asyncio.to_thread(mesh.broker, port=port)
            await asyncio.to_thread(echoing, mesh, port, "later")
            for tasks in (meanwhile, before):
                numbers = [result["output"]["n"] for result in await asyncio.gather(*tasks)]
                assert numbers == list(range(len(tasks)))
            assert (await client.stats())["tasks"]["completed"] == 3000

    run(program(), loop)


# ----------------------------------------------------------------------------- closing


def test_leaving_waits_until_what_was_submitted_is_acknowledged(mesh: Mesh) -> None:
    """It is not even connected by then."""
    port = mesh.broker()

    async def program() -> None:
        async with client_of(mesh, port) as client:
            for _ in range(1000):
                await client.submit("nobody")
        async with client_of(mesh, port) as client:
            assert (await client.ask("health", {}))["tasks_pending"] == 1000

    run(program())


def test_what_is_not_acknowledged_at_the_end_is_said_with_its_ids(
    mesh: Mesh, loop: Factory, caplog: pytest.LogCaptureFixture
) -> None:
    async def program() -> None:
        client = client_of(mesh, free_port())
        tasks = [await client.submit("echo") for _ in range(7)]
        begun = time.monotonic()
        with pytest.raises(NotAcknowledgedError, match=r"^7 tasks are not ack.*refused") as caught:
            await client.close(0.1)
        assert time.monotonic() - begun < 8
        assert list(caught.value.task_ids) == [task.id for task in tasks]
        await client.close()

    run(program(), loop)


def test_an_error_under_way_is_not_replaced_by_what_is_said_at_the_end(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def program(error: Exception | None) -> None:
        port = mesh.broker(repr(error), queue_size=1)
        async with client_of(mesh, port) as client:
            await client.submit("nobody")
            await client.submit("nobody", timeout=0.0)
            if error is not None:
                raise error

    with pytest.raises(ZeroDivisionError) as caught:
        run(program(ZeroDivisionError()))
    assert "client.unacknowledged ids=" in caplog.text
    assert "TASK_QUEUE_SIZE" in caplog.text
    assert "not acknowledged" in caught.value.__notes__[0]
    with pytest.raises(NotAcknowledgedError, match="TASK_QUEUE_SIZE"):
        run(program(None))


def test_closing_ends_who_still_waits_and_leaves_nothing(mesh: Mesh, loop: Factory) -> None:
    port = mesh.broker()

    async def program() -> None:
        before = own_threads()
        client = client_of(mesh, port)
        tasks = await client.submit_many("nobody", [{}] * 4)
        await client.close()
        await until(lambda: own_threads() <= before)

        client = client_of(mesh, port)
        here = [client.task(task.id) for task in tasks]

        waits = [
            asyncio.create_task(wait)
            for wait in (
                here[0].result(),
                into([], here[1].stream()),
                into([], client.as_completed(here)),
                into([], client.map("nobody", [{}])),
                client.call("nobody"),
            )
        ]
        await until(lambda: client.node.waits.count == 5)
        await client.close()
        await client.close()
        ended = await asyncio.gather(*waits, return_exceptions=True)
        assert [type(each) for each in ended] == [NodeClosedError] * 5
        for what in (client.submit("echo"), client.ask("health", {}), here[0].status()):
            with pytest.raises(NodeClosedError):
                await what
        with pytest.raises(NodeClosedError):
            client.map("echo", [])
        assert not client.is_connected
        await until(lambda: own_threads() <= before)
        here.clear()
        async with client_of(mesh, port) as client:
            assert (await client.ask("health", {}))["tasks_pending"] == 6

    run(program(), loop)


def test_a_client_that_nobody_used_is_closed_in_silence() -> None:
    async def program() -> None:
        await AsyncClient(config=Config()).close()
        client = AsyncClient(config=Config())
        del client

    run(program())


@pytest.mark.parametrize("is_kept", [True, False])
def test_what_was_submitted_is_on_the_disk_when_a_loop_ends_without_closing(
    mesh: Mesh, loop: Factory, is_kept: bool
) -> None:
    port = mesh.broker()
    ids: list[str] = []
    kept: list[AsyncClient] = []

    async def program() -> None:
        client = client_of(mesh, port)
        ids.extend([(await client.submit("nobody")).id for _ in range(100)])
        if is_kept:  # else it is collected before the loop ends
            kept.append(client)

    with pytest.warns(ResourceWarning, match=r"never closed \(async with does it\)$"):
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(program())
    client = mesh.client(port)
    assert {client.task(task_id).status()["state"] for task_id in ids} == {"queued"}


def test_a_client_that_another_thread_collects_ends_on_its_loop(mesh: Mesh, loop: Factory) -> None:
    port = mesh.broker()

    async def program() -> None:
        client = client_of(mesh, port)
        assert await client.wait_connected(PATIENCE_S)
        inner, box = client.node, [client]
        threads: list[threading.Thread] = []
        end = inner._end

        def ends() -> None:
            threads.append(threading.current_thread())
            end()

        inner._end = ends  # type: ignore[method-assign]
        del client
        await asyncio.to_thread(box.clear)
        await until(lambda: inner.is_closed)
        assert threads == [threading.current_thread()]

    with pytest.warns(ResourceWarning):
        run(program(), loop)


@pytest.mark.parametrize("way", ["forgotten", "dropped", "loop stopped"])
def test_a_client_that_nobody_closed_is_spoken_of(
    mesh: Mesh,
    loop: Factory,
    way: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[AsyncClient] = []
    monkeypatch.setattr(node, "UNCLOSED_S", 0.1)

    async def program() -> None:
        client = client_of(mesh, free_port())
        await client.submit("echo")
        await client.submit("echo")
        kept.append(client)

    async def drop() -> None:
        await program()
        inner = kept[0].node
        kept.clear()
        gc.collect()
        await until(lambda: inner.is_closed)

    def end() -> None:
        if way != "loop stopped":
            run(program() if way == "forgotten" else drop(), loop)
            return
        mine = loop()
        mine.run_until_complete(program())
        mine.close()
        kept.clear()
        gc.collect()

    before = own_threads()
    with pytest.warns(ResourceWarning, match=r"never closed .*: 2 tasks are not ack"):
        end()
    assert "client.unclosed" in caplog.text
    deadline = time.monotonic() + PATIENCE_S
    while own_threads() - before:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_client_belongs_to_one_loop_and_says_so(mesh: Mesh) -> None:
    port = mesh.broker()
    client = client_of(mesh, port)

    async def submit() -> AsyncTask:
        return await client.submit("echo")

    with pytest.raises(WrongLoopError, match="no event loop runs here"):
        client.task(NOBODY)

    async def program() -> None:
        task = await submit()

        def elsewhere() -> None:
            with pytest.raises(WrongLoopError, match="another event loop"):
                asyncio.run(submit())
            with pytest.raises(WrongLoopError, match="another event loop"):
                asyncio.run(task.result())
            with pytest.raises(WrongLoopError, match="no event loop runs here"):
                task.add_done_callback(print)
            with pytest.raises(WrongLoopError):
                asyncio.run(client.close())

        await asyncio.to_thread(elsewhere)
        with contextlib.suppress(D8Error):
            await client.close()

    run(program())


def test_thousands_of_questions_at_once_are_all_answered(
    mesh: Mesh, loop: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "RESEND_S", 2 * PATIENCE_S)  # what got lost is not asked again
    port = mesh.broker()

    async def main() -> None:
        async with client_of(mesh, port) as client:
            assert await client.wait_connected(PATIENCE_S)
            asked = await asyncio.gather(*(client.stats(timeout=PATIENCE_S) for _ in range(3000)))
            assert len(asked) == 3000
            tasks = await client.submit_many("nobody", [{}] * 3000)
            assert all(await asyncio.gather(*(task.cancel(PATIENCE_S) for task in tasks)))

    run(main(), loop)


def test_each_who_waits_for_a_client_that_is_closed_has_an_error_of_its_own(
    mesh: Mesh, loop: Factory
) -> None:
    port = mesh.broker()

    async def main() -> None:
        async with client_of(mesh, port) as client:
            tasks = await client.submit_many("nobody", [{}] * 3)
            waits = [asyncio.ensure_future(task.result()) for task in tasks]
            await asyncio.sleep(0)
            await client.close()
            errors = await asyncio.gather(*waits, return_exceptions=True)
            assert all(isinstance(error, NodeClosedError) for error in errors)
            named = [getattr(error, "task_id", None) for error in errors]
            assert named == [task.id for task in tasks]

    run(main(), loop)
