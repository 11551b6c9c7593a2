"""The names that a ROUTER gives its connections."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import zmq

from d8mesh.edge.transport.routing_numbers import begin_anywhere, newest_number, place_after


def name_of(number: int) -> bytes:
    return b"\0" + number.to_bytes(4, "big")


def test_the_newest_number_is_the_one_before_the_next_connections() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        newest = newest_number(context, router)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        with context.socket(zmq.DEALER) as dealer:
            dealer.connect(f"tcp://127.0.0.1:{port}")
            dealer.send(b"hello")
            name, said = router.recv_multipart()
    assert said == b"hello"
    assert place_after(newest, name) == 1


@pytest.mark.parametrize(
    ("newest", "name", "place"),
    [
        (7, name_of(8), 1),
        (7, name_of(1007), 1000),
        (2**32 - 1, name_of(1), 2),
        (7, name_of(6), 2**32 - 1),
        (7, name_of(7), math.inf),
        (7, b"", math.inf),
        (7, b"\0\0\0\0", math.inf),
        (7, b"\x01\0\0\0\x08", math.inf),
        (7, b"\0\0\0\0\0\x08", math.inf),
        (7, b"somebody", math.inf),
    ],
)
def test_the_place_of_a_name_is_how_many_later_it_is_given(
    newest: int, name: bytes, place: float
) -> None:
    assert place_after(newest, name) == place


def test_no_two_processes_begin_with_the_same_number() -> None:
    code = (
        "import zmq\n"
        "from d8mesh.edge.transport.routing_numbers import begin_anywhere, newest_number\n"
        "begin_anywhere()\n"
        "with zmq.Context() as context, context.socket(zmq.ROUTER) as router:\n"
        "    print(newest_number(context, router))\n"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(3)
    }
    assert len(said) == 3


def test_two_routers_of_one_process_begin_with_numbers_of_their_own() -> None:
    numbers = set()
    with zmq.Context() as context:
        for _ in range(3):
            begin_anywhere()
            with context.socket(zmq.ROUTER) as router:
                numbers.add(newest_number(context, router))
    assert len(numbers) == 3
