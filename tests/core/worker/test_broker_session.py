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
from d8mesh.core.worker.effects import KeptResult, OutputPiece


def filled(count: int) -> BrokerSession:
    broker = BrokerSession("a")
    for n in range(count):
        broker.collect(f"t{n}", bytes([n % 256]), SUCCEEDED, b"xy")
    return broker


def test_results_are_bundled_up_to_a_message() -> None:
    broker = filled(MAX_BATCH_TASKS + 1)
    assert [len(batch.ids) for batch in broker.waiting] == [MAX_BATCH_TASKS, 1]
    broker.collect("large", b"t", SUCCEEDED, b"x" * SOFT_FRAME_BYTES)
    broker.collect("next", b"t", SUCCEEDED, b"x")
    assert [len(batch.ids) for batch in broker.waiting] == [MAX_BATCH_TASKS, 1, 1, 1]


def test_a_largest_result_after_small_ones_travels_alone() -> None:
    broker = filled(3)
    broker.collect("large", b"t", SUCCEEDED, bytes(MAX_PAYLOAD_BYTES))
    assert [batch.ids for batch in broker.waiting] == [["t0", "t1", "t2"], ["large"]]


def pieces(*sizes: int) -> list[OutputPiece]:
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
    broker = BrokerSession("a", is_welcome=True)
    for _, task_id, token, number, payload in pieces(*sizes):
        broker.keep_piece(task_id, token, number, payload)
    messages = list(broker.take_pieces())
    assert not list(broker.take_pieces())
    assert [len(message.ids) for message in messages] == counts
    assert [n for message in messages for n in message.seqs] == list(range(len(sizes)))
    assert all(len(encode(message)) <= MAX_FRAME_BYTES for message in messages)


def test_all_that_is_held_is_told() -> None:
    broker = filled(2)
    broker.open = {"running": b"r"}
    broker.unacknowledged[1] = broker.waiting.pop()
    broker.collect("new", b"n", SUCCEEDED, b"x")
    assert broker.held() == (["running", "t0", "t1", "new"], [b"r", b"\0", b"\1", b"n"])


def test_what_is_not_acknowledged_in_time_is_sent_again() -> None:
    broker = filled(1)
    broker.unacknowledged[7] = broker.waiting.pop()
    broker.unacknowledged[7].sent = 5.0
    broker.take_back_unacknowledged(4.0)
    assert list(broker.unacknowledged) == [7]
    broker.take_back_unacknowledged(5.0)
    assert (list(broker.unacknowledged), broker.waiting[0].ids) == ([], ["t0"])


def test_dropped_results_leave_and_the_others_stay() -> None:
    broker = filled(3)
    broker.unacknowledged[1] = broker.waiting.pop()
    broker.collect("t9", b"n", SUCCEEDED, b"x")
    gone = broker.drop({"t1", "t9", "unknown"})
    assert sorted(gone.ids) == ["t1", "t9"]
    assert [list(batch.rows()) for batch in broker.batches()] == [
        [("t0", b"\0", SUCCEEDED, b"xy"), ("t2", b"\2", SUCCEEDED, b"xy")]
    ]
    assert broker.unacknowledged[1].size == 4


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
    owed = [KeptResult(each, f"of {each}", b"t", SUCCEEDED, b"") for each in ("a", "b")]
    assert hello(me, 1, BrokerSession("x", broker_id="a"), owed).held_ids == ["of a"]
    assert hello(me, 1, BrokerSession("x"), owed).held_ids == ["of a", "of b"]
    full = BrokerSession("x", open={f"t{n}": b"" for n in range(MAX_BATCH_TASKS)})
    assert len(hello(me, 1, full, owed).held_ids) == MAX_BATCH_TASKS


def test_dropping_leaves_batches_of_others_alone() -> None:
    broker = filled(2)
    other = broker.waiting[0]
    broker.unacknowledged[1] = filled(1).waiting[0]
    broker.waiting = [ResultBatch(["t9"], [b"z"], bytearray([SUCCEEDED]), [b"x"], 1)]
    gone = broker.drop({"t0"})
    assert (gone.ids, broker.unacknowledged, broker.waiting[0].ids) == (["t0"], {}, ["t9"])
    assert other.ids == ["t0", "t1"]


def test_the_first_reason_why_a_session_fell_counts_and_of_none_there_is_none() -> None:
    never = BrokerSession("a")
    never.lose("refused")
    assert never.lost == ""
    known = BrokerSession("a", is_welcome=True)
    known.broker_id = "orch-1"
    known.lose("silence")
    known.lose("closed")
    assert (known.lost, known.is_welcome) == ("silence", False)
