"""Sessions through the REST port: the same frames, whatever carries them."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest

from d8mesh.core.protocol.codec import decode_to_client, encode
from d8mesh.core.protocol.messages import (
    Accepted,
    Beat,
    ClientHello,
    Group,
    Message,
    Outcomes,
    Submit,
    Watch,
    Welcome,
)
from d8mesh.doors import tunnel
from d8mesh.edge.network import bind
from d8mesh.edge.transport.tunnel import CONTENT_TYPE, LINK_HEADER, ExchangeLink
from d8mesh.http.asgi import AsgiApplication, AsgiSend, Receive, Scope
from d8mesh.http.server import Server
from d8mesh.nodes.client import Client
from tests.doors.rest_calls import Rest, rest_in
from tests.nodes.mesh import PATIENCE_S, free_port, until


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rest]:
    with rest_in(tmp_path_factory.mktemp("rest")) as rest:
        yield rest


def headers_of(link_id: str) -> dict[str, str]:
    return {LINK_HEADER: link_id, "Content-Type": CONTENT_TYPE}


class Peer:
    """One link, made by hand."""

    def __init__(self, rest: Rest) -> None:
        self.rest, self.id = rest, secrets.token_hex(16)
        self.session = "".join(
            secrets.choice("0123456789abcdefghijklmnopqrstuv") for _ in range(16)
        )

    def exchange(self, *messages: Message, wait_s: float = 0) -> list[Message]:
        answer = self.rest.post(
            f"/api/mesh/exchange?wait={wait_s}",
            msgspec.msgpack.encode([encode(message) for message in messages]),
            headers=headers_of(self.id),
        )
        assert answer.status_code == 200, answer.text
        assert answer.content_type == CONTENT_TYPE
        frames = msgspec.msgpack.decode(answer.data, type=list[bytes])
        return [decode_to_client(frame) for frame in frames]

    def send(self, *messages: Message) -> None:
        """Send, and fetch nothing."""
        body = msgspec.msgpack.encode([encode(message) for message in messages])
        answer = self.rest.post("/api/mesh/exchange", body, headers=headers_of(self.id))
        assert (answer.status_code, answer.data) == (200, b"\x90")

    def hello(self) -> Message:
        hello = ClientHello(1, self.rest.mesh.mesh, self.session, "host")
        (welcome,) = self.exchange(hello, wait_s=20)
        return welcome


def test_a_session_opens_and_submits(rest: Rest) -> None:
    peer = Peer(rest)
    assert isinstance(peer.hello(), Welcome)
    submit = Submit(1, peer.session, 0, [Group("via_http", 5, [b"\x80"])])
    (accepted,) = peer.exchange(submit, wait_s=20)
    nobody = ["no worker in the mesh offers 'via_http': no worker is there"]
    assert accepted == Accepted(1, peer.session, 0, False, nobody)
    assert rest.get(f"/api/tasks/status/{peer.session}-0").status_code == 200


def test_a_long_poll_is_answered_by_what_another_request_of_its_link_causes(rest: Rest) -> None:
    peer = Peer(rest)
    peer.hello()
    found: list[Message] = []
    thread = threading.Thread(target=lambda: found.extend(peer.exchange(wait_s=20)))
    thread.start()
    begun = time.monotonic()
    while thread.is_alive() and not found:
        found += peer.exchange(Watch([]))
        thread.join(0.05)
        assert time.monotonic() - begun < 15
    thread.join(30)
    assert all(isinstance(each, Beat) for each in found)
    assert found


def test_an_outcome_comes_through_the_poll(rest: Rest) -> None:
    peer = Peer(rest)
    peer.hello()
    peer.exchange(Submit(1, peer.session, 0, [Group("via_http", 5, [b"\x80"])]), wait_s=20)
    rest.post(f"/api/tasks/{peer.session}-0/cancel")
    got: list[Message] = []

    def has_outcome() -> bool:
        got.extend(peer.exchange(wait_s=1))
        return any(type(message) is Outcomes for message in got)

    until(has_outcome)


def test_a_poll_with_nothing_to_say_ends_with_its_time(rest: Rest) -> None:
    peer = Peer(rest)
    peer.hello()
    assert peer.exchange(wait_s=0.2) == []
    assert peer.exchange() == []


def test_a_request_that_may_not_wait_takes_nothing_out_of_turn(rest: Rest) -> None:
    peer = Peer(rest)
    peer.hello()
    until(lambda: peer.exchange(Watch([]), wait_s=1))
    for _ in range(20):
        peer.send(Watch([]))
    assert peer.exchange(wait_s=20) != []


def test_what_came_for_who_hung_up_is_for_its_next_request(rest: Rest) -> None:
    peer = Peer(rest)
    peer.hello()
    link = rest.exchange._links[peer.id]
    polling = rest.open("/api/mesh/exchange?wait=20", "POST", headers=headers_of(peer.id))
    until(lambda: link.polls == 2)
    polling.leave()
    peer.send(Watch([]))
    assert [type(each) for each in peer.exchange(wait_s=20)] == [Beat]


def test_what_comes_is_for_the_newest_poll(rest: Rest) -> None:
    """Nobody may be there any more behind an older one, and nothing tells."""
    peer = Peer(rest)
    peer.hello()
    link = rest.exchange._links[peer.id]

    async def poll_twice() -> tuple[list[bytes], list[bytes]]:
        older = asyncio.ensure_future(link.fetch(PATIENCE_S))
        await asyncio.sleep(0)
        newer = asyncio.ensure_future(link.fetch(PATIENCE_S))
        found = await older  # over at once
        link.put([encode(Watch([]))])
        return found, await newer

    older, newer = rest.loop.run(poll_twice())
    assert older == []
    assert len(newer) == 1


def test_a_peer_that_fetches_nothing_is_not_read_from_and_loses_nothing(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "MAX_LINK_HELD_BYTES", 100)
    peer = Peer(rest)
    peer.hello()
    for _ in range(200):
        peer.send(Watch([]))
    link = rest.exchange._links[peer.id]
    assert link._held_bytes < 2 * tunnel.FRAMES_PER_TURN * 100
    got: list[Message] = []

    def has_all() -> bool:
        got.extend(peer.exchange(wait_s=1))
        return len(got) == 200

    until(has_all)


@pytest.mark.parametrize("link_id", ["", "x", "A" * 32, "0" * 31, "0" * 33, "../" * 10 + "00"])
def test_a_link_has_32_hex_digits(rest: Rest, link_id: str) -> None:
    answer = rest.post("/api/mesh/exchange", headers={LINK_HEADER: link_id})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        b"nonsense",
        b"\x91",
        b"\x90\x90",
        b"\x91\xa1x",
        b"\x91\x01",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 5000,
        msgspec.msgpack.encode([b""] * 20_000),
    ],
)
def test_a_body_is_an_array_of_binaries(rest: Rest, body: bytes) -> None:
    answer = rest.post("/api/mesh/exchange", body, headers=headers_of(secrets.token_hex(16)))
    assert answer.status_code == 400
    assert answer.json["code"] == "protocol.invalid"


def test_a_body_of_another_type_is_415(rest: Rest) -> None:
    headers = {LINK_HEADER: secrets.token_hex(16)}
    assert rest.post("/api/mesh/exchange", {}, headers=headers).status_code == 415


def test_links_are_bounded_and_idle_ones_are_closed(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "IDLE_S", 0.2)
    monkeypatch.setattr(tunnel, "IDLE_LOOK_S", 0.1)
    rest.loop.loop.call_soon_threadsafe(rest.exchange._close_idle)

    def status() -> int:
        headers = {LINK_HEADER: secrets.token_hex(16)}
        return rest.post("/api/mesh/exchange", headers=headers).status_code

    until(lambda: status() == 200)
    monkeypatch.setattr(tunnel, "MAX_LINKS", 1)
    assert 429 in [status() for _ in range(3)]
    until(lambda: status() == 200)  # after the idle ones were closed


def served(rest: Rest, application: AsgiApplication) -> Server:
    """Return a server of it on a free port, in the application's loop."""
    server = Server(application, [bind("127.0.0.1", 0)], lambda peer: True, rest.rejections)
    rest.loop.run(server.start())
    return server


def test_a_link_of_the_other_side_works_over_a_real_connection(rest: Rest) -> None:
    server = served(rest, rest.application)
    awake = threading.Event()
    link = ExchangeLink(f"http://127.0.0.1:{server.ports[0]}", awake.set)
    got: list[bytes] = []

    def received() -> list[bytes]:
        got.extend(link.receive(10))
        return got

    try:
        hello = ClientHello(1, rest.mesh.mesh, Peer(rest).session, "host")
        assert link.send(encode(hello))
        until(received)
        assert isinstance(decode_to_client(got[0]), Welcome)
        got.clear()
        link.send(encode(Watch([])))
        until(received)
        assert isinstance(decode_to_client(got[0]), Beat)
    finally:
        link.close()
        rest.loop.run(server.close())


def test_a_client_that_reaches_this_port_only_gets_its_results(rest: Rest) -> None:
    closed = free_port()  # as a firewall leaves it

    async def firewalled(scope: Scope, receive: Receive, send: AsgiSend) -> None:
        if scope["path"] != "/health":
            await rest.application(scope, receive, send)
            return
        content = msgspec.json.encode({"status": "healthy", "broker_port": closed})
        headers = [(b"Content-Length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    server = served(rest, firewalled)
    worker = rest.mesh.worker(rest.port)
    worker.register("double", lambda data, context: data["n"] * 2)
    worker.start()
    try:
        url = f"http://127.0.0.1:{server.ports[0]}"
        with Client(url, config=rest.mesh.config()) as client:
            tasks = client.submit_many("double", [{"n": n} for n in range(200)])
            assert [task.result(PATIENCE_S)["output"] for task in tasks] == [
                2 * n for n in range(200)
            ]
    finally:
        worker.stop(drain_s=1.0)
        rest.loop.run(server.close())
