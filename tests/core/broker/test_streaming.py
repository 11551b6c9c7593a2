"""Partial output: passed on together, and caught up with after a full connection."""

from __future__ import annotations

from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.streaming import CATCH_UP_S
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.task import TaskState
from tests.core.wired_broker import WiredBroker


def listened(broker: WiredBroker) -> tuple[Peer, Peer, str, bytes]:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client, is_listened=True)
    return client, worker, task_id, broker.work(worker)[task_id]


def chunks(task_id: str, token: bytes, *seqs: int) -> m.Chunks:
    count = len(seqs)
    return m.Chunks([task_id] * count, [token] * count, list(seqs), [bytes([n]) for n in seqs])


def test_what_comes_together_goes_on_together(broker: WiredBroker) -> None:
    client, worker, task_id, token = listened(broker)
    broker.say(worker, chunks(task_id, token, 0, 1, 2, 5, 6))
    assert broker.got(client, m.Stream) == [
        m.Stream(task_id, 1, 0, [b"\x00", b"\x01", b"\x02"]),
        m.Stream(task_id, 1, 5, [b"\x05", b"\x06"]),
    ]


def test_what_goes_on_together_is_bounded_for_it_may_wait_for_a_slow_reader(
    broker: WiredBroker,
) -> None:
    client, worker, task_id, token = listened(broker)
    quarter = bytes(m.MAX_STREAM_BYTES // 4)
    broker.say(worker, m.Chunks([task_id] * 6, [token] * 6, list(range(6)), [quarter] * 6))
    runs = [(run.first_seq, len(run.payloads)) for run in broker.got(client, m.Stream)]
    assert runs == [(0, 4), (4, 2)]


def test_what_is_kept_for_later_has_its_own_numbers_though_pieces_are_missing(
    broker: WiredBroker,
) -> None:
    client, worker, task_id, token = listened(broker)
    broker.say(worker, chunks(task_id, token, 0, 1, 7, 8))
    broker.got(client, m.Stream)
    late = broker.client()
    broker.say(late, m.Listen(task_id, True))
    assert broker.got(late, m.Stream) == [m.Stream(task_id, 1, 7, [b"\x07", b"\x08"])]


def test_who_could_not_be_sent_a_piece_gets_it_a_moment_later(broker: WiredBroker) -> None:
    client, worker, task_id, token = listened(broker)
    broker.say(worker, chunks(task_id, token, 0))
    (missed,) = broker.got(client, m.Stream)
    for _ in range(2):
        broker.perform(broker.dispatcher.undelivered(client, missed))
    broker.say(worker, chunks(task_id, token, 1))
    assert broker.got(client, m.Stream) == []
    broker.pass_time(CATCH_UP_S)
    assert broker.got(client, m.Stream) == [m.Stream(task_id, 1, 0, [b"\x00", b"\x01"])]
    broker.say(worker, chunks(task_id, token, 2))
    assert broker.got(client, m.Stream) == [m.Stream(task_id, 1, 2, [b"\x02"])]


def test_what_was_missed_comes_before_the_end(broker: WiredBroker) -> None:
    client, worker, task_id, token = listened(broker)
    broker.say(worker, chunks(task_id, token, 0))
    (missed,) = broker.got(client, m.Stream)
    broker.perform(broker.dispatcher.undelivered(client, missed))
    broker.finish(worker, {task_id: token})
    kinds = [type(message) for peer, message, _ in broker.sent if peer == client]
    assert kinds[-2:] == [m.Stream, m.Outcomes]
    broker.pass_time(1)  # nobody is behind any more


def test_of_a_finished_task_nothing_is_kept(broker: WiredBroker) -> None:
    client, worker, task_id, token = listened(broker)
    broker.say(worker, chunks(task_id, token, 0))
    assert len(broker.got(client, m.Stream)) == 1
    broker.finish(worker, {task_id: token})
    assert broker.dispatcher._streaming._tails == {}


def test_who_is_gone_or_listens_no_more_is_behind_nothing(broker: WiredBroker) -> None:
    client, worker, task_id, token = listened(broker)
    broker.say(worker, chunks(task_id, token, 0))
    (missed,) = broker.got(client, m.Stream)
    broker.perform(broker.dispatcher.undelivered(Peer(b"nobody"), missed))
    broker.perform(broker.dispatcher.undelivered(client, missed))
    broker.say(client, m.Listen(task_id, False))
    broker.pass_time(1)
    broker.perform(broker.dispatcher.undelivered(client, missed))
    assert broker.got(client, m.Stream) == []


def test_who_heard_some_of_an_attempt_is_told_at_once_that_it_has_broken_off(
    broker: WiredBroker,
) -> None:
    client, worker, task_id, token = listened(broker)
    broker.say(worker, chunks(task_id, token, 0))
    broker.say(worker, m.Results(1, 4, [task_id], [token], bytes([m.FAILED]), [b"\x80"]))
    assert broker.got(client, m.Stream) == [
        m.Stream(task_id, 1, 0, [b"\x00"]),
        m.Stream(task_id, 2, 0, []),
    ]


def test_who_has_heard_nothing_of_an_attempt_is_not_told_that_it_broke_off(
    broker: WiredBroker,
) -> None:
    client, worker, task_id, token = listened(broker)
    broker.say(worker, m.Results(1, 4, [task_id], [token], bytes([m.FAILED]), [b"\x80"]))
    assert broker.got(client, m.Stream) == []


def test_what_was_cut_off_and_begins_anew_elsewhere_is_told_when_it_speaks(
    broker: WiredBroker,
) -> None:
    client, worker, task_id, token = listened(broker)
    broker.say(worker, chunks(task_id, token, 0, 1))
    broker.got(client, m.Stream)
    while broker.task_table.state_of(task_id) is TaskState.RUNNING:
        broker.pass_time(1)  # nobody is heard: the first worker may still go on with it
    other = broker.worker("other")
    held = broker.work(other)
    assert broker.got(client, m.Stream) == []
    broker.say(other, chunks(task_id, held[task_id], 0))
    assert broker.got(client, m.Stream) == [
        m.Stream(task_id, 2, 0, []),
        m.Stream(task_id, 2, 0, [b"\x00"]),
    ]


def test_who_leaves_before_the_output_is_sent_together_is_sent_none(broker: WiredBroker) -> None:
    client, worker = broker.client(takes_streams=True), broker.worker("w")
    (task_id,) = broker.submit(client, is_listened=True)
    output = chunks(task_id, broker.work(worker)[task_id], 0)
    for message, peer in ((output, worker), (m.Goodbye("done"), client)):
        broker.perform(broker.dispatcher.receive(message, peer, broker.now))
    broker.pass_time(1)
    assert broker.got(client, m.Stream) == []
    assert broker.got(client, m.Streams) == []


def test_who_says_so_is_sent_the_output_of_several_tasks_together(broker: WiredBroker) -> None:
    client, worker = broker.client(takes_streams=True), broker.worker("w", window=4)
    first, second = broker.submit(client, count=2, is_listened=True)
    tokens = broker.work(worker)
    both = m.Chunks([first, second], [tokens[first], tokens[second]], [0, 0], [b"\x01", b"\x02"])
    broker.say(worker, both)
    (together,) = broker.got(client, m.Streams)
    assert together.streams == [
        m.Stream(first, 1, 0, [b"\x01"]),
        m.Stream(second, 1, 0, [b"\x02"]),
    ]
    broker.say(worker, chunks(first, tokens[first], 1))
    assert broker.got(client, m.Stream) == [m.Stream(first, 1, 1, [b"\x01"])]
    broker.perform(broker.dispatcher.undelivered(client, together))
    broker.pass_time(CATCH_UP_S)
    assert [each.id for each in broker.got(client, m.Stream)] == sorted([first, second])


def test_what_is_sent_together_is_bounded(broker: WiredBroker) -> None:
    client, worker = broker.client(takes_streams=True), broker.worker("w", window=4)
    ids = broker.submit(client, count=3, is_listened=True)
    tokens, half = broker.work(worker), bytes(m.MAX_STREAM_BYTES // 2)
    broker.say(worker, m.Chunks(ids, [tokens[each] for each in ids], [0] * 3, [half] * 3))
    (together,) = broker.got(client, m.Streams)
    assert len(together.streams) == 2
    assert len(broker.got(client, m.Stream)) == 1
