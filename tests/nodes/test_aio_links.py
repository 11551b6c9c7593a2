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
from d8mesh.config import Config
from d8mesh.core.protocol.codec import encode
from d8mesh.core.protocol.messages import Rehello, Stream, Welcome
from d8mesh.errors import BrokerUnavailableError, WaitTimeoutError
from d8mesh.nodes.client.aio.watcher import WatchingThread, watcher_on
from tests.keyed import endpoint_of, router_at
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


def test_what_comes_in_during_a_turn_is_not_left_lying_until_something_else_comes(
    monkeypatch: pytest.MonkeyPatch, loop: Factory
) -> None:
    """The descriptor tells of it once; whatever is done with the socket may use that up."""
    for clock in ("HELLO_S", "OPENING_S", "DOUBT_S"):  # nothing is to come by itself
        monkeypatch.setattr(f"d8mesh.core.client.session.{clock}", 1e6)
    for_ever_s = 1e6
    router = router_at()
    task_id = f"{'v' * 16}-0"
    heard: list[bytes] = []
    peers: list[bytes] = []

    def say(*messages: Welcome | Stream | Rehello) -> None:
        for message in messages:
            assert router.send(peers[0], encode(message))

    def greeted() -> bool:
        peers.extend(peer for (peer, *_), _ in router.receive(9))
        return bool(peers)

    async def program() -> None:
        client = AsyncClient(endpoint=endpoint_of(router.port), config=Config())

        def hear(stream: Stream | None) -> None:
            assert stream is not None
            heard.extend(stream.payloads)
            if len(heard) == 1:  # now in the middle of a turn: more is sent after this
                say(Stream(task_id, 1, 1, [b"\xa1b"]))
                while not client.node.runner.has_input:
                    time.sleep(0.001)

        client.node.listen(task_id, hear)
        await until(greeted)
        say(Welcome(1, 1, "broker", for_ever_s, for_ever_s, []))
        assert await client.wait_connected(PATIENCE_S)
        say(Stream(task_id, 1, 0, [b"\xa1a"]), Rehello("anew"))
        await until(lambda: len(heard) == 2)
        await client.close()

    try:
        run(program(), loop)
    finally:
        router.close()


def test_talks_side_by_side_do_not_stop(mesh: Mesh, loop: Factory) -> None:
    port = mesh.broker()
    echoing(mesh, port)

    async def program() -> None:
        async with AsyncClient(endpoint=mesh.endpoint(port), config=mesh.config()) as client:
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
    door = Door(mesh, port)

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
        async with AsyncClient(endpoint=mesh.endpoint(port), config=mesh.config()) as client:
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
    monkeypatch.setattr("d8mesh.nodes.client.completion_waiters.QUIET_S", 0.1)
    monkeypatch.setattr("d8mesh.nodes.client.aio.waits.QUIET_S", 0.1)
    monkeypatch.setattr("d8mesh.nodes.client.aio.waits.LOOK_AROUND_S", 0.05)
    port = mesh.broker()

    def said() -> list[str]:
        return [each.message for each in caplog.records if "still.waiting" in each.message]

    async def program() -> None:
        async with AsyncClient(endpoint=mesh.endpoint(port), config=mesh.config()) as client:
            calls = [asyncio.create_task(client.call("nobody")) for _ in range(20)]
            await until(said)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await asyncio.gather(*calls)

    with caplog.at_level(logging.INFO):
        run(program())
    assert len(said()) == 1
    assert "the result of" in said()[0]
