"""A link's books: what is held, what awaits acknowledgement."""

from __future__ import annotations

import pytest

from d8mesh.core.codec import encode
from d8mesh.core.messages import (
    MAX_BATCH_TASKS,
    MAX_FRAME_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_STREAM_BYTES,
    SOFT_FRAME_BYTES,
    SUCCEEDED,
)
from d8mesh.core.worker_effects import Kept, Piece
from d8mesh.core.worker_line import Bundle, Line, Profile, hello


def filled(count: int) -> Line:
    line = Line("a")
    for n in range(count):
        line.collect(f"t{n}", bytes([n % 256]), SUCCEEDED, b"xy")
    return line


def test_results_are_bundled_up_to_a_message() -> None:
    line = filled(MAX_BATCH_TASKS + 1)
    assert [len(bundle.ids) for bundle in line.waiting] == [MAX_BATCH_TASKS, 1]
    line.collect("large", b"t", SUCCEEDED, b"x" * SOFT_FRAME_BYTES)
    line.collect("next", b"t", SUCCEEDED, b"x")
    assert [len(bundle.ids) for bundle in line.waiting] == [MAX_BATCH_TASKS, 1, 1, 1]


def test_a_largest_result_after_small_ones_travels_alone() -> None:
    line = filled(3)
    line.collect("large", b"t", SUCCEEDED, bytes(MAX_PAYLOAD_BYTES))
    assert [bundle.ids for bundle in line.waiting] == [["t0", "t1", "t2"], ["large"]]


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
    line = Line("a", is_welcome=True)
    for _, task_id, token, number, payload in pieces(*sizes):
        line.keep_piece(task_id, token, number, payload)
    messages = list(line.take_pieces())
    assert not list(line.take_pieces())
    assert [len(message.ids) for message in messages] == counts
    assert [n for message in messages for n in message.seqs] == list(range(len(sizes)))
    assert all(len(encode(message)) <= MAX_FRAME_BYTES for message in messages)


def test_all_that_is_held_is_told() -> None:
    line = filled(2)
    line.open = {"running": b"r"}
    line.unacknowledged[1] = line.waiting.pop()
    line.collect("new", b"n", SUCCEEDED, b"x")
    assert line.held() == (["running", "t0", "t1", "new"], [b"r", b"\0", b"\1", b"n"])


def test_what_is_not_acknowledged_in_time_is_sent_again() -> None:
    line = filled(1)
    line.unacknowledged[7] = line.waiting.pop()
    line.unacknowledged[7].sent = 5.0
    line.take_back_unacknowledged(4.0)
    assert list(line.unacknowledged) == [7]
    line.take_back_unacknowledged(5.0)
    assert (list(line.unacknowledged), line.waiting[0].ids) == ([], ["t0"])


def test_dropped_results_leave_and_the_others_stay() -> None:
    line = filled(3)
    line.unacknowledged[1] = line.waiting.pop()
    line.collect("t9", b"n", SUCCEEDED, b"x")
    gone = line.drop({"t1", "t9", "unknown"})
    assert sorted(gone.ids) == ["t1", "t9"]
    assert [list(bundle.rows()) for bundle in line.bundles()] == [
        [("t0", b"\0", SUCCEEDED, b"xy"), ("t2", b"\2", SUCCEEDED, b"xy")]
    ]
    assert line.unacknowledged[1].size == 4


def test_a_hello_carries_the_profile_and_what_is_held() -> None:
    me = Profile(
        mesh="m", worker_id="w", boot_id="b", worker_type="t", machine_id="x", host="h",
        status_port=1, slots=2, task_types=("echo",), models=("llama",),
    )  # fmt: skip
    said = hello(me, 3, Line("a", open={"id": bytes(16)}), [])
    assert (said.worker_id, said.window, said.held_ids) == ("w", 3, ["id"])
    assert (said.task_types, said.models, said.slots) == (["echo"], ["llama"], 2)


def test_a_hello_tells_results_of_earlier_runs_that_may_be_this_brokers() -> None:
    me = Profile(
        mesh="m", worker_id="w", boot_id="b", worker_type="t", machine_id="x", host="h",
        status_port=1, slots=2,
    )  # fmt: skip
    owed = [Kept(broker, f"of {broker}", b"t", SUCCEEDED, b"") for broker in ("a", "b")]
    assert hello(me, 1, Line("x", broker_id="a"), owed).held_ids == ["of a"]
    assert hello(me, 1, Line("x"), owed).held_ids == ["of a", "of b"]
    full = Line("x", open={f"t{n}": b"" for n in range(MAX_BATCH_TASKS)})
    assert len(hello(me, 1, full, owed).held_ids) == MAX_BATCH_TASKS


def test_dropping_leaves_bundles_of_others_alone() -> None:
    line = filled(2)
    other = line.waiting[0]
    line.unacknowledged[1] = filled(1).waiting[0]
    line.waiting = [Bundle(["t9"], [b"z"], bytearray([SUCCEEDED]), [b"x"], 1)]
    gone = line.drop({"t0"})
    assert (gone.ids, line.unacknowledged, line.waiting[0].ids) == (["t0"], {}, ["t9"])
    assert other.ids == ["t0", "t1"]
