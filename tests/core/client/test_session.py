"""The client's brain, spoken to message by message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import pytest
from msgspec.structs import replace

from d8mesh.core.client import session as brain
from d8mesh.core.client.awaited import REWATCH_S
from d8mesh.core.client.effects import (
    Answered,
    Arrived,
    Connected,
    Heard,
    Lost,
    Output,
    Rejected,
    Settled,
    Silent,
    Transmit,
    merged,
)
from d8mesh.core.client.session import DOUBT_S, MAX_ASKED, RESEND_S, ClientSession
from d8mesh.core.client.submission import Submission
from d8mesh.core.protocol.membership import Credentials, join_proof, welcome_proof
from d8mesh.core.protocol.messages import (
    COMPLETED_STATE,
    MAX_BATCH_TASKS,
    UNKNOWN_STATE,
    Accepted,
    Answer,
    Beat,
    ClientHello,
    Delivered,
    Goodbye,
    Group,
    Listen,
    Message,
    Outcomes,
    Query,
    Received,
    Refused,
    Rehello,
    Stream,
    Submit,
    Unwatch,
    Watch,
    Welcome,
)
from d8mesh.errors import ProtocolError

SESSION = "0123456789abcdef"
OTHER = "v" * 16
SECRET, SERVER_KEY, PEER_KEY = b"s" * 32, b"o" * 32, b"p" * 32
M = TypeVar("M", bound=Message)


def sent(outputs: Sequence[Output], kind: type[M]) -> list[M]:
    messages = [output.message for output in outputs if isinstance(output, Transmit)]
    return [message for message in messages if isinstance(message, kind)]


def new() -> ClientSession:
    return ClientSession(SESSION, "d8", "host")


def welcome(epoch: int = 1) -> Welcome:
    return Welcome(1, epoch, "broker", 3.0, 10.0, [])


def up(now: float = 0.0) -> ClientSession:
    session = new()
    session.link_up(now)
    session.receive(welcome(), now)
    return session


def submission(first: int, count: int = 1, *, session: str = SESSION) -> Submission:
    return Submission(session, first, [Group("echo", 5, [b"\x80"] * count)])


def awaiting(task_id: str) -> Submission:
    made = submission(int(task_id[17:]), session=task_id[:16])
    made.is_accepted = True
    return made


def outcomes(*ids: str, state: int = COMPLETED_STATE) -> Outcomes:
    return Outcomes(list(ids), bytes([state]) * len(ids), [b"\x80"] * len(ids))


# ------------------------------------------------------------------------- opening


def test_a_link_is_opened_with_hello() -> None:
    (hello,) = sent(new().link_up(0.0), ClientHello)
    assert (hello.version, hello.mesh, hello.session) == (1, "d8", SESSION)


def test_a_mesh_key_is_proven_and_its_proof_asked_for() -> None:
    session = ClientSession(SESSION, "d8", "host", Credentials(PEER_KEY, SECRET))
    (hello,) = sent(session.link_up(0.0, SERVER_KEY), ClientHello)
    assert hello.proof == join_proof(SECRET, SERVER_KEY, PEER_KEY)
    for proof in (b"", hello.proof, welcome_proof(SECRET, PEER_KEY, SERVER_KEY)):
        (lost,) = session.receive(replace(welcome(), proof=proof), 0.0)
        assert isinstance(lost, Lost)
        assert "does not know this machine's D8_MESH_KEY" in lost.why
        assert not session.is_up
    proof = welcome_proof(SECRET, SERVER_KEY, PEER_KEY)
    assert session.receive(replace(welcome(), proof=proof), 0.0)
    assert session.is_up


def test_hello_is_repeated_and_a_link_on_which_nothing_is_heard_is_given_up_soon() -> None:
    session = new()
    session.link_up(0.0)
    assert session.next_deadline() == pytest.approx(3.0)
    assert session.tick(2.9) == []
    assert sent(session.tick(3.0), ClientHello)
    assert session.next_deadline() == pytest.approx(5.0)
    assert any(isinstance(output, Lost) for output in session.tick(5.1))


def test_what_was_wanted_before_the_welcome_is_sent_after_it_submits_first() -> None:
    session = new()
    single = awaiting(f"{OTHER}-5")
    assert session.submit(submission(0), 0.0) == []
    assert session.watch(single) == []
    assert session.ask(Query(1, "stats", {}), 0.0) == []
    assert session.listen(f"{OTHER}-5", is_on=True) == []
    session.link_up(0.0)
    out = session.receive(welcome(), 0.0)
    assert isinstance(out[0], Connected)
    kinds = [type(output.message) for output in out if isinstance(output, Transmit)]
    assert kinds == [Submit, Watch, Listen, Query]


def test_a_refused_hello_is_final_unless_it_may_be_tried_again() -> None:
    session = new()
    session.link_up(0.0)
    assert session.receive(Refused(0, "access.flood", "too many", 1.0), 0.0) == []
    (out,) = session.receive(Refused(0, "access.forbidden", "another mesh"), 0.0)
    assert isinstance(out, Rejected)
    assert out.code == "access.forbidden"


def test_nothing_is_due_without_a_link() -> None:
    session = up()
    session.link_down()
    assert not session.is_up
    assert session.next_deadline() == float("inf")
    assert session.tick(1e6) == []


# ------------------------------------------------------------------------- staying


def test_signs_of_life_are_sent_and_silence_is_noticed() -> None:
    session = up()
    assert session.next_deadline() == pytest.approx(3.0)
    assert sent(session.tick(3.0), Watch) == [Watch([])]
    session.receive(Beat(1), 3.0)
    assert session.tick(3.1) == []
    session.tick(6.0)
    assert not any(isinstance(output, Lost) for output in session.tick(12.9))
    assert any(isinstance(output, Lost) for output in session.tick(13.1))


def test_a_goodbye_ends_the_link() -> None:
    (out,) = up().receive(Goodbye("drained"), 1.0)
    assert out == Lost("drained", brain.LEAVING_S)


def test_rehello_says_hello_and_the_welcome_repeats_all_that_is_open() -> None:
    session = up()
    session.submit(submission(0, 2), 0.0)
    session.receive(Accepted(1, SESSION, 0), 0.0)
    session.submit(submission(2), 0.0)
    session.ask(Query(9, "stats", {}), 0.0)
    assert sent(session.receive(Rehello("who?"), 1.0), ClientHello)
    assert not session.is_up
    out = session.receive(welcome(2), 1.0)
    (submit,) = sent(out, Submit)
    assert (submit.seq, submit.first) == (2, 2)
    assert sent(out, Watch) == [Watch([f"{SESSION}-0", f"{SESSION}-1"])]
    assert sent(out, Query) == [Query(9, "stats", {})]


def test_another_epoch_in_a_beat_asks_for_what_is_awaited() -> None:
    session = up()
    session.submit(submission(0), 0.0)
    session.receive(Accepted(1, SESSION, 0), 0.0)
    assert session.receive(Beat(1), 1.0) == []
    assert sent(session.receive(Beat(2), 1.0), Watch) == [Watch([f"{SESSION}-0"])]


# ---------------------------------------------------------------------- submitting


def test_few_submits_are_under_way_at_once_and_the_others_keep_their_order() -> None:
    session = up()
    limit = brain.MAX_UNACKNOWLEDGED
    out = [output for n in range(limit + 3) for output in session.submit(submission(n), 0.0)]
    assert [submit.first for submit in sent(out, Submit)] == list(range(limit))
    assert not session.has_room
    out = session.receive(Accepted(1, SESSION, 0), 0.0)
    assert isinstance(out[0], Settled)
    assert [submit.first for submit in sent(out, Submit)] == [limit]
    session.check()


def test_an_unanswered_submit_is_sent_again_unchanged() -> None:
    session = up()
    (first,) = sent(session.submit(submission(0), 0.0), Submit)
    for now in (3.0, 6.0, 9.0):
        session.receive(Beat(1), now)
        assert sent(session.tick(now), Submit) == []
    session.receive(Beat(1), 10.5)
    assert sent(session.tick(10.5), Submit) == [first]


def test_the_same_acknowledgement_twice_is_nothing_new() -> None:
    session = up()
    session.submit(submission(0), 0.0)
    assert session.receive(Accepted(1, SESSION, 0), 0.0)
    assert session.receive(Accepted(1, SESSION, 0), 0.0) == []


def test_a_refusal_for_good_settles_and_nothing_is_awaited() -> None:
    session = up()
    mine = submission(0)
    session.submit(mine, 0.0)
    refusal = Refused(1, "task.invalid", "bad")
    assert session.receive(refusal, 0.0) == [Settled(mine)]
    assert mine.refusal is refusal
    assert sent(session.receive(Beat(2), 0.0), Watch) == []
    session.link_down()
    session.link_up(1.0)
    assert sent(session.receive(welcome(), 1.0), Submit) == []


def test_a_full_queue_is_probed_by_one_submit_and_the_order_stays() -> None:
    session = up()
    for n in range(5):
        session.submit(submission(n), 0.0)
    for seq in (2, 1, 3, 4, 5):
        assert session.receive(Refused(seq, "queue.full", "full", 1.0), 0.0) == []
    assert not session.has_room
    assert session.tick(0.9) == []
    probe = sent(session.tick(1.0), Submit)
    assert [submit.first for submit in probe] == [0]
    out = session.receive(Accepted(probe[0].seq, SESSION, 0), 1.1)
    assert [submit.first for submit in sent(out, Submit)] == [1, 2]


def test_what_may_not_wait_for_room_is_refused_with_the_reason_in_time() -> None:
    session = up()
    patient, hasty, behind = submission(0), submission(1), submission(2)
    hasty.give_up = behind.give_up = 0.7
    session.submit(patient, 0.0)
    session.submit(hasty, 0.0)
    session.receive(Refused(1, "queue.full", "full", 5.0), 0.0)
    session.receive(Refused(2, "queue.full", "full", 5.0), 0.0)
    session.submit(behind, 0.1)
    assert session.next_deadline() <= 0.5
    assert session.tick(0.5) == []
    assert session.tick(0.9) == [Settled(hasty), Settled(behind)]
    assert behind.refusal is not None
    assert behind.refusal.code == "queue.full"
    assert not patient.is_settled
    session.receive(Beat(1), 5.0)
    assert [submit.first for submit in sent(session.tick(5.0), Submit)] == [0]


def test_a_submit_past_its_time_takes_the_first_no_for_an_answer() -> None:
    session = up()
    mine = submission(0)
    mine.give_up = 0.0
    session.submit(mine, 1.0)
    assert session.receive(Refused(1, "queue.full", "full", 1.0), 1.0) == [Settled(mine)]


def test_what_nobody_watches_is_only_acknowledged() -> None:
    session = up()
    mine = submission(0)
    mine.is_watched = False
    (submit,) = sent(session.submit(mine, 0.0), Submit)
    assert not submit.is_watched
    assert session.receive(Accepted(1, SESSION, 0), 0.0) == [Settled(mine)]
    assert session.receive(outcomes(f"{SESSION}-0"), 0.0) == []


def test_a_repeated_key_awaits_the_tasks_of_the_first_time() -> None:
    session = up()
    mine = submission(0, 2)
    mine.key = "k"
    session.submit(mine, 0.0)
    out = session.receive(Accepted(1, OTHER, 7, True), 0.0)
    assert sent(out, Watch) == [Watch([f"{OTHER}-7", f"{OTHER}-8"])]
    session.receive(outcomes(f"{OTHER}-8"), 0.0)
    session.receive(outcomes(f"{OTHER}-7"), 0.0)
    assert mine.is_repeat
    assert mine.missing == 0
    assert mine.task_id(1) == f"{OTHER}-8"


# -------------------------------------------------------------------------- awaiting


def test_outcomes_arrive_in_their_submissions_in_any_order_and_once() -> None:
    session = up()
    one, two = submission(0, 3), submission(3, 2)
    session.submit(one, 0.0)
    session.submit(two, 0.0)
    ids = [f"{SESSION}-{n}" for n in (4, 0, 2, 3)]
    arrived = [o.submission for o in session.receive(outcomes(*ids), 0.0) if isinstance(o, Arrived)]
    assert {id(p) for p in arrived} == {id(one), id(two)}
    assert session.receive(outcomes(*ids), 0.0) == []
    assert (one.missing, two.missing) == (1, 0)
    session.check()
    assert session.receive(outcomes(f"{SESSION}-1"), 0.0) == [Arrived(one)]
    assert session.receive(outcomes(f"{SESSION}-1", f"{SESSION}-99"), 0.0) == []


@pytest.mark.parametrize(
    "message",
    [
        outcomes(f"{SESSION}-x9"),
        outcomes(f"{SESSION}-", state=0),
        outcomes(f"{SESSION}-1", state=0),
    ],
)
def test_impossible_outcomes_break_nothing(message: Outcomes) -> None:
    session = up()
    session.submit(submission(0, 2), 0.0)
    with pytest.raises(ProtocolError):
        session.receive(message, 0.0)
    session.check()


def test_any_task_can_be_awaited_by_several() -> None:
    session = up()
    one, two = awaiting(f"{OTHER}-5"), awaiting(f"{OTHER}-5")
    assert sent(session.watch(one), Watch) == [Watch([f"{OTHER}-5"])]
    session.watch(two)
    out = session.receive(outcomes(f"{OTHER}-5", state=UNKNOWN_STATE), 0.0)
    assert len(out) == 2
    assert one.states == two.states == bytes([UNKNOWN_STATE])


def test_the_last_who_waits_no_longer_tells_the_broker() -> None:
    session = up()
    one, two = awaiting(f"{OTHER}-5"), awaiting(f"{OTHER}-5")
    session.watch(one)
    session.watch(two)
    assert session.unwatch(one) == []
    assert session.unwatch(one) == []
    assert sent(session.unwatch(two), Unwatch) == [Unwatch([f"{OTHER}-5"])]


def test_an_own_task_stays_awaited_when_a_single_wait_for_it_ends() -> None:
    session = up()
    session.submit(submission(0), 0.0)
    single = awaiting(f"{SESSION}-0")
    session.watch(single)
    assert session.unwatch(single) == []


def test_what_is_accepted_at_the_second_try_is_asked_for() -> None:
    """The first acknowledgement was lost, and the outcome with it, perhaps."""
    session, tried = up(), submission(0, 2)
    session.submit(tried, 1.0)
    session.link_up(2.0)
    (again,) = sent(session.receive(welcome(2), 2.0), Submit)
    (watch,) = sent(session.receive(Accepted(again.seq, SESSION, 0), 2.0), Watch)
    assert watch.ids == [f"{SESSION}-0", f"{SESSION}-1"]
    (fresh,) = sent(session.submit(submission(2), 3.0), Submit)
    assert sent(session.receive(Accepted(fresh.seq, SESSION, 2), 3.0), Watch) == []


def test_what_is_abandoned_is_neither_sent_nor_awaited() -> None:
    session = new()
    unsent, unanswered, accepted = submission(0), submission(1), submission(2)
    session.submit(unsent, 0.0)
    session.abandon(unsent)
    session.link_up(1.0)
    assert sent(session.receive(welcome(), 1.0), Submit) == []
    for each in (unanswered, accepted):
        (submit,) = sent(session.submit(each, 1.0), Submit)
        if each is accepted:
            session.receive(Accepted(submit.seq, SESSION, each.first), 1.0)
        was_bound = session.is_bound
        session.abandon(each)
        assert was_bound
        assert not session.is_bound
        session.check()
    assert session.receive(Accepted(1, SESSION, unanswered.first), 1.0) == []
    late = Outcomes([f"{SESSION}-1", f"{SESSION}-2"], bytes([COMPLETED_STATE] * 2), [b"", b""])
    assert session.receive(late, 1.0) == []
    session.link_up(2.0)
    assert sent(session.receive(welcome(2), 2.0), Submit) == []


def test_what_is_awaited_is_asked_for_again_in_rounds_of_bounded_messages() -> None:
    session = up()
    count = MAX_BATCH_TASKS
    for n in range(3):
        session.submit(submission(n * count, count), 0.0)
        session.receive(Accepted(n + 1, SESSION, n * count), 0.0)
    session.receive(outcomes(f"{SESSION}-0"), 0.0)
    asked: list[str] = []
    now = 0.0
    while now < REWATCH_S + 15:
        now += 3.0
        session.receive(Beat(1), now)
        (watch,) = sent(session.tick(now), Watch)
        assert len(watch.ids) <= count
        if now < REWATCH_S:
            assert watch.ids == []
        asked += watch.ids
    assert len(asked) == len(set(asked)) == 3 * count - 1


# -------------------------------------------------------------- questions, listening


def test_a_question_is_answered_once_and_asked_again_in_doubt() -> None:
    session = up()
    question = Query(4, "stats", {})
    assert sent(session.ask(question, 0.0), Query) == [question]
    for now in (3.0, 6.0, 9.0):
        session.receive(Beat(1), now)
        assert sent(session.tick(now), Query) == []
    session.receive(Beat(1), 10.5)
    assert sent(session.tick(10.5), Query) == [question]
    assert session.receive(Answer(4, "", {"a": 1}), 10.6) == [Answered(4, "", {"a": 1})]
    assert session.receive(Answer(4, "", {"a": 1}), 10.7) == []


def test_polls_that_wait_hold_up_no_other_question() -> None:
    session = up()
    for n in range(1, MAX_ASKED + 1):
        assert sent(session.ask(Query(n, "poll.next", {}), 0.0), Query)
    health = Query(1000, "health", {})
    assert sent(session.ask(health, 0.0), Query) == [health]


def test_few_questions_are_under_way_at_once_and_each_answer_brings_the_next() -> None:
    session = up()
    questions = [Query(n, "stats", {}) for n in range(1, MAX_ASKED + 4)]
    out = [output for question in questions for output in session.ask(question, 0.0)]
    assert sent(out, Query) == questions[:MAX_ASKED]
    assert session.tick(0.1) == []
    assert session.receive(Answer(7, "", {}), 0.2) == [Answered(7, "", {})]
    session.forget_ask(questions[MAX_ASKED].request)
    assert sent(session.tick(0.2), Query) == [questions[MAX_ASKED + 1]]
    session.link_down()
    session.link_up(1.0)
    out = session.receive(welcome(), 1.0)
    assert len(sent(out, Query)) == MAX_ASKED
    session.forget_ask(1)
    assert sent(session.tick(1.1), Query) == [questions[-1]]
    assert session.is_bound


def test_what_is_awaited_one_by_one_is_asked_for_together() -> None:
    session = up()
    singles = [awaiting(f"{OTHER}-{n}") for n in range(MAX_BATCH_TASKS + 1)]
    watches = [output for single in singles for output in session.watch(single)]
    listen, *_ = session.listen(f"{OTHER}-5", is_on=True)
    beat = Transmit(Watch([]))
    whole = merged([*watches[:2], listen, beat, *watches])
    ids = [f"{OTHER}-{n}" for n in range(MAX_BATCH_TASKS + 1)]
    parts = [Transmit(Watch(part)) for part in (ids[:2], ids[:-1], ids[-1:])]
    assert whole == [parts[0], listen, beat, *parts[1:]]
    assert merged(watches[:1]) == watches[:1]


def test_an_answer_nobody_waits_for_is_dropped() -> None:
    session = up()
    session.ask(Query(4, "stats", {}), 0.0)
    session.forget_ask(4)
    assert session.receive(Answer(4, "", {}), 0.0) == []


def test_output_is_heard_while_somebody_listens() -> None:
    session = up()
    stream = Stream(f"{OTHER}-5", 1, 0, [b"\xa1x"])
    assert session.receive(stream, 0.0) == []
    assert sent(session.listen(f"{OTHER}-5", is_on=True), Listen)
    assert session.receive(stream, 0.0) == [Heard(stream)]
    session.listen(f"{OTHER}-5", is_on=False)
    assert session.receive(stream, 0.0) == []


def listened(first: int, count: int = 1) -> Submission:
    made = submission(first, count)
    made.is_listened = True
    return made


def test_what_is_listened_to_from_the_submit_on_is_heard_before_the_acknowledgement() -> None:
    session = up()
    (submit,) = sent(session.submit(listened(0, 2), 1.0), Submit)
    assert submit.is_listened
    first, second = f"{SESSION}-0", f"{SESSION}-1"
    piece = Stream(first, 1, 0, [b"\xa1a"])
    assert session.receive(piece, 1.0) == [Heard(piece)]
    session.receive(Accepted(submit.seq, SESSION, 0, False, ["odd"]), 1.0)
    out = session.receive(outcomes(first), 1.0)
    assert out[0] == Silent([first])
    assert session.receive(piece, 1.0) == []
    session.link_down()
    session.link_up(2.0)
    assert sent(session.receive(welcome(), 2.0), Listen) == [Listen(second, True)]


def test_a_repeated_key_listens_to_the_tasks_of_the_first_time() -> None:
    session = up()
    mine = listened(7)
    mine.key = "k"
    (submit,) = sent(session.submit(mine, 1.0), Submit)
    out = session.receive(Accepted(submit.seq, OTHER, 3, True), 1.0)
    assert sent(out, Listen) == [Listen(f"{OTHER}-3", True)]
    assert mine.warnings == ()
    piece = Stream(f"{OTHER}-3", 1, 5, [b"\xa1a"])
    assert session.receive(piece, 1.0) == [Heard(piece)]


def test_what_was_refused_is_not_listened_to() -> None:
    session = up()
    (submit,) = sent(session.submit(listened(0), 1.0), Submit)
    session.receive(Refused(submit.seq, "task.invalid", "no"), 1.0)
    assert session.receive(Stream(f"{SESSION}-0", 1, 0, [b"\xa1a"]), 1.0) == []


def test_the_warnings_of_a_submit_are_kept_with_it() -> None:
    session = up()
    mine = submission(0)
    (submit,) = sent(session.submit(mine, 1.0), Submit)
    session.receive(Accepted(submit.seq, SESSION, 0, False, ["nobody"]), 1.0)
    assert mine.warnings == ("nobody",)


def test_a_session_tells_its_name_what_holds_it_up_and_when_to_doubt() -> None:
    session = new()
    assert (session.name, session.paused_for) == (SESSION, "")
    assert session.doubt_at == float("inf")
    session.link_up(5.0)
    session.receive(welcome(), 5.0)
    assert session.doubt_at == 5.0 + 3.0 + DOUBT_S
    session.submit(submission(0), 5.0)
    session.receive(Refused(1, "queue.full", "the queue is full", 1.0), 5.0)
    assert session.paused_for == "the queue is full"


def test_what_was_delivered_in_one_turn_is_one_message_said_again_until_it_is_acknowledged() -> (
    None
):
    session = up()
    for n in range(3):
        assert session.deliver(f"{SESSION}-{n}", b"\x80", 0.0) == []
    assert session.is_bound
    assert session.undelivered() == {f"{SESSION}-{n}" for n in range(3)}
    (told,) = sent(session.tick(0.1), Delivered)
    assert told.ids == [f"{SESSION}-{n}" for n in range(3)]
    assert sent(session.tick(0.2), Delivered) == []
    assert sent(session.receive(Beat(1), 5.0) + session.tick(5.0), Delivered) == []
    session.receive(Beat(1), 0.1 + RESEND_S)
    assert sent(session.tick(0.1 + RESEND_S), Delivered) == [told]
    assert session.undelivered() == set(told.ids)
    session.receive(Received(told.seq), 10.2)
    assert not session.undelivered()
    assert not session.is_bound


def test_what_was_delivered_while_the_link_was_down_is_told_with_the_next_welcome() -> None:
    session = up()
    session.deliver(f"{SESSION}-0", b"\x80", 0.0)
    session.tick(0.1)
    session.link_down()
    session.deliver(f"{SESSION}-1", b"\x80", 600.0)
    assert sent(session.tick(1.0), Delivered) == []
    session.link_up(2.0)
    told = sent(session.receive(welcome(2), 2.1), Delivered)
    assert [(each.ids, each.keep_s) for each in told] == [
        ([f"{SESSION}-0"], 0.0),
        ([f"{SESSION}-1"], 600.0),
    ]
