"""Clients: awaiting, listening, asking, coming and going."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from d8mesh.core.broker import queue
from d8mesh.core.broker.client_requests import WHOLE_BATCH_IDS
from d8mesh.core.broker.effects import Load, Loaded, Peer
from d8mesh.core.broker.store import TaskDetails, Unreadable
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.task import Spec, TaskState
from tests.core.wired_broker import S, WiredBroker, result

REPORT: dict[str, object] = {
    "task_id": f"{S}-77",
    "worker_id": "p",
    "is_success": True,
    "result": result(),
}


def test_outcomes_come_to_who_submitted(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w", slots=3)
    ids = broker.submit(client, 3)
    broker.finish(worker, broker.work(worker))
    (outcomes,) = broker.got(client, m.Outcomes)
    assert (outcomes.ids, outcomes.states) == (ids, b"\1\1\1")


def test_what_is_finished_is_told_from_the_journal(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w", slots=3)
    ids = broker.submit(client, 3, is_watched=False)
    broker.finish(worker, broker.work(worker))
    assert broker.got(client, m.Outcomes) == []
    unknown = [f"{S}-999", "f" * 16 + "-0", "not an id at all !!"]
    broker.say(client, m.Watch([*ids, *unknown]))
    told = {
        task_id: state
        for outcomes in broker.got(client, m.Outcomes)
        for task_id, state in zip(outcomes.ids, outcomes.states, strict=True)
    }
    assert told == {**dict.fromkeys(ids, 1), **dict.fromkeys(unknown, m.UNKNOWN_STATE)}


@pytest.mark.parametrize("count", [2, WHOLE_BATCH_IDS + 1])
def test_others_can_await_and_stop_awaiting(broker: WiredBroker, count: int) -> None:
    client, other, worker = broker.client(), broker.client("f" * 16), broker.worker("w", slots=99)
    ids = broker.submit(client, count, is_watched=False)
    broker.say(other, m.Watch(ids))
    broker.say(client, m.Watch(ids[:1]))
    broker.say(client, m.Unwatch(ids[:1]))
    broker.finish(worker, broker.work(worker))
    assert broker.got(client, m.Outcomes) == []
    assert [i for outcomes in broker.got(other, m.Outcomes) for i in outcomes.ids] == ids


def test_a_session_goes_on_over_another_connection(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w", window=0)
    (task_id,) = broker.submit(client)
    again = broker.client()
    broker.say(client, m.Watch([]))
    assert broker.got(client, m.Rehello)  # the old connection is nobody's now
    broker.say(worker, m.Goodbye("x"))
    worker = broker.worker("w")
    broker.finish(worker, broker.work(worker))
    assert broker.got(again, m.Outcomes)[0].ids == [task_id]


def test_a_silent_client_is_forgotten_and_may_come_back(broker: WiredBroker) -> None:
    client = broker.client()
    (task_id,) = broker.submit(client)
    broker.say(client, m.Listen(task_id, True))
    broker.say(client, m.Watch([task_id]))
    broker.pass_time(31)
    assert broker.state.clients == {}
    assert broker.state.listeners == {}
    client = broker.client()
    broker.say(client, m.Watch([task_id]))
    worker = broker.worker("w")
    broker.finish(worker, broker.work(worker))
    assert broker.got(client, m.Outcomes)[0].ids == [task_id]


def test_a_goodbye_ends_a_client_and_no_other(broker: WiredBroker) -> None:
    client = broker.client()
    broker.say(Peer(b"nobody"), m.Goodbye("x"))
    assert list(broker.state.clients_by_routing_id) == [client.routing_id]
    broker.say(client, m.Goodbye("bye"))
    assert broker.state.clients == {}


def test_a_wrong_client_hello_is_refused(broker: WiredBroker) -> None:
    peer = Peer(b"c")
    broker.say(peer, m.ClientHello(1, "other", S, "pc"))
    assert broker.got(peer, m.Refused)[0].code == "access.forbidden"


def test_listening_to_what_is_not_there_is_nothing(broker: WiredBroker) -> None:
    client = broker.client()
    broker.say(client, m.Listen(f"{S}-77", True))
    broker.say(client, m.Listen("not an id at all !!", True))
    broker.say(client, m.Listen(f"{S}-77", False))
    assert broker.state.listeners == {}


def test_a_cancelled_task_is_told_and_stays_cancelled(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    running, waiting = broker.submit(client, 2)
    held = broker.work(worker)
    for task_id in (running, waiting):
        assert broker.ask(client, "cancel", id=task_id).body["state"] == "cancelled"
    assert broker.got(worker, m.Stop)[0].ids == [running]
    assert [o.states for o in broker.got(client, m.Outcomes)] == [b"\3", b"\3"]
    broker.finish(worker, held)
    body = broker.ask(client, "status", id=running).body
    assert (body["status"], body["state"]) == ("failed", "cancelled")
    assert broker.ask(client, "cancel", id=running).body["state"] == "cancelled"
    broker.restart()
    assert broker.task_table.queued == broker.task_table.running == 0


def test_a_failed_task_is_replayed_under_a_new_id(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client, payloads=[b"\x81\xa1a\x01"], max_attempts=1)
    broker.finish(worker, broker.work(worker), m.FAILED)
    answer = broker.ask(client, "replay", id=task_id, session=S, n=500)
    assert answer.body == {"task_id": f"{S}-500"}
    assert broker.ask(client, "replay", id=task_id, session=S, n=500).code == ""  # asked twice
    broker.say(worker, m.Release(1, [], []))
    (work,) = broker.got(worker, m.Work)
    assert work.groups[0].payloads == [b"\x81\xa1a\x01"]
    assert broker.ask(client, "status", id=f"{S}-500").body["replay_of"] == task_id


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"session": "f" * 16, "n": 5}, "access.forbidden"),
        ({"session": S, "n": -1}, "task.invalid"),
        ({"session": S, "n": 5}, "task.invalid"),
    ],
)
def test_a_wrong_replay_is_refused(broker: WiredBroker, more: dict[str, object], code: str) -> None:
    client = broker.client()
    (task_id,) = broker.submit(client)
    assert broker.ask(client, "replay", id=task_id, **more).code == code


@pytest.mark.parametrize(
    ("cause", "code"), [("full", "queue.full"), ("disk", "disk.low"), ("drain", "broker.draining")]
)
def test_a_replay_needs_room_as_a_submit_does(broker: WiredBroker, cause: str, code: str) -> None:
    client, worker = broker.client(), broker.worker("w", window=1)
    (task_id,) = broker.submit(client, max_attempts=1)
    broker.finish(worker, broker.work(worker), m.FAILED, window=0)
    if cause == "full":
        broker.state.policy = replace(broker.state.policy, queue_size=1)
        broker.submit(client)
    elif cause == "disk":
        broker.dispatcher.set_disk_low(True)
    else:
        broker.state.is_draining = True
    assert broker.ask(client, "replay", id=task_id, session=S, n=500_000).code == code
    assert broker.task_table.state_of(f"{S}-500000") is None


def test_answers_that_promise_wait_for_the_commit(broker: WiredBroker) -> None:
    """A cancellation, a replay, a polling worker's report, its coming and its going."""
    client, worker = broker.client(), broker.worker("w", window=1)
    (failed,) = broker.submit(client, max_attempts=1)
    broker.finish(worker, broker.work(worker), m.FAILED, window=0)
    (cancelled,) = broker.submit(client)
    p: dict[str, object] = {"worker_id": "p"}

    def waits(what: str, **args: object) -> bool:
        before = len(broker.facts)
        broker.seq += 1
        broker.sent.clear()
        broker.say(client, m.Query(broker.seq, what, args))
        assert len(broker.facts) > before, what
        answers = [(msg, wait) for _, msg, wait in broker.sent if isinstance(msg, m.Answer)]
        assert [msg.code for msg, _ in answers] == [""]
        broker.sent.clear()
        return answers[0][1]

    assert waits("cancel", id=cancelled)
    assert waits("replay", id=failed, session=S, n=900)
    capabilities = {"task_types": ["echo"]}
    assert waits("poll.register", **p, worker_type="t", capabilities=capabilities)
    task = broker.ask(client, "poll.next", **p).body["task"]
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
    broker: WiredBroker, what: str, args: dict[str, object]
) -> None:
    client = broker.client()
    assert broker.ask(client, what, **args).code != ""
    assert broker.ask(client, "health").code == ""


def test_a_poll_that_waits_for_not_a_number_is_answered_at_once(broker: WiredBroker) -> None:
    client = broker.client()
    broker.ask(client, "poll.register", worker_id="p", worker_type="t", capabilities={})
    broker.say(client, m.Query(999, "poll.next", {"worker_id": "p", "wait_s": float("nan")}))
    broker.pass_time(0.1)
    assert [answer.request for answer in broker.got(client, m.Answer)] == [999]


def test_no_counter_reaches_into_another_session(broker: WiredBroker) -> None:
    client = broker.client()
    broker.submit(client)
    assert broker.ask(client, "status", id=f"{S}-{2**40}").code == "task.unknown"


def test_what_completed_is_not_replayed(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    broker.finish(worker, broker.work(worker))
    assert broker.ask(client, "replay", id=task_id, session=S, n=9).code == "task.invalid"
    assert broker.ask(client, "replay", id=f"{S}-88", session=S, n=9).code == "task.unknown"
    broker.perform(broker.dispatcher.drain())
    assert broker.ask(client, "replay", id=task_id, session=S, n=9).code == "broker.draining"


@pytest.mark.parametrize("bad", [5, None, "../../x", f"{S}-01", f"{S}-", "", f"{S}-99"])
def test_unknown_and_odd_ids_are_not_found(broker: WiredBroker, bad: object) -> None:
    client = broker.client()
    assert broker.ask(client, "status", id=bad).code == "task.unknown"
    assert broker.ask(client, "cancel", id=bad).code == "task.unknown"


def test_no_question_is_refused(broker: WiredBroker) -> None:
    assert broker.ask(broker.client(), "os.system").code == "access.forbidden"


@pytest.mark.parametrize(
    "args",
    [{"state": "nonsense"}, {"limit": 0}, {"limit": 9999}, {"limit": "x"}, {"cursor": 5}],
)
def test_a_wrong_listing_names_what_is_allowed(
    broker: WiredBroker, args: dict[str, object]
) -> None:
    assert broker.ask(broker.client(), "tasks", **args).code == "task.invalid"


def page_through(broker: WiredBroker, client: Peer, **args: object) -> list[str]:
    """Read a listing to its end in small pages."""
    seen: list[str] = []
    cursor: object = ""
    while cursor is not None:
        body = broker.ask(client, "tasks", limit=2, cursor=cursor, **args).body
        tasks = body["tasks"]
        assert isinstance(tasks, list)
        assert len(tasks) <= 2
        seen += [each["task_id"] for each in tasks]
        cursor = body["next_cursor"]
    return seen


def test_listings_are_paged_and_filtered(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w", slots=3)
    done = broker.submit(client, 3)
    broker.finish(worker, broker.work(worker))
    broker.say(worker, m.Release(0, [], []))
    waiting = broker.submit(client, 5, kind="other")
    later = broker.submit(client, 1, kind="echo", run_at=broker.at + 99)
    gone = waiting[2]
    broker.ask(client, "cancel", id=gone)
    left = [task_id for task_id in waiting if task_id != gone]
    assert page_through(broker, client) == [*done, *waiting, *later]
    assert page_through(broker, client, state="completed") == done
    assert page_through(broker, client, state="queued") == left
    assert page_through(broker, client, state="delayed") == later
    assert page_through(broker, client, state="cancelled") == [gone]
    assert page_through(broker, client, state="failed") == []
    assert page_through(broker, client, type="echo") == [*done, *later]
    assert page_through(broker, client, type="other", state="cancelled") == [gone]
    assert page_through(broker, client, type="echo", state="cancelled") == []
    queue = broker.ask(client, "queue", limit=3).body
    assert [each["task_id"] for each in queue["queue"]] == left[:3]  # type: ignore[attr-defined]
    assert (queue["completed"], queue["failed"], queue["cancelled"]) == (3, 0, 1)


def test_finished_tasks_are_pruned_and_say_so(tmp_path: Path) -> None:
    broker = WiredBroker(tmp_path, retention_count=2)
    client, worker = broker.client(), broker.worker("w", slots=1)
    ids: list[str] = []
    for _ in range(4):
        ids += broker.submit(client, key=f"k{len(ids)}", digest=b"d")
        broker.finish(worker, broker.work(worker))
    for _ in range(9):
        broker.pass_time(2.9)
        broker.say(client, m.Watch([]))
    assert broker.task_table.kept_finished == 2
    answer = broker.ask(client, "status", id=ids[0])
    assert answer.code == "task.pruned"
    assert isinstance(answer.body["pruned_at"], float)
    replayed = broker.ask(client, "replay", id=ids[0], session=S, n=500)
    assert (replayed.code, replayed.body["pruned_at"]) == ("task.pruned", answer.body["pruned_at"])
    assert broker.ask(client, "status", id=ids[-1]).code == ""
    broker.got(client, m.Outcomes)
    broker.say(client, m.Watch(ids[:1]))
    assert broker.got(client, m.Outcomes)[0].states == bytes([m.PRUNED_STATE])
    stats = broker.ask(client, "stats").body
    assert stats["tasks"]["completed"] == 4  # type: ignore[index]
    assert sorted(broker.task_table.keys) == ["k2", "k3"]
    broker.restart()
    assert broker.task_table.kept_finished == 2
    assert sorted(broker.task_table.keys) == ["k2", "k3"]
    client = broker.client()
    group = m.Group("echo", 5, [b"\x80"])
    broker.say(client, m.Submit(77, S, 0, [group]))
    assert broker.got(client, m.Accepted)  # its id stays used: the same task, not a new one
    assert broker.task_table.queued == 0
    broker.close()


def test_who_leaves_awaits_and_listens_no_more(broker: WiredBroker) -> None:
    client, other, worker = broker.client(), broker.client("f" * 16), broker.worker("w")
    (task_id,) = broker.submit(client)
    broker.say(other, m.Watch([task_id]))
    broker.say(other, m.Listen(task_id, True))
    held = broker.work(worker)
    broker.say(other, m.Goodbye("x"))
    assert broker.got(worker, m.Listening)[-1] == m.Listening([task_id], False)
    assert not broker.state.task_watchers
    assert not broker.state.listeners
    broker.finish(worker, held)
    assert broker.got(other, m.Outcomes) == []


def test_who_awaits_and_listens_is_told_once(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    other = broker.client("f" * 16)
    broker.say(other, m.Watch([task_id]))
    broker.say(other, m.Listen(task_id, True))
    broker.finish(worker, broker.work(worker))
    assert [each.ids for each in broker.got(other, m.Outcomes)] == [[task_id]]
    assert not broker.state.clients["f" * 16].watched
    assert not broker.state.clients["f" * 16].listened


def test_a_listener_of_a_worker_that_is_gone_tells_nobody(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    broker.work(worker)
    broker.restart()  # who had it is known, but has not come back
    client = broker.client()
    broker.say(client, m.Listen(task_id, True))
    assert broker.got(worker, m.Listening) == []


def test_what_one_client_awaits_singly_is_bounded(
    broker: WiredBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d8mesh.core.broker.client_requests.MAX_WATCHED", 2)
    client, other = broker.client(), broker.client("f" * 16)
    ids = broker.submit(client, 3)
    broker.say(other, m.Watch(ids))
    assert broker.state.clients["f" * 16].watched == set(ids[:2])
    assert broker.state.metrics.rejected["watch.too_many"] == 1


def test_what_the_journal_cannot_answer_is_asked_again_or_refused(broker: WiredBroker) -> None:
    client = broker.client()
    dispatcher, number = broker.dispatcher, broker.state.next_load
    dispatcher.receive(m.Watch([f"{S}-77"]), client, broker.now)
    assert dispatcher.loaded(Loaded(number, Unreadable("disk on fire"))) == []
    asked: list[tuple[str, dict[str, object]]] = [
        ("tasks", {}),
        ("cancel", {"id": f"{S}-77"}),
        ("replay", {"id": f"{S}-77", "session": S, "n": 5}),
        ("poll.report", REPORT),
    ]
    for what, args in asked:
        number = broker.state.next_load
        dispatcher.receive(m.Query(1, what, args), client, broker.now)
        broker.perform(dispatcher.loaded(Loaded(number, Unreadable("disk on fire"))))
        (answer,) = broker.got(client, m.Answer)
        assert answer.code, what
        assert answer.body["error"] == "disk on fire"


def test_a_listen_that_overtakes_its_task_is_remembered(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    broker.say(client, m.Listen(f"{S}-0", True))
    (task_id,) = broker.submit(client)
    assert task_id == f"{S}-0"
    (work,) = broker.got(worker, m.Work)
    assert work.groups[0].is_listened
    broker.say(client, m.Listen(f"{S}-7", True))  # one that never comes
    broker.say(client, m.Goodbye("x"))
    assert broker.state.listeners == {}


def test_tasks_are_listed_newest_first(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w", slots=4)
    ids = [*broker.submit(client, 3), *broker.submit(broker.client("v" * 16), 2, session="v" * 16)]
    broker.finish(worker, broker.work(worker))
    ids += broker.submit(client, 2, kind="other")

    def pages(**wanted: object) -> list[str]:
        told: list[str] = []
        cursor: object = ""
        while cursor is not None:
            body = broker.ask(
                client, "tasks", limit=2, cursor=cursor, order="newest", **wanted
            ).body
            told += [task["task_id"] for task in body["tasks"]]  # type: ignore[attr-defined]
            cursor = body["next_cursor"]
        return told

    assert pages() == ids[::-1]
    assert pages(state="completed") == ids[3::-1]
    assert pages(state="queued") == ids[:4:-1]
    assert pages(type="other") == ids[:4:-1]
    assert pages(state="failed") == []
    assert broker.ask(client, "tasks", order="best").code == "task.invalid"


def test_the_whole_of_an_unknown_task_is_unknown(broker: WiredBroker) -> None:
    client = broker.client()
    assert broker.ask(client, "status", id=f"{S}-5", full=True).code == "task.unknown"


def test_a_waiting_task_says_how_many_go_before_it(
    broker: WiredBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = broker.client()
    broker.worker("w", window=0)
    first = broker.submit(client, 2)
    second = broker.submit(client, 3)
    high = broker.submit(client, 1, priority=9)
    for task_id, count in ((first[0], 1), (first[1], 2), (second[2], 5)):
        reason = str(broker.ask(client, "status", id=task_id).body["reason"])
        assert reason.endswith(f"{count} waiting before it"), reason
    assert "before it" not in str(broker.ask(client, "status", id=high[0]).body["reason"])
    monkeypatch.setattr(queue, "AHEAD_BATCHES", 1)
    reason = str(broker.ask(client, "status", id=second[2]).body["reason"])
    assert reason.endswith("more than 1 waiting before it")


def test_what_the_journal_cannot_tell_of_a_task_is_said(broker: WiredBroker) -> None:
    client = broker.client()
    (task_id,) = broker.submit(client)
    ask = m.Query(77, "status", {"id": task_id, "full": True})
    effects = broker.dispatcher.receive(ask, client, broker.now)
    (load,) = [effect for effect in effects if isinstance(effect, Load)]
    broker.perform(broker.dispatcher.loaded(Loaded(load.number, Unreadable("the disk fails"))))
    (answer,) = broker.got(client, m.Answer)
    assert (answer.code, answer.body["error"]) == ("d8.error", "the disk fails")


def test_what_lost_its_data_is_not_replayed(broker: WiredBroker) -> None:
    client = broker.client()
    question = m.Query(7, "replay", {"id": f"{S}-3", "session": S, "n": 9})
    (load,) = broker.dispatcher.receive(question, client, broker.now)
    assert isinstance(load, Load)
    lost = TaskDetails(Spec("echo", 5, 3), b"", [], TaskState.FAILED)
    broker.perform(broker.dispatcher.loaded(Loaded(load.number, lost)))
    (answer,) = broker.got(client, m.Answer)
    assert (answer.request, answer.code) == (7, "task.invalid")
    assert "data was lost" in str(answer.body)
    assert broker.task_table.state_of(f"{S}-9") is None


def test_to_unwatch_what_nobody_watches_changes_nothing(broker: WiredBroker) -> None:
    client, other = broker.client(), broker.client("f" * 16)
    (task_id,) = broker.submit(client)
    broker.say(client, m.Watch([task_id]))
    broker.say(other, m.Unwatch([task_id, f"{S}-77"]))
    worker = broker.worker("w")
    broker.finish(worker, broker.work(worker))
    assert broker.got(client, m.Outcomes)[0].ids == [task_id]


def test_a_cursor_that_no_listing_gave_is_refused(broker: WiredBroker) -> None:
    answer = broker.ask(broker.client(), "tasks", cursor="nowhere")
    assert answer.code == "task.invalid"
    assert "'nowhere'" in str(answer.body["error"])


def test_who_listened_to_a_task_that_never_ran_listens_no_more(broker: WiredBroker) -> None:
    client = broker.client()
    (task_id,) = broker.submit(client)
    broker.say(client, m.Listen(task_id, True))
    assert broker.state.listeners == {task_id: {S}}
    broker.ask(client, "cancel", id=task_id)
    assert broker.state.listeners == {}
    assert broker.state.clients[S].listened == set()
