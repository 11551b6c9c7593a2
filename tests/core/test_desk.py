"""Clients: awaiting, listening, asking, coming and going."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from d8mesh.core import messages as m
from d8mesh.core import queue
from d8mesh.core.desk import WHOLE_BATCH_IDS
from d8mesh.core.effects import Load, Loaded, Peer
from tests.core.desktop import Desktop, S, result

REPORT: dict[str, object] = {
    "task_id": f"{S}-77",
    "worker_id": "p",
    "is_success": True,
    "result": result(),
}


def test_outcomes_come_to_who_submitted(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w", slots=3)
    ids = desk.submit(client, 3)
    desk.finish(worker, desk.work(worker))
    (outcomes,) = desk.got(client, m.Outcomes)
    assert (outcomes.ids, outcomes.states) == (ids, b"\1\1\1")


def test_what_is_finished_is_told_from_the_journal(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w", slots=3)
    ids = desk.submit(client, 3, is_watched=False)
    desk.finish(worker, desk.work(worker))
    assert desk.got(client, m.Outcomes) == []
    unknown = [f"{S}-999", "f" * 16 + "-0", "not an id at all !!"]
    desk.say(client, m.Watch([*ids, *unknown]))
    told = {
        task_id: state
        for outcomes in desk.got(client, m.Outcomes)
        for task_id, state in zip(outcomes.ids, outcomes.states, strict=True)
    }
    assert told == {**dict.fromkeys(ids, 1), **dict.fromkeys(unknown, m.UNKNOWN_STATE)}


@pytest.mark.parametrize("count", [2, WHOLE_BATCH_IDS + 1])
def test_others_can_await_and_stop_awaiting(desk: Desktop, count: int) -> None:
    client, other, worker = desk.client(), desk.client("f" * 16), desk.worker("w", slots=99)
    ids = desk.submit(client, count, is_watched=False)
    desk.say(other, m.Watch(ids))
    desk.say(client, m.Watch(ids[:1]))
    desk.say(client, m.Unwatch(ids[:1]))
    desk.finish(worker, desk.work(worker))
    assert desk.got(client, m.Outcomes) == []
    assert [i for outcomes in desk.got(other, m.Outcomes) for i in outcomes.ids] == ids


def test_a_session_goes_on_over_another_connection(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w", window=0)
    (task_id,) = desk.submit(client)
    again = desk.client()
    desk.say(client, m.Watch([]))
    assert desk.got(client, m.Rehello)  # the old connection is nobody's now
    desk.say(worker, m.Goodbye("x"))
    worker = desk.worker("w")
    desk.finish(worker, desk.work(worker))
    assert desk.got(again, m.Outcomes)[0].ids == [task_id]


def test_a_silent_client_is_forgotten_and_may_come_back(desk: Desktop) -> None:
    client = desk.client()
    (task_id,) = desk.submit(client)
    desk.say(client, m.Listen(task_id, True))
    desk.say(client, m.Watch([task_id]))
    desk.pass_time(31)
    assert desk.pool.clients == {}
    assert desk.pool.listeners == {}
    client = desk.client()
    desk.say(client, m.Watch([task_id]))
    worker = desk.worker("w")
    desk.finish(worker, desk.work(worker))
    assert desk.got(client, m.Outcomes)[0].ids == [task_id]


def test_a_goodbye_ends_a_client_and_no_other(desk: Desktop) -> None:
    client = desk.client()
    desk.say(Peer(b"nobody"), m.Goodbye("x"))
    assert list(desk.pool.clients_by_routing_id) == [client.routing_id]
    desk.say(client, m.Goodbye("bye"))
    assert desk.pool.clients == {}


def test_a_wrong_client_hello_is_refused(desk: Desktop) -> None:
    peer = Peer(b"c")
    desk.say(peer, m.ClientHello(1, "other", S, "pc"))
    assert desk.got(peer, m.Refused)[0].code == "access.forbidden"


def test_listening_to_what_is_not_there_is_nothing(desk: Desktop) -> None:
    client = desk.client()
    desk.say(client, m.Listen(f"{S}-77", True))
    desk.say(client, m.Listen("not an id at all !!", True))
    desk.say(client, m.Listen(f"{S}-77", False))
    assert desk.pool.listeners == {}


def test_a_cancelled_task_is_told_and_stays_cancelled(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    running, waiting = desk.submit(client, 2)
    held = desk.work(worker)
    for task_id in (running, waiting):
        assert desk.ask(client, "cancel", id=task_id).body["state"] == "cancelled"
    assert desk.got(worker, m.Stop)[0].ids == [running]
    assert [o.states for o in desk.got(client, m.Outcomes)] == [b"\3", b"\3"]
    desk.finish(worker, held)
    body = desk.ask(client, "status", id=running).body
    assert (body["status"], body["state"]) == ("failed", "cancelled")
    assert desk.ask(client, "cancel", id=running).body["state"] == "cancelled"
    desk.restart()
    assert desk.ledger.queued == desk.ledger.running == 0


def test_a_failed_task_is_replayed_under_a_new_id(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client, payloads=[b"\x81\xa1a\x01"], max_attempts=1)
    desk.finish(worker, desk.work(worker), m.FAILED)
    answer = desk.ask(client, "replay", id=task_id, session=S, n=500)
    assert answer.body == {"task_id": f"{S}-500"}
    assert desk.ask(client, "replay", id=task_id, session=S, n=500).code == ""  # asked twice
    desk.say(worker, m.Release(1, [], []))
    (work,) = desk.got(worker, m.Work)
    assert work.groups[0].payloads == [b"\x81\xa1a\x01"]
    assert desk.ask(client, "status", id=f"{S}-500").body["replay_of"] == task_id


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"session": "f" * 16, "n": 5}, "access.forbidden"),
        ({"session": S, "n": -1}, "task.invalid"),
        ({"session": S, "n": 5}, "task.invalid"),
    ],
)
def test_a_wrong_replay_is_refused(desk: Desktop, more: dict[str, object], code: str) -> None:
    client = desk.client()
    (task_id,) = desk.submit(client)
    assert desk.ask(client, "replay", id=task_id, **more).code == code


@pytest.mark.parametrize(
    ("cause", "code"), [("full", "queue.full"), ("disk", "disk.low"), ("drain", "broker.draining")]
)
def test_a_replay_needs_room_as_a_submit_does(desk: Desktop, cause: str, code: str) -> None:
    client, worker = desk.client(), desk.worker("w", window=1)
    (task_id,) = desk.submit(client, max_attempts=1)
    desk.finish(worker, desk.work(worker), m.FAILED, window=0)
    if cause == "full":
        desk.pool.policy = replace(desk.pool.policy, queue_size=1)
        desk.submit(client)
    elif cause == "disk":
        desk.dispatcher.set_disk_low(True)
    else:
        desk.pool.is_draining = True
    assert desk.ask(client, "replay", id=task_id, session=S, n=500_000).code == code
    assert desk.ledger.state_of(f"{S}-500000") is None


def test_answers_that_promise_wait_for_the_commit(desk: Desktop) -> None:
    """A cancellation, a replay, a polling worker's report, its coming and its going."""
    client, worker = desk.client(), desk.worker("w", window=1)
    (failed,) = desk.submit(client, max_attempts=1)
    desk.finish(worker, desk.work(worker), m.FAILED, window=0)
    (cancelled,) = desk.submit(client)
    p: dict[str, object] = {"worker_id": "p"}

    def waits(what: str, **args: object) -> bool:
        before = len(desk.facts)
        desk.seq += 1
        desk.sent.clear()
        desk.say(client, m.Ask(desk.seq, what, args))
        assert len(desk.facts) > before, what
        answers = [(msg, wait) for _, msg, wait in desk.sent if isinstance(msg, m.Answer)]
        assert [msg.code for msg, _ in answers] == [""]
        desk.sent.clear()
        return answers[0][1]

    assert waits("cancel", id=cancelled)
    assert waits("replay", id=failed, session=S, n=900)
    capabilities = {"task_types": ["echo"]}
    assert waits("poll.register", **p, worker_type="t", capabilities=capabilities)
    task = desk.ask(client, "poll.next", **p).body["task"]
    assert isinstance(task, dict)
    report = {"task_id": task["task_id"], "is_success": True, "result": result()}
    assert waits("poll.report", **p, **report)
    assert waits("poll.unregister", **p)


@pytest.mark.parametrize(
    ("what", "args"),
    [
        ("tasks", {"state": [1]}),
        ("tasks", {"state": {"a": 1}}),
        ("tasks", {"limit": "x"}),
        ("tasks", {"cursor": 7}),
        ("status", {"id": ["x"]}),
        ("cancel", {"id": None}),
        ("replay", {"id": f"{S}-0", "session": [S], "n": 1.5}),
        ("poll.next", {"worker_id": {}}),
    ],
)
def test_odd_arguments_are_answered_and_hurt_nobody(
    desk: Desktop, what: str, args: dict[str, object]
) -> None:
    client = desk.client()
    assert desk.ask(client, what, **args).code != ""
    assert desk.ask(client, "health").code == ""


def test_a_poll_that_waits_for_not_a_number_is_answered_at_once(desk: Desktop) -> None:
    client = desk.client()
    desk.ask(client, "poll.register", worker_id="p", worker_type="t", capabilities={})
    desk.say(client, m.Ask(999, "poll.next", {"worker_id": "p", "wait_s": float("nan")}))
    desk.pass_time(0.1)
    assert [answer.request for answer in desk.got(client, m.Answer)] == [999]


def test_no_counter_reaches_into_another_session(desk: Desktop) -> None:
    client = desk.client()
    desk.submit(client)
    assert desk.ask(client, "status", id=f"{S}-{2**40}").code == "task.unknown"


def test_what_completed_is_not_replayed(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    desk.finish(worker, desk.work(worker))
    assert desk.ask(client, "replay", id=task_id, session=S, n=9).code == "task.invalid"
    assert desk.ask(client, "replay", id=f"{S}-88", session=S, n=9).code == "task.unknown"
    desk.perform(desk.dispatcher.drain())
    assert desk.ask(client, "replay", id=task_id, session=S, n=9).code == "broker.draining"


@pytest.mark.parametrize("bad", [5, None, "../../x", f"{S}-01", f"{S}-", "", f"{S}-99"])
def test_unknown_and_odd_ids_are_not_found(desk: Desktop, bad: object) -> None:
    client = desk.client()
    assert desk.ask(client, "status", id=bad).code == "task.unknown"
    assert desk.ask(client, "cancel", id=bad).code == "task.unknown"


def test_no_question_is_refused(desk: Desktop) -> None:
    assert desk.ask(desk.client(), "os.system").code == "access.forbidden"


@pytest.mark.parametrize(
    "args",
    [{"state": "nonsense"}, {"limit": 0}, {"limit": 9999}, {"limit": "x"}, {"cursor": 5}],
)
def test_a_wrong_listing_names_what_is_allowed(desk: Desktop, args: dict[str, object]) -> None:
    assert desk.ask(desk.client(), "tasks", **args).code == "task.invalid"


def page_through(desk: Desktop, client: Peer, **args: object) -> list[str]:
    """Read a listing to its end in small pages."""
    seen: list[str] = []
    cursor: object = ""
    while cursor is not None:
        body = desk.ask(client, "tasks", limit=2, cursor=cursor, **args).body
        tasks = body["tasks"]
        assert isinstance(tasks, list)
        assert len(tasks) <= 2
        seen += [each["task_id"] for each in tasks]
        cursor = body["next_cursor"]
    return seen


def test_listings_are_paged_and_filtered(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w", slots=3)
    done = desk.submit(client, 3)
    desk.finish(worker, desk.work(worker))
    desk.say(worker, m.Release(0, [], []))
    waiting = desk.submit(client, 5, kind="other")
    later = desk.submit(client, 1, kind="echo", run_at=desk.at + 99)
    gone = waiting[2]
    desk.ask(client, "cancel", id=gone)
    left = [task_id for task_id in waiting if task_id != gone]
    assert page_through(desk, client) == [*done, *waiting, *later]
    assert page_through(desk, client, state="completed") == done
    assert page_through(desk, client, state="queued") == left
    assert page_through(desk, client, state="delayed") == later
    assert page_through(desk, client, state="cancelled") == [gone]
    assert page_through(desk, client, state="failed") == []
    assert page_through(desk, client, type="echo") == [*done, *later]
    assert page_through(desk, client, type="other", state="cancelled") == [gone]
    assert page_through(desk, client, type="echo", state="cancelled") == []
    queue = desk.ask(client, "queue", limit=3).body
    assert [each["task_id"] for each in queue["queue"]] == left[:3]  # type: ignore[attr-defined]
    assert (queue["completed"], queue["failed"], queue["cancelled"]) == (3, 0, 1)


def test_finished_tasks_are_pruned_and_say_so(tmp_path: Path) -> None:
    desk = Desktop(tmp_path, retention_count=2)
    client, worker = desk.client(), desk.worker("w", slots=1)
    ids: list[str] = []
    for _ in range(4):
        ids += desk.submit(client, key=f"k{len(ids)}", digest=b"d")
        desk.finish(worker, desk.work(worker))
    for _ in range(9):
        desk.pass_time(2.9)
        desk.say(client, m.Watch([]))
    assert desk.ledger.kept_finished == 2
    answer = desk.ask(client, "status", id=ids[0])
    assert answer.code == "task.pruned"
    assert isinstance(answer.body["pruned_at"], float)
    replayed = desk.ask(client, "replay", id=ids[0], session=S, n=500)
    assert (replayed.code, replayed.body["pruned_at"]) == ("task.pruned", answer.body["pruned_at"])
    assert desk.ask(client, "status", id=ids[-1]).code == ""
    desk.got(client, m.Outcomes)
    desk.say(client, m.Watch(ids[:1]))
    assert desk.got(client, m.Outcomes)[0].states == bytes([m.PRUNED_STATE])
    stats = desk.ask(client, "stats").body
    assert stats["tasks"]["completed"] == 4  # type: ignore[index]
    assert sorted(desk.ledger.keys) == ["k2", "k3"]
    desk.restart()
    assert desk.ledger.kept_finished == 2
    assert sorted(desk.ledger.keys) == ["k2", "k3"]
    client = desk.client()
    group = m.Group("echo", 5, [b"\x80"])
    desk.say(client, m.Submit(77, S, 0, [group]))
    assert desk.got(client, m.Accepted)  # its id stays used: the same task, not a new one
    assert desk.ledger.queued == 0
    desk.close()


def test_who_leaves_awaits_and_listens_no_more(desk: Desktop) -> None:
    client, other, worker = desk.client(), desk.client("f" * 16), desk.worker("w")
    (task_id,) = desk.submit(client)
    desk.say(other, m.Watch([task_id]))
    desk.say(other, m.Listen(task_id, True))
    held = desk.work(worker)
    desk.say(other, m.Goodbye("x"))
    assert desk.got(worker, m.Listening)[-1] == m.Listening([task_id], False)
    assert not desk.pool.task_watchers
    assert not desk.pool.listeners
    desk.finish(worker, held)
    assert desk.got(other, m.Outcomes) == []


def test_who_awaits_and_listens_is_told_once(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    other = desk.client("f" * 16)
    desk.say(other, m.Watch([task_id]))
    desk.say(other, m.Listen(task_id, True))
    desk.finish(worker, desk.work(worker))
    assert [each.ids for each in desk.got(other, m.Outcomes)] == [[task_id]]
    assert not desk.pool.clients["f" * 16].watched
    assert not desk.pool.clients["f" * 16].listened


def test_a_listener_of_a_worker_that_is_gone_tells_nobody(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    desk.work(worker)
    desk.restart()  # who had it is known, but has not come back
    client = desk.client()
    desk.say(client, m.Listen(task_id, True))
    assert desk.got(worker, m.Listening) == []


def test_what_one_client_awaits_singly_is_bounded(
    desk: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d8mesh.core.desk.MAX_WATCHED", 2)
    client, other = desk.client(), desk.client("f" * 16)
    ids = desk.submit(client, 3)
    desk.say(other, m.Watch(ids))
    assert desk.pool.clients["f" * 16].watched == set(ids[:2])
    assert desk.pool.rejected["watch.too_many"] == 1


def test_what_the_journal_cannot_answer_is_asked_again_or_refused(desk: Desktop) -> None:
    client = desk.client()
    dispatcher, number = desk.dispatcher, desk.pool._next_load
    dispatcher.receive(m.Watch([f"{S}-77"]), client, desk.now)
    assert dispatcher.loaded(Loaded(number, [], "disk on fire")) == []
    asked: list[tuple[str, dict[str, object]]] = [
        ("tasks", {}),
        ("cancel", {"id": f"{S}-77"}),
        ("replay", {"id": f"{S}-77", "session": S, "n": 5}),
        ("poll.report", REPORT),
    ]
    for what, args in asked:
        number = desk.pool._next_load
        dispatcher.receive(m.Ask(1, what, args), client, desk.now)
        desk.perform(dispatcher.loaded(Loaded(number, [], "disk on fire")))
        (answer,) = desk.got(client, m.Answer)
        assert answer.code, what
        assert answer.body["error"] == "disk on fire"


def test_a_listen_that_overtakes_its_task_is_remembered(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    desk.say(client, m.Listen(f"{S}-0", True))
    (task_id,) = desk.submit(client)
    assert task_id == f"{S}-0"
    (work,) = desk.got(worker, m.Work)
    assert work.groups[0].is_listened
    desk.say(client, m.Listen(f"{S}-7", True))  # one that never comes
    desk.say(client, m.Goodbye("x"))
    assert desk.pool.listeners == {}


def test_tasks_are_listed_newest_first(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w", slots=4)
    ids = [*desk.submit(client, 3), *desk.submit(desk.client("v" * 16), 2, session="v" * 16)]
    desk.finish(worker, desk.work(worker))
    ids += desk.submit(client, 2, kind="other")

    def pages(**wanted: object) -> list[str]:
        told: list[str] = []
        cursor: object = ""
        while cursor is not None:
            body = desk.ask(client, "tasks", limit=2, cursor=cursor, order="newest", **wanted).body
            told += [task["task_id"] for task in body["tasks"]]  # type: ignore[attr-defined]
            cursor = body["next_cursor"]
        return told

    assert pages() == ids[::-1]
    assert pages(state="completed") == ids[3::-1]
    assert pages(state="queued") == ids[:4:-1]
    assert pages(type="other") == ids[:4:-1]
    assert pages(state="failed") == []
    assert desk.ask(client, "tasks", order="best").code == "task.invalid"


def test_the_whole_of_an_unknown_task_is_unknown(desk: Desktop) -> None:
    client = desk.client()
    assert desk.ask(client, "status", id=f"{S}-5", full=True).code == "task.unknown"


def test_a_waiting_task_says_how_many_go_before_it(
    desk: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = desk.client()
    desk.worker("w", window=0)
    first = desk.submit(client, 2)
    second = desk.submit(client, 3)
    high = desk.submit(client, 1, priority=9)
    for task_id, count in ((first[0], 1), (first[1], 2), (second[2], 5)):
        reason = str(desk.ask(client, "status", id=task_id).body["reason"])
        assert reason.endswith(f"{count} waiting before it"), reason
    assert "before it" not in str(desk.ask(client, "status", id=high[0]).body["reason"])
    monkeypatch.setattr(queue, "COUNTED_BATCHES", 1)
    reason = str(desk.ask(client, "status", id=second[2]).body["reason"])
    assert reason.endswith("more than 1 waiting before it")


def test_what_the_journal_cannot_tell_of_a_task_is_said(desk: Desktop) -> None:
    client = desk.client()
    (task_id,) = desk.submit(client)
    ask = m.Ask(77, "status", {"id": task_id, "full": True})
    effects = desk.dispatcher.receive(ask, client, desk.now)
    (load,) = [effect for effect in effects if isinstance(effect, Load)]
    desk.perform(desk.dispatcher.loaded(Loaded(load.number, [], "the disk fails")))
    (answer,) = desk.got(client, m.Answer)
    assert (answer.code, answer.body["error"]) == ("d8.error", "the disk fails")
