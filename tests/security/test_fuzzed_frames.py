"""Frames and records that were good once: refused as what they are, or taken; nothing else.

`bench/mutations.py` makes them; `start_d8.py bench fuzz` tries millions.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bench.fuzz import RECORD
from bench.mutations import KINDS, Drawing, changed, frames, spoiled, txt_records
from d8mesh.core.client.session import ClientSession
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.announcement import NodeKind, from_txt, to_txt
from d8mesh.core.protocol.codec import decode_to_broker, decode_to_client, decode_to_worker
from d8mesh.core.worker.broker_session import Profile
from d8mesh.core.worker.session import WorkerSession
from d8mesh.errors import ProtocolError
from tests.core.wired_broker import WiredBroker

DECODERS: Final[dict[str, Callable[[bytes], Any]]] = {
    "broker": decode_to_broker,
    "worker": decode_to_worker,
    "client": decode_to_client,
}
#: A frame may not make the decoder allocate more than so many times its own size, and this much
#: for what every message needs.
MOST_TIMES: Final = 40
SPARE_BYTES: Final = 64_000
PROMISES: Final = [
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01",
]  # fmt: skip
quick = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=150)


def is_taken(decode: Callable[[bytes], Any], frame: bytes) -> bool:
    try:
        decode(frame)
    except ProtocolError:
        return False
    return True


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_drawn_of_a_message_is_one(kind: type[m.Message]) -> None:
    drawing = Drawing(1)
    drawn = [msgspec.msgpack.encode(drawing.message(kind)) for _ in range(20)]
    assert any(is_taken(decode, frame) for decode in DECODERS.values() for frame in drawn)


@pytest.mark.parametrize("who", DECODERS)
def test_a_bad_frame_is_refused_and_nothing_else(who: str) -> None:
    taken = [is_taken(DECODERS[who], frame) for frame in frames(7, 60_000)]
    assert any(taken)
    assert not all(taken)


@pytest.mark.parametrize("who", DECODERS)
@quick
@given(frame=st.binary(max_size=300))
@example(frame=b"")
@example(frame=b"\x91" * 100_000)
@example(frame=b"\x81\xa1a" * 100_000)
@example(frame=b"\x92\x01\xa3\xff\xfe\xfd")
def test_any_bytes_are_refused_or_taken(who: str, frame: bytes) -> None:
    is_taken(DECODERS[who], frame)


@pytest.mark.parametrize("who", DECODERS)
@pytest.mark.parametrize("promise", PROMISES, ids=repr)
def test_24_what_a_frame_promises_is_not_allocated(who: str, promise: bytes) -> None:
    """At every place of a good frame: an array, a map, bytes or a text of 4 GB."""
    drawing = Drawing(3)
    for kind in KINDS:
        frame = msgspec.msgpack.encode(drawing.message(kind))
        for at in range(min(len(frame), 60)):
            spoiled_frame = frame[:at] + promise + frame[at:]
            tracemalloc.start()
            is_taken(DECODERS[who], spoiled_frame)
            _, peak_bytes = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak_bytes < MOST_TIMES * len(spoiled_frame) + SPARE_BYTES, (kind, at)


def test_a_brain_takes_every_message_from_everybody_and_stays_whole(tmp_path: Path) -> None:
    """Whatever is said by a worker, a client or a stranger, all invariants hold after it."""
    drawing = Drawing(5)
    kinds, broker = get_args(m.ToBroker), WiredBroker(tmp_path)
    peers = [broker.worker("w"), broker.client(), broker.peer("stranger")]
    told = 0
    for n in range(1500):
        tree = drawing.message(drawing.random.choice(kinds))
        if n % 2:
            tree = spoiled(tree, drawing.random)
        try:
            message = decode_to_broker(msgspec.msgpack.encode(tree))
        except (ProtocolError, OverflowError, UnicodeEncodeError):
            continue
        broker.say(drawing.random.choice(peers), message)
        told += 1
        if n % 100 == 0:
            broker.pass_time(1.0)
    assert told > 300
    broker.close()


def sessions() -> tuple[Callable[[bytes], None], Callable[[bytes], None]]:
    """Return what takes in a frame of the broker at a client, and at a worker."""
    client = ClientSession("0123456789abcdef", "m", "pc")
    client.link_up(0.0)
    profile = Profile(
        mesh="m", worker_id="w", boot_id="b", worker_type="t", machine_id="i", host="h",
        status_port=0, slots=2, task_types=("echo",),
    )  # fmt: skip
    worker = WorkerSession(profile)
    worker.link_up("link", 0.0)

    def to_client(frame: bytes) -> None:
        client.receive(decode_to_client(frame), time.monotonic())

    def to_worker(frame: bytes) -> None:
        worker.receive(decode_to_worker(frame), "link", time.monotonic())

    return to_client, to_worker


@pytest.mark.parametrize("which", [0, 1], ids=["client", "worker"])
def test_an_orchestrator_can_say_what_it_wants_to_a_client_and_to_a_worker(which: int) -> None:
    take = sessions()[which]
    kinds = get_args(m.ToWorker if which else m.ToClient)
    taken = sum(is_taken(take, frame) for frame in frames(11, 30_000, kinds))
    assert taken > 100


def test_36_a_bad_record_is_refused_and_nothing_else() -> None:
    def decode(record: bytes) -> Any:
        return from_txt(NodeKind.ORCHESTRATOR, record, port=7010, addresses=("10.0.0.1",))

    taken = [is_taken(decode, record) for record in txt_records(3, 20_000, RECORD)]
    assert any(taken)
    assert not all(taken)


@quick
@given(record=st.binary(max_size=1500))
def test_36_what_is_read_of_any_record_is_what_it_says(record: bytes) -> None:
    """What is taken says the same when it is written again."""
    try:
        found = from_txt(NodeKind.WORKER, record, port=1)
    except ProtocolError:
        return
    pairs = to_txt(found)
    again = b"".join(
        bytes((len(each),)) + each for each in (f"{k}={v}".encode() for k, v in pairs.items())
    )
    assert from_txt(NodeKind.WORKER, again, port=1) == found


def test_the_same_seed_makes_the_same_frames() -> None:
    assert list(frames(1, 3000)) == list(frames(1, 3000))
    assert changed(b"abc", 0, (b"x",)) == b"abc"
