"""Connections through the REST port: their bytes, whatever becomes of the requests."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from d8mesh.doors import tunnel
from d8mesh.doors.tunnel import Exchange, tunnel_door
from d8mesh.edge.network import bind
from d8mesh.edge.transport.tunnel import (
    AT_HEADER,
    BYTES_TYPE,
    END_HEADER,
    EXCHANGE_PATH,
    FROM_HEADER,
    LINK_HEADER,
    MAX_TUNNEL_BYTES,
    WAIT_HEADER,
)
from d8mesh.http.application import Application
from d8mesh.http.asgi import AsgiSend, Receive, Scope
from d8mesh.http.guard import Guard, Rejections
from d8mesh.http.server import Server
from d8mesh.nodes.client import Client
from tests.doors.rest_calls import rest_in
from tests.http.calls import Answer, call
from tests.nodes.mesh import PATIENCE_S, free_port

#: A turn of the loop and a few more: what is ready is dealt with in these.
TURN_S = 0.01


class FarSide:
    """A broker's port: what comes in is kept, what is to be said is said."""

    def __init__(self) -> None:
        self.connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.heard: list[bytearray] = []
        self._serving = set[asyncio.Task[Any] | None]()
        self.is_reading = asyncio.Event()
        self.is_reading.set()

    async def end(self) -> None:
        """Close all that is open, and wait for it."""
        self.is_reading.set()
        for _, writer in self.connections:
            writer.close()
        for task in self._serving:
            if task is not None:
                await asyncio.wait((task,))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard = bytearray()
        self._serving.add(asyncio.current_task())
        self.connections.append((reader, writer))
        self.heard.append(heard)
        while content := await reader.read(65536):
            heard += content
            await self.is_reading.wait()
        writer.close()


class Exchanged:
    """An exchange and the broker behind it; asked as its server asks."""

    def __init__(self, exchange: Exchange, far: FarSide, peer: str = "127.0.0.1") -> None:
        self.exchange, self.far, self.rejections = exchange, far, Rejections()
        self.application = Application([tunnel_door(exchange)], Guard(), self.rejections)
        self.id, self.peer = secrets.token_hex(16), peer

    async def ask(self, body: bytes = b"", link_id: str | None = None, **fields: object) -> Answer:
        named = {
            {"at": AT_HEADER, "since": FROM_HEADER, "wait": WAIT_HEADER, "end": END_HEADER}[
                name
            ]: str(value)
            for name, value in fields.items()
        }
        named |= {LINK_HEADER: self.id if link_id is None else link_id, "Content-Type": BYTES_TYPE}
        return await call(
            self.application, "POST", EXCHANGE_PATH, peer=self.peer, headers=named, body=body
        )

    async def sent(self, at: int, body: bytes) -> None:
        answer = await self.ask(body, at=at)
        assert (answer.status_code, answer.data) == (200, b""), answer.text
        assert answer.content_type == BYTES_TYPE

    async def fetched(self, since: int, wait: int = 20) -> bytes:
        answer = await self.ask(since=since, wait=wait)
        assert answer.status_code == 200, answer.text
        return answer.data

    async def say(self, content: bytes) -> None:
        """Have the broker say something over the newest connection."""
        _, writer = self.far.connections[-1]
        writer.write(content)
        await writer.drain()


@asynccontextmanager
async def exchanging() -> AsyncIterator[Exchanged]:
    far = FarSide()
    server = await asyncio.start_server(far.serve, "127.0.0.1", 0)
    exchange = Exchange(f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield Exchanged(exchange, far)
    finally:
        await exchange.close()
        server.close()
        await far.end()
        await server.wait_closed()


async def until(what: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not what():
            await asyncio.sleep(TURN_S)


def run(program: Callable[[Exchanged], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with exchanging() as here:
            await program(here)

    asyncio.run(whole())


def test_bytes_go_to_the_broker_and_back() -> None:
    async def program(here: Exchanged) -> None:
        await here.sent(0, b"one")
        await here.sent(3, b"two")
        await until(lambda: here.far.heard == [b"onetwo"])
        await here.say(b"three")
        assert await here.fetched(0) == b"three"
        polling = asyncio.ensure_future(here.fetched(5))
        await asyncio.sleep(TURN_S)
        await here.say(b"four")
        assert await polling == b"four"

    run(program)


def test_a_request_can_bring_bytes_and_take_some() -> None:
    async def program(here: Exchanged) -> None:
        await here.sent(0, b"one")
        await here.say(b"three")
        answer = await here.ask(b"two", at=3, since=0, wait=20)
        assert answer.data == b"three"
        await until(lambda: here.far.heard == [b"onetwo"])

    run(program)


def test_what_comes_twice_or_late_is_taken_once() -> None:
    async def program(here: Exchanged) -> None:
        await here.sent(0, b"one")
        await here.sent(0, b"one")
        await here.sent(0, b"onetwo")
        await here.sent(3, b"two")
        await here.sent(1, b"n")
        await here.sent(6, b"three")
        await until(lambda: here.far.heard == [b"onetwothree"])

    run(program)


def test_an_answer_is_given_again_until_what_follows_it_is_asked_for() -> None:
    async def program(here: Exchanged) -> None:
        await here.sent(0, b"x")
        await here.say(b"onetwo")
        for _ in range(3):
            assert await here.fetched(0) == b"onetwo"
        assert await here.fetched(3) == b"two"
        assert await here.fetched(6, wait=0) == b""
        assert (await here.ask(since=0, wait=0)).status_code == 410

    run(program)


@pytest.mark.parametrize("fields", [{"at": 5}, {"since": 1}])
def test_where_bytes_are_missing_the_link_ends(fields: dict[str, Any]) -> None:
    async def program(here: Exchanged) -> None:
        await here.sent(0, b"one")
        answer = await here.ask(b"two" if "at" in fields else b"", **fields)
        assert (answer.status_code, answer.json["code"]) == (410, "http.gone")
        reader, _ = here.far.connections[0]
        await until(reader.at_eof)
        assert (await here.ask(b"x", at=3)).status_code == 410

    run(program)


def test_an_unknown_link_is_gone_unless_it_begins() -> None:
    async def program(here: Exchanged) -> None:
        asked: list[dict[str, Any]] = [{"at": 1}, {"since": 0}, {"since": 7, "wait": 20}]
        for fields in asked:
            assert (await here.ask(**fields)).status_code == 410
        assert here.far.connections == []
        assert here.rejections.counts() == {"http.gone": 3}

    run(program)


def test_what_the_broker_said_before_it_left_can_be_fetched_and_then_the_link_is_gone() -> None:
    async def program(here: Exchanged) -> None:
        await here.sent(0, b"x")
        await here.say(b"goodbye")
        here.far.connections[0][1].close()
        await until(lambda: here.exchange._links[here.id]._is_over)
        assert (await here.ask(b"y", at=1)).status_code == 410
        assert await here.fetched(0) == b"goodbye"
        assert (await here.ask(since=7, wait=20)).status_code == 410
        assert here.exchange._links == {}

    run(program)


def test_a_poll_ends_at_once_when_the_broker_leaves() -> None:
    async def program(here: Exchanged) -> None:
        await here.sent(0, b"x")
        polling = asyncio.ensure_future(here.ask(since=0, wait=20))
        await asyncio.sleep(TURN_S)
        here.far.connections[0][1].close()
        assert (await asyncio.wait_for(polling, PATIENCE_S / 2)).status_code == 410

    run(program)


def test_who_says_that_it_ends_is_gone_for_the_broker() -> None:
    async def program(here: Exchanged) -> None:
        await here.sent(0, b"one")
        assert (await here.ask(b"two", at=3, end=1)).status_code == 200
        await until(lambda: here.far.heard == [b"onetwo"])
        reader, _ = here.far.connections[0]
        await until(reader.at_eof)
        assert here.exchange._links == {}

    run(program)


def test_of_two_that_wait_the_newer_gets_what_comes() -> None:
    """Nobody may be there any more behind an older one, and nothing tells."""

    async def program(here: Exchanged) -> None:
        await here.sent(0, b"x")
        older = asyncio.ensure_future(here.fetched(0))
        await asyncio.sleep(TURN_S)
        newer = asyncio.ensure_future(here.fetched(0))
        assert await older == b""
        await here.say(b"come")
        assert await newer == b"come"

    run(program)


def test_a_poll_with_nothing_to_say_ends_with_its_time() -> None:
    async def program(here: Exchanged) -> None:
        await here.sent(0, b"x")
        assert await here.fetched(0, wait=0) == b""
        assert await here.fetched(0, wait=1) == b""

    run(program)


def test_a_peer_that_fetches_nothing_is_not_read_for_and_loses_nothing() -> None:
    said = secrets.token_bytes(24 * 1024 * 1024)

    async def program(here: Exchanged) -> None:
        await here.sent(0, b"x")
        saying = asyncio.ensure_future(here.say(said))
        link = here.exchange._links[here.id]
        await until(lambda: link._is_paused)
        assert len(link._held) <= tunnel.MAX_LINK_HELD_BYTES + tunnel.TUNNEL_READ_BYTES
        assert not saying.done()
        got = bytearray()
        while len(got) < len(said):
            part = await here.fetched(len(got))
            assert len(part) <= MAX_TUNNEL_BYTES
            got += part
        assert got == said

    run(program)


def test_a_broker_that_takes_nothing_holds_up_its_peer_and_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tunnel, "ROOM_S", 0.1)
    body = secrets.token_bytes(MAX_TUNNEL_BYTES)

    async def program(here: Exchanged) -> None:
        here.far.is_reading.clear()
        at = 0
        while (answer := await here.ask(body, at=at)).status_code == 200:
            at += len(body)
        assert (answer.status_code, answer.json["code"]) == (429, "access.flood")
        link = here.exchange._links[here.id]
        assert link._transport is not None
        held = link._transport.get_write_buffer_size()
        assert held <= tunnel.MAX_LINK_HELD_BYTES + MAX_TUNNEL_BYTES
        here.far.is_reading.set()
        await until(lambda: link._writable is None)
        await here.sent(at, b"end")
        await until(lambda: len(here.far.heard[0]) == at + 3)
        assert here.far.heard[0].endswith(body + b"end")

    run(program)


def test_a_broker_that_is_away_is_told_so_and_the_link_can_begin_again() -> None:
    async def program(here: Exchanged) -> None:
        place, here.exchange._broker = here.exchange._broker, ("127.0.0.1", free_port())
        answer = await here.ask(b"x", at=0)
        assert (answer.status_code, answer.json["code"]) == (503, "broker.unavailable")
        here.exchange._broker = place
        await here.sent(0, b"x")

    run(program)


@pytest.mark.parametrize("link_id", ["", "x", "A" * 32, "0" * 31, "0" * 33, "../" * 10 + "00"])
def test_a_link_has_32_hex_digits(link_id: str) -> None:
    async def program(here: Exchanged) -> None:
        answer = await here.ask(b"x", link_id, at=0)
        assert (answer.status_code, answer.json["code"]) == (400, "http.bad_request")
        assert LINK_HEADER in answer.json["error"]

    run(program)


@pytest.mark.parametrize("name", ["at", "since", "wait"])
@pytest.mark.parametrize("value", ["", "-1", "+1", "1.5", "x", "1" * 17, "٣", "1,1", " "])
def test_places_and_durations_are_plain_numbers(name: str, value: str) -> None:
    async def program(here: Exchanged) -> None:
        fields: dict[str, Any] = {"at": 0, "since": 0, "wait": 0} | {
            name: value.encode().decode("latin-1")
        }
        await here.sent(0, b"x")
        assert (await here.ask(**fields)).status_code == 400

    run(program)


def test_bytes_without_a_place_and_requests_for_nothing_are_refused() -> None:
    async def program(here: Exchanged) -> None:
        assert (await here.ask(b"x", since=0)).status_code == 400
        assert (await here.ask()).status_code == 400
        assert here.far.connections == []

    run(program)


def test_a_body_of_another_type_or_too_large_is_refused() -> None:
    async def program(here: Exchanged) -> None:
        fields = {LINK_HEADER: here.id, AT_HEADER: "0", "Content-Type": "application/json"}
        answer = await call(here.application, "POST", EXCHANGE_PATH, headers=fields, body=b"{}")
        assert answer.status_code == 415
        assert (await here.ask(bytes(MAX_TUNNEL_BYTES + 1), at=0)).status_code == 413
        assert here.far.connections == []

    run(program)


def test_links_are_bounded_in_all_and_of_one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel, "MAX_LINKS", 4)
    monkeypatch.setattr(tunnel, "MAX_LINKS_OF_ADDRESS", 2)

    async def program(here: Exchanged) -> None:
        def at(peer: str) -> Exchanged:
            return Exchanged(here.exchange, here.far, peer)

        near = [at("192.168.1.2") for _ in range(3)]
        for each in near[:2]:
            await each.sent(0, b"x")
        assert (await near[2].ask(b"x", at=0)).status_code == 429
        for each in (at("192.168.1.3"), at("192.168.1.4")):
            await each.sent(0, b"x")
        assert (await at("192.168.1.5").ask(b"x", at=0)).status_code == 429
        assert (await near[0].ask(at=1, end=1)).status_code == 200
        await at("192.168.1.5").sent(0, b"x")

    run(program)


def test_idle_links_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel, "IDLE_S", 0.2)
    monkeypatch.setattr(tunnel, "IDLE_LOOK_S", 0.05)

    async def program(here: Exchanged) -> None:
        await here.sent(0, b"x")
        await until(lambda: not here.exchange._links)
        reader, _ = here.far.connections[0]
        await until(reader.at_eof)

    run(program)


# ------------------------------------------------------- any bytes, any fate of requests

#: What happens next: bytes of the peer, bytes of the broker; the fate of the request.
_STEP = st.tuples(
    st.sampled_from(["send", "resend", "say", "fetch", "lose", "late"]),
    st.binary(min_size=1, max_size=300),
    st.integers(0, 400),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_STEP, max_size=25))
def test_both_sides_get_exactly_what_was_said_whatever_became_of_the_requests(
    steps: list[tuple[str, bytes, int]],
) -> None:
    async def program(here: Exchanged) -> None:
        said, heard, told = bytearray(b"\0"), bytearray(), bytearray()
        await here.sent(0, b"\0")
        await until(lambda: here.far.heard)
        for what, content, back in steps:
            if what == "send":
                await here.sent(len(said), content)
                said += content
            elif what == "resend":  # its answer had got lost
                start = max(0, len(said) - back)
                await here.sent(start, bytes(said[start:]) + content)
                said += content
            elif what == "late":  # it was overtaken by what was sent instead
                start = max(0, len(said) - back)
                await here.sent(start, bytes(said[start : start + len(content)]))
            elif what == "say":
                await here.say(content)
                told += content
            else:
                part = await here.fetched(len(heard), wait=0)
                heard += part if what == "fetch" else b""
        while len(heard) < len(told):
            heard += await here.fetched(len(heard))
        assert heard == told
        await until(lambda: len(here.far.heard[0]) == len(said))
        assert here.far.heard == [said]

    run(program)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(["at", "since", "wait", "end"]),
        st.one_of(st.integers(0, 10), st.text(st.characters(max_codepoint=255), max_size=20)),
    ),
    st.one_of(st.none(), st.text(st.characters(max_codepoint=255), max_size=40)),
    st.binary(max_size=400),
)
def test_no_request_of_strangers_disturbs_a_link(
    fields: dict[str, Any], link_id: str | None, body: bytes
) -> None:
    async def program(here: Exchanged) -> None:
        await here.sent(0, b"mine")
        stranger = Exchanged(here.exchange, here.far)
        if fields.get("wait") != 0:
            fields.pop("wait", None)
        answer = await stranger.ask(body, link_id, **fields)
        assert answer.status_code in (200, 400, 410)
        refused = sum(stranger.rejections.counts().values())
        assert refused == (answer.status_code != 200)
        await here.sent(4, b"still")
        await until(lambda: here.far.heard[0] == b"minestill")
        here.far.connections[0][1].write(b"yours")
        assert await here.fetched(0) == b"yours"

    run(program)


# ------------------------------------------------------------------- with a real broker


def test_a_client_that_reaches_this_port_only_gets_its_results(tmp_path: Path) -> None:
    closed = free_port()  # as a firewall leaves it
    with rest_in(tmp_path) as rest:
        key = rest.mesh.key(rest.port)

        async def firewalled(scope: Scope, receive: Receive, send: AsgiSend) -> None:
            if scope["path"] != "/health":
                await rest.application(scope, receive, send)
                return
            told = {"status": "healthy", "broker_port": closed, "server_key": key.hex()}
            content = msgspec.json.encode(told)
            headers = [(b"Content-Length", str(len(content)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": content})

        bound = bind("127.0.0.1", 0)
        server = Server(firewalled, [bound], lambda peer: True, rest.rejections)
        rest.loop.run(server.start())
        worker = rest.mesh.worker(rest.port)
        worker.register("double", lambda data, context: data["n"] * 2)
        worker.start()
        try:
            url = f"http://127.0.0.1:{server.ports[0]}"
            with Client(url, config=rest.mesh.config()) as client:
                tasks = client.submit_many("double", [{"n": n} for n in range(200)])
                outputs = [task.result(PATIENCE_S)["output"] for task in tasks]
                assert client.is_over_http
            assert outputs == [2 * n for n in range(200)]
        finally:
            worker.stop(drain_s=1.0)
            rest.loop.run(server.close())
