"""A link that is not let in, or leads to somebody else, knows it and is not made anew for ever."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from d8mesh.core.protocol.membership import Verdict
from d8mesh.edge.transport.keys import new_pair
from d8mesh.edge.transport.sockets import MAX_FAILED_HANDSHAKES, DealerLink
from tests.keyed import SERVER, link_to, router_at
from tests.nodes.mesh import free_port, until


def looked_at(link: DealerLink) -> DealerLink:
    link.look()
    return link


@pytest.fixture
def slamming() -> Iterator[tuple[int, list[int]]]:
    """Accept connections and close them; what was counted is how many."""
    count = [0]
    with socket.create_server(("127.0.0.1", 0)) as server:
        is_over = threading.Event()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while not is_over.is_set():
                    server.accept()[0].close()
                    count[0] += 1

        thread = threading.Thread(target=serve)
        thread.start()
        port = int(server.getsockname()[1])
        yield port, count
        is_over.set()
        socket.create_connection(("127.0.0.1", port)).close()
        thread.join()


@pytest.mark.parametrize("verdict", [Verdict.WAITING, Verdict.REFUSED])
def test_what_the_gate_says_is_known_to_the_link_and_it_tries_no_more(verdict: Verdict) -> None:
    asked: list[bytes] = []

    def gate(address: str, key: bytes) -> Verdict:
        asked.append(key)
        return verdict

    with contextlib.closing(router_at(free_port(), gate=gate)) as router:
        with contextlib.closing(link_to(router.port)) as link:
            link.send(b"hello")
            until(lambda: looked_at(link).is_refused and link.is_cut)
            assert link.verdict is verdict
            assert router.receive(10) == []
            assert len(asked) == 1


def test_one_with_another_key_is_known_for_that_and_hears_nothing() -> None:
    with contextlib.closing(router_at(free_port(), keys=new_pair())) as router:
        with contextlib.closing(link_to(router.port, server_key=SERVER.public)) as link:
            link.send(b"hello")
            until(lambda: looked_at(link).is_refused)
            assert link.verdict is None
            assert router.receive(10) == []


def test_a_handshake_that_breaks_off_once_is_no_refusal(slamming: tuple[int, list[int]]) -> None:
    port, count = slamming
    with contextlib.closing(link_to(port)) as link:
        until(lambda: looked_at(link).is_cut)
        assert not link.is_refused
        until(lambda: looked_at(link).is_refused)
        assert count[0] >= MAX_FAILED_HANDSHAKES


def test_who_is_let_in_later_begins_anew() -> None:
    port = free_port()
    with contextlib.closing(link_to(port)) as link:
        link.send(b"hello")
        with contextlib.closing(router_at(port)) as router:
            until(lambda: router.receive(1))
        until(lambda: looked_at(link).is_cut)
        assert not link.is_refused
        with contextlib.closing(router_at(port)) as router:
            until(lambda: looked_at(link).is_renewed)
        assert not link.is_refused
