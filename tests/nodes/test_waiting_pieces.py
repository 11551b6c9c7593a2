"""Partial output goes at once where it is the first, and together with others after that."""

from __future__ import annotations

import time

from d8mesh.core.worker.effects import OutputPiece
from d8mesh.edge.transport.sockets import Waker
from d8mesh.nodes.worker.slots import PIECES_TOGETHER_S, Bell, Slots


def piece(number: int, task: str = "t") -> OutputPiece:
    return ("link", task, task.encode(), number, b"x")


def test_the_first_piece_of_an_attempt_goes_at_once_and_others_wait_for_more() -> None:
    waker = Waker()
    slots = Slots(1, {}, "w", Bell(waker))
    try:
        assert slots.add_piece(piece(0), is_first=True)
        assert slots.pieces_due == 0.0
        before = time.monotonic()
        assert slots.take_pieces() == [piece(0)]
        assert slots.add_piece(piece(1), is_first=False)
        assert slots.pieces_due >= before + PIECES_TOGETHER_S
        assert not slots.add_piece(piece(2), is_first=False)  # who takes them knows it already
        assert slots.add_piece(piece(0, "u"), is_first=True)
        assert slots.pieces_due == 0.0
        assert slots.take_pieces() == [piece(1), piece(2), piece(0, "u")]
        assert slots.pieces_bytes == 0
    finally:
        waker.close()
