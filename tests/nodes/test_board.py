"""Who waits for something of a parcel is woken by that and by nothing else."""

from __future__ import annotations

import threading
import time

import pytest

from d8mesh.core.parcel import Parcel
from d8mesh.errors import NodeClosedError, WaitTimeoutError
from d8mesh.nodes.client.board import LOOK_S, Board

PATIENCE_S = 60.0


class Waiting:
    """A thread that waits for one thing; who looked whether it is there is written down."""

    def __init__(self, board: Board, parcel: Parcel) -> None:
        self.is_over = False
        self.looks: list[int | None] = []
        self._board, self._parcel = board, parcel
        self.thread = threading.Thread(target=self._wait, daemon=True)
        self.thread.start()

    def _wait(self) -> None:
        self._board.wait_for(self._parcel, self._look, PATIENCE_S, what="a test")

    def _look(self) -> bool:
        self.looks.append(threading.get_ident())
        return self.is_over

    @property
    def own_looks(self) -> int:
        return self.looks.count(self.thread.ident)


@pytest.fixture
def parcel() -> Parcel:
    return Parcel("0" * 16, 0, [], 1)


def test_only_what_is_waited_for_wakes(parcel: Parcel) -> None:
    board = Board(lambda: None)
    waiting = Waiting(board, parcel)
    until = time.monotonic() + PATIENCE_S
    while waiting.own_looks < 2 and time.monotonic() < until:
        time.sleep(0.001)
    before, begun = waiting.own_looks, time.monotonic()
    for _ in range(20):
        board.changed(parcel)
        time.sleep(0.01)  # room for the thread to run, had it been woken
    spent_s = time.monotonic() - begun
    assert waiting.own_looks <= before + 1 + spent_s / LOOK_S  # it looks by itself now and then
    assert board.waiting == 1
    waiting.is_over = True
    board.changed(parcel)
    waiting.thread.join(PATIENCE_S)
    assert not waiting.thread.is_alive()
    assert board.waiting == 0


def test_a_wait_ends_with_its_time_or_with_its_sense(parcel: Parcel) -> None:
    with pytest.raises(WaitTimeoutError, match=r"a test has not come within 0\.01 s"):
        Board(lambda: None).wait_for(parcel, lambda: False, 0.01, what="a test")

    def closed() -> None:
        raise NodeClosedError

    with pytest.raises(NodeClosedError):
        Board(closed).wait_for(parcel, lambda: False, None, what="a test")
