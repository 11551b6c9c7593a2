"""Frames: strict both ways, bounded, and never more than a protocol error."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d8mesh.core.protocol import codec
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.codec import decode_to_broker, decode_to_client, decode_to_worker, encode
from d8mesh.errors import ProtocolError, VersionError

S = "0123456789abcdef"
TOKEN = bytes(16)
GROUP = m.Group("echo", 5, [b"x"])
HELLO: Any = (1, "d8", "w", "b", "go", "m", "pi", 0, ["echo"], [], 1, 1, [], [])
BEAT: Any = (1, 1, 0, 0, ["echo"], [], [])
TROUBLE: Any = ("no model",)
PROOF: Any = (b"p" * 32,)
WELCOME: Any = (1, 1, "orch-1", 5.0, 15.0, [])


def submit(**changed: object) -> list[object]:
    group = {
        "type": "echo", "priority": 5, "payloads": [b"x"], "model": "", "deadline_s": None,
        "max_attempts": 0, "is_fenced": False, "run_at": None,
    }  # fmt: skip
    group |= {key: value for key, value in changed.items() if key in group}
    fields: dict[str, object] = {
        "seq": 1, "session": S, "first": 0, "groups": [list(group.values())], "is_watched": True,
        "key": "", "digest": b"",
    }  # fmt: skip
    fields |= {key: value for key, value in changed.items() if key in fields}
    return [21, *fields.values()]


BAD = [
    b"", b"\xc0", b"\xc1", b"\x90", b"\x91", b"\x91\x15", b"\x80", b"\xff" * 50, b"\x91" * 100_000,
    b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x92\x01\xa2\xff\xfe",
    b"\x92\x01\xd4\x01\x00",
    *map(msgpack.packb, [
        [99], ["1", "x"], [1], [1, "x", 2], [1, 5], [1, "x" * 2000], [43, True], [22, "ab"],
        [22, [5]], [22, ["short"]], [24, f"{S}-1", 1], [25, 1, "x", []], [25, -1, "x", {}],
        [12, 1, 1, [f"{S}-1"], [], b"", []], [12, 1, 1, [f"{S}-1"], [b"short"], b"\1", [b""]],
        [12, 1, 99_999, [], [], b"", []], [13, 1, [f"{S}-1"], []],
        [14, [f"{S}-1"], [TOKEN], [], []],
        [11, 1, 1, 0, 0, ["x"] * 1001, [], []], [11, float("nan"), 1, 0, 0, [], [], []],
        submit(priority=0), submit(priority=11), submit(priority="5"), submit(session="x"),
        submit(session=S.upper()), submit(first=-1), submit(first=2**40), submit(groups=[]),
        submit(payloads=[]), submit(payloads=["text"]), submit(type=""), submit(type="x" * 129),
        submit(deadline_s=-1.0), submit(deadline_s=float("nan")), submit(max_attempts=101),
        submit(run_at=1e12), submit(key="k" * 129), submit(payloads=[b"x"] * 10_001),
    ]),
]  # fmt: skip


@pytest.mark.parametrize("frame", BAD)
def test_garbage_is_a_protocol_error_and_nothing_else(frame: bytes) -> None:
    for decode in (decode_to_broker, decode_to_worker, decode_to_client):
        with pytest.raises(ProtocolError):
            decode(frame)


def test_what_is_well_formed_is_taken() -> None:
    message = decode_to_broker(msgpack.packb(submit(deadline_s=1, run_at=5)))
    assert isinstance(message, m.Submit)
    assert message.groups[0].deadline_s == 1.0


def test_a_frame_beyond_the_limit_is_refused_unread() -> None:
    with pytest.raises(ProtocolError, match="at most"):
        decode_to_broker(b"\x00" * (m.MAX_FRAME_BYTES + 1))


def test_the_error_names_the_field() -> None:
    with pytest.raises(ProtocolError, match=r"\$\[4\]\[0\]\[1\]"):
        decode_to_broker(msgpack.packb(submit(priority=11)))


def test_directions_do_not_mix() -> None:
    with pytest.raises(ProtocolError):
        decode_to_worker(encode(m.Watch([])))
    with pytest.raises(ProtocolError):
        decode_to_broker(encode(m.Beat(1)))
    with pytest.raises(ProtocolError):
        decode_to_client(encode(m.Recall(1)))


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_random_bytes_never_do_more_than_fail(frame: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode_to_broker(frame)


@settings(max_examples=200)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_never_does_more_than_fail(position: int, change: int) -> None:
    good = bytearray(encode(m.Submit(1, S, 0, [m.Group("echo", 5, [b"abc"] * 9)])))
    good[position % len(good)] ^= change
    with contextlib.suppress(ProtocolError):
        decode_to_broker(bytes(good))


def test_columns_of_work_and_results_must_agree() -> None:
    group = m.WorkGroup("echo", 1.0, False, [f"{S}-1"], [], [])
    with pytest.raises(ProtocolError, match="Work: columns of unequal lengths"):
        decode_to_worker(encode(m.Work(1, [group])))


@pytest.mark.parametrize(
    ("bare", "whole", "missing"),
    [
        (
            m.Submit(1, S, 0, [GROUP]),
            m.Submit(1, S, 0, [GROUP], True, "", b"", True),
            "is_listened",
        ),
        (m.Accepted(1, S, 0), m.Accepted(1, S, 0, False, ["nobody offers it"]), "warnings"),
        (m.Release(1, [], []), m.Release(1, [], [], "HTTP 503"), "reason"),
        (m.WorkerHello(*HELLO, *TROUBLE), m.WorkerHello(*HELLO, *TROUBLE, *PROOF), "proof"),
        (
            m.ClientHello(1, "d8", S, "h", True),
            m.ClientHello(1, "d8", S, "h", True, *PROOF),
            "proof",
        ),
        (m.Welcome(*WELCOME), m.Welcome(*WELCOME, *PROOF), "proof"),
        (m.Heartbeat(*BEAT), m.Heartbeat(*BEAT, *TROUBLE), "trouble"),
        (m.Delivered(1, [], []), m.Delivered(1, [], [], 600.0), "keep_s"),
    ],
)
def test_a_last_field_that_came_later_is_left_out_when_it_says_nothing(
    bare: m.Message, whole: m.Message, missing: str
) -> None:
    short, full = (msgpack.unpackb(encode(each)) for each in (bare, whole))
    assert (len(short), len(full)) == (len(full) - 1, 1 + len(type(whole).__struct_fields__))
    is_told = isinstance(bare, m.Accepted | m.Welcome)
    decode = decode_to_client if is_told else decode_to_broker
    assert (decode(encode(bare)), decode(encode(whole))) == (bare, whole)
    assert type(whole).__struct_fields__[-1] == missing


def test_of_several_last_fields_those_that_say_something_stay() -> None:
    bare, troubled = m.WorkerHello(*HELLO), m.WorkerHello(*HELLO, *TROUBLE)
    proven = m.WorkerHello(*HELLO, *("", *PROOF))
    lengths = [len(msgpack.unpackb(encode(each))) for each in (bare, troubled, proven)]
    assert lengths == [15, 16, 17]
    assert [decode_to_broker(encode(each)) for each in (bare, proven)] == [bare, proven]


def test_parts_of_messages_leave_out_what_came_later_and_says_nothing() -> None:
    sourced = m.Group("echo", 5, [b"x"], source="ollama 127.0.0.1 curl/8.5")
    submit = m.Submit(1, S, 0, [GROUP, sourced])
    known = m.OfferedModel("m:1b", details={"family": "llama"})
    models = [m.OfferedModel("m:1b"), known]
    service = m.OfferedService("s", "ollama", "pi", "", False, 0, "m:1b", models)
    measured, services = m.Measured("s", models), m.Services([], [service], [], [], [])
    for message in (submit, measured, services):
        assert decode_to_broker(encode(message)) == message
    assert [len(each) for each in msgpack.unpackb(encode(submit))[4]] == [8, 9]
    assert [len(each) for each in msgpack.unpackb(encode(measured))[2]] == [14, 19]
    assert [len(each) for each in msgpack.unpackb(encode(services))[2][0][7]] == [14, 19]


def test_columns_of_delivered_must_agree() -> None:
    with pytest.raises(ProtocolError, match="Delivered: columns of unequal lengths"):
        decode_to_broker(encode(m.Delivered(1, [f"{S}-1"], [])))


@pytest.mark.parametrize(
    "said",
    [
        [10, *HELLO[:2], "\x1b[2Jw", *HELLO[3:]],
        [10, *HELLO[:6], "pi\nbroker.up", *HELLO[7:]],
        [10, *HELLO[:8], ["echo\x07"], *HELLO[9:]],
        [10, *HELLO[:9], ["m\x9b31m"], *HELLO[10:]],
        [20, 1, "d8", S, "pc\x00"],
    ],
)
def test_names_in_a_hello_have_no_control_characters(said: list[object]) -> None:
    with pytest.raises(ProtocolError, match="Hello: control characters"):
        decode_to_broker(msgpack.packb(said))


# ------------------------------------------------------------- what is made of a frame


def made_of(frame: bytes) -> int:
    """Return the most bytes that decoding this frame takes for a moment."""
    tracemalloc.start()
    try:
        with contextlib.suppress(ProtocolError):
            decode_to_broker(frame)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


_MB = 1_000_000
_QUERY = msgspec.msgpack.encode([25, 1, "tasks"])[1:]
_SERVICE = ["id", "ollama", "m", "http://x", False, 1, ""]


def _array(count: int, content: bytes) -> bytes:
    return b"\xdd" + struct.pack(">I", count) + content


@pytest.mark.parametrize(
    "frame",
    [
        b"\x94" + _QUERY + b"\x81\xa1x" + _array(_MB, b"\x90" * _MB),
        b"\x94" + _QUERY + b"\x81\xa1x" + _array(_MB, b"\x80" * _MB),
        b"\x94" + _QUERY + b"\x81\xa1x" + _array(_MB, b"\xa2ab" * _MB),
        b"\xdc\x00\x04" + _QUERY + b"\x81\xa1x" + _array(_MB, b"\x90" * _MB),
        b"\x94\xcc\x19\x01\xa5tasks\x81\xa1x" + _array(_MB, b"\x90" * _MB),
        b"\x94" + _QUERY + b"\x81\xa1x" + b"\xdd\x02\xfa\xf0\x80" * 100,
        b"\x94" + _QUERY + b"\xdf\xff\xff\xff\xff" + b"\xa1x\x01" * 3,
        msgspec.msgpack.encode([15, [], [[*_SERVICE, [["m"]] * 1000]] * 64, [], [], []]),
        msgspec.msgpack.encode(
            [16, "s", [["m", "", [], 0, False, 1, *[0.0] * 3, 0, 0, 0, "",
                        [0, 0, 0, 0, [[0, 0]] * 1000]]] * 300]
        ),
        msgspec.msgpack.encode([21, 1, "0" * 16, 0, [["t", 1, [b""]]] * 10_000]),
        msgspec.msgpack.encode([22, ["a" * 18] * 10_000]),
    ],
    ids=range(11),
)  # fmt: skip
def test_a_frame_takes_at_most_four_times_its_size_and_six_megabytes(frame: bytes) -> None:
    made_of(frame)  # what is kept from the first time on is no part of it
    assert made_of(frame) < 4 * len(frame) + 6 * _MB


def test_a_frame_of_more_elements_than_its_size_allows_is_refused() -> None:
    with pytest.raises(ProtocolError, match="has more elements than it may"):
        decode_to_broker(b"\x94" + _QUERY + b"\x81\xa1x" + _array(60_000, b"\x90" * 60_000))


def test_what_workers_and_clients_say_at_length_is_not_refused() -> None:
    model = m.OfferedModel("a-model:7b", digest="0" * 64, can=["completion", "tools"])
    service = m.OfferedService("i", "ollama", "m", "http://m", False, 1, "", [model] * 200)
    services = m.Services(["ollama"], [service] * 20, [], [], [])
    result = m.Query(1, "poll.report", {"result": bytes(2_000_000)})
    ids = [f"{n:020d}" for n in range(10_000)]
    names, tokens = ["n"] * 1000, [bytes(16)] * 10_000
    hello = m.WorkerHello(1, "m", "w", "b", "t", "x", "h", 0, names, names, 1, 1, ids, tokens)
    for message in (services, result, hello):
        assert len(encode(message)) > codec.COUNTED_BYTES
        assert decode_to_broker(encode(message)) == message


@pytest.mark.parametrize("tag", [10, 20])
@pytest.mark.parametrize("rest", [[], ["d8"], ["d8", {"all": "new"}, [1] * 10_000], [None] * 40])
def test_a_hello_of_another_version_is_told_which_are_spoken_whatever_follows(
    tag: int, rest: list[object]
) -> None:
    with pytest.raises(VersionError, match="version 2: spoken here are 1"):
        decode_to_broker(msgpack.packb([tag, 2, *rest]))


@pytest.mark.parametrize("frame", [[10, 1], [10, "2"], [10], [21, 2], [10, 1, "d8", 5], {}, 7])
def test_what_is_no_hello_of_another_version_is_just_wrong(frame: object) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_to_broker(msgpack.packb(frame))
    assert not isinstance(caught.value, VersionError)
