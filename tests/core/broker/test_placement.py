"""Who may get what."""

from __future__ import annotations

import pytest

from d8mesh.core.broker import placement
from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.placement import (
    SEARCH_WORKERS,
    can_run,
    choose_worker,
    is_offered_elsewhere,
    share,
    why_nobody,
    why_waiting,
)
from d8mesh.core.broker.queue import LaneKey
from d8mesh.core.broker.worker_registry import (
    ASKS_S,
    MAX_OFFLINE_WORKERS,
    Dialect,
    WorkerRegistry,
    WorkerState,
)
from d8mesh.core.protocol.messages import Heartbeat
from tests.core.invariants import check_registry
from tests.core.wired_broker import WiredBroker, beat


def worker(name: str, types: str, models: str = "", window: int = 1) -> WorkerState:
    made = WorkerState(name, Dialect.MESH, Peer(name.encode()), window=window)
    made.types = frozenset(types.split())
    made.models = frozenset(models.split())
    return made


def test_a_wished_model_is_honoured_while_somebody_offers_it() -> None:
    registry = WorkerRegistry()
    llama, other = (
        worker("llama", "agent_action", "llama"),
        worker("other", "agent_action", "qwen"),
    )
    registry.add(llama)
    registry.add(other)
    key = LaneKey("agent_action", "llama")
    assert can_run(llama, key, registry)
    assert not can_run(other, key, registry)
    llama.window = 0
    registry.refresh(llama)
    assert choose_worker(key, registry) is None  # it waits for the busy one
    registry.leave(llama)
    assert choose_worker(key, registry) is other
    check_registry(registry)


def test_a_model_of_a_worker_without_the_type_does_not_count() -> None:
    registry = WorkerRegistry()
    registry.add(worker("a", "agent_action"))
    registry.add(worker("b", "code_generation", "llama"))
    chosen = choose_worker(LaneKey("agent_action", "llama"), registry)
    assert chosen is not None
    assert chosen.worker_id == "a"


def test_a_wish_is_honoured_in_every_spelling_of_the_name() -> None:
    registry = WorkerRegistry()
    registry.add(worker("other", "agent_action", "qwen"))
    llama = worker("llama", "agent_action", "llama3:latest")
    registry.add(llama)
    assert choose_worker(LaneKey("agent_action", "Llama3"), registry) is llama


def test_a_strict_wish_waits_for_the_worker_that_has_the_model_even_one_without_room() -> None:
    registry = WorkerRegistry()
    llama, other = (
        worker("llama", "agent_action", "llama"),
        worker("other", "agent_action", "qwen"),
    )
    registry.add(llama)
    registry.add(other)
    llama.window, llama.has_asked = 0, False
    registry.refresh(llama)
    assert choose_worker(LaneKey("agent_action", "llama"), registry) is other
    assert choose_worker(LaneKey("agent_action", "=llama"), registry) is None
    assert "does not ask" in why_waiting(LaneKey("agent_action", "=llama"), registry)
    assert is_offered_elsewhere("other", LaneKey("agent_action", "=llama"), registry)
    assert not is_offered_elsewhere("other", LaneKey("agent_action", "llama"), registry)
    registry.leave(llama)
    registry.note_absent(0.0, is_young=False)
    assert choose_worker(LaneKey("agent_action", "=llama"), registry) is other
    assert not is_offered_elsewhere("other", LaneKey("agent_action", "=llama"), registry)


def test_a_strict_wish_waits_a_while_for_who_has_just_gone_and_after_a_start() -> None:
    registry = WorkerRegistry()
    llama, other = (
        worker("llama", "agent_action", "llama"),
        worker("other", "agent_action", "qwen"),
    )
    registry.add(llama)
    registry.add(other)
    llama.last_heard = 100.0
    registry.leave(llama)
    key = LaneKey("agent_action", "=llama")
    assert choose_worker(key, registry) is None
    registry.note_absent(99.0, is_young=False)
    assert choose_worker(key, registry) is None
    assert "may come back" in why_waiting(key, registry)
    assert choose_worker(LaneKey("agent_action", "llama"), registry) is other
    assert choose_worker(LaneKey("agent_action", "=gemma"), registry) is other
    registry.note_absent(100.0, is_young=True)
    assert choose_worker(key, registry) is None
    registry.note_absent(100.0, is_young=False)
    assert choose_worker(key, registry) is other


def test_a_strict_wish_never_goes_to_a_polling_worker_without_the_model() -> None:
    registry = WorkerRegistry()
    old = worker("old", "agent_action", "qwen")
    old.dialect = Dialect.POLLING
    registry.add(old)
    assert not can_run(old, LaneKey("agent_action", "=llama"), registry)
    assert "none has the model 'llama:latest'" in why_waiting(
        LaneKey("agent_action", "=llama"), registry
    )
    assert can_run(old, LaneKey("agent_action", "=qwen"), registry)


def test_a_task_that_nobody_offers_is_told_why_the_workers_there_cannot() -> None:
    registry = WorkerRegistry()
    key = LaneKey("agent_action", "")
    assert why_waiting(key, registry) == (
        "no worker in the mesh offers 'agent_action': no worker is there"
    )
    registry.add(worker("pi", "echo noop"))
    for name in "ab":
        made = worker(name, "echo")
        made.trouble = f"Ollama of {name} does not answer"
        registry.add(made)
    registry.leave(registry.workers["a"])
    assert why_waiting(key, registry) == (
        "no worker in the mesh offers 'agent_action' "
        "(2 workers there; b: Ollama of b does not answer; pi: offers echo, noop)"
    )
    registry.workers["pi"].placed_types = frozenset({"agent_action"})
    assert why_nobody("x", registry) == "no worker in the mesh offers 'x'"
    assert "pi: offers agent_action, echo, noop)" in why_waiting(LaneKey("x", ""), registry)
    registry.workers["pi"].placed_types = frozenset()
    for name in "cde":
        registry.add(worker(name, "a b c d"))
    assert why_waiting(key, registry).endswith("c: offers a, b, c, …; and 2 more)")


def test_the_reason_for_waiting_is_told() -> None:
    registry = WorkerRegistry()
    key = LaneKey("echo", "")
    assert "no worker" in why_waiting(key, registry)
    busy = worker("a", "echo", window=0)
    registry.add(busy)
    assert "busy" in why_waiting(key, registry)
    busy.window = 1
    registry.refresh(busy)
    assert why_waiting(key, registry) == ""


def test_shares_are_even_and_at_least_one() -> None:
    registry = WorkerRegistry()
    for name in "abc":
        registry.add(worker(name, "echo"))
    assert [share(n, "echo", registry) for n in (0, 1, 3, 4, 300)] == [1, 1, 1, 2, 100]
    assert share(5, "nobody", registry) == 5


def test_workers_that_left_are_listed_but_not_for_ever() -> None:
    registry = WorkerRegistry()
    for number in range(MAX_OFFLINE_WORKERS + 50):
        gone = worker(f"w{number}", "echo")
        gone.last_heard = number
        registry.add(gone)
        registry.leave(gone)
    assert len(registry.workers) <= MAX_OFFLINE_WORKERS + 1
    assert f"w{MAX_OFFLINE_WORKERS + 49}" in registry.workers


def test_a_stuck_retry_does_not_idle_a_worker(broker: WiredBroker) -> None:
    client = broker.client()
    bad, good = broker.worker("bad"), broker.worker("good", window=0)
    broker.submit(client, priority=9)
    broker.finish(bad, broker.work(bad), 0)
    (low,) = broker.submit(client, priority=2)
    broker.finish(bad, broker.work(bad))
    broker.pass_time(1)
    broker.submit(client, priority=2)
    assert len(broker.work(bad)) == 1  # the retry waits for `good`, the rest does not
    assert broker.work(good) == {}
    assert broker.task_table.state_of(low) is None


def test_nobody_waits_for_ever_for_a_worker_that_wants_nothing(broker: WiredBroker) -> None:
    """Every slot of `stuck` is: its window stays 0, it lives, and holds nothing."""
    client = broker.client()
    bad, stuck = broker.worker("bad"), broker.worker("stuck", window=0, models=["llama"])
    (failed,) = broker.submit(client)
    broker.finish(bad, broker.work(bad), 0)
    (wished,) = broker.submit(client, model="llama")
    given: dict[str, bytes] = {}
    for _ in range(int(ASKS_S) + 5):
        broker.pass_time(1)
        broker.say(bad, beat([], 0, window=4))
        broker.say(stuck, Heartbeat(0, 0, 0, 1, ["echo"], ["llama"], []))
        if broker.now < 100 + ASKS_S - 5:
            assert broker.work(bad) == {}
        given |= broker.work(bad)
    assert set(given) == {failed, wished}
    assert broker.work(stuck) == {}


def test_a_line_of_free_workers_is_searched_so_far_and_no_further() -> None:
    registry = WorkerRegistry()
    registry.add(
        worker("llama", "agent_action", "llama", window=0)
    )  # busy, and the wish is its own
    for number in range(SEARCH_WORKERS + 5):
        registry.add(worker(f"other{number}", "agent_action", "qwen"))
    assert choose_worker(LaneKey("agent_action", "llama"), registry) is None


def test_a_worker_gets_only_what_it_offers() -> None:
    registry, echo = WorkerRegistry(), worker("w", "echo")
    registry.add(echo)
    assert not can_run(echo, LaneKey("agent_action", ""), registry)


def test_the_nearest_type_is_looked_for_once_and_of_so_many_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = WorkerRegistry()
    registry.add(worker("a", "resize"))
    assert why_nobody("resize", registry) == ""
    monkeypatch.setattr(placement, "MAX_COMPARED", 1)
    monkeypatch.setattr(placement, "MAX_NEAREST", 1)
    for _ in range(2):
        assert "did you mean 'resize'" in why_nobody("rezise", registry)
        assert "did you mean 'resize'" in why_nobody("resizes", registry)
    assert registry.nearest == {"rezise": "resize"}
    registry.add(worker("b", "resizes"))
    assert why_nobody("resizes", registry) == ""
    assert registry.nearest == {}


def test_names_too_long_to_be_compared_are_not() -> None:
    registry, name = WorkerRegistry(), "r" * (placement.MAX_COMPARED_CHARS + 1)
    registry.add(worker("a", name, "resize"))
    told = f"no worker in the mesh offers {name + 'x'!r}"
    assert why_nobody(name + "x", registry) == told
    assert why_nobody("r" * placement.MAX_COMPARED_CHARS, registry).endswith("'")  # nor with these


def test_where_nobody_is_free_nobody_is_chosen() -> None:
    registry = WorkerRegistry()
    assert choose_worker(LaneKey("echo", ""), registry) is None


def test_a_wish_for_a_machine_is_a_must() -> None:
    registry = WorkerRegistry()
    here, there = worker("here", "model_pull"), worker("there", "model_pull", "m")
    here.places = frozenset({"x:11434", "pi5"})
    registry.add(here)
    registry.add(there)
    for where in ("PI5", "X:11434", "here"):
        key = LaneKey("model_pull", f"m;on={where}")
        assert choose_worker(key, registry) is here, "whoever has the model already"
    key = LaneKey("model_pull", "m;on=nowhere")
    assert choose_worker(key, registry) is None
    assert why_waiting(key, registry) == "no worker that offers 'model_pull' reaches 'nowhere'"


def test_of_those_on_the_machine_who_has_the_model_comes_first() -> None:
    registry = WorkerRegistry()
    here, other = worker("here", "agent_action"), worker("other", "agent_action", "m")
    registry.add(here)
    registry.add(other)
    assert choose_worker(LaneKey("agent_action", "m;on=here"), registry) is here
    assert choose_worker(LaneKey("agent_action", "m"), registry) is other
