"""Submits: all or nothing, each id once, within the bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from d8mesh.core import intake, pool
from d8mesh.core import messages as m
from d8mesh.core.effects import Peer
from tests.core.desktop import START_AT, Desktop, S, beat

#: What is said of a type while no worker is there.
NOBODY = ["no worker in the mesh offers 'echo': no worker is there"]


def submit(
    desk: Desktop, client: Peer, seq: int, first: int, count: int = 1, **more: Any
) -> m.Accepted | m.Refused:
    group = m.Group("echo", 5, [b"\x80"] * count)
    desk.say(client, m.Submit(seq, S, first, [group], **more))
    answers: list[m.Accepted | m.Refused] = [*desk.got(client, m.Accepted)]
    answers += desk.got(client, m.Refused)
    (answer,) = answers
    return answer


def test_a_submit_is_acknowledged_once_it_is_on_disk(desk: Desktop) -> None:
    client = desk.client()
    ids = desk.submit(client, 3)
    assert desk.got(client, m.Accepted) == [m.Accepted(1, S, 0, False, NOBODY)]
    desk.restart()
    assert desk.ledger.queued == 3
    assert all(desk.ledger.state_of(task_id) for task_id in ids)


def test_the_same_submit_again_is_the_same_tasks(desk: Desktop) -> None:
    client = desk.client()
    assert submit(desk, client, 1, 0, 5) == m.Accepted(1, S, 0, False, NOBODY)
    assert submit(desk, client, 2, 0, 5) == m.Accepted(2, S, 0, False, NOBODY)
    assert desk.ledger.queued == 5
    desk.restart()
    client = desk.client()
    assert submit(desk, client, 3, 0, 5) == m.Accepted(3, S, 0, False, NOBODY)
    assert desk.ledger.queued == 5


def test_ids_partly_used_before_are_refused(desk: Desktop) -> None:
    client = desk.client()
    submit(desk, client, 1, 0, 5)
    refused = submit(desk, client, 2, 3, 5)
    assert isinstance(refused, m.Refused)
    assert refused.code == "task.invalid"
    assert desk.ledger.queued == 5


def test_anothers_session_cannot_be_used(desk: Desktop) -> None:
    client = desk.client("f" * 16)
    refused = submit(desk, client, 1, 0)
    assert isinstance(refused, m.Refused)
    assert refused.code == "access.forbidden"


def test_an_idempotency_key_gives_the_first_tasks_or_a_conflict(desk: Desktop) -> None:
    client = desk.client()
    assert submit(desk, client, 1, 0, 2, key="k", digest=b"1") == m.Accepted(1, S, 0, False, NOBODY)
    again = submit(desk, client, 2, 2, 2, key="k", digest=b"1")
    assert again == m.Accepted(2, S, 0, True, NOBODY)
    other = submit(desk, client, 3, 4, 2, key="k", digest=b"2")
    assert isinstance(other, m.Refused)
    assert other.code == "key.conflict"
    desk.restart()
    client = desk.client()
    again = submit(desk, client, 4, 6, 2, key="k", digest=b"1")
    assert again == m.Accepted(4, S, 0, True, NOBODY)


def test_an_idempotency_key_lives_as_long_as_any_of_its_tasks(tmp_path: Path) -> None:
    """Also where those of the first group have finished and been forgotten."""
    desk = Desktop(tmp_path, retention_s=60.0)
    worker = desk.worker("w", types=["echo", "other"], slots=4)
    groups = [m.Group("echo", 9, [b"\x80"]), m.Group("other", 5, [b"\x80"], run_at=desk.at + 200)]
    groups += [m.Group("echo", 1, [b"\x80"])]

    def again(seq: int) -> m.Accepted:
        client = desk.client()
        desk.say(client, m.Submit(seq, S, 3 * seq, groups, key="k", digest=b"d"))
        return desk.got(client, m.Accepted)[0]

    def wait(seconds: float) -> None:
        for _ in range(int(seconds / 3)):
            desk.pass_time(3)
            desk.say(worker, beat([], 0, window=4, types=["echo", "other"]))

    assert again(0) == m.Accepted(0, S, 0)
    desk.finish(worker, desk.work(worker))
    wait(150)
    assert again(1) == m.Accepted(1, S, 0, is_repeat=True)  # one of its tasks waits still
    desk.restart()
    worker = desk.worker("w", types=["echo", "other"], slots=4)
    wait(60)
    desk.finish(worker, desk.work(worker))
    wait(30)
    assert again(2) == m.Accepted(2, S, 0, is_repeat=True)  # ended, and not yet forgotten
    assert desk.ledger.totals.submitted == 3
    wait(120)
    assert desk.ledger.kept_finished == 0
    assert again(3) == m.Accepted(3, S, 9)
    desk.close()


def test_a_session_that_the_journal_cannot_name_is_refused(
    desk: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d8mesh.core.intake.MAX_SESSIONS", 2)
    monkeypatch.setattr("d8mesh.edge.journal.writer.MAX_SESSIONS", 2)
    client, worker = desk.client(), desk.worker("w")
    (failed,) = desk.submit(client, max_attempts=1)
    desk.finish(worker, desk.work(worker), m.FAILED)
    other, third = desk.client("b" * 16), desk.client("c" * 16)
    desk.submit(other, session="b" * 16)
    assert desk.got(other, m.Accepted)
    for _ in range(2):
        desk.submit(third, session="c" * 16)
        (refused,) = desk.got(third, m.Refused)
        assert (refused.code, refused.retry_after_s) == ("task.rejected", 0.0)
        assert "2 clients" in refused.message
        replayed = desk.ask(third, "replay", id=failed, session="c" * 16, n=70)
        assert replayed.code == "task.rejected"
        desk.submit(other, session="b" * 16)
        assert desk.got(other, m.Accepted)
        desk.restart()
        other, third = desk.client("b" * 16), desk.client("c" * 16)


@pytest.mark.parametrize("bound", [{"queue_size": 5}, {"queue_bytes": 5}])
def test_a_full_queue_refuses_with_the_time_to_wait(tmp_path: Path, bound: dict[str, Any]) -> None:
    desk = Desktop(tmp_path, **bound)
    client = desk.client()
    assert isinstance(submit(desk, client, 1, 0, 5), m.Accepted)
    refused = submit(desk, client, 2, 5)
    assert isinstance(refused, m.Refused)
    assert (refused.code, refused.retry_after_s) == ("queue.full", 1.0)
    worker = desk.worker("w", slots=4)
    desk.finish(worker, desk.work(worker))
    assert isinstance(submit(desk, client, 3, 6), m.Accepted)
    desk.close()


def test_a_full_disk_or_a_drain_refuses_and_a_repeat_is_still_acknowledged(desk: Desktop) -> None:
    client = desk.client()
    submit(desk, client, 1, 0)
    desk.dispatcher.set_disk_low(True)
    refused = submit(desk, client, 2, 1)
    assert isinstance(refused, m.Refused)
    assert refused.code == "disk.low"
    assert isinstance(submit(desk, client, 3, 0), m.Accepted)
    desk.dispatcher.set_disk_low(False)
    assert isinstance(submit(desk, client, 4, 1), m.Accepted)
    desk.perform(desk.dispatcher.drain())
    refused = submit(desk, client, 5, 2)
    assert isinstance(refused, m.Refused)
    assert refused.code == "broker.draining"
    assert desk.got(client, m.Goodbye)


def test_a_task_for_later_waits_for_its_time(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client, run_at=START_AT + 5)
    assert desk.ask(client, "status", id=task_id).body["state"] == "delayed"
    desk.pass_time(4)
    assert desk.work(worker) == {}
    desk.pass_time(2)
    assert list(desk.work(worker)) == [task_id]


def test_a_task_for_later_waits_after_a_restart_too(desk: Desktop) -> None:
    client = desk.client()
    (task_id,) = desk.submit(client, run_at=START_AT + 5)
    desk.restart()
    worker = desk.worker("w")
    desk.pass_time(4)
    assert desk.work(worker) == {}
    desk.pass_time(2)
    assert list(desk.work(worker)) == [task_id]


def test_a_time_that_has_passed_means_now(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client, run_at=1.0)
    assert list(desk.work(worker)) == [task_id]


def test_a_type_that_nobody_offers_is_accepted_with_a_warning_that_names_the_nearest(
    desk: Desktop,
) -> None:
    client = desk.client()
    desk.worker("w", types=["resize_image", "echo"])
    desk.submit(client, kind="resize_imgae")
    (accepted,) = desk.got(client, m.Accepted)
    nearest = "no worker in the mesh offers 'resize_imgae'; did you mean 'resize_image'?"
    assert accepted.warnings == [nearest]
    desk.submit(client, kind="zzz")
    assert desk.got(client, m.Accepted)[0].warnings == ["no worker in the mesh offers 'zzz'"]
    desk.submit(client)
    assert desk.got(client, m.Accepted)[0].warnings == []
    (task_id,) = desk.submit(client, kind="resize_imgae")
    reason = f"{nearest} (1 worker there; w: offers echo, resize_image)"
    assert desk.ask(client, "status", id=task_id).body["reason"] == reason


def test_a_submit_of_many_unknown_types_has_a_few_of_them_compared(desk: Desktop) -> None:
    client = desk.client()
    desk.worker("w", types=["resize"])
    groups = [m.Group(f"resize{n}", 5, [b"\x80"]) for n in range(m.MAX_WARNINGS + 10)]
    desk.say(client, m.Submit(1, S, 0, groups))
    (accepted,) = desk.got(client, m.Accepted)
    assert len(accepted.warnings) == m.MAX_WARNINGS
    assert len(desk.pool.roster.nearest) == m.MAX_WARNINGS
    listed: Any = desk.ask(client, "tasks").body["tasks"]
    assert "did you mean 'resize'?" in listed[0]["reason"]  # it is known
    assert "did you mean" not in listed[-1]["reason"]
    assert len(desk.pool.roster.nearest) == m.MAX_WARNINGS


def test_who_listens_from_the_submit_on_hears_the_first_piece(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w", slots=2)
    (task_id,) = desk.submit(client, is_listened=True)
    (work,) = desk.got(worker, m.Work)
    assert work.groups[0].is_listened
    token = work.groups[0].tokens[0]
    desk.say(worker, m.Chunks([task_id], [token], [0], [b"\xa1a"]))
    assert desk.got(client, m.Stream) == [m.Stream(task_id, 1, 0, [b"\xa1a"])]
    (other,) = desk.submit(client)
    (work,) = desk.got(worker, m.Work)
    assert (work.groups[0].ids, work.groups[0].is_listened) == ([other], False)
    desk.finish(worker, {task_id: token})
    assert task_id not in desk.pool.listeners


def test_a_submit_that_is_sent_again_listens_to_what_is_not_finished(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    submit(desk, client, 1, 0, 2, is_listened=True)
    desk.finish(worker, desk.work(worker))
    desk.restart()
    client = desk.client()
    submit(desk, client, 1, 0, 2, is_listened=True)
    assert set(desk.pool.listeners) == {f"{S}-1"}


def test_one_client_listens_to_so_many_at_most(
    desk: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "MAX_LISTENED", 1)
    monkeypatch.setattr(pool, "MAX_LISTENED", 1)
    client = desk.client()
    desk.submit(client, is_listened=True)
    desk.got(client, m.Accepted)
    refused = submit(desk, client, 9, 50, 1, is_listened=True)
    assert isinstance(refused, m.Refused)
    assert (refused.code, refused.retry_after_s > 0) == ("access.flood", True)
    (other,) = desk.submit(client)
    desk.say(client, m.Listen(other, True))
    assert other not in desk.pool.listeners
