"""Seats and their indexes."""

from __future__ import annotations

from d8mesh.core.effects import Peer
from d8mesh.core.records import Batch, Task
from d8mesh.core.roster import STREAK_BEFORE_HALVING, Dialect, Poll, Roster, Seat
from d8mesh.core.task import Spec


def seat(name: str = "w", window: int = 4) -> Seat:
    made = Seat(name, Dialect.MESH, Peer(name.encode()), slots=4, window=window)
    made.types = frozenset({"echo"})
    return made


def test_free_is_the_window_less_what_is_outstanding() -> None:
    roster, made = Roster(), seat()
    roster.add(made)
    batch = Batch("s" * 16, 0, 9, Spec("echo", 5, 3), 0.0, 9, 1)
    for index in range(4):
        task = Task(batch, batch.task_id(index), b"")
        made.outstanding[task.id] = task
    roster.refresh(made)
    assert made.free == 0
    assert "echo" not in roster.free
    assert made.is_busy
    roster.check()


def test_a_streak_of_failures_halves_the_share_but_never_to_nothing() -> None:
    made = seat()
    shares = []
    for failures in range(STREAK_BEFORE_HALVING + 4):
        made.failures_in_a_row = failures
        shares.append(made.free)
    assert shares == [4, 4, 4, 2, 1, 1, 1]


def test_a_polling_worker_is_free_while_it_asks() -> None:
    made = Seat("p", Dialect.POLLING)
    assert made.free == 0
    made.poll = Poll(Peer(b"shim"), 1, 0.0)
    assert made.free == 1
    made.is_live = False
    assert made.free == 0


def test_seats_are_found_by_their_connection_until_they_leave() -> None:
    roster, made = Roster(), seat()
    roster.add(made)
    assert roster.by_peer(Peer(b"w")) is made
    roster.move(made, Peer(b"moved"))
    assert roster.by_peer(Peer(b"w")) is None
    assert roster.by_peer(Peer(b"moved")) is made
    roster.offer(made, ["other"], ["m"])
    assert set(roster.serving) == {"other"}
    assert set(roster.offering) == {"m:latest"}
    roster.leave(made)
    assert roster.serving == roster.offering == roster.free == {}
    roster.rejoin(made)
    roster.check()
    roster.remove(made)
    assert roster.seats == {}


def test_free_seats_take_turns() -> None:
    roster = Roster()
    for name in "abc":
        roster.add(seat(name))
    roster.to_the_end(roster.seats["a"], "echo")
    roster.to_the_end(roster.seats["a"], "nothing")
    assert list(roster.free["echo"]) == ["b", "c", "a"]


def test_a_new_seat_takes_the_place_of_an_old_one() -> None:
    roster, old, new = Roster(), seat(), seat()
    roster.add(old)
    roster.add(new)
    assert roster.seats["w"] is new
    assert not old.is_live
    roster.check()
