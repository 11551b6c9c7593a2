"""The server over real sockets: who is let in, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import time
import warnings
from collections.abc import AsyncGenerator, Callable, Iterator
from functools import partial

import pytest

from bench.processes import raise_descriptor_limit
from d8mesh.edge.network import bind
from d8mesh.http import server
from d8mesh.http.answers import Response, answer
from d8mesh.http.application import Application
from d8mesh.http.guard import Guard, Rejections
from d8mesh.http.routes import Door, HttpRoute, Request
from d8mesh.http.server import MAX_PER_ADDRESS, Server, ServerThread
from tests.http.served import PATIENCE_S, Served, get, served


@pytest.fixture
def here() -> Iterator[Served]:
    with served() as found:
        yield found


def eventually(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_an_address_has_a_share_of_the_connections_only(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_PER_ADDRESS", 3)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(here.connect()).sendall(get("/wait"))
        for _ in range(3):
            assert here.waiting.acquire(timeout=PATIENCE_S)
        head, _, body = here.say(b"").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
        assert b"\r\nRetry-After: 1\r\n" in head
        assert json.loads(body)["code"] == "access.flood"
        assert here.refused.noted == [("access.flood", "127.0.0.1")]
    eventually(lambda: b"200 OK" in here.say(get("/scope")))


def test_there_is_a_bound_for_all_connections(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 1)
    with here.connect() as first:
        first.sendall(get("/wait"))
        assert here.waiting.acquire(timeout=PATIENCE_S)
        assert here.told(b"")[0] == 429


def test_peers_from_elsewhere_are_turned_away_unread() -> None:
    with served(admits=False) as found:
        status, body = found.told(b"")
        assert (status, body["code"]) == (403, "http.peer")


def test_who_was_turned_away_holds_nothing_when_the_server_ends() -> None:
    with served(admits=False) as found, found.connect() as caller:
        eventually(lambda: bool(found.refused.noted))
        found.thread.close(PATIENCE_S)
        caller.settimeout(PATIENCE_S)
        with contextlib.suppress(ConnectionError):
            while caller.recv(65536):
                pass


@pytest.mark.parametrize("turns", range(6))
def test_who_is_accepted_while_the_server_ends_is_left_by_it_too(turns: int) -> None:
    async def ended() -> None:
        found = Server(Served.application, [bind("127.0.0.1", 0)], bool, Rejections())  # type: ignore[arg-type]
        await found.start()
        callers = [socket.create_connection(("127.0.0.1", found.ports[0])) for _ in range(5)]
        for _ in range(turns):  # not accepted, accepted, known
            await asyncio.sleep(0)
        await found.close()
        for caller in callers:
            caller.close()

    with warnings.catch_warnings(record=True) as left_open:
        warnings.simplefilter("always", ResourceWarning)
        asyncio.run(ended())
        gc.collect()
    assert left_open == []


def test_the_port_is_free_as_soon_as_it_is_closed(here: Served) -> None:
    with here.connect() as caller:
        caller.sendall(get("/wait"))
        assert here.waiting.acquire(timeout=PATIENCE_S)
        begun = time.monotonic()
        here.thread.close(PATIENCE_S)
        assert time.monotonic() - begun < 1
        bind("127.0.0.1", here.port).close()


def test_a_server_that_never_ran_lets_its_port_go() -> None:
    thread = ServerThread(
        Server(Served.application, [bind("127.0.0.1", 0)], bool, Rejections())  # type: ignore[arg-type]
    )
    thread.close()
    bind("127.0.0.1", thread.ports[0]).close()


def test_several_addresses_are_served() -> None:
    async def both() -> list[bytes]:
        async def application(scope: object, receive: object, send: object) -> None:
            raise AssertionError

        sockets = [bind("127.0.0.1", 0), bind("127.0.0.2", 0)]
        found = Server(application, sockets, lambda peer: True, Rejections())
        await found.start()
        answers = []
        for each in sockets:
            reader, writer = await asyncio.open_connection(*each.getsockname()[:2])
            writer.write(b"GET / HTTP/3.0\r\n\r\n")
            answers.append(await reader.readline())
            writer.close()
        await found.close()
        return answers

    assert asyncio.run(both()) == [b"HTTP/1.1 400 Bad Request\r\n"] * 2


def test_what_is_under_way_may_end_within_the_grace() -> None:
    async def closed() -> bytes:
        async def application(scope: object, receive: object, send: Callable[..., object]) -> None:
            await asyncio.sleep(0.2)
            await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[misc]
            await send({"type": "http.response.body", "body": b"done"})  # type: ignore[misc]

        found = Server(application, [bind("127.0.0.1", 0)], lambda peer: True, Rejections())
        await found.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", found.ports[0])
        writer.write(get("/"))
        await asyncio.sleep(0.05)
        await found.close(grace_s=PATIENCE_S)
        answer = await reader.read()
        writer.close()
        return answer

    assert b"done" in asyncio.run(closed())


def test_the_deadlines_cost_nothing_while_nobody_is_connected(here: Served) -> None:
    here.say(get("/scope"))
    eventually(lambda: here.server._next_look is None)


class Crowded:
    """A door whose streams say something at once, and then nothing until they may end."""

    def __init__(self) -> None:
        self.open, self.may_end = 0, asyncio.Event()
        stream = partial(HttpRoute, method="POST", takes=None, ends_with_caller=True)
        routes = (stream("/chat", self.chat), HttpRoute("/health", self.health))
        application = Application([Door(routes=routes)], Guard(), Rejections())
        self.server = Server(
            application,
            [bind("127.0.0.1", 0)],
            lambda peer: True,
            Rejections(),
            application.refused,
        )

    async def chat(self, request: Request) -> Response:
        return Response(self._said(), content_type="text/event-stream")

    async def health(self, request: Request) -> Response:
        return answer({"open": self.open})

    async def _said(self) -> AsyncGenerator[bytes, None]:
        self.open += 1
        try:
            yield b"first"
            await self.may_end.wait()
            yield b"last"
        finally:
            self.open -= 1


async def ask_for_stream(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a connection whose stream has begun."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
    assert b"200 OK" in await reader.readuntil(b"first\r\n")
    return reader, writer


async def until_open(door: Crowded, count: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while door.open != count:
            await asyncio.sleep(0.01)


@pytest.mark.slow
def test_thousands_of_streams_of_one_address_are_open_at_once() -> None:
    streams, leaving = 2500, 1000
    if not can_open(2 * streams + 500):
        pytest.skip("the system allows too few descriptors")

    async def run() -> None:
        door = Crowded()
        await door.server.start()
        (port,) = door.server.ports
        found = [await ask_for_stream(port) for _ in range(streams)]
        assert door.open == streams
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(get("/health"))
        assert (await reader.read()).endswith(b'{"open":%d}' % streams)
        writer.close()
        for _, each in found[:leaving]:
            each.close()
        await until_open(door, streams - leaving)
        door.may_end.set()
        for listening, each in found[leaving:]:
            assert (await listening.readuntil(b"0\r\n\r\n")).endswith(b"last\r\n0\r\n\r\n")
            each.close()
        await door.server.close()

    asyncio.run(run())
    assert streams + 1000 < MAX_PER_ADDRESS  # those who wait beside


def can_open(descriptors: int) -> bool:
    """Have this process open so many, if it may."""
    return raise_descriptor_limit(descriptors) >= descriptors
