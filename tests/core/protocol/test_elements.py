"""Elements of a frame, counted without making them."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from d8mesh.core.protocol.elements import has_more_than

_PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
    | st.binary(max_size=70_000)
    | st.builds(msgspec.msgpack.Ext, st.integers(0, 127), st.binary(max_size=300))
)
_VALUES = st.recursive(
    _PLAIN,
    lambda inner: st.lists(inner, max_size=40) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=60,
)


def count_of(value: Any) -> int:
    if isinstance(value, list):
        return 1 + sum(map(count_of, value))
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(count_of, value.values()))
    return 1


@given(_VALUES)
def test_elements_of_every_kind_are_counted(value: Any) -> None:
    frame, count = msgspec.msgpack.encode(value), count_of(value)
    assert not has_more_than(count, frame)
    assert has_more_than(count - 1, memoryview(frame))


def test_many_of_them_are_counted() -> None:
    for value, count in (([0] * 70_000, 70_001), ({str(n): n for n in range(70_000)}, 140_001)):
        frame = msgspec.msgpack.encode(value)
        assert not has_more_than(count, frame)
        assert has_more_than(count - 1, frame)


@given(st.binary(max_size=200))
def test_whatever_the_bytes_counting_ends(frame: bytes) -> None:
    assert not has_more_than(len(frame), frame)


def test_what_is_announced_and_not_there_is_not_counted() -> None:
    for frame in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff\x01", b"\xc6\xff\xff\xff\xff"):
        assert not has_more_than(2, frame)
