"""The ways of an `AsyncClient` to its orchestrator: descriptors, a watching thread, HTTP."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from d8mesh import AsyncClient
from d8mesh.errors import BrokerUnavailableError, WaitTimeoutError
from d8mesh.nodes.client.aio.watcher import WatchingThread, watcher_on
from tests.nodes.loops import LOOPS, run, until
from tests.nodes.mesh import PATIENCE_S, Mesh, free_port, mesh_in
from tests.nodes.test_client import Door

Factory = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with mesh_in(tmp_path) as mesh:
        yield mesh


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Factory:
    return LOOPS[request.param]


def echoing(mesh: Mesh, port: int, *types: str) -> None:
    worker = mesh.worker(port)
    for kind in types or ("echo",):
        worker.register(kind, lambda data: data)
    mesh.run(worker)


def test_nothing_that_comes_in_while_something_is_sent_is_left_lying(
    mesh: Mesh, loop: Factory
) -> None:
    """A heartbeat would bring it up after seconds; here each of hundreds is waited for."""
    port = mesh.broker()
    echoing(mesh, port)

    async def program() -> None:
        async with AsyncClient(endpoint=f"tcp://127.0.0.1:{port}", config=mesh.config()) as client:
            await client.call("echo")

            async def talk() -> None:
                for n in range(100):
                    async with asyncio.timeout(PATIENCE_S):
                        assert (await client.call("echo", {"n": n}))["output"] == {"n": n}

            await asyncio.gather(*(talk() for _ in range(8)))

    begun = time.monotonic()
    run(program(), loop)
    assert time.monotonic() - begun < PATIENCE_S


def test_what_is_readable_is_told_on_the_loop_until_it_is_read(loop: Factory) -> None:
    async def program() -> None:
        watcher = watcher_on(asyncio.get_running_loop())
        here, there = socket.socketpair()
        here.setblocking(False)
        told: list[bytes] = []
        callers: set[int] = set()

        def read() -> None:
            callers.add(threading.get_ident())
            told.append(here.recv(1))

        with here, there:
            watcher.add(here.fileno(), read)
            there.send(b"abc")
            await until(lambda: len(told) == 3)
            watcher.remove(here.fileno())
            there.send(b"d")
            await asyncio.sleep(0.05)  # nothing comes: there is no event to wait for
            watcher.add(here.fileno(), read)
            await until(lambda: len(told) == 4)
            watcher.remove(here.fileno())
        assert told == [b"a", b"b", b"c", b"d"]
        assert callers == {threading.get_ident()}
        watcher.close()
        watcher.close()

    run(program(), loop)


def test_a_watching_thread_forgets_a_descriptor_that_another_one_takes_over() -> None:
    async def program() -> None:
        watcher = WatchingThread(asyncio.get_running_loop())

        async def hear_from_another() -> bytes:
            here, there = socket.socketpair()
            heard: list[bytes] = []
            with here, there:
                descriptor = here.fileno()  # mostly the number of the one before
                watcher.add(descriptor, lambda: heard.append(here.recv(1)))
                there.send(b"x")
                await until(lambda: heard)
                watcher.remove(descriptor)
            return heard[0]

        for _ in range(50):
            assert await hear_from_another() == b"x"
        watcher.close()

    run(program())


def test_where_only_http_passes_the_session_goes_on_there_and_moves_up_later(
    mesh: Mesh, loop: Factory, caplog: pytest.LogCaptureFixture
) -> None:
    port = mesh.broker()
    echoing(mesh, port)
    door = Door(port)

    async def program() -> None:
        async with AsyncClient(door.url, config=mesh.config()) as client:
            assert await client.wait_connected(PATIENCE_S)
            assert client.is_over_http
            results = client.map("echo", [{"n": n} for n in range(3000)], timeout=PATIENCE_S)
            assert [r["output"]["n"] async for r in results] == list(range(3000))  # type: ignore[index]
            assert "exchange.used" in caplog.text
            waiting = await client.submit("later")
            await waiting.accepted(PATIENCE_S)
            await asyncio.to_thread(door.open)
            await until(lambda: client.is_connected and not client.is_over_http)
            calls = (client.call("echo", {"n": n}) for n in range(100))
            assert len(await asyncio.gather(*calls)) == 100
            echoing(mesh, port, "later")
            assert (await waiting)["success"]

    try:
        run(program(), loop)
    finally:
        door.close()


def test_a_wait_that_is_over_says_why(mesh: Mesh) -> None:
    port = free_port()

    async def program() -> None:
        async with AsyncClient(endpoint=f"tcp://127.0.0.1:{port}", config=mesh.config()) as client:
            task = await client.submit("echo")
            for wait in (task.result(0.2), task.accepted(0.2), client.flush(0.2)):
                with pytest.raises(WaitTimeoutError, match=rf"within 0\.2 s: never .*{port}"):
                    await wait
            with pytest.raises(BrokerUnavailableError, match=rf"within 0\.2 s: never .*{port}"):
                await client.ask("health", {}, timeout=0.2)
            await asyncio.to_thread(mesh.broker, port=port)
            await task.accepted(PATIENCE_S)
            with pytest.raises(WaitTimeoutError, match=r"within 0\.2 s: .*workers online: 0"):
                await task.result(0.2)
            with pytest.raises(WaitTimeoutError, match=r"within 0\.2 s: .*workers online: 0"):
                await anext(task.stream(0.2))
            late = asyncio.gather(*(task.result(0.2) for _ in range(300)), return_exceptions=True)
            assert {type(each) for each in await late} == {WaitTimeoutError}

    run(program())


def test_a_wait_in_which_nothing_comes_is_spoken_of_once(
    mesh: Mesh, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d8mesh.nodes.client.board.STALL_S", 0.1)
    monkeypatch.setattr("d8mesh.nodes.client.aio.waits.STALL_S", 0.1)
    monkeypatch.setattr("d8mesh.nodes.client.aio.waits.LOOK_S", 0.05)
    port = mesh.broker()

    def said() -> list[str]:
        return [each.message for each in caplog.records if "still.waiting" in each.message]

    async def program() -> None:
        async with AsyncClient(endpoint=f"tcp://127.0.0.1:{port}", config=mesh.config()) as client:
            calls = [asyncio.create_task(client.call("nobody")) for _ in range(20)]
            await until(said)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await asyncio.gather(*calls)

    with caplog.at_level(logging.INFO):
        run(program())
    assert len(said()) == 1
    assert "the result of" in said()[0]
