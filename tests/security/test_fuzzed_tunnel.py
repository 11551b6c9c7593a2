"""Bytes of the tunnel that mean nothing: links end, everybody else goes on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

import pytest

from d8mesh.edge.transport.tunnel import (
    AT_HEADER,
    BYTES_TYPE,
    END_HEADER,
    EXCHANGE_PATH,
    FROM_HEADER,
    LINK_HEADER,
    WAIT_HEADER,
)
from tests.security.abuse import Abused, abused_mesh

#: The greeting of ZMTP 3.1 with CURVE, and what comes after it in a connection that is begun right.
GREETING: Final = (
    b"\xff" + b"\x00" * 8 + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\x00") + b"\x00" * 32
)
HELLO: Final = b"\x04\xc6\x05HELLO" + b"\x01\x00" + b"\x00" * 190

REQUESTS: Final = 250
#: What it is answered with: taken, refused, gone, or too many; never an error of ours.
STATUSES: Final = (200, 400, 404, 409, 410, 413, 415, 429, 503)


@pytest.fixture(scope="module")
def abused() -> Iterator[Abused]:
    with abused_mesh() as made:
        yield made


def test_bytes_that_are_no_connection_to_a_broker_harm_nobody(abused: Abused) -> None:
    draw = random.Random(9)
    links = [f"{n:032x}" for n in range(20)]
    odd = ["", "0", "-1", "00", "9" * 16, "9" * 40, "x", "1e3", "\xb2"]
    for _ in range(REQUESTS):
        body = b"".join(
            draw.choices([GREETING, HELLO, draw.randbytes(50), b"", b"GET / HTTP/1.1\r\n"], k=2)
        )
        body = body[: draw.randrange(len(body) + 1)]
        lines = [
            f"Content-Type: {draw.choice([BYTES_TYPE] * 9 + ['text/plain'])}",
            f"{LINK_HEADER}: {draw.choice([*links, *odd])}",
            f"{AT_HEADER}: {draw.choice(['0'] * 6 + odd)}",
        ]
        if draw.random() < 0.4:
            lines += [f"{FROM_HEADER}: {draw.choice(['0', *odd])}", f"{WAIT_HEADER}: 0"]
        if draw.random() < 0.2:
            lines.append(f"{END_HEADER}: 1")
        told = abused.http.ask("POST", EXCHANGE_PATH, body, *lines)
        assert told.status in STATUSES, (told, lines)
        assert b"Traceback" not in told.body
    abused.goes_on()
