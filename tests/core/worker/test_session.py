"""The worker's brain, told what happens and asked what it wants done."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest
from msgspec import structs

from d8mesh.core.protocol.membership import Credentials, join_proof, welcome_proof
from d8mesh.core.protocol.messages import (
    SUCCEEDED,
    Beat,
    Chunks,
    Goodbye,
    Heartbeat,
    Listening,
    Measured,
    Message,
    OfferedModel,
    OfferedService,
    Placed,
    Placement,
    Recall,
    Received,
    Refused,
    Rehello,
    Release,
    Results,
    Services,
    Stop,
    Warm,
    Welcome,
    Work,
    WorkerHello,
    WorkGroup,
)
from d8mesh.core.worker import broker_session
from d8mesh.core.worker.broker_session import NO_REASON, Profile
from d8mesh.core.worker.effects import (
    DROPPED,
    UNAVAILABLE,
    Abort,
    Attempt,
    Ended,
    Forget,
    Keep,
    KeptResult,
    Listened,
    Rebuild,
    Retire,
    Running,
    SendOn,
    Start,
    StartPlaced,
    TakeBack,
    Trouble,
    WarmUp,
    WorkerEffect,
)
from d8mesh.core.worker.kept_results import MAX_KEPT_RESULTS
from d8mesh.core.worker.service_offer import TOLD_TOGETHER_S
from d8mesh.core.worker.session import WorkerSession

_numbers = count(1)
SECRET, SERVER_KEY, PEER_KEY = b"s" * 32, b"o" * 32, b"p" * 32


def _session(slots: int = 2, kept: list[KeptResult] | None = None) -> WorkerSession:
    profile = Profile(
        mesh="m",
        worker_id="w",
        boot_id="0123456789",
        worker_type="t",
        machine_id="x",
        host="h",
        status_port=0,
        slots=slots,
        task_types=("noop",),
    )
    return WorkerSession(profile, kept or [])


def _welcome(broker_id: str = "a", epoch: int = 1, dropped: list[str] | None = None) -> Welcome:
    return Welcome(1, epoch, broker_id, 3.0, 10.0, dropped or [])


def _join(session: WorkerSession, link: str = "a", now: float = 0.0) -> None:
    assert isinstance(_sent(session.link_up(link, now))[0], WorkerHello)
    session.receive(_welcome(link), link, now)


def test_a_mesh_key_is_proven_and_its_proof_asked_for() -> None:
    session = _session()
    session.profile = replace(session.profile, credentials=Credentials(PEER_KEY, SECRET))
    (hello,) = _sent(session.link_up("a", 0.0, SERVER_KEY))
    assert isinstance(hello, WorkerHello)
    assert hello.proof == join_proof(SECRET, SERVER_KEY, PEER_KEY)
    wrong = welcome_proof(SECRET, PEER_KEY, SERVER_KEY)
    for proof in (b"", hello.proof, wrong):
        effects = session.receive(structs.replace(_welcome(), proof=proof), "a", 0.0)
        (trouble,) = [each for each in effects if isinstance(each, Trouble)]
        assert trouble.code == "access.orchestrator_key"
        assert not session.brokers["a"].is_welcome
        assert _sent(effects) == []
    proof = welcome_proof(SECRET, SERVER_KEY, PEER_KEY)
    session.receive(structs.replace(_welcome(), proof=proof), "a", 0.0)
    assert session.brokers["a"].is_welcome


def _work(tasks: int, seq: int = 1, timeout_s: float = 60.0) -> Work:
    numbers = [next(_numbers) for _ in range(tasks)]
    ids = [f"0000000000000000-{n}" for n in numbers]
    tokens = [n.to_bytes(16, "big") for n in numbers]
    return Work(seq, [WorkGroup("noop", timeout_s, False, ids, tokens, [b"\x80"] * tasks)])


def _sent(effects: list[WorkerEffect], link: str | None = None) -> list[Message]:
    return [e.message for e in effects if isinstance(e, SendOn) and link in (None, e.link)]


def _started(effects: list[WorkerEffect]) -> list[Attempt]:
    return [attempt for e in effects if isinstance(e, Start) for attempt in e.attempts]


def _ended(attempts: list[Attempt], duration_s: float = 0.00001) -> list[Ended]:
    return [(a.link, a.id, a.token, SUCCEEDED, b"\x80", duration_s) for a in attempts]


def test_results_are_held_until_they_are_received() -> None:
    session = _session()
    _join(session)
    attempts = _started(session.receive(_work(2), "a", 1.0))
    (results,) = _sent(session.finished(_ended(attempts), 1.0))
    assert isinstance(results, Results)
    assert results.ids == [a.id for a in attempts]
    (hello,) = _sent(session.receive(Rehello(""), "a", 2.0))
    assert isinstance(hello, WorkerHello)
    assert hello.held_ids == results.ids
    (again,) = _sent(session.receive(_welcome(), "a", 2.0))
    assert isinstance(again, Results)
    assert (again.ids, again.tokens) == (results.ids, results.tokens)
    assert again.seq != results.seq
    session.receive(Received(again.seq), "a", 2.0)
    assert session.is_idle


def test_unanswered_hellos_and_results_are_said_again() -> None:
    session = _session()
    session.link_up("a", 0.0)
    assert not _sent(session.tick(2.9))
    assert isinstance(_sent(session.tick(3.1))[0], WorkerHello)
    session.receive(_welcome(), "a", 3.2)
    attempts = _started(session.receive(_work(1), "a", 4.0))
    session.finished(_ended(attempts), 4.0)
    session.receive(Beat(1), "a", 13.0)
    messages = _sent(session.tick(14.1))
    assert any(isinstance(message, Results) for message in messages)


def test_silence_beyond_the_lease_rebuilds_the_link() -> None:
    session = _session()
    _join(session)
    assert not any(isinstance(e, Rebuild) for e in session.tick(9.9))
    assert any(isinstance(e, Rebuild) for e in session.tick(10.1))


def test_another_epoch_means_hello() -> None:
    session = _session()
    _join(session)
    assert not session.receive(Beat(1), "a", 1.0)
    assert isinstance(_sent(session.receive(Beat(2), "a", 1.0))[0], WorkerHello)


def test_expensive_results_and_those_without_a_broker_are_on_the_disk_first() -> None:
    session = _session()
    _join(session)
    cheap, dear, late = (_started(session.receive(_work(1, n), "a", 1.0)) for n in (1, 2, 3))
    assert not any(isinstance(e, Keep) for e in session.finished(_ended(cheap), 1.0))
    effects = session.finished(_ended(dear, 1.5), 1.0)
    assert [type(e) for e in effects] == [Keep, SendOn]
    seq = next(m.seq for m in _sent(effects) if isinstance(m, Results))
    assert session.receive(Received(seq), "a", 1.0) == [Forget([dear[0].token])]
    (saved,) = session.link_down("a", 2.0)  # the cheap one too: nobody acknowledged it
    assert isinstance(saved, Keep)
    assert [row.token for row in saved.results] == [cheap[0].token]
    (kept,) = session.finished(_ended(late), 2.0)
    assert isinstance(kept, Keep)


def test_results_of_an_earlier_run_go_to_the_broker_they_belong_to() -> None:
    rows = [KeptResult("b", "0000000000000000-1", b"t" * 16, SUCCEEDED, b"\x80")]
    session = _session(kept=rows)
    _join(session, "a")
    session.link_up("b", 0.0)
    sent = _sent(session.receive(_welcome("b"), "b", 0.0), "b")
    assert [m.ids for m in sent if isinstance(m, Results)] == [["0000000000000000-1"]]


def test_a_full_outbox_closes_the_window() -> None:
    rows = [
        KeptResult("gone", f"0000000000000000-{n}", n.to_bytes(16, "big"), 1, b"")
        for n in range(MAX_KEPT_RESULTS)
    ]
    session = _session(kept=rows)
    (hello,) = _sent(session.link_up("a", 0.0))
    assert isinstance(hello, WorkerHello)
    assert hello.window == 0


def test_a_bad_disk_closes_the_window_at_once() -> None:
    session = _session()
    _join(session)
    session.tick(1.0)
    session.flow.is_disk_bad = True
    (told,) = _sent(session.tick(1.1))
    assert isinstance(told, Heartbeat)
    assert told.window == 0
    assert session.tick(1.2) == []


def test_the_window_grows_for_quick_tasks_and_not_for_long_ones() -> None:
    def window_after(duration_s: float) -> int:
        session = _session()
        _join(session)
        window = 2
        for n in range(1, 30):
            attempts = _started(session.receive(_work(min(window, 500), n), "a", 1.0))
            sent = _sent(session.finished(_ended(attempts, duration_s), 1.0))
            for message in sent:
                assert isinstance(message, Results)
                window = message.window
                session.receive(Received(message.seq), "a", 1.0)
        return window

    assert window_after(0.00001) > 1000
    assert window_after(0.5) == 2


def test_when_the_last_slot_is_taken_the_others_are_offered_nothing() -> None:
    session = _session(slots=2)
    _join(session, "a")
    _join(session, "b")
    effects = session.receive(_work(2), "a", 1.0)
    (beat,) = _sent(effects, "b")
    assert isinstance(beat, Heartbeat)
    assert beat.window == 0
    sent = _sent(session.finished(_ended(_started(effects)[:1]), 1.0), "b")
    assert any(isinstance(m, Heartbeat) and m.window > 0 for m in sent)


def test_what_was_not_asked_for_and_cannot_start_is_given_back() -> None:
    session = _session(slots=1)
    _join(session, "a")
    _join(session, "b")
    session.receive(_work(1), "a", 1.0)
    effects = session.receive(_work(5), "b", 1.0)
    take = next(e for e in effects if isinstance(e, TakeBack))
    given = _started(effects)[-take.count :]
    (release,) = _sent(session.taken_back(given, 1.0))
    assert isinstance(release, Release)
    assert release.ids == [a.id for a in given]


def test_a_stopped_attempt_is_aborted_and_its_end_is_not_told() -> None:
    session = _session()
    _join(session)
    (attempt,) = _started(session.receive(_work(1), "a", 1.0))
    assert session.receive(Stop([attempt.id], "cancelled"), "a", 1.0) == [Abort([attempt.token])]
    session.watch([Running(attempt, 0.0)], 1.0)
    assert session.stuck == 1
    assert not _sent(session.finished(_ended([attempt]), 1.0))
    session.watch([], 1.0)
    assert session.stuck == 0


def test_an_overdue_attempt_fails_and_its_slot_stays_taken() -> None:
    session = _session(slots=2)
    _join(session)
    (attempt,) = _started(session.receive(_work(1, timeout_s=5.0), "a", 1.0))
    assert not session.watch([Running(attempt, 1.0)], 6.0)
    effects = session.watch([Running(attempt, 1.0)], 7.0)
    assert Abort([attempt.token]) in effects
    results = next(m for m in _sent(effects) if isinstance(m, Results))
    assert results.kinds == b"\0"
    assert (session.stuck, session.failed) == (1, 1)


def test_dropped_attempts_are_stopped_and_dropped_results_forgotten() -> None:
    session = _session()
    _join(session)
    running, done = _started(session.receive(_work(2), "a", 1.0))
    session.finished(_ended([done], 2.0), 1.0)
    session.receive(Rehello(""), "a", 1.0)
    effects = session.receive(_welcome(dropped=[running.id, done.id]), "a", 1.0)
    assert Abort([running.token]) in effects
    assert Forget([done.token]) in effects
    assert not [m for m in _sent(effects) if isinstance(m, Results)]


def test_a_taken_id_gets_a_suffix() -> None:
    session = _session()
    session.link_up("a", 0.0)
    refused = Refused(0, "worker.id_taken", "at work elsewhere")
    (hello,) = _sent(session.receive(refused, "a", 0.1))
    assert isinstance(hello, WorkerHello)
    assert hello.worker_id == "w-01234567"
    assert not _sent(session.receive(refused, "a", 0.2))  # not again and again


def test_a_second_link_to_the_same_broker_is_retired() -> None:
    session = _session()
    _join(session, "a")
    session.link_up("tcp://a", 1.0)
    effects = session.receive(_welcome("a"), "tcp://a", 1.0)
    assert Retire("tcp://a", "a") in effects
    assert isinstance(_sent(effects, "a")[0], WorkerHello)


def test_the_link_that_stays_says_what_the_retired_one_held() -> None:
    session = _session()
    _join(session, "a")
    (attempt,) = _started(session.receive(_work(1), "a", 1.0))
    session.finished(_ended([attempt]), 1.0)
    session.link_up("tcp://a", 1.0)
    session.receive(Rehello(""), "a", 1.0)  # the broker goes by the newer link
    session.receive(_welcome("a"), "tcp://a", 1.0)
    effects = session.receive(_welcome("a"), "a", 1.0)
    assert Retire("a", "a") in effects
    (hello,) = [m for m in _sent(effects, "tcp://a") if isinstance(m, WorkerHello)]
    assert (hello.held_ids, hello.held_tokens) == ([attempt.id], [attempt.token])
    session.forget_link("a")
    (results,) = [
        m
        for m in _sent(session.receive(_welcome("a"), "tcp://a", 1.0), "tcp://a")
        if isinstance(m, Results)
    ]
    assert results.ids == [attempt.id]


def test_of_two_links_to_one_broker_the_one_with_work_stays() -> None:
    session = _session()
    _join(session, "a")
    (attempt,) = _started(session.receive(_work(1), "a", 1.0))
    session.link_up("tcp://a", 1.0)
    session.receive(Rehello(""), "a", 1.0)
    session.receive(_welcome("a"), "tcp://a", 1.0)
    effects = session.receive(_welcome("a"), "a", 1.0)
    assert Retire("tcp://a", "a") in effects
    assert not [effect for effect in effects if isinstance(effect, Abort)]
    (hello,) = [m for m in _sent(effects, "a") if isinstance(m, WorkerHello)]
    assert hello.held_ids == [attempt.id]


def test_a_drain_gives_back_what_waits_and_says_goodbye() -> None:
    session = _session()
    _join(session)
    attempts = _started(session.receive(_work(2), "a", 1.0))
    effects = session.drain(2.0)
    assert TakeBack("a", 2, is_of_all=True) in effects
    beat = next(m for m in _sent(effects) if isinstance(m, Heartbeat))
    assert beat.window == 0
    session.taken_back(attempts[1:], 2.0)
    (results,) = _sent(session.finished(_ended(attempts[:1]), 2.0))
    assert isinstance(results, Results)
    session.receive(Received(results.seq), "a", 2.0)
    assert session.is_idle
    assert _sent(session.leave("stopped")) == [Goodbye("stopped")]


@pytest.mark.parametrize("size", [1, 1000])
def test_a_late_reply_of_a_forgotten_link_harms_nothing(size: int) -> None:
    session = _session()
    _join(session)
    attempts = _started(session.receive(_work(size), "a", 1.0))
    session.forget_link("a")
    assert session.receive(_work(size), "a", 1.0) == []
    assert session.finished(_ended(attempts), 1.0) == []


def test_the_loop_sleeps_until_something_is_due() -> None:
    session = _session()
    assert session.next_deadline() > 1e9
    session.link_up("a", 0.0)
    assert session.next_deadline() == 3.0  # HELLO again
    session.receive(_welcome(), "a", 1.0)
    assert session.next_deadline() == 4.0  # a heartbeat
    attempts = _started(session.receive(_work(1), "a", 1.0))
    session.finished(_ended(attempts), 1.0)
    for now in (4.0, 7.0, 10.0):
        session.receive(Beat(1), "a", now)
        session.tick(now)
    assert session.next_deadline() == 11.0  # unacknowledged results
    session.link_down("a", 5.0)
    assert session.next_deadline() > 1e9
    assert not any(broker.is_welcome for broker in session.brokers.values())


def test_what_a_link_unknown_here_says_or_does_is_nothing() -> None:
    session = _session()
    assert session.link_down("x", 0.0) == []
    assert session.forget_link("x") == []
    assert session.receive(Beat(1), "x", 0.0) == []
    attempt = ("x", "0000000000000000-1", b"t" * 16)
    assert session.finished([(*attempt, SUCCEEDED, b"\x80", 0.1)], 0.0) == []
    assert session.chunks([(*attempt, 0, b"x")]) == []
    assert session.taken_back([Attempt("x", "noop", 1.0, False, *attempt[1:], b"")], 0.0) == []


def test_results_of_a_forgotten_link_go_to_the_same_broker_over_another() -> None:
    session = _session()
    _join(session)
    attempts = _started(session.receive(_work(2), "a", 1.0))
    session.link_down("a", 1.5)
    session.finished(_ended(attempts[:1]), 2.0)
    effects = session.forget_link("a")
    assert effects == [Abort([attempts[1].token])]  # the result was on the disk already
    session.link_up("other", 3.0)
    effects = session.receive(_welcome("a"), "other", 3.0)
    (results,) = (message for message in _sent(effects) if isinstance(message, Results))
    assert results.ids == [attempts[0].id]
    assert Forget([attempts[0].token]) in session.receive(Received(results.seq), "other", 3.0)


def test_a_session_that_breaks_while_it_is_being_renewed_is_lost_too() -> None:
    session = _session()
    _join(session)
    session.receive(Rehello("boot"), "a", 1.0)
    session.link_down("a", 1.0)
    assert session.brokers["a"].lost == "the connection broke"
    session.link_up("a", 2.0)
    session.receive(_welcome(), "a", 2.0)
    assert session.brokers["a"].lost == ""


def test_after_a_sleep_every_connection_is_made_anew() -> None:
    session = _session()
    _join(session)
    _join(session, "b")
    session.link_down("b", 1.0)
    assert [e.link for e in session.woke(100.0) if isinstance(e, Rebuild)] == ["a"]


def test_what_the_broker_wants_of_the_slots_is_passed_on() -> None:
    session = _session()
    _join(session)
    assert session.receive(Recall(3), "a", 1.0) == [TakeBack("a", 3)]
    (one,) = _started(session.receive(_work(1), "a", 1.0))
    listening = Listening([one.id, "has-ended"], True)  # of the other nothing may be remembered
    assert session.receive(listening, "a", 1.0) == [Listened([one.id], True)]
    assert session.receive(Stop(["not-held"], "x"), "a", 1.0) == []


def test_a_broker_that_leaves_is_waited_for_and_its_results_are_on_the_disk() -> None:
    session = _session()
    _join(session)
    attempts = _started(session.receive(_work(1), "a", 1.0))
    session.finished(_ended(attempts), 1.0)
    keep, trouble = session.receive(Goodbye("bye"), "a", 2.0)
    assert isinstance(keep, Keep)
    assert isinstance(trouble, Trouble)
    assert trouble.code == "broker.draining"
    assert session.is_idle  # nothing that could be done now
    assert isinstance(_sent(session.tick(5.1))[0], WorkerHello)


def test_a_task_handed_out_anew_replaces_the_older_attempt() -> None:
    session = _session()
    _join(session)
    work = _work(1)
    (old,) = _started(session.receive(work, "a", 1.0))
    again = Work(2, [replace_tokens(work.groups[0], b"n" * 16)])
    effects = session.receive(again, "a", 2.0)
    assert Abort([old.token]) in effects
    assert not _sent(session.finished(_ended([old]), 2.0))
    (results,) = _sent(session.finished(_ended(_started(effects)), 2.0))
    assert isinstance(results, Results)
    assert results.tokens == [b"n" * 16]


def test_work_that_comes_during_a_drain_goes_back() -> None:
    session = _session()
    _join(session)
    session.drain(1.0)
    effects = session.receive(_work(2), "a", 1.0)
    assert TakeBack("a", 2) in effects


def test_a_refusal_is_told_and_the_hello_said_again_much_later() -> None:
    session = _session()
    session.link_up("a", 0.0)
    effects = session.receive(Refused(0, "access.forbidden", "other mesh"), "a", 1.0)
    assert [e.code for e in effects if isinstance(e, Trouble)] == ["access.forbidden"]
    assert session.tick(20.0) == []
    assert isinstance(_sent(session.tick(31.1))[0], WorkerHello)
    session.receive(_welcome(), "a", 31.2)
    refused = session.receive(Refused(0, "protocol.bad", "odd frame"), "a", 32.0)
    assert len(refused) == 1  # a bad frame does not end the session
    assert [broker.broker_id for broker in session.brokers.values() if broker.is_welcome] == ["a"]


def test_an_acknowledgement_that_nobody_awaits_is_nothing() -> None:
    session = _session()
    _join(session)
    assert session.receive(Received(99), "a", 1.0) == []


def test_a_busy_service_gives_the_attempt_back_and_a_cancelled_one_tells_nothing() -> None:
    session = _session()
    _join(session)
    one, two = _started(session.receive(_work(2), "a", 1.0))
    ended = [
        (one.link, one.id, one.token, UNAVAILABLE, b"HTTP 503", 0.1),
        (two.link, two.id, two.token, DROPPED, b"", 0.1),
    ]
    (release,) = _sent(session.finished(ended, 1.0))
    assert isinstance(release, Release)
    assert (release.ids, release.reason) == ([one.id], "HTTP 503")
    assert session.is_idle


def test_what_is_given_back_together_is_told_apart_by_its_reason() -> None:
    session = _session(slots=3)
    _join(session)
    attempts = _started(session.receive(_work(3), "a", 1.0))
    reasons = (b"x", b"", b"x")
    ended = [
        (a.link, a.id, a.token, UNAVAILABLE, reason, 0.1)
        for a, reason in zip(attempts, reasons, strict=True)
    ]
    told = [m for m in _sent(session.finished(ended, 1.0)) if isinstance(m, Release)]
    ids = [a.id for a in attempts]
    assert [(m.ids, m.reason) for m in told] == [([ids[0], ids[2]], "x"), ([ids[1]], NO_REASON)]


def test_without_a_session_the_next_hello_tells_what_was_given_back() -> None:
    session = _session()
    _join(session)
    (attempt,) = _started(session.receive(_work(1), "a", 1.0))
    session.link_down("a", 1.0)
    assert session.taken_back([attempt], 1.0) == []
    (hello,) = _sent(session.link_up("a", 2.0))
    assert isinstance(hello, WorkerHello)
    assert hello.held_ids == []


def test_of_what_is_taken_back_only_what_is_still_held_is_released() -> None:
    session = _session()
    _join(session)
    one, two = _started(session.receive(_work(2), "a", 1.0))
    session.receive(Stop([one.id], "cancelled"), "a", 1.0)
    session.finished(_ended([two]), 1.0)
    assert not _sent(session.taken_back([one, two], 1.0))


def test_partial_output_travels_together_and_only_of_what_is_held() -> None:
    session = _session()
    _join(session)
    one, two = _started(session.receive(_work(2), "a", 1.0))
    pieces = [(a.link, a.id, a.token, 0, b"x") for a in (one, two)]
    (chunks,) = _sent(session.chunks(pieces))
    assert isinstance(chunks, Chunks)
    assert chunks.ids == [one.id, two.id]
    session.finished(_ended([one, two]), 1.0)
    assert session.chunks(pieces) == []


def test_output_made_while_the_broker_is_away_is_passed_on_before_the_result() -> None:
    session = _session()
    _join(session)
    (one,) = _started(session.receive(_work(1), "a", 1.0))
    session.link_down("a", 1.0)
    assert session.chunks([("a", one.id, one.token, n, b"x") for n in range(3)]) == []
    session.finished(_ended([one]), 2.0)
    session.link_up("a", 3.0)
    chunks, results = _sent(session.receive(_welcome(epoch=2), "a", 3.0))
    assert isinstance(chunks, Chunks)
    assert chunks.seqs == [0, 1, 2]
    assert isinstance(results, Results)


def test_of_output_for_a_broker_that_is_away_the_newest_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(broker_session, "MAX_PIECES_BYTES", 25)
    monkeypatch.setattr(broker_session, "MAX_STREAM_BYTES", 15)
    session = _session()
    _join(session)
    (one,) = _started(session.receive(_work(1), "a", 1.0))
    session.link_down("a", 1.0)
    session.chunks([("a", one.id, one.token, n, b"x" * 10) for n in range(9)])
    session.link_up("a", 3.0)
    told = _sent(session.receive(_welcome(), "a", 3.0))
    assert [m.seqs for m in told if isinstance(m, Chunks)] == [[7], [8]]  # in messages that fit


def test_what_is_offered_anew_is_told_with_the_next_tick() -> None:
    session = _session()
    _join(session)
    assert not _sent(session.tick(1.0))
    session.offer(["noop", "echo"], ["llama"])
    (beat,) = _sent(session.tick(1.0))
    assert isinstance(beat, Heartbeat)
    assert (beat.task_types, beat.models) == (["noop", "echo"], ["llama"])


def test_what_is_offered_anew_before_the_welcome_is_told_right_after_it() -> None:
    session = _session()
    (hello,) = _sent(session.link_up("a", 0.0))
    assert isinstance(hello, WorkerHello)
    session.offer(["noop"], [], "no model is there")
    session.receive(_welcome(), "a", 0.1)
    assert session.next_deadline() <= 0.1
    (beat,) = _sent(session.tick(0.1))
    assert isinstance(beat, Heartbeat)
    assert beat.trouble == "no model is there"
    assert not _sent(session.tick(0.2))


def test_a_link_that_is_down_is_left_alone_and_one_refused_waits() -> None:
    session = _session()
    _join(session)
    session.link_down("a", 1.0)
    assert session.tick(50.0) == []
    session.link_up("b", 50.0)
    assert session.tick(51.0) == []  # the answer to HELLO may still come


def test_why_a_link_is_refused_is_told_until_its_session_stands() -> None:
    session = _session()
    session.link_up("a", 0.0)
    session.link_down("a", 1.0, "its key was revoked")
    broker = session.brokers["a"]
    assert (broker.refusal, broker.lost) == ("its key was revoked", "")
    session.link_up("a", 2.0)
    session.link_down("a", 3.0)
    assert broker.refusal == "its key was revoked"
    _join(session)
    assert (broker.refusal, broker.lost) == ("", "")
    session.link_down("a", 5.0, "its key was revoked")
    assert broker.lost == "it does not let this worker in"


def test_a_broker_without_a_session_gets_no_goodbye_but_its_results_are_kept() -> None:
    session = _session()
    _join(session)
    _join(session, "b")
    (attempt,) = _started(session.receive(_work(1), "a", 1.0))
    session.finished(_ended([attempt]), 1.0)
    session.receive(Rehello(""), "a", 2.0)
    keep, goodbye = session.leave("stopped")
    assert isinstance(keep, Keep)
    assert goodbye == SendOn("b", Goodbye("stopped"))


def test_the_end_of_an_attempt_that_was_replaced_leaves_its_successor_alone() -> None:
    session = _session()
    _join(session)
    (attempt,) = _started(session.receive(_work(1), "a", 1.0))
    late = (attempt.link, attempt.id, b"o" * 16, SUCCEEDED, b"\x80", 0.1)
    session.finished([late], 1.0)
    assert session.brokers["a"].open == {attempt.id: attempt.token}


def test_work_of_a_broker_that_has_not_said_who_it_is_is_not_held() -> None:
    session = _session()
    session.link_up("a", 0.0)
    assert session.receive(_work(1), "a", 0.1) == []
    (hello,) = _sent(session.receive(Rehello(""), "a", 0.2))
    assert isinstance(hello, WorkerHello)
    assert hello.held_ids == []


def test_results_for_one_broker_are_not_given_to_another_at_its_address() -> None:
    session = _session()
    _join(session)
    running, done = _started(session.receive(_work(2), "a", 1.0))
    session.link_down("a", 1.5)
    session.finished(_ended([done]), 2.0)
    session.link_up("a", 3.0)
    effects = session.receive(_welcome("stranger"), "a", 3.0)
    assert Abort([running.token]) in effects
    assert not [message for message in _sent(effects) if isinstance(message, Results)]
    session.link_up("b", 4.0)
    effects = session.receive(_welcome("a"), "b", 4.0)
    (results,) = (message for message in _sent(effects) if isinstance(message, Results))
    assert results.ids == [done.id]


SPOT = Placement("m1:11434", "m:1b", 3)


def _placed(effects: list[WorkerEffect]) -> list[Attempt]:
    return [attempt for e in effects if isinstance(e, StartPlaced) for attempt in e.attempts]


def _place(session: WorkerSession, tasks: int = 1, link: str = "a", others: int = 0) -> Work:
    """Say where the tasks run; return the work that brings them, and others, on the way."""
    work = _work(tasks + others)
    ids = work.groups[0].ids[:tasks]
    assert session.receive(Placed(ids, [SPOT] * tasks), link, 1.0) == []
    return work


def _offered() -> OfferedService:
    return OfferedService("m1:11434", "ollama", "pi", "", False, 0, "m:1b", [OfferedModel("m:1b")])


def test_a_placed_attempt_runs_beside_the_slots_and_the_window_stays() -> None:
    session = _session(slots=2)
    _join(session)
    effects = session.receive(_place(session, 3, others=1), "a", 1.0)
    (other,), placed = _started(effects), _placed(effects)
    assert [attempt.placement for attempt in placed] == [SPOT] * 3
    assert other.placement is None
    (beat,) = _sent(session.tick(5.0))
    assert isinstance(beat, Heartbeat)
    assert beat.window == 2
    assert beat.held_ids == [*(attempt.id for attempt in placed), other.id]
    (results,) = _sent(session.finished(_ended(placed, 8.0), 9.0))
    assert isinstance(results, Results)
    assert results.window == 2
    session.receive(Received(results.seq), "a", 9.0)
    session.finished(_ended([other]), 9.0)
    assert not session.brokers["a"].placed


def test_how_long_services_take_does_not_change_what_is_fetched_ahead() -> None:
    session = _session(slots=2)
    _join(session)
    quick = _started(session.receive(_work(50), "a", 1.0))
    session.finished(_ended(quick), 1.0)
    ahead = session.flow.prefetch
    assert ahead > 0
    session.finished(_ended(_placed(session.receive(_place(session), "a", 1.0)), 60.0), 61.0)
    assert session.flow.prefetch == ahead


def test_work_without_a_placed_before_it_is_for_the_slots() -> None:
    session = _session()
    _join(session)
    (first,) = _placed(session.receive(_place(session), "a", 1.0))
    (second,) = _started(session.receive(_work(1), "a", 1.0))  # it was of the work before
    assert (first.placement, second.placement) == (SPOT, None)
    work = _place(session)
    assert session.receive(Placed(["0000000000000000-0"], [SPOT]), "a", 1.0) == []
    assert _started(session.receive(work, "a", 1.0))  # a later one is in place of the earlier
    work = _place(session)
    session.link_up("a", 2.0)
    session.receive(_welcome(), "a", 2.0)
    assert _started(session.receive(work, "a", 2.0))  # of the session before


def test_placed_attempts_of_others_leave_each_broker_its_slots() -> None:
    session = _session(slots=1)
    _join(session, "a")
    _join(session, "b")
    effects = session.receive(_place(session, 5, link="a"), "a", 1.0)
    assert not [each for each in effects if isinstance(each, TakeBack)]
    assert {broker.window for broker in session.brokers.values()} == {1}
    effects = session.receive(_work(1), "b", 1.0)
    assert not [each for each in effects if isinstance(each, TakeBack)]


def test_a_placed_attempt_that_is_stopped_or_dropped_or_replaced_is_aborted() -> None:
    session = _session()
    _join(session)
    stopped, dropped = _placed(session.receive(_place(session, 2), "a", 1.0))
    assert session.receive(Stop([stopped.id], "cancelled"), "a", 1.0) == [Abort([stopped.token])]
    session.link_up("a", 2.0)
    assert Abort([dropped.token]) in session.receive(_welcome(dropped=[dropped.id]), "a", 2.0)
    work = _place(session)
    (older,) = _placed(session.receive(work, "a", 3.0))
    again = Work(2, [replace_tokens(work.groups[0], b"n" * 16)])
    effects = session.receive(again, "a", 4.0)
    assert Abort([older.token]) in effects
    assert _started(effects)
    broker = session.brokers["a"]
    assert (list(broker.open.values()), broker.placed) == ([b"n" * 16], {})


def test_a_placed_attempt_past_its_time_fails_and_no_slot_is_stuck() -> None:
    session = _session(slots=2)
    _join(session)
    (attempt,) = _placed(session.receive(_place(session), "a", 1.0))
    running = [Running(attempt, 1.0)]
    assert session.watch(running, 30.0) == []
    assert session.running == 1
    effects = session.watch(running, 62.0)
    assert Abort([attempt.token]) in effects
    (results,) = _sent(effects)
    assert isinstance(results, Results)
    assert (results.window, session.stuck) == (2, 0)


def test_what_its_service_could_not_do_is_given_back_with_the_reason() -> None:
    session = _session()
    _join(session)
    (attempt,) = _placed(session.receive(_place(session), "a", 1.0))
    ended = (attempt.link, attempt.id, attempt.token, UNAVAILABLE, b"HTTP 503", 0.0)
    (release,) = _sent(session.finished([ended], 1.0))
    assert isinstance(release, Release)
    assert (release.ids, release.reason, release.window) == ([attempt.id], "HTTP 503", 2)
    assert session.is_idle


def test_partial_output_and_listening_are_of_placed_attempts_too() -> None:
    session = _session()
    _join(session)
    (attempt,) = _placed(session.receive(_place(session), "a", 1.0))
    heed = Listening([attempt.id, "0000000000000000-0"], True)
    assert session.receive(heed, "a", 1.0) == [Listened([attempt.id], True)]
    (chunks,) = _sent(session.chunks([(attempt.link, attempt.id, attempt.token, 0, b"x")]))
    assert isinstance(chunks, Chunks)


def test_a_drain_lets_placed_attempts_end_and_takes_no_more() -> None:
    session = _session()
    session.services.offer(["agent_action"], [_offered()], 0.0)
    _join(session)
    session.tick(1.0)
    (runs,) = _placed(session.receive(_place(session), "a", 1.0))
    late = _place(session)
    effects = session.drain(2.0)
    assert TakeBack("a", 1, is_of_all=True) in effects
    (services,) = (each for each in _sent(effects) if isinstance(each, Services))
    assert (services.services, services.held_ids) == ([], [runs.id])
    effects = session.receive(late, "a", 2.0)
    assert not _placed(effects)
    (release,) = (each for each in _sent(effects) if isinstance(each, Release))
    assert (release.ids, release.reason, release.window) == (late.groups[0].ids, "", 0)
    assert session.receive(Warm(SPOT), "a", 2.0) == []
    assert not session.is_idle
    session.finished(_ended([runs]), 3.0)


def test_services_are_told_after_each_welcome_with_what_runs_there() -> None:
    session = _session()
    session.services.offer(["agent_action"], [_offered()], 0.0)
    (hello,) = _sent(session.link_up("a", 0.0))
    assert isinstance(hello, WorkerHello)
    assert hello.window == 0  # nothing comes that is not placed, before the services are known
    services, beat = _sent(session.receive(_welcome(), "a", 0.0))
    assert services == Services(["agent_action"], [_offered()], [], [], [])
    assert isinstance(beat, Heartbeat)
    assert beat.window == 2
    (attempt,) = _placed(session.receive(_place(session), "a", 1.0))
    session.link_down("a", 2.0)
    assert session.tick(2.0) == []
    session.link_up("a", 3.0)
    told, _ = _sent(session.receive(_welcome(epoch=2), "a", 3.0))
    assert told == Services(
        ["agent_action"], [_offered()], [attempt.id], [SPOT.service], [SPOT.model]
    )


def test_a_worker_without_services_says_nothing_of_them() -> None:
    session = _session()
    (hello,) = _sent(session.link_up("a", 0.0))
    assert isinstance(hello, WorkerHello)
    assert hello.window == 2
    assert _sent(session.receive(_welcome(), "a", 0.0)) == []
    assert _sent(session.tick(0.1)) == []


def test_what_changes_at_a_service_is_told_when_it_is_due() -> None:
    session = _session()
    session.services.offer(["agent_action"], [_offered()], 0.0)
    _join(session)
    session.tick(0.1)
    session.services.measured("m1:11434", [OfferedModel("m:1b", slots=2)], 1.0)
    assert session.next_deadline() == 1.0 + TOLD_TOGETHER_S
    assert _sent(session.tick(1.0)) == []
    told = _sent(session.tick(session.next_deadline()))
    assert told == [Measured("m1:11434", [OfferedModel("m:1b", slots=2)])]
    assert session.next_deadline() > 2.0


def test_a_worker_that_cannot_keep_results_offers_no_services() -> None:
    session = _session()
    session.services.offer(["agent_action"], [_offered()], 0.0)
    _join(session)
    session.tick(0.1)
    session.flow.is_disk_bad = True
    told = [each for each in _sent(session.tick(1.0)) if isinstance(each, Services)]
    assert told == [Services([], [], [], [], [])]
    session.flow.is_disk_bad = False
    assert _sent(session.tick(2.0)) == [Services(["agent_action"], [_offered()], [], [], [])]


def test_a_model_that_had_better_be_loaded_is_warmed_up() -> None:
    session = _session()
    _join(session)
    assert session.receive(Warm(SPOT), "a", 1.0) == [WarmUp(SPOT)]


def replace_tokens(group: WorkGroup, token: bytes) -> WorkGroup:
    tokens = [token] * len(group.ids)
    return WorkGroup(group.type, group.timeout_s, False, group.ids, tokens, group.payloads)
