"""The server over real sockets: who is let in, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

import pytest

from d8mesh.edge.network import bind
from d8mesh.http import server
from d8mesh.http.guard import Rejections
from d8mesh.http.server import Server, ServerThread
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
        status, body = here.told(b"")
        assert (status, body["code"]) == (429, "access.flood")
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
