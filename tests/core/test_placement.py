"""Who may get what."""

from __future__ import annotations

import pytest

from d8mesh.core import placement
from d8mesh.core.effects import Peer
from d8mesh.core.messages import Heartbeat
from d8mesh.core.placement import (
    SEARCH_SEATS,
    can_run,
    choose_seat,
    is_offered_elsewhere,
    share,
    why_nobody,
    why_waiting,
)
from d8mesh.core.queue import LaneKey
from d8mesh.core.roster import ASKS_S, MAX_OFFLINE_SEATS, Dialect, Roster, Seat
from tests.core.desktop import Desktop, beat


def seat(name: str, types: str, models: str = "", window: int = 1) -> Seat:
    made = Seat(name, Dialect.MESH, Peer(name.encode()), window=window)
    made.types = frozenset(types.split())
    made.models = frozenset(models.split())
    return made


def test_a_wished_model_is_honoured_while_somebody_offers_it() -> None:
    roster = Roster()
    llama, other = seat("llama", "agent_action", "llama"), seat("other", "agent_action", "qwen")
    roster.add(llama)
    roster.add(other)
    key = LaneKey("agent_action", "llama")
    assert can_run(llama, key, roster)
    assert not can_run(other, key, roster)
    llama.window = 0
    roster.refresh(llama)
    assert choose_seat(key, roster) is None  # it waits for the busy one
    roster.leave(llama)
    assert choose_seat(key, roster) is other
    roster.check()


def test_a_model_of_a_worker_without_the_type_does_not_count() -> None:
    roster = Roster()
    roster.add(seat("a", "agent_action"))
    roster.add(seat("b", "code_generation", "llama"))
    chosen = choose_seat(LaneKey("agent_action", "llama"), roster)
    assert chosen is not None
    assert chosen.worker_id == "a"


def test_a_wish_is_honoured_in_every_spelling_of_the_name() -> None:
    roster = Roster()
    roster.add(seat("other", "agent_action", "qwen"))
    llama = seat("llama", "agent_action", "llama3:latest")
    roster.add(llama)
    assert choose_seat(LaneKey("agent_action", "Llama3"), roster) is llama


def test_a_strict_wish_waits_for_the_worker_that_has_the_model_even_one_without_room() -> None:
    roster = Roster()
    llama, other = seat("llama", "agent_action", "llama"), seat("other", "agent_action", "qwen")
    roster.add(llama)
    roster.add(other)
    llama.window, llama.has_asked = 0, False
    roster.refresh(llama)
    assert choose_seat(LaneKey("agent_action", "llama"), roster) is other
    assert choose_seat(LaneKey("agent_action", "=llama"), roster) is None
    assert "does not ask" in why_waiting(LaneKey("agent_action", "=llama"), roster)
    assert is_offered_elsewhere("other", LaneKey("agent_action", "=llama"), roster)
    assert not is_offered_elsewhere("other", LaneKey("agent_action", "llama"), roster)
    roster.leave(llama)
    roster.note_absent(0.0, is_young=False)
    assert choose_seat(LaneKey("agent_action", "=llama"), roster) is other
    assert not is_offered_elsewhere("other", LaneKey("agent_action", "=llama"), roster)


def test_a_strict_wish_waits_a_while_for_who_has_just_gone_and_after_a_start() -> None:
    roster = Roster()
    llama, other = seat("llama", "agent_action", "llama"), seat("other", "agent_action", "qwen")
    roster.add(llama)
    roster.add(other)
    llama.last_heard = 100.0
    roster.leave(llama)
    key = LaneKey("agent_action", "=llama")
    assert choose_seat(key, roster) is None
    roster.note_absent(99.0, is_young=False)
    assert choose_seat(key, roster) is None
    assert "may come back" in why_waiting(key, roster)
    assert choose_seat(LaneKey("agent_action", "llama"), roster) is other
    assert choose_seat(LaneKey("agent_action", "=gemma"), roster) is other
    roster.note_absent(100.0, is_young=True)
    assert choose_seat(key, roster) is None
    roster.note_absent(100.0, is_young=False)
    assert choose_seat(key, roster) is other


def test_a_strict_wish_never_goes_to_a_polling_worker_without_the_model() -> None:
    roster = Roster()
    old = seat("old", "agent_action", "qwen")
    old.dialect = Dialect.POLLING
    roster.add(old)
    assert not can_run(old, LaneKey("agent_action", "=llama"), roster)
    assert "none has the model 'llama:latest'" in why_waiting(
        LaneKey("agent_action", "=llama"), roster
    )
    assert can_run(old, LaneKey("agent_action", "=qwen"), roster)


def test_a_task_that_nobody_offers_is_told_why_the_workers_there_cannot() -> None:
    roster = Roster()
    key = LaneKey("agent_action", "")
    assert why_waiting(key, roster) == (
        "no worker in the mesh offers 'agent_action': no worker is there"
    )
    roster.add(seat("pi", "echo noop"))
    for name in "ab":
        made = seat(name, "echo")
        made.trouble = f"Ollama of {name} does not answer"
        roster.add(made)
    roster.leave(roster.seats["a"])
    assert why_waiting(key, roster) == (
        "no worker in the mesh offers 'agent_action' "
        "(2 workers there; b: Ollama of b does not answer; pi: offers echo, noop)"
    )
    for name in "cde":
        roster.add(seat(name, "a b c d"))
    assert why_waiting(key, roster).endswith("c: offers a, b, c, …; and 2 more)")


def test_the_reason_for_waiting_is_told() -> None:
    roster = Roster()
    key = LaneKey("echo", "")
    assert "no worker" in why_waiting(key, roster)
    busy = seat("a", "echo", window=0)
    roster.add(busy)
    assert "busy" in why_waiting(key, roster)
    busy.window = 1
    roster.refresh(busy)
    assert why_waiting(key, roster) == ""


def test_shares_are_even_and_at_least_one() -> None:
    roster = Roster()
    for name in "abc":
        roster.add(seat(name, "echo"))
    assert [share(n, "echo", roster) for n in (0, 1, 3, 4, 300)] == [1, 1, 1, 2, 100]
    assert share(5, "nobody", roster) == 5


def test_seats_that_left_are_listed_but_not_for_ever() -> None:
    roster = Roster()
    for number in range(MAX_OFFLINE_SEATS + 50):
        gone = seat(f"w{number}", "echo")
        gone.last_heard = number
        roster.add(gone)
        roster.leave(gone)
    assert len(roster.seats) <= MAX_OFFLINE_SEATS + 1
    assert f"w{MAX_OFFLINE_SEATS + 49}" in roster.seats


def test_a_stuck_retry_does_not_idle_a_worker(desk: Desktop) -> None:
    client = desk.client()
    bad, good = desk.worker("bad"), desk.worker("good", window=0)
    desk.submit(client, priority=9)
    desk.finish(bad, desk.work(bad), 0)
    (low,) = desk.submit(client, priority=2)
    desk.finish(bad, desk.work(bad))
    desk.pass_time(1)
    desk.submit(client, priority=2)
    assert len(desk.work(bad)) == 1  # the retry waits for `good`, the rest does not
    assert desk.work(good) == {}
    assert desk.ledger.state_of(low) is None


def test_nobody_waits_for_ever_for_a_worker_that_wants_nothing(desk: Desktop) -> None:
    """Every slot of `stuck` is: its window stays 0, it lives, and holds nothing."""
    client = desk.client()
    bad, stuck = desk.worker("bad"), desk.worker("stuck", window=0, models=["llama"])
    (failed,) = desk.submit(client)
    desk.finish(bad, desk.work(bad), 0)
    (wished,) = desk.submit(client, model="llama")
    given: dict[str, bytes] = {}
    for _ in range(int(ASKS_S) + 5):
        desk.pass_time(1)
        desk.say(bad, beat([], 0, window=4))
        desk.say(stuck, Heartbeat(0, 0, 0, 1, ["echo"], ["llama"], []))
        if desk.now < 100 + ASKS_S - 5:
            assert desk.work(bad) == {}
        given |= desk.work(bad)
    assert set(given) == {failed, wished}
    assert desk.work(stuck) == {}


def test_a_line_of_free_seats_is_searched_so_far_and_no_further() -> None:
    roster = Roster()
    roster.add(seat("llama", "agent_action", "llama", window=0))  # busy, and the wish is its own
    for number in range(SEARCH_SEATS + 5):
        roster.add(seat(f"other{number}", "agent_action", "qwen"))
    assert choose_seat(LaneKey("agent_action", "llama"), roster) is None


def test_a_worker_gets_only_what_it_offers() -> None:
    roster, echo = Roster(), seat("w", "echo")
    roster.add(echo)
    assert not can_run(echo, LaneKey("agent_action", ""), roster)


def test_the_nearest_type_is_looked_for_once_and_of_so_many_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    roster = Roster()
    roster.add(seat("a", "resize"))
    assert why_nobody("resize", roster) == ""
    monkeypatch.setattr(placement, "MAX_COMPARED", 1)
    monkeypatch.setattr(placement, "MAX_NEAREST", 1)
    for _ in range(2):
        assert "did you mean 'resize'" in why_nobody("rezise", roster)
        assert "did you mean 'resize'" in why_nobody("resizes", roster)
    assert roster.nearest == {"rezise": "resize"}
    roster.add(seat("b", "resizes"))
    assert why_nobody("resizes", roster) == ""
    assert roster.nearest == {}


def test_names_too_long_to_be_compared_are_not() -> None:
    roster, name = Roster(), "r" * (placement.MAX_COMPARED_CHARS + 1)
    roster.add(seat("a", name, "resize"))
    told = f"no worker in the mesh offers {name + 'x'!r}"
    assert why_nobody(name + "x", roster) == told
    assert why_nobody("r" * placement.MAX_COMPARED_CHARS, roster).endswith("'")  # nor with these
