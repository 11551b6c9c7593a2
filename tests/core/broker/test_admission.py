"""Submits: all or nothing, each id once, within the bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from d8mesh.core.broker import admission, state
from d8mesh.core.broker.effects import Peer
from d8mesh.core.protocol import messages as m
from tests.core.wired_broker import START_AT, S, WiredBroker, beat

#: What is said of a type while no worker is there.
NOBODY = ["no worker in the mesh offers 'echo': no worker is there"]


def submit(
    broker: WiredBroker, client: Peer, seq: int, first: int, count: int = 1, **more: Any
) -> m.Accepted | m.Refused:
    group = m.Group("echo", 5, [b"\x80"] * count)
    broker.say(client, m.Submit(seq, S, first, [group], **more))
    answers: list[m.Accepted | m.Refused] = [*broker.got(client, m.Accepted)]
    answers += broker.got(client, m.Refused)
    (answer,) = answers
    return answer


def test_a_submit_is_acknowledged_once_it_is_on_disk(broker: WiredBroker) -> None:
    client = broker.client()
    ids = broker.submit(client, 3)
    assert broker.got(client, m.Accepted) == [m.Accepted(1, S, 0, False, NOBODY)]
    broker.restart()
    assert broker.task_table.queued == 3
    assert all(broker.task_table.state_of(task_id) for task_id in ids)


def test_the_same_submit_again_is_the_same_tasks(broker: WiredBroker) -> None:
    client = broker.client()
    assert submit(broker, client, 1, 0, 5) == m.Accepted(1, S, 0, False, NOBODY)
    assert submit(broker, client, 2, 0, 5) == m.Accepted(2, S, 0, False, NOBODY)
    assert broker.task_table.queued == 5
    broker.restart()
    client = broker.client()
    assert submit(broker, client, 3, 0, 5) == m.Accepted(3, S, 0, False, NOBODY)
    assert broker.task_table.queued == 5


def test_ids_partly_used_before_are_refused(broker: WiredBroker) -> None:
    client = broker.client()
    submit(broker, client, 1, 0, 5)
    refused = submit(broker, client, 2, 3, 5)
    assert isinstance(refused, m.Refused)
    assert refused.code == "task.invalid"
    assert broker.task_table.queued == 5


def test_anothers_session_cannot_be_used(broker: WiredBroker) -> None:
    client = broker.client("f" * 16)
    refused = submit(broker, client, 1, 0)
    assert isinstance(refused, m.Refused)
    assert refused.code == "access.forbidden"


def test_an_idempotency_key_gives_the_first_tasks_or_a_conflict(broker: WiredBroker) -> None:
    client = broker.client()
    assert submit(broker, client, 1, 0, 2, key="k", digest=b"1") == m.Accepted(
        1, S, 0, False, NOBODY
    )
    again = submit(broker, client, 2, 2, 2, key="k", digest=b"1")
    assert again == m.Accepted(2, S, 0, True, NOBODY)
    other = submit(broker, client, 3, 4, 2, key="k", digest=b"2")
    assert isinstance(other, m.Refused)
    assert other.code == "key.conflict"
    broker.restart()
    client = broker.client()
    again = submit(broker, client, 4, 6, 2, key="k", digest=b"1")
    assert again == m.Accepted(4, S, 0, True, NOBODY)


def test_an_idempotency_key_lives_as_long_as_any_of_its_tasks(tmp_path: Path) -> None:
    """Also where those of the first group have finished and been forgotten."""
    broker = WiredBroker(tmp_path, retention_s=60.0)
    worker = broker.worker("w", types=["echo", "other"], slots=4)
    groups = [m.Group("echo", 9, [b"\x80"]), m.Group("other", 5, [b"\x80"], run_at=broker.at + 200)]
    groups += [m.Group("echo", 1, [b"\x80"])]

    def again(seq: int) -> m.Accepted:
        client = broker.client()
        broker.say(client, m.Submit(seq, S, 3 * seq, groups, key="k", digest=b"d"))
        return broker.got(client, m.Accepted)[0]

    def wait(seconds: float) -> None:
        for _ in range(int(seconds / 3)):
            broker.pass_time(3)
            broker.say(worker, beat([], 0, window=4, types=["echo", "other"]))

    assert again(0) == m.Accepted(0, S, 0)
    broker.finish(worker, broker.work(worker))
    wait(150)
    assert again(1) == m.Accepted(1, S, 0, is_repeat=True)  # one of its tasks waits still
    broker.restart()
    worker = broker.worker("w", types=["echo", "other"], slots=4)
    wait(60)
    broker.finish(worker, broker.work(worker))
    wait(30)
    assert again(2) == m.Accepted(2, S, 0, is_repeat=True)  # ended, and not yet forgotten
    assert broker.task_table.totals.submitted == 3
    wait(120)
    assert broker.task_table.kept_finished == 0
    assert again(3) == m.Accepted(3, S, 9)
    broker.close()


def test_a_session_that_the_journal_cannot_name_is_refused(
    broker: WiredBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d8mesh.edge.sqlite.journal.MAX_SESSIONS", 2)
    broker.restart()
    client, worker = broker.client(), broker.worker("w")
    (failed,) = broker.submit(client, max_attempts=1)
    broker.finish(worker, broker.work(worker), m.FAILED)
    other, third = broker.client("b" * 16), broker.client("c" * 16)
    broker.submit(other, session="b" * 16)
    assert broker.got(other, m.Accepted)
    for _ in range(2):
        broker.submit(third, session="c" * 16)
        (refused,) = broker.got(third, m.Refused)
        assert (refused.code, refused.retry_after_s) == ("task.rejected", 0.0)
        assert "2 clients" in refused.message
        replayed = broker.ask(third, "replay", id=failed, session="c" * 16, n=70)
        assert replayed.code == "task.rejected"
        broker.submit(other, session="b" * 16)
        assert broker.got(other, m.Accepted)
        broker.restart()
        other, third = broker.client("b" * 16), broker.client("c" * 16)


@pytest.mark.parametrize("bound", [{"queue_size": 5}, {"queue_bytes": 5}])
def test_a_full_queue_refuses_with_the_time_to_wait(tmp_path: Path, bound: dict[str, Any]) -> None:
    broker = WiredBroker(tmp_path, **bound)
    client = broker.client()
    assert isinstance(submit(broker, client, 1, 0, 5), m.Accepted)
    refused = submit(broker, client, 2, 5)
    assert isinstance(refused, m.Refused)
    assert (refused.code, refused.retry_after_s) == ("queue.full", 1.0)
    worker = broker.worker("w", slots=4)
    broker.finish(worker, broker.work(worker))
    assert isinstance(submit(broker, client, 3, 6), m.Accepted)
    broker.close()


def test_a_full_disk_or_a_drain_refuses_and_a_repeat_is_still_acknowledged(
    broker: WiredBroker,
) -> None:
    client = broker.client()
    submit(broker, client, 1, 0)
    broker.dispatcher.set_disk_low(True)
    refused = submit(broker, client, 2, 1)
    assert isinstance(refused, m.Refused)
    assert refused.code == "disk.low"
    assert isinstance(submit(broker, client, 3, 0), m.Accepted)
    broker.dispatcher.set_disk_low(False)
    assert isinstance(submit(broker, client, 4, 1), m.Accepted)
    broker.perform(broker.dispatcher.drain())
    refused = submit(broker, client, 5, 2)
    assert isinstance(refused, m.Refused)
    assert refused.code == "broker.draining"
    assert broker.got(client, m.Goodbye)


def test_a_task_for_later_waits_for_its_time(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client, run_at=START_AT + 5)
    assert broker.ask(client, "status", id=task_id).body["state"] == "delayed"
    broker.pass_time(4)
    assert broker.work(worker) == {}
    broker.pass_time(2)
    assert list(broker.work(worker)) == [task_id]


def test_a_task_for_later_waits_after_a_restart_too(broker: WiredBroker) -> None:
    client = broker.client()
    (task_id,) = broker.submit(client, run_at=START_AT + 5)
    broker.restart()
    worker = broker.worker("w")
    broker.pass_time(4)
    assert broker.work(worker) == {}
    broker.pass_time(2)
    assert list(broker.work(worker)) == [task_id]


def test_a_time_that_has_passed_means_now(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client, run_at=1.0)
    assert list(broker.work(worker)) == [task_id]


def test_a_type_that_nobody_offers_is_accepted_with_a_warning_that_names_the_nearest(
    broker: WiredBroker,
) -> None:
    client = broker.client()
    broker.worker("w", types=["resize_image", "echo"])
    broker.submit(client, kind="resize_imgae")
    (accepted,) = broker.got(client, m.Accepted)
    nearest = "no worker in the mesh offers 'resize_imgae'; did you mean 'resize_image'?"
    assert accepted.warnings == [nearest]
    broker.submit(client, kind="zzz")
    assert broker.got(client, m.Accepted)[0].warnings == ["no worker in the mesh offers 'zzz'"]
    broker.submit(client)
    assert broker.got(client, m.Accepted)[0].warnings == []
    (task_id,) = broker.submit(client, kind="resize_imgae")
    reason = f"{nearest} (1 worker there; w: offers echo, resize_image)"
    assert broker.ask(client, "status", id=task_id).body["reason"] == reason


def test_a_submit_of_many_unknown_types_has_a_few_of_them_compared(broker: WiredBroker) -> None:
    client = broker.client()
    broker.worker("w", types=["resize"])
    groups = [m.Group(f"resize{n}", 5, [b"\x80"]) for n in range(m.MAX_WARNINGS + 10)]
    broker.say(client, m.Submit(1, S, 0, groups))
    (accepted,) = broker.got(client, m.Accepted)
    assert len(accepted.warnings) == m.MAX_WARNINGS
    assert len(broker.state.registry.nearest) == m.MAX_WARNINGS
    listed: Any = broker.ask(client, "tasks").body["tasks"]
    assert "did you mean 'resize'?" in listed[0]["reason"]  # it is known
    assert "did you mean" not in listed[-1]["reason"]
    assert len(broker.state.registry.nearest) == m.MAX_WARNINGS


def test_who_listens_from_the_submit_on_hears_the_first_piece(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w", slots=2)
    (task_id,) = broker.submit(client, is_listened=True)
    (work,) = broker.got(worker, m.Work)
    assert work.groups[0].is_listened
    token = work.groups[0].tokens[0]
    broker.say(worker, m.Chunks([task_id], [token], [0], [b"\xa1a"]))
    assert broker.got(client, m.Stream) == [m.Stream(task_id, 1, 0, [b"\xa1a"])]
    (other,) = broker.submit(client)
    (work,) = broker.got(worker, m.Work)
    assert (work.groups[0].ids, work.groups[0].is_listened) == ([other], False)
    broker.finish(worker, {task_id: token})
    assert task_id not in broker.state.listeners


def test_a_submit_that_is_sent_again_listens_to_what_is_not_finished(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    submit(broker, client, 1, 0, 2, is_listened=True)
    broker.finish(worker, broker.work(worker))
    broker.restart()
    client = broker.client()
    submit(broker, client, 1, 0, 2, is_listened=True)
    assert set(broker.state.listeners) == {f"{S}-1"}


def test_one_client_listens_to_so_many_at_most(
    broker: WiredBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "MAX_LISTENED", 1)
    monkeypatch.setattr(state, "MAX_LISTENED", 1)
    client = broker.client()
    broker.submit(client, is_listened=True)
    broker.got(client, m.Accepted)
    refused = submit(broker, client, 9, 50, 1, is_listened=True)
    assert isinstance(refused, m.Refused)
    assert (refused.code, refused.retry_after_s > 0) == ("access.flood", True)
    (other,) = broker.submit(client)
    broker.say(client, m.Listen(other, True))
    assert other not in broker.state.listeners
