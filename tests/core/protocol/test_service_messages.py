"""What is said of LLM services: there and back, and nothing beyond its bounds."""

from __future__ import annotations

from dataclasses import dataclass

import msgpack
import pytest

from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.codec import decode_to_broker, decode_to_worker, encode
from d8mesh.errors import ProtocolError

TASK = "0123456789abcdef-0"
MODEL = m.OfferedModel(
    "m:1b", "sha", ["completion", "tools"], 10**9, True, 2, 8.0, 200.0, 30.5, 7, 900, 300, "busy",
    m.Budget(30, 6000, 14_400, 0, [(1.5, 300)], 12, 3000, 3600.0, 4.0, "try again in 4s"),
)  # fmt: skip
SERVICE = m.OfferedService("m1:11434", "ollama", "pi", "http://h", False, 0, "m:1b", [MODEL])
PLACEMENT = m.Placement("m1:11434", "m:1b", 3, {"num_ctx": 8192})


@pytest.mark.parametrize(
    "message",
    [
        m.Services(["agent_action"], [SERVICE], [TASK], ["m1:11434"], ["m:1b"]),
        m.Services([], [], [], [], []),
        m.Measured("m1:11434", [MODEL, m.OfferedModel("n")]),
    ],
)
def test_what_a_worker_tells_arrives_as_it_was_said(message: m.ToBroker) -> None:
    assert decode_to_broker(encode(message)) == message


@pytest.mark.parametrize("message", [m.Placed([TASK], [PLACEMENT]), m.Warm(PLACEMENT)])
def test_what_a_broker_says_arrives_as_it_was_said(message: m.ToWorker) -> None:
    assert decode_to_worker(encode(message)) == message


@dataclass
class Case:
    frame: object
    is_to_broker: bool = True


@pytest.mark.parametrize(
    "case",
    [
        Case([15, [], [], [TASK], [], []]),
        Case([15, [], [], [TASK], ["s"], []]),
        Case([15, [], [["s"]], [], [], []]),
        Case([15, [], [msgpack.unpackb(encode(m.Measured("s", [])))] * 65, [], [], []]),
        Case([16, "", []]),
        Case([16, "s", [["m", "", [], -1]]]),
        Case([16, "s", [["m"] * 2]] * 2),
        Case([55, [TASK], []], is_to_broker=False),
        Case([55, [TASK], [["s", ""]]], is_to_broker=False),
        Case([56, ["s"]], is_to_broker=False),
    ],
)
def test_what_is_beyond_its_bounds_is_a_protocol_error(case: Case) -> None:
    decode = decode_to_broker if case.is_to_broker else decode_to_worker
    with pytest.raises(ProtocolError):
        decode(msgpack.packb(case.frame))
