"""What any store must do: one row in `STORES` runs all of this against another one."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from d8mesh.core.broker.dispatcher import Dispatcher
from d8mesh.core.broker.state import Policy
from d8mesh.core.broker.store import (
    MAX_PAST_ATTEMPTS,
    BadCursor,
    BatchPayloads,
    DetailsOf,
    EndOf,
    FinishedStates,
    FinishedTask,
    OldBatches,
    OutcomesOf,
    PageOf,
    PayloadsOf,
    PrunableBatches,
    PrunedTask,
    Question,
    Restored,
    Store,
    TaskDetails,
    TaskPage,
)
from d8mesh.core.protocol.task import (
    Assigned,
    AssignmentsSettled,
    Cancelled,
    Closed,
    Completed,
    Dismissed,
    Enrolled,
    Erased,
    ErasureSet,
    Fact,
    Failed,
    Pruned,
    Requeued,
    Spec,
    Submitted,
    TaskState,
    WorkersMissed,
)
from d8mesh.edge.sqlite import Journal
from d8mesh.errors import JournalError, JournalHeldError
from tests.core.invariants import check
from tests.core.plain_state import batches_of
from tests.memory_store import MemoryDisk, MemoryStore
from tests.power_cut.subjects import JournalWork, state_of

S = "0123456789abcdef"
#: A commit that is not durable by then never will be.
PATIENCE_S: Final = 20.0

#: name -> what makes, for a folder, the way to open the same store again and again
STORES: Final[dict[str, Callable[[Path], Callable[[], Store]]]] = {
    "journal": lambda folder: lambda: Journal(folder / "journal.db"),
    "memory": lambda folder: _memory(0.0),
    "memory, later": lambda folder: _memory(0.002),
}


def _memory(delay_s: float) -> Callable[[], Store]:
    disk = MemoryDisk()
    return lambda: MemoryStore(disk, delay_s=delay_s)


class Kept:
    """A store that is opened, closed and opened again."""

    def __init__(self, make: Callable[[], Store]) -> None:
        self.open_another = make
        self.store = make()

    def append(self, *facts: Fact) -> None:
        """Commit, and return when it is durable."""
        wanted = self.store.confirmed() + 1
        self.store.append(facts)
        until = time.monotonic() + PATIENCE_S
        while self.store.confirmed() < wanted:
            assert time.monotonic() < until
            time.sleep(0.001)

    def restart(self) -> Restored:
        self.store.close()
        self.store = self.open_another()
        return self.store.restore()

    def ask(self, question: Question) -> object:
        return self.store.ask(question)

    def page(self, question: PageOf) -> TaskPage:
        page = self.store.ask(question)
        assert isinstance(page, TaskPage)
        return page

    def listed(self, limit: int, **wanted: object) -> list[str]:
        """Return the ids of all pages of a listing."""
        ids: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            page = self.page(PageOf(limit, cursor, **wanted))  # type: ignore[arg-type]
            assert len(page.ids) <= limit
            assert page.finished.keys() <= set(page.ids)
            ids += page.ids
            cursor = page.next_cursor
        return ids


@pytest.fixture(params=STORES)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kept]:
    made = Kept(STORES[request.param](tmp_path))
    made.store.restore()
    yield made
    made.store.close()


def batch(first: int, count: int, session: str = S) -> Submitted:
    payloads = [f"p{n}".encode() for n in range(first, first + count)]
    return Submitted(session, first, Spec("echo", 5, 3), payloads, 1.0)


def done(*numbers: int, n: int = 1) -> Completed:
    ids = [f"{S}-{number}" for number in numbers]
    payloads = [f"r{number}".encode() for number in numbers]
    return Completed("w", ids, [n] * len(ids), payloads, 2.0)


def lost(number: int, n: int, *, worker: str = "w") -> Requeued:
    return Requeued(worker, [f"{S}-{number}"], [n], f"lost {n}", 2.0, is_counted=True, is_loss=True)


# ---------------------------------------------------------------------------- a start


def test_an_empty_store_is_a_start_from_nothing(kept: Kept) -> None:
    brain = Dispatcher(Policy(broker_id="o", mesh="m"), kept.restart(), lambda: 0.5)
    check(brain)
    assert not list(batches_of(brain.state.task_table))


def test_two_starts_share_nothing() -> None:
    first, second = (Restored(epoch=n, secret=bytes(32)) for n in (1, 2))
    first.accepted["0" * 16] = [(0, 1)]
    first.totals.completed += 1
    assert (second.accepted, second.totals.completed) == ({}, 0)


def test_the_epoch_rises_with_every_start_and_the_identity_stays(kept: Kept) -> None:
    first = (kept.restart(), kept.store.broker_id)
    second = (kept.restart(), kept.store.broker_id)
    assert (first[0].epoch, second[0].epoch) == (2, 3)
    assert (first[0].secret, first[1]) == (second[0].secret, second[1])
    assert len(first[0].secret) == 32


def test_one_process_has_it_at_a_time(kept: Kept) -> None:
    with pytest.raises(JournalHeldError):
        kept.open_another()
    kept.restart()


def test_unfinished_tasks_come_back_and_finished_ones_do_not(kept: Kept) -> None:
    kept.append(batch(0, 5), batch(5, 2), done(1, 2), done(5, 6), Closed([(S, 5)]))
    restored = kept.restart()
    assert [(b.first, b.count, sorted(f)) for b, f in restored.batches] == [(0, 5, [1, 2])]
    assert restored.accepted == {S: [(0, 7)]}
    assert (restored.totals.submitted, restored.totals.completed) == (7, 4)
    assert restored.workers["w"].completed == 4


def test_who_had_what_comes_back_until_it_is_settled(kept: Kept) -> None:
    ids = [f"{S}-0", f"{S}-1", f"{S}-2"]
    kept.append(
        batch(0, 3),
        Assigned(1, "a", ids[:2], [1, 1], 1.0),
        Assigned(2, "b", ids[2:], [1], 1.0),
        Requeued("a", ids[:1], [1], "broke", 1.0, is_counted=True, is_loss=True),
    )
    restored = kept.restart()
    assert restored.in_flight == {ids[1]: (1, "a"), ids[2]: (1, "b")}
    ((task_id, (n, history)),) = restored.troubled.items()
    assert (task_id, n) == (ids[0], 1)
    told = (history.errors, history.losses, history.failures, history.failed_on)
    assert told == (1, {("a", 1)}, set(), Counter("a"))
    assert history.last_error == "broke"
    assert restored.next_assignment == 3
    kept.append(AssignmentsSettled(2))
    assert kept.restart().in_flight == {ids[2]: (1, "b")}


def test_how_long_absent_workers_were_waited_for_comes_back_until_it_is_of_no_use(
    kept: Kept,
) -> None:
    kept.append(WorkersMissed(["a", "b"], [2.5, 7.5]))
    assert kept.restart().waited == {"a": 2.5, "b": 7.5}
    # A start alone forgets nothing: the brain says what it is worth.
    assert kept.restart().waited == {"a": 2.5, "b": 7.5}
    kept.append(WorkersMissed(["a"], [5.0]), WorkersMissed(["b"], [10.0]))
    assert kept.restart().waited == {"b": 10.0}
    kept.append(WorkersMissed([], []))
    assert kept.restart().waited == {}


def test_registrations_of_polling_workers_stay_until_they_are_taken_back(kept: Kept) -> None:
    kept.append(Enrolled("p", "groq", b"\x80"))
    record = kept.restart().workers["p"]
    assert (record.worker_type, record.capabilities) == ("groq", b"\x80")
    kept.append(Dismissed("p"))
    assert kept.restart().workers["p"].capabilities is None


def test_keys_live_as_long_as_their_tasks(kept: Kept) -> None:
    kept.append(Submitted(S, 0, Spec("echo", 5, 3), [b"x"], 1.0, "k", b"digest", 1), done(0))
    assert kept.restart().keys == {"k": (b"digest", S, 0, 1)}
    kept.append(Closed([(S, 0)]), Pruned([(S, 0, 1)], 3.0))
    assert kept.restart().keys == {}


@pytest.mark.parametrize("seed", range(3))
def test_what_is_kept_is_what_the_facts_add_up_to(kept: Kept, seed: int) -> None:
    work = JournalWork(random.Random(seed))
    for _ in range(3):
        for _ in range(15):
            kept.append(*work.facts())
        assert state_of(kept.restart(), kept.store.ask) == work.state


def test_two_stores_that_are_told_the_same_answer_the_same(tmp_path: Path) -> None:
    stores = [Kept(make(tmp_path)) for make in STORES.values()]
    work = JournalWork(random.Random(7))
    for _ in range(40):
        facts = work.facts()
        for each in stores:
            each.append(*facts)
    ids = [f"{session:016d}-{n}" for session in range(3) for n in range(0, 400, 7)]
    questions: list[Question] = [OutcomesOf(ids), PrunableBatches(5.0, 0, 1000)]
    questions += [kind(task_id) for task_id in ids for kind in (EndOf, DetailsOf)]
    questions += [PayloadsOf(task_id[:16], int(task_id[17:])) for task_id in ids]
    questions += [PageOf(2000), PageOf(2000, is_open=True), PageOf(2000, is_newest_first=True)]
    for question in questions:
        first, *others = (each.ask(question) for each in stores)
        assert [first] * len(others) == others, question
    for each in stores:
        each.store.close()


# -------------------------------------------------------------------------- commits


def test_a_commit_that_fails_leaves_nothing_and_nothing_comes_after_it(kept: Kept) -> None:
    kept.append(batch(0, 2), done(0), WorkersMissed(["a"], [2.5]))
    with pytest.raises(JournalError):
        kept.append(batch(2, 2), WorkersMissed(["a"], [5.0]), done(0, n=2))  # a second outcome
    with pytest.raises(JournalError):
        kept.append(batch(4, 2))
    restored = kept.restart()
    assert [(b.first, b.count, f) for b, f in restored.batches] == [(0, 2, [0])]
    assert (restored.totals.submitted, restored.totals.completed) == (2, 1)
    assert restored.waited == {"a": 2.5}
    kept.append(batch(2, 2))  # opened anew it goes on


def test_what_was_begun_after_a_commit_that_fails_is_not_kept_either(kept: Kept) -> None:
    kept.append(batch(0, 1))
    with contextlib.suppress(JournalError):
        for facts in ([batch(0, 1)], [batch(1, 1)], [batch(2, 1)]):
            kept.store.append(facts)  # not waited for
    assert kept.restart().accepted == {S: [(0, 1)]}


def test_commits_are_counted_in_their_order(kept: Kept) -> None:
    assert kept.store.confirmed() == 0
    for first in range(20):
        kept.store.append([batch(first, 1)])
    until = time.monotonic() + PATIENCE_S
    while (confirmed := kept.store.confirmed()) < 20:
        assert time.monotonic() < until
        answer = kept.ask(OutcomesOf([f"{S}-0"]))
        assert isinstance(answer, FinishedStates)
        assert all(kept.ask(PayloadsOf(S, first)) for first in range(confirmed))
    assert kept.restart().accepted == {S: [(0, 20)]}


def test_a_close_waits_for_what_was_begun(kept: Kept) -> None:
    kept.store.append([batch(0, 1)])
    kept.store.append([done(0)])
    assert kept.restart().totals.completed == 1


def test_there_is_room_to_be_told(kept: Kept) -> None:
    assert kept.store.free_bytes() > 0


# -------------------------------------------------------------------------- questions


def test_questions_see_what_is_committed(kept: Kept) -> None:
    assert kept.ask(OutcomesOf([f"{S}-0"])) == FinishedStates(b"\x04", [b""])
    kept.append(batch(0, 3), done(0, 1))
    wanted = [f"{S}-{n}" for n in (1, 0, 2, 9)] + ["nonsense"]
    results = [b"r1", b"r0", b"", b"", b""]
    assert kept.ask(OutcomesOf(wanted)) == FinishedStates(bytes([1, 1, 4, 4, 4]), results)


def test_payloads_are_read_batch_by_batch(kept: Kept) -> None:
    kept.append(batch(0, 3), batch(3, 1), done(1))
    assert kept.ask(PayloadsOf(S, 0)) == BatchPayloads([b"p0", b"p1", b"p2"])
    assert kept.ask(PayloadsOf(S, 3)) == BatchPayloads([b"p3"])
    assert kept.ask(PayloadsOf(S, 1)) is None
    assert kept.ask(PayloadsOf("f" * 16, 0)) is None


def test_a_finished_task_is_told_with_what_went_wrong(kept: Kept) -> None:
    kept.append(batch(0, 3), lost(0, 1, worker="v"), done(0, n=2), done(2))
    kept.append(Failed("w", [f"{S}-1"], [1], [b"f"], 3.0, "bad"))
    task = kept.ask(EndOf(f"{S}-0"))
    assert isinstance(task, FinishedTask)
    assert (task.id, task.state, task.n, task.worker_id) == (f"{S}-0", TaskState.COMPLETED, 2, "w")
    assert (task.spec, task.created_at, task.at) == (Spec("echo", 5, 3), 1.0, 2.0)
    assert (task.payload, task.why, [each.worker_id for each in task.past]) == (b"r0", None, ["v"])
    failed = kept.ask(EndOf(f"{S}-1"))
    assert isinstance(failed, FinishedTask)
    assert (failed.state, failed.payload, failed.why) == (TaskState.FAILED, b"f", "bad")
    smooth = kept.ask(EndOf(f"{S}-2"))
    assert isinstance(smooth, FinishedTask)
    assert smooth.past == []


@pytest.mark.parametrize("task_id", [f"{S}-0", f"{S}-9", "f" * 16 + "-0", "nonsense", ""])
def test_of_a_task_that_is_unfinished_or_unknown_no_end_is_told(kept: Kept, task_id: str) -> None:
    kept.append(batch(0, 1))
    assert kept.ask(EndOf(task_id)) is None


def test_what_was_submitted_is_told_of_any_task(kept: Kept) -> None:
    kept.append(batch(0, 2), Cancelled([f"{S}-1"], [0], [b"c"], 2.0))
    spec = Spec("echo", 5, 3)
    assert kept.ask(DetailsOf(f"{S}-0")) == TaskDetails(spec, b"p0", [], None)
    assert kept.ask(DetailsOf(f"{S}-1")) == TaskDetails(spec, b"p1", [], TaskState.CANCELLED)
    assert [kept.ask(DetailsOf(task_id)) for task_id in (f"{S}-9", "nonsense")] == [None, None]


def test_the_last_of_what_went_wrong_is_told_of_any_task(kept: Kept) -> None:
    kept.append(batch(0, 2), *(lost(1, n) for n in range(1, MAX_PAST_ATTEMPTS + 3)))
    details = kept.ask(DetailsOf(f"{S}-1"))
    assert isinstance(details, TaskDetails)
    assert details.payload == b"p1"
    assert [each.attempt for each in details.past] == list(range(3, MAX_PAST_ATTEMPTS + 3))
    assert [each.error for each in details.past][-1] == f"lost {MAX_PAST_ATTEMPTS + 2}"
    assert kept.ask(DetailsOf(f"{S}-2")) is None


# --------------------------------------------------------------------------- listings


@pytest.mark.parametrize("state", [*filter(lambda s: s.is_final, TaskState), None])
@pytest.mark.parametrize("limit", [1, 3, 7])
def test_pages_of_a_listing_hold_each_task_once(
    kept: Kept, state: TaskState | None, limit: int
) -> None:
    """Also where a page ends within tasks that ended together."""
    ids = [[f"{S}-{10 * start + n}" for n in range(10)] for start in range(3)]
    ns, none = [1] * 10, [b""] * 10
    kept.append(
        batch(0, 30),
        done(*range(10)),
        Cancelled(ids[1], ns, none, 2.0),
        Failed("w", ids[2], ns, none, 2.0, "broken"),
    )
    places = {TaskState.COMPLETED: 0, TaskState.CANCELLED: 1, TaskState.FAILED: 2}
    wanted = [*ids[0], *ids[1], *ids[2]] if state is None else ids[places[state]]
    assert kept.listed(limit, state=state) == wanted
    assert kept.listed(limit, state=state, is_newest_first=True) == wanted[::-1]
    assert kept.listed(limit, is_open=True) == []


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_open_tasks_are_listed_behind_finished_batches_that_are_not_closed(
    kept: Kept, limit: int
) -> None:
    kept.append(*(batch(first, 1) for first in range(20)), batch(20, 10), batch(30, 1))
    kept.append(done(*range(20)), done(21, 22))
    wanted = [f"{S}-{n}" for n in (20, *range(23, 31))]
    assert kept.listed(limit, is_open=True) == wanted
    assert kept.listed(limit, is_open=True, is_newest_first=True) == wanted[::-1]


@pytest.mark.parametrize("is_newest_first", [False, True])
def test_a_listing_of_one_type_holds_that_type_only(kept: Kept, is_newest_first: bool) -> None:
    other = Submitted(S, 2, Spec("chat", 5, 3), [b"x"] * 3, 1.0)
    kept.append(batch(0, 2), other, batch(5, 2), done(0, 3, 5))
    ids = [f"{S}-{n}" for n in (2, 3, 4)]
    ids = ids[::-1] if is_newest_first else ids
    how = {"type": "chat", "is_newest_first": is_newest_first}
    assert kept.listed(2, **how) == ids
    assert kept.listed(2, **how, state=TaskState.COMPLETED) == [f"{S}-3"]
    assert kept.page(PageOf(9, type="chat")).finished.keys() == {f"{S}-3"}


@pytest.mark.parametrize("state", [None, TaskState.FAILED])
def test_a_cursor_of_nothing_is_said_to_be_none(kept: Kept, state: TaskState | None) -> None:
    assert kept.ask(PageOf(10, "x.y", state=state)) == BadCursor()


# ---------------------------------------------------------------------------- pruning


def test_the_oldest_finished_are_pruned_with_a_tombstone(kept: Kept) -> None:
    kept.append(batch(0, 2), batch(2, 2), done(0, 1, 2, 3), Closed([(S, 0), (S, 2)]))
    assert kept.ask(PrunableBatches(0.0, 1, 10)) == OldBatches([])
    assert kept.ask(PrunableBatches(0.0, 2, 10)) == OldBatches([(S, 0, 2)])
    assert kept.ask(PrunableBatches(9.0, 0, 10)) == OldBatches([(S, 0, 2), (S, 2, 2)])
    kept.append(Pruned([(S, 0, 2)], 7.0))
    assert kept.ask(EndOf(f"{S}-1")) == kept.ask(DetailsOf(f"{S}-1")) == PrunedTask(7.0)
    assert kept.ask(OutcomesOf([f"{S}-1"])) == FinishedStates(b"\x05", [b""])
    assert isinstance(kept.ask(EndOf(f"{S}-2")), FinishedTask)
    restored = kept.restart()
    assert restored.accepted == {S: [(0, 4)]}  # its ids stay used
    assert (restored.totals.completed, restored.kept_finished) == (4, 2)


def test_a_batch_that_a_key_names_is_pruned_behind_the_others_of_its_submit(kept: Kept) -> None:
    named = Submitted(S, 0, Spec("echo", 5, 3), [b"x"] * 2, 1.0, "k", b"d", 4)
    kept.append(named, batch(2, 1), batch(3, 1), batch(4, 1), done(0, 1, 2, 4))
    kept.append(Closed([(S, 0), (S, 2), (S, 4)]))
    assert kept.ask(PrunableBatches(9.0, 0, 10)) == OldBatches([(S, 2, 1), (S, 4, 1)])
    kept.append(Pruned([(S, 2, 1)], 7.0), done(3), Closed([(S, 3)]))
    assert kept.ask(PrunableBatches(9.0, 0, 10)) == OldBatches([(S, 3, 1), (S, 4, 1)])
    kept.append(Pruned([(S, 3, 1)], 8.0))
    assert kept.ask(PrunableBatches(9.0, 0, 1)) == OldBatches([(S, 0, 2)])


OF_DOOR: Final = Spec("agent_action", 8, 3, source="ollama 127.0.0.1 curl/8.5")


def _chats(kept: Kept, spec: Spec = OF_DOOR) -> None:
    """Commit tasks of a door: one is completed at its second attempt, one failed, one waits."""
    kept.append(
        Submitted(S, 0, spec, [b"asked %d" % n for n in range(3)], 1.0),
        Requeued("w", [f"{S}-0"], [1], "quoted", 2.0, is_counted=True, traceback="line\nquoted"),
        Completed("w", [f"{S}-0"], [2], [b"answered 0"], 3.0),
        Failed("w", [f"{S}-1"], [1], [b"answered 1"], 3.0, "quoted"),
    )


def test_what_was_delivered_is_erased_and_facts_and_figures_stay(kept: Kept) -> None:
    _chats(kept)
    before = kept.ask(EndOf(f"{S}-0"))
    assert isinstance(before, FinishedTask)
    assert (before.payload, before.is_erased) == (b"answered 0", False)
    kept.append(Erased([f"{S}-0", f"{S}-1"], [b"rest 0", b"rest 1"]))
    for _ in range(2):  # also after a restart
        ended, failed = kept.ask(EndOf(f"{S}-0")), kept.ask(EndOf(f"{S}-1"))
        assert isinstance(ended, FinishedTask)
        assert isinstance(failed, FinishedTask)
        assert (ended.payload, ended.is_erased, ended.n, ended.at) == (b"rest 0", True, 2, 3.0)
        assert [(each.error, each.traceback) for each in ended.past] == [("erased", "erased")]
        assert (failed.payload, failed.why) == (b"rest 1", "erased")
        assert kept.ask(OutcomesOf([f"{S}-0"])) == FinishedStates(b"\1", [b"rest 0"])
        details = kept.ask(DetailsOf(f"{S}-0"))
        assert isinstance(details, TaskDetails)
        assert (details.payload, details.is_erased) == (b"", True)
        page = kept.page(PageOf(10, state=TaskState.COMPLETED))
        assert page.finished[f"{S}-0"] == ended
        kept.restart()
    waiting = kept.ask(DetailsOf(f"{S}-2"))
    assert isinstance(waiting, TaskDetails)
    assert (waiting.payload, waiting.is_erased) == (b"asked 2", False)


def test_a_task_is_erased_once_and_only_if_it_is_finished_and_came_in_by_a_door(
    kept: Kept,
) -> None:
    _chats(kept)
    kept.append(Submitted(S, 10, Spec("echo", 5, 3), [b"asked"], 1.0))
    kept.append(Completed("w", [f"{S}-10"], [1], [b"answered"], 3.0))
    ids = [f"{S}-0", f"{S}-2", f"{S}-10"]
    kept.append(Erased(ids, [b"rest"] * 3), Erased(ids, [b"other"] * 3))
    assert kept.ask(OutcomesOf([f"{S}-0", f"{S}-10"])) == FinishedStates(
        b"\1\1", [b"rest", b"answered"]
    )
    waiting = kept.ask(DetailsOf(f"{S}-2"))
    assert isinstance(waiting, TaskDetails)
    assert waiting.payload == b"asked 2"


def test_what_is_to_be_erased_later_is_known_after_a_restart(kept: Kept) -> None:
    _chats(kept)
    kept.append(ErasureSet([f"{S}-0", f"{S}-2"], [b"rest 0", b"rest 2"], 600.0))
    kept.append(ErasureSet([f"{S}-0"], [b"said again"], 900.0))
    assert kept.restart().erasures == {f"{S}-0": 600.0, f"{S}-2": 600.0}
    kept.append(Erased([f"{S}-0"], [b""]))
    assert kept.restart().erasures == {f"{S}-2": 600.0}
    assert kept.ask(OutcomesOf([f"{S}-0"])) == FinishedStates(b"\1", [b"rest 0"])


def test_what_is_pruned_is_not_to_be_erased_any_more(kept: Kept) -> None:
    kept.append(Submitted(S, 0, OF_DOOR, [b"asked"], 1.0))
    kept.append(Completed("w", [f"{S}-0"], [1], [b"answered"], 3.0))
    kept.append(ErasureSet([f"{S}-0"], [b"rest"], 600.0))
    kept.append(Closed([(S, 0)]), Pruned([(S, 0, 1)], 4.0))
    assert kept.restart().erasures == {}
    kept.append(Erased([f"{S}-0"], [b""]))
    assert kept.ask(EndOf(f"{S}-0")) == PrunedTask(4.0)


@pytest.mark.parametrize("is_newest_first", [False, True])
@pytest.mark.parametrize("state", [None, TaskState.COMPLETED])
def test_a_listing_of_one_door_holds_what_came_in_there(
    kept: Kept, is_newest_first: bool, state: TaskState | None
) -> None:
    doors = ["", "ollama 10.0.0.1 x", "openai 10.0.0.1 x", "ollama - y"]
    for number in range(8):
        spec = Spec("echo", 5, 3, source=doors[number % 4])
        kept.append(Submitted(S, 2 * number, spec, [b"a", b"b"], 1.0))
        ids = [f"{S}-{2 * number}", f"{S}-{2 * number + 1}"]
        kept.append(Completed("w", ids, [1, 1], [b"c", b"d"], 2.0))
    found = kept.listed(3, door="ollama", is_newest_first=is_newest_first, state=state)
    assert sorted(found, key=lambda each: int(each[17:])) == [
        f"{S}-{n}" for n in (2, 3, 6, 7, 10, 11, 14, 15)
    ]
