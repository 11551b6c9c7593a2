"""A link's books: what is held, what awaits acknowledgement."""

from __future__ import annotations

import pytest

from d8mesh.core.protocol.codec import encode
from d8mesh.core.protocol.messages import (
    MAX_BATCH_TASKS,
    MAX_FRAME_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_STREAM_BYTES,
    SOFT_FRAME_BYTES,
    SUCCEEDED,
)
from d8mesh.core.worker.broker_session import BrokerSession, Profile, ResultBatch, hello
from d8mesh.core.worker.effects import KeptResult, Piece


def filled(count: int) -> BrokerSession:
    broker_session = BrokerSession("a")
    for n in range(count):
        broker_session.collect(f"t{n}", bytes([n % 256]), SUCCEEDED, b"xy")
    return broker_session


def test_results_are_bundled_up_to_a_message() -> None:
    broker_session = filled(MAX_BATCH_TASKS + 1)
    assert [len(result_batch.ids) for result_batch in broker_session.waiting] == [
        MAX_BATCH_TASKS,
        1,
    ]
    broker_session.collect("large", b"t", SUCCEEDED, b"x" * SOFT_FRAME_BYTES)
    broker_session.collect("next", b"t", SUCCEEDED, b"x")
    assert [len(result_batch.ids) for result_batch in broker_session.waiting] == [
        MAX_BATCH_TASKS,
        1,
        1,
        1,
    ]


def test_a_largest_result_after_small_ones_travels_alone() -> None:
    broker_session = filled(3)
    broker_session.collect("large", b"t", SUCCEEDED, bytes(MAX_PAYLOAD_BYTES))
    assert [result_batch.ids for result_batch in broker_session.waiting] == [
        ["t0", "t1", "t2"],
        ["large"],
    ]


def pieces(*sizes: int) -> list[Piece]:
    task_id, token = "0123456789abcdef-1234567890123", bytes(16)
    return [("a", task_id, token, n, bytes(size)) for n, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [
        ((1, 2, 3), [3]),
        ((MAX_STREAM_BYTES, 1), [1, 1]),
        ((MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES, 1), [1, 1, 1]),
        ((1, MAX_PAYLOAD_BYTES, 1, 1), [1, 1, 2]),
        ((MAX_STREAM_BYTES // 4,) * 9, [4, 4, 1]),
        ((1,) * (MAX_BATCH_TASKS + 1), [MAX_BATCH_TASKS, 1]),
    ],
)
def test_partial_output_is_cut_into_messages_that_fit_a_frame(
    sizes: tuple[int, ...], counts: list[int]
) -> None:
    broker_session = BrokerSession("a", is_welcome=True)
    for _, task_id, token, number, payload in pieces(*sizes):
        broker_session.keep_piece(task_id, token, number, payload)
    messages = list(broker_session.take_pieces())
    assert not list(broker_session.take_pieces())
    assert [len(message.ids) for message in messages] == counts
    assert [n for message in messages for n in message.seqs] == list(range(len(sizes)))
    assert all(len(encode(message)) <= MAX_FRAME_BYTES for message in messages)


def test_all_that_is_held_is_told() -> None:
    broker_session = filled(2)
    broker_session.open = {"running": b"r"}
    broker_session.unacknowledged[1] = broker_session.waiting.pop()
    broker_session.collect("new", b"n", SUCCEEDED, b"x")
    assert broker_session.held() == (["running", "t0", "t1", "new"], [b"r", b"\0", b"\1", b"n"])


def test_what_is_not_acknowledged_in_time_is_sent_again() -> None:
    broker_session = filled(1)
    broker_session.unacknowledged[7] = broker_session.waiting.pop()
    broker_session.unacknowledged[7].sent = 5.0
    broker_session.take_back_unacknowledged(4.0)
    assert list(broker_session.unacknowledged) == [7]
    broker_session.take_back_unacknowledged(5.0)
    assert (list(broker_session.unacknowledged), broker_session.waiting[0].ids) == ([], ["t0"])


def test_dropped_results_leave_and_the_others_stay() -> None:
    broker_session = filled(3)
    broker_session.unacknowledged[1] = broker_session.waiting.pop()
    broker_session.collect("t9", b"n", SUCCEEDED, b"x")
    gone = broker_session.drop({"t1", "t9", "unknown"})
    assert sorted(gone.ids) == ["t1", "t9"]
    assert [list(result_batch.rows()) for result_batch in broker_session.result_batches()] == [
        [("t0", b"\0", SUCCEEDED, b"xy"), ("t2", b"\2", SUCCEEDED, b"xy")]
    ]
    assert broker_session.unacknowledged[1].size == 4


def test_a_hello_carries_the_profile_and_what_is_held() -> None:
    me = Profile(
        mesh="m", worker_id="w", boot_id="b", worker_type="t", machine_id="x", host="h",
        status_port=1, slots=2, task_types=("echo",), models=("llama",),
    )  # fmt: skip
    said = hello(me, 3, BrokerSession("a", open={"id": bytes(16)}), [])
    assert (said.worker_id, said.window, said.held_ids) == ("w", 3, ["id"])
    assert (said.task_types, said.models, said.slots) == (["echo"], ["llama"], 2)


def test_a_hello_tells_results_of_earlier_runs_that_may_be_this_brokers() -> None:
    me = Profile(
        mesh="m", worker_id="w", boot_id="b", worker_type="t", machine_id="x", host="h",
        status_port=1, slots=2,
    )  # fmt: skip
    owed = [KeptResult(broker, f"of {broker}", b"t", SUCCEEDED, b"") for broker in ("a", "b")]
    assert hello(me, 1, BrokerSession("x", broker_id="a"), owed).held_ids == ["of a"]
    assert hello(me, 1, BrokerSession("x"), owed).held_ids == ["of a", "of b"]
    full = BrokerSession("x", open={f"t{n}": b"" for n in range(MAX_BATCH_TASKS)})
    assert len(hello(me, 1, full, owed).held_ids) == MAX_BATCH_TASKS


def test_dropping_leaves_result_batches_of_others_alone() -> None:
    broker_session = filled(2)
    other = broker_session.waiting[0]
    broker_session.unacknowledged[1] = filled(1).waiting[0]
    broker_session.waiting = [ResultBatch(["t9"], [b"z"], bytearray([SUCCEEDED]), [b"x"], 1)]
    gone = broker_session.drop({"t0"})
    assert (gone.ids, broker_session.unacknowledged, broker_session.waiting[0].ids) == (
        ["t0"],
        {},
        ["t9"],
    )
    assert other.ids == ["t0", "t1"]
