"""Any history that hypothesis can think of: memory, facts and file agree, one outcome per task.

The machine plays honest, forgetful and late workers of both dialects, a client, the clock and
restarts. After every step the state in memory is compared with the fold of the recorded
facts and with what the journal's file would restore.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.records import History
from d8mesh.core.broker.store import FinishedStates, OutcomesOf, Restored
from d8mesh.core.broker.task_table import TaskTable
from d8mesh.core.broker.worker_sessions import RECEIVED_WAIT_S
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.task import (
    Adopted,
    Assigned,
    Cancelled,
    Completed,
    Failed,
    Pruned,
    Submitted,
    TaskState,
)
from d8mesh.edge.sqlite.restore import fill
from tests.core.plain_state import batches_of
from tests.core.wired_broker import S, WiredBroker, beat, failure, hello, result

TYPES = ("echo", "agent_action")
NAMES = st.sampled_from(("a", "b", "c"))
POLLERS = st.sampled_from(("p", "q"))
KINDS = st.sampled_from((m.SUCCEEDED, m.SUCCEEDED, m.FAILED, m.REFUSED))
WINDOW = 3


@dataclass(slots=True)
class Hands:
    """What a worker of the machine holds, and all it ever held."""

    peer: Peer
    boot: str
    held: dict[str, bytes] = field(default_factory=dict)
    past: list[tuple[str, bytes]] = field(default_factory=list)
    work_seq: int = 0


def troubles(history: History) -> tuple[object, ...]:
    """Return what a history counts."""
    return history.errors, history.losses, history.failures, history.failed_on


def picture(task_table: TaskTable) -> dict[str, object]:
    """Return all that a task table knows, in comparable form."""
    tasks: dict[str, object] = {}
    for batch in batches_of(task_table):
        for index in range(batch.count):
            task_id = batch.task_id(index)
            state = task_table.state_of(task_id)
            if state is not None:
                task = task_table.tasks.get(task_id)
                history = task.history if task else None
                told = troubles(history or History())
                tasks[task_id] = (state, told, task.worker_id if task else "", batch.spec)
    counts = (
        task_table.queued,
        task_table.running,
        task_table.unfinished_bytes,
        task_table.kept_finished,
    )
    return {"tasks": tasks, "counts": counts, "totals": task_table.totals, "keys": task_table.keys}


class Histories(RuleBasedStateMachine):
    """Any order of anything that can happen to a broker."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="d8-rules-")
        self.broker = WiredBroker(
            Path(self.folder.name),
            synchronous="OFF",
            max_attempts=4,
            task_timeout_s=20.0,
            polling_timeout_s=12.0,
            retention_s=1e9,
            retention_count=8,
            queue_size=60,
        )
        self.client = self.broker.client()
        self.hands: dict[str, Hands] = {}
        self.boots = 0
        self.read = 0  #: facts looked at so far
        self.fold = TaskTable()
        self.accepted: dict[str, bytes] = {}
        self.issued: set[tuple[str, int, str]] = set()
        self.adopted: set[str] = set()
        self.outcomes: dict[str, tuple[int, bytes]] = {}
        self.pruned: set[str] = set()
        self.polled: dict[str, list[str]] = {"p": [], "q": []}
        self.polls: dict[int, str] = {}  #: request -> who polls
        self.last_submit: m.Submit | None = None

    # ------------------------------------------------------------------- clients

    @initialize(small=st.booleans())
    def open(self, small: bool) -> None:
        self.memory_bytes = 40 if small else 10**6
        self.broker.task_table._payload_memory_bytes = self.memory_bytes

    @rule(
        count=st.integers(1, 6),
        kind=st.sampled_from(TYPES),
        priority=st.integers(1, 10),
        later=st.sampled_from((None, None, None, 2.0, 9.0)),
        deadline=st.sampled_from((None, None, None, 5.0, 30.0)),
        fenced=st.booleans(),
        key=st.sampled_from(("", "", "", "k1", "k2")),
    )
    def submit(self, count: int, kind: str, key: str, later: float | None, **given: Any) -> None:
        broker = self.broker
        first, self.broker._counter = getattr(broker, "_counter", 0), 0
        self.broker._counter = first + count
        payloads = [f"{first + n:05}".encode() * 3 for n in range(count)]
        broker.seq += 1
        group = m.Group(
            kind,
            given["priority"],
            payloads,
            deadline_s=given["deadline"],
            is_fenced=given["fenced"],
            run_at=None if later is None else broker.at + later,
        )
        digest = f"{kind}{count}".encode() if key else b""
        self.last_submit = m.Submit(broker.seq, S, first, [group], first % 2 == 0, key, digest)
        self._client_says(self.last_submit)

    @precondition(lambda self: self.last_submit is not None)
    @rule()
    def submit_again(self) -> None:
        assert self.last_submit is not None
        before = self.broker.task_table.totals.submitted
        accepted = f"{S}-{self.last_submit.first}" in self.accepted
        self._client_says(self.last_submit)
        if accepted:
            assert self.broker.task_table.totals.submitted == before

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self._code("cancel", id=data.draw(st.sampled_from(list(self.accepted))))

    @precondition(lambda self: self.outcomes)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        first = self.broker._counter
        self.broker._counter = first + 1
        origin = data.draw(st.sampled_from(list(self.outcomes)))
        self._code("replay", id=origin, session=S, n=first)

    @rule()
    def watch_everything(self) -> None:
        self._client_says(m.Watch(list(self.accepted)))

    @rule()
    def look_at_everything(self) -> None:
        for what in ("health", "stats", "workers", "queue", "tasks"):
            assert self._code(what) == ""
        for task_id in list(self.accepted)[-5:]:
            assert self._code("status", id=task_id) in ("", "task.pruned")

    @rule()
    def client_moves(self) -> None:
        self._client_says(m.Goodbye("off"))
        self.client = self.broker.client()

    # -------------------------------------------------------------- mesh workers

    @rule(name=NAMES, address=st.sampled_from(("10.0.0.1", "10.0.0.2")))
    def boot(self, name: str, address: str) -> None:
        """A worker (again) starts, knowing nothing; it may be a clone."""
        self.boots += 1
        boot = f"b{self.boots}"
        peer = self.broker.worker(
            name, types=TYPES, slots=2, window=WINDOW, boot=boot, address=address
        )
        if self.broker.got(peer, m.Welcome):
            past = self.hands[name].past if name in self.hands else []
            self.hands[name] = Hands(peer, boot, past=past)

    @precondition(lambda self: self.hands)
    @rule(data=st.data(), forgets=st.booleans())
    def move(self, data: st.DataObject, forgets: bool) -> None:
        """A worker's link broke; it says what it holds under a new routing id."""
        name, hands = self._worker(data)
        hands.peer = Peer(f"m{self.broker._next()}".encode(), "10.0.0.1")
        held = {} if forgets else hands.held
        if forgets:
            hands.held = {}
        message = hello(name, TYPES, slots=2, window=WINDOW, boot=hands.boot, held=dict(held))
        self.broker.say(hands.peer, message)
        for welcome in self.broker.got(hands.peer, m.Welcome):
            hands.work_seq = 0
            for task_id in welcome.dropped_ids:
                hands.held.pop(task_id, None)

    @precondition(lambda self: self.hands)
    @rule(data=st.data(), is_lost=st.sampled_from((False, False, True)))
    def take(self, data: st.DataObject, is_lost: bool) -> None:
        """Assignments arrive, or get lost on the way."""
        _, hands = self._worker(data)
        for stop in self.broker.got(hands.peer, m.Stop):
            for task_id in stop.ids:
                hands.held.pop(task_id, None)
        for work in self.broker.got(hands.peer, m.Work):
            if is_lost:
                is_lost = False
                continue
            hands.work_seq = work.seq
            for group in work.groups:
                for task_id, token, payload in zip(
                    group.ids, group.tokens, group.payloads, strict=True
                ):
                    assert self.accepted[task_id] == payload
                    hands.held[task_id] = token
                    hands.past.append((task_id, token))

    @precondition(lambda self: any(h.held for h in self.hands.values()))
    @rule(data=st.data(), kind=KINDS, keeps=st.booleans())
    def finish(self, data: st.DataObject, kind: int, keeps: bool) -> None:
        """Results of held attempts; `keeps`: it will send them a second time."""
        _, hands = self._worker(data)
        chosen = {task_id: hands.held[task_id] for task_id in list(hands.held)[:2]}
        self._report(hands, chosen, kind)
        for task_id in chosen if not keeps else ():
            hands.held.pop(task_id, None)

    @precondition(lambda self: any(h.past for h in self.hands.values()))
    @rule(data=st.data(), kind=KINDS)
    def finish_late(self, data: st.DataObject, kind: int) -> None:
        """The result of any attempt that was ever handed out, also from another worker."""
        _, hands = self._worker(data)
        everything = [pair for each in self.hands.values() for pair in each.past]
        self._report(hands, dict([data.draw(st.sampled_from(everything))]), kind)

    @precondition(lambda self: any(h.held for h in self.hands.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        _, hands = self._worker(data)
        chosen = dict(list(hands.held.items())[-2:])
        self.broker.say(hands.peer, m.Release(WINDOW, list(chosen), list(chosen.values())))
        for task_id in chosen:
            hands.held.pop(task_id)

    @precondition(lambda self: self.hands)
    @rule(data=st.data(), window=st.integers(0, WINDOW))
    def heartbeat(self, data: st.DataObject, window: int) -> None:
        _, hands = self._worker(data)
        message = beat(list(hands.held), hands.work_seq, window=window, types=TYPES)
        self.broker.say(hands.peer, message)

    @precondition(lambda self: self.hands)
    @rule(data=st.data())
    def goodbye(self, data: st.DataObject) -> None:
        _, hands = self._worker(data)
        self.broker.say(hands.peer, m.Goodbye("done"))
        hands.held.clear()

    @precondition(lambda self: self.hands)
    @rule(data=st.data())
    def unreachable(self, data: st.DataObject) -> None:
        """The transport gives assignments back that it could not send."""
        _, hands = self._worker(data)
        for work in self.broker.got(hands.peer, m.Work):
            self.broker.perform(self.broker.dispatcher.undelivered(hands.peer, work))

    # ----------------------------------------------------------- polling workers

    @rule(name=POLLERS, slots=st.integers(1, 2))
    def register(self, name: str, slots: int) -> None:
        capabilities = {"task_types": list(TYPES), "slots": slots}
        self._ask("poll.register", worker_id=name, worker_type="t", capabilities=capabilities)

    @rule(name=POLLERS)
    def poll(self, name: str) -> None:
        self._ask("poll.next", worker_id=name, wait_s=0.0)

    @rule(name=POLLERS)
    def poll_patiently(self, name: str) -> None:
        self._ask("poll.next", worker_id=name, wait_s=3.0)

    @precondition(lambda self: any(self.polled.values()))
    @rule(name=POLLERS, is_success=st.booleans(), data=st.data())
    def report(self, name: str, is_success: bool, data: st.DataObject) -> None:
        """Of any task this worker or the other one ever had."""
        task_id = data.draw(st.sampled_from([i for ids in self.polled.values() for i in ids]))
        payload = result(task_id) if is_success else failure("no")
        self._ask(
            "poll.report", worker_id=name, task_id=task_id, is_success=is_success, result=payload
        )

    @rule(name=POLLERS, what=st.sampled_from(("poll.heartbeat", "poll.unregister")))
    def poller_says(self, name: str, what: str) -> None:
        self._ask(what, worker_id=name)

    # ------------------------------------------------------------------ the world

    @rule(seconds=st.sampled_from((0.3, 1.0, 4.0, 11.0, 35.0)))
    def time_passes(self, seconds: float) -> None:
        self.broker.pass_time(seconds)

    @rule()
    def all_workers_are_silent(self) -> None:
        """Longer than a lease; a client on another machine is heard."""
        for _ in range(4):
            self.broker.pass_time(2.75)
            self._client_says(m.Watch([]))

    @rule(seconds=st.sampled_from((-1e5, -3.0, 3.0, 1e5)))
    def wall_clock_jumps(self, seconds: float) -> None:
        self.broker.at += seconds
        self.broker.pass_time(0.1)

    @rule(seconds=st.sampled_from((3.0, 60.0)))
    def broker_stands_still(self, seconds: float) -> None:
        self.broker.pass_time(seconds, step=seconds)

    @rule()
    def restart(self) -> None:
        self.agree()
        broker = self.broker
        before = picture(broker.task_table)
        broker.restart()
        broker.task_table._payload_memory_bytes = self.memory_bytes
        after = picture(broker.task_table)
        for name in ("totals", "keys"):
            assert after[name] == before[name], name
        assert after["counts"][2:] == before["counts"][2:]  # type: ignore[index]
        old, new = before["tasks"], after["tasks"]
        assert isinstance(old, dict)
        assert isinstance(new, dict)
        assert new.keys() == old.keys()
        for task_id, (_, history, _, spec) in new.items():
            assert (history, spec) == (old[task_id][1], old[task_id][3]), task_id
        self.fold = copy.deepcopy(broker.task_table)
        self.client = broker.client()

    # ------------------------------------------------------------------- helpers

    def _worker(self, data: st.DataObject) -> tuple[str, Hands]:
        name = data.draw(st.sampled_from(sorted(self.hands)))
        return name, self.hands[name]

    def _report(self, hands: Hands, chosen: dict[str, bytes], kind: int) -> None:
        payloads = [result(i) if kind == m.SUCCEEDED else failure("bad") for i in chosen]
        self.broker.seq += 1
        kinds = bytes([kind]) * len(chosen)
        message = m.Results(
            self.broker.seq, WINDOW, list(chosen), list(chosen.values()), kinds, payloads
        )
        self.broker.say(hands.peer, message)
        if self.broker.got(hands.peer, m.Rehello):
            return
        self.broker.pass_time(RECEIVED_WAIT_S)  # one that came alone waits so long
        sent = [message for peer, message, _ in self.broker.sent if peer == hands.peer]
        along = [seq for work in sent if isinstance(work, m.Work) for seq in work.received]
        told = [each.seq for each in self.broker.got(hands.peer, m.Received)]
        assert self.broker.seq in (*along, *told)

    def _ask(self, what: str, **args: Any) -> m.Answer | None:
        """Ask; None if the answer is not there at once."""
        self.broker.seq += 1
        request = self.broker.seq
        if what == "poll.next":
            self.polls[request] = args["worker_id"]
        self._client_says(m.Query(request, what, args))
        found = None
        for answer in self.broker.got(self.client, m.Answer):
            poller = self.polls.pop(answer.request, None)
            task = answer.body.get("task")
            if poller and isinstance(task, dict):
                self._read_facts()  # it may be a replayed task, accepted by this very question
                assert self.accepted[task["task_id"]] == task["data"]
                self.polled[poller].append(task["task_id"])
            if answer.request == request:
                found = answer
        return found

    def _client_says(self, message: m.Message) -> None:
        if S not in self.broker.state.clients:  # it was silent for too long
            self.client = self.broker.client()
        self.broker.say(self.client, message)

    def _code(self, what: str, **args: Any) -> str:
        answer = self._ask(what, **args)
        assert answer is not None, what
        return answer.code

    # ---------------------------------------------------------------- what must hold

    @invariant()
    def agree(self) -> None:
        """Memory, facts and file tell the same."""
        if not hasattr(self, "memory_bytes"):
            return
        self._read_facts()
        assert picture(self.fold) == picture(self.broker.task_table)
        self._compare_with_file()
        for message in self.broker.got(self.client, m.Outcomes):
            for task_id, state, payload in zip(
                message.ids, message.states, message.payloads, strict=True
            ):
                told = (m.PRUNED_STATE, b"") if task_id in self.pruned else self.outcomes[task_id]
                assert (state, payload) in (told, self.outcomes[task_id]), task_id

    def _read_facts(self) -> None:
        for fact in self.broker.facts[self.read :]:
            self.fold.apply(fact)
            if isinstance(fact, Submitted):
                ids = [f"{fact.session}-{fact.first + n}" for n in range(len(fact.payloads))]
                assert self.accepted.keys().isdisjoint(ids)
                self.accepted.update(zip(ids, fact.payloads, strict=True))
            elif isinstance(fact, Assigned):
                rows = zip(fact.ids, fact.ns, strict=True)
                self.issued.update((i, n, fact.worker_id) for i, n in rows)
            elif isinstance(fact, Adopted):
                self.adopted.update(fact.ids)
            elif isinstance(fact, (Completed, Failed, Cancelled)):
                self._end(fact)
            elif isinstance(fact, Pruned):
                for session, first, count in fact.batches:
                    self.pruned.update(f"{session}-{first + n}" for n in range(count))
        self.read = len(self.broker.facts)
        self.fold.take_emptied()

    def _end(self, fact: Completed | Failed | Cancelled) -> None:
        code = {Completed: 1, Failed: 2, Cancelled: 3}[type(fact)]
        for task_id, n, payload in zip(fact.ids, fact.ns, fact.payloads, strict=True):
            assert task_id not in self.outcomes, f"{task_id} ended twice"
            self.outcomes[task_id] = (code, payload)
            if isinstance(fact, Completed):
                assert payload == result(task_id)
                assert any(i == task_id and k == n for i, k, _ in self.issued), task_id

    def _compare_with_file(self) -> None:
        restored = Restored(0, b"")
        fill(self.broker.journal._db, restored)
        task_table = self.broker.task_table
        in_file = {
            batch.task_id(index)
            for batch, finished in restored.batches
            for index in set(range(batch.count)) - set(finished)
        }
        in_memory = {
            batch.task_id(index)
            for batch in batches_of(task_table)
            for index in range(batch.count)
            if task_table.state_of(batch.task_id(index)) is not None
        }
        assert in_file == in_memory
        assert in_file == self.accepted.keys() - self.outcomes.keys()
        assert restored.totals == task_table.totals
        assert restored.kept_finished == task_table.kept_finished
        assert restored.keys == task_table.keys
        assert restored.waited.keys() == self.broker.dispatcher._restart._noted
        for task_id, task in task_table.tasks.items():
            history = task.history or History()
            _, stored = restored.troubled.get(task_id, (0, History()))
            assert troubles(history) == troubles(stored), task_id
        running = {i for i, task in task_table.tasks.items() if task.state is TaskState.RUNNING}
        held = {i: hand for i, hand in restored.in_flight.items() if i in in_file}
        assert held.keys() <= running
        rest = self.broker.deferral.rest()
        owed = {i for fact in rest if isinstance(fact, Assigned) for i in fact.ids}
        assert running - held.keys() <= self.adopted | owed
        for task_id, (_, worker_id) in held.items():
            if task_id not in self.adopted:
                assert task_table.tasks[task_id].worker_id == worker_id

    def teardown(self) -> None:
        """In a kind world every accepted task ends in exactly one outcome."""
        try:
            if hasattr(self, "memory_bytes"):
                self._finish_everything()
        finally:
            self.broker.close()
            self.folder.cleanup()

    def _finish_everything(self) -> None:
        broker = self.broker
        broker.at += 1e8  # whatever was to run later may run now
        worker = broker.worker("kind", types=TYPES, slots=60)
        for _ in range(120):
            broker.pass_time(1)
            held = broker.work(worker)
            broker.seq += 1
            payloads = [result(task_id) for task_id in held]
            kinds = bytes([m.SUCCEEDED]) * len(held)
            ids, tokens = list(held), list(held.values())
            broker.say(worker, m.Results(broker.seq, 60, ids, tokens, kinds, payloads))
            broker.say(worker, beat([], 10**6, window=60, types=TYPES))
            if self._read_all():
                break
        self.agree()
        assert self.accepted.keys() == self.outcomes.keys()
        totals = broker.task_table.totals
        assert totals.submitted == len(self.accepted)
        assert totals.completed + totals.failed + totals.cancelled == len(self.outcomes)
        assert (
            broker.task_table.queued
            == broker.task_table.running
            == broker.task_table.unfinished_bytes
            == 0
        )
        for task_id, told in self.outcomes.items():
            state, payload = (m.PRUNED_STATE, b"") if task_id in self.pruned else told
            answer = broker.journal.ask(OutcomesOf([task_id]))
            assert answer == FinishedStates(bytes([state]), [payload])

    def _read_all(self) -> bool:
        self._read_facts()
        return self.accepted.keys() == self.outcomes.keys()


Histories.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestHistories = Histories.TestCase


@pytest.mark.slow
def test_many_more_histories() -> None:
    many = settings(Histories.TestCase.settings, max_examples=200)
    run_state_machine_as_test(Histories, settings=many)
