"""Partial output: passed on together, and caught up with after a full connection."""

from __future__ import annotations

from d8mesh.core import messages as m
from d8mesh.core.effects import Peer
from d8mesh.core.streaming import CATCH_UP_S
from tests.core.desktop import Desktop


def listened(desk: Desktop) -> tuple[Peer, Peer, str, bytes]:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client, is_listened=True)
    return client, worker, task_id, desk.work(worker)[task_id]


def chunks(task_id: str, token: bytes, *seqs: int) -> m.Chunks:
    count = len(seqs)
    return m.Chunks([task_id] * count, [token] * count, list(seqs), [bytes([n]) for n in seqs])


def test_what_comes_together_goes_on_together(desk: Desktop) -> None:
    client, worker, task_id, token = listened(desk)
    desk.say(worker, chunks(task_id, token, 0, 1, 2, 5, 6))
    assert desk.got(client, m.Stream) == [
        m.Stream(task_id, 1, 0, [b"\x00", b"\x01", b"\x02"]),
        m.Stream(task_id, 1, 5, [b"\x05", b"\x06"]),
    ]


def test_what_goes_on_together_is_bounded_for_it_may_wait_for_a_slow_reader(desk: Desktop) -> None:
    client, worker, task_id, token = listened(desk)
    quarter = bytes(m.MAX_STREAM_BYTES // 4)
    desk.say(worker, m.Chunks([task_id] * 6, [token] * 6, list(range(6)), [quarter] * 6))
    runs = [(run.first_seq, len(run.payloads)) for run in desk.got(client, m.Stream)]
    assert runs == [(0, 4), (4, 2)]


def test_what_is_kept_for_later_has_its_own_numbers_though_pieces_are_missing(
    desk: Desktop,
) -> None:
    client, worker, task_id, token = listened(desk)
    desk.say(worker, chunks(task_id, token, 0, 1, 7, 8))
    desk.got(client, m.Stream)
    late = desk.client()
    desk.say(late, m.Listen(task_id, True))
    assert desk.got(late, m.Stream) == [m.Stream(task_id, 1, 7, [b"\x07", b"\x08"])]


def test_who_could_not_be_sent_a_piece_gets_it_a_moment_later(desk: Desktop) -> None:
    client, worker, task_id, token = listened(desk)
    desk.say(worker, chunks(task_id, token, 0))
    (missed,) = desk.got(client, m.Stream)
    for _ in range(2):
        desk.perform(desk.dispatcher.undelivered(client, missed))
    desk.say(worker, chunks(task_id, token, 1))
    assert desk.got(client, m.Stream) == []
    desk.pass_time(CATCH_UP_S)
    assert desk.got(client, m.Stream) == [m.Stream(task_id, 1, 0, [b"\x00", b"\x01"])]
    desk.say(worker, chunks(task_id, token, 2))
    assert desk.got(client, m.Stream) == [m.Stream(task_id, 1, 2, [b"\x02"])]


def test_what_was_missed_comes_before_the_end(desk: Desktop) -> None:
    client, worker, task_id, token = listened(desk)
    desk.say(worker, chunks(task_id, token, 0))
    (missed,) = desk.got(client, m.Stream)
    desk.perform(desk.dispatcher.undelivered(client, missed))
    desk.finish(worker, {task_id: token})
    kinds = [type(message) for peer, message, _ in desk.sent if peer == client]
    assert kinds[-2:] == [m.Stream, m.Outcomes]
    desk.pass_time(1)  # nobody is behind any more


def test_of_a_finished_task_nothing_is_kept(desk: Desktop) -> None:
    client, worker, task_id, token = listened(desk)
    desk.say(worker, chunks(task_id, token, 0))
    assert len(desk.got(client, m.Stream)) == 1
    desk.finish(worker, {task_id: token})
    assert desk.dispatcher._streaming._tails == {}


def test_who_is_gone_or_listens_no_more_is_behind_nothing(desk: Desktop) -> None:
    client, worker, task_id, token = listened(desk)
    desk.say(worker, chunks(task_id, token, 0))
    (missed,) = desk.got(client, m.Stream)
    desk.perform(desk.dispatcher.undelivered(Peer(b"nobody"), missed))
    desk.perform(desk.dispatcher.undelivered(client, missed))
    desk.say(client, m.Listen(task_id, False))
    desk.pass_time(1)
    desk.perform(desk.dispatcher.undelivered(client, missed))
    assert desk.got(client, m.Stream) == []
