"""JSON's model, checked where values come in."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import numbers
import types
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d8mesh.core.protocol.json_model import (
    MAX_DEPTH,
    MAX_INT,
    MIN_INT,
    as_json,
    check_json,
    error_as_text,
    packed_json,
)
from d8mesh.errors import InvalidTaskError

PLAIN = st.none() | st.booleans() | st.text() | st.integers(MIN_INT, MAX_INT)
NUMBERS = PLAIN | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    NUMBERS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)
LOOP: list[object] = []
LOOP.append(LOOP)


@given(VALUES)
def test_what_json_has_is_taken(value: object) -> None:
    check_json(value, "data")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": float("nan")}, r"data\.a: nan"),
        ({"a": [1, float("inf")]}, r"data\.a: inf"),
        ({5: 1}, "key of type int"),
        ({"a": b"x"}, r"data\.a: saw bytes"),
        ({"a": {1, 2}}, "saw set"),
        ([2**64], "beyond 64 bits"),
        ([-(2**63) - 1], "beyond 64 bits"),
        ({"a": {"b": {"c": object()}}}, r"data\.a\.b\.c: saw object"),
    ],
)
def test_what_json_has_not_is_refused_with_its_path(value: object, said: str) -> None:
    with pytest.raises(InvalidTaskError, match=said):
        check_json(value, "data")


def test_nesting_is_bounded() -> None:
    value: object = 1.0
    for _ in range(MAX_DEPTH + 2):
        value = [value]
    with pytest.raises(InvalidTaskError, match="nested deeper"):
        check_json(value, "data")
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(InvalidTaskError):
        check_json(loop, "data")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (None, ""),
        ("", ""),
        ("why", "why"),
        (5, "5"),
        (False, "false"),
        ({"code": [1]}, '{"code":[1]}'),
        ("\ud800", "\ud800"),
        (2**70, str(2**70)),
        (LOOP, "list that cannot be shown"),
    ],
)
def test_an_error_is_told_as_text_whatever_it_is(error: object, text: str) -> None:
    assert error_as_text(error) == text


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


class Whole(int):
    pass


class Fraction64(float):
    """As ``numpy.float64``: a float, and a scalar with a shape."""

    shape = ()

    def item(self) -> float:
        return float(self)


class Scalar:
    """As ``numpy.int64``, ``float32`` or ``bool_``: no number of Python's, but it holds one."""

    shape: tuple[int, ...] = ()

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def item(self) -> object:
        return self._inner


class Array(Scalar):
    shape = (3,)


class Colour(str, enum.Enum):  # noqa: UP042 - as people write it
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Plain(enum.Enum):
    ONE = 1


class Point(NamedTuple):
    x: int
    y: object


@dataclasses.dataclass
class Record:
    x: int = 1


@numbers.Integral.register
class Registered:
    def __int__(self) -> int:
        return 7


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Text("a"), "a"),
        (Whole(5), 5),
        (Fraction64(0.5), 0.5),
        (Scalar(5), 5),
        (Scalar(0.5), 0.5),
        (Scalar(True), True),
        (Scalar(Text("a")), "a"),
        (Scalar(Fraction64(0.5)), 0.5),
        (Registered(), 7),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        ((1, (2, Whole(3))), [1, [2, 3]]),
        (Point(1, Whole(2)), [1, 2]),
        ({Text("k"): 1, Colour.RED: Level.HIGH, Level.HIGH: 1}, {"k": 1, "red": 3, "3": 1}),
        (types.MappingProxyType({"a": (Scalar(1),)}), {"a": [1]}),
        (collections.ChainMap({"a": 1}, {"b": 2}), {"b": 2, "a": 1}),
        (collections.UserDict(a=Text("b")), {"a": "b"}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (-0.0, -0.0),
    ],
)
def test_what_only_looks_different_is_converted(value: object, plain: object) -> None:
    for each, wanted in ((value, plain), ({"a": [value]}, {"a": [plain]})):
        assert repr(msgspec.msgpack.decode(packed_json(each, "data"))) == repr(wanted)
        assert repr(as_json(each, "data")) == repr(wanted)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"x", r"data\.a: saw bytes, .*base64"),
        ({1, 2}, r"data\.a: saw set, .*list\(\)"),
        (float("nan"), r"data\.a: nan"),
        (Fraction64("inf"), r"data\.a: inf"),
        (Scalar(float("nan")), r"data\.a: nan"),
        (Scalar(b"x"), r"data\.a: saw Scalar|data\.a: saw bytes"),
        (Array([1, 2, 3]), r"data\.a: saw Array"),
        (Whole(2**64), r"data\.a: an integer beyond 64 bits"),
        (decimal.Decimal("0.1"), r"data\.a: saw Decimal, .*float\(\) or str\(\)"),
        (fractions.Fraction(1, 3), r"data\.a: saw Fraction"),
        (datetime.date(2024, 1, 1), r"data\.a: saw date, .*isoformat"),
        (Record(), r"data\.a: saw Record, .*asdict"),
        (Plain.ONE, r"data\.a: saw Plain"),
        (1j, r"data\.a: saw complex"),
        ({5: 1}, r"data\.a: saw a key of type int"),
        ({Level.HIGH: 1, "3": 2}, r"data\.a: the key '3' stands there twice"),
        ("\ud800", r"data: this cannot be sent"),
        (LOOP, "nested deeper"),
        (iter([1]), r"data\.a: saw list_iterator"),
    ],
)
def test_what_has_no_form_in_json_is_refused_with_its_path_and_a_hint(
    value: object, said: str
) -> None:
    with pytest.raises(InvalidTaskError, match=said):
        packed_json({"a": value}, "data")
    with pytest.raises(InvalidTaskError, match=said):  # beside what must be converted
        packed_json({"b": Text("x"), "a": value}, "data")


@given(VALUES)
def test_plain_values_are_packed_as_they_are(value: object) -> None:
    assert packed_json(value, "data") == msgspec.msgpack.encode(value)
    assert msgspec.msgpack.encode(as_json(value, "data")) == msgspec.msgpack.encode(value)


@pytest.mark.parametrize("value", [None, True, "a", {"a": [1, 0.5, "b", False, None]}])
def test_what_is_plain_is_taken_as_it_is(value: object) -> None:
    check_json(value, "data")
    assert as_json(value, "data") == value


def test_a_number_of_a_kind_of_its_own_is_one_and_what_only_says_so_is_none() -> None:
    class Half:
        def __float__(self) -> float:
            return 0.5

    class Itself:
        shape = ()

        def item(self) -> Itself:
            return self

    numbers.Real.register(Half)
    assert as_json({"a": Half()}, "data") == {"a": 0.5}
    with pytest.raises(InvalidTaskError, match="saw Itself"):
        as_json({"a": Itself()}, "data")
