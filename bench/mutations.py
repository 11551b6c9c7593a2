"""Makes bad input out of good: what is right is drawn from the types, then one thing is spoiled.

Cheap enough for tens of millions: most of what is made is a byte-wise change of one of some
thousand frames, which are spoiled as trees and drawn anew from time to time. One seed decides.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, get_args

import msgspec
from msgspec import inspect

from d8mesh.core.protocol import messages as m

#: Frames that are changed byte by byte until others are drawn, and how many of those are made.
BASES: Final = 4096
OF_ONE_DRAW: Final = 500_000
#: Longest list, text and payload of what is drawn right.
MOST_ITEMS: Final = 3
#: Values that somebody did not think of.
ODD: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1, 1.5, -0.0,
    math.nan, math.inf, -math.inf, 1e308, "", "\x00", "\x1b[31m", "\u202e", "../../etc/passwd",
    "x" * 129, "x" * 5000, "💩", "NaN", b"", b"\x00", b"x" * 33, b"x" * 5000, [], {}, [[]],
    {"a": 1}, [None] * 50,
)  # fmt: skip
#: Of JSON: no bytes, and no number that JSON does not have.
ODD_JSON: Final = tuple(
    each
    for each in ODD
    if not isinstance(each, bytes) and not (isinstance(each, float) and not math.isfinite(each))
)
#: Openings of msgpack that promise much: arrays, maps, bytes and texts of 4 GB, an extension.
_PROMISES: Final = (
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\xc1", b"\xd4\x05\x00", b"\x91" * 300,
)  # fmt: skip
_BYTES: Final = [bytes((n,)) for n in range(256)]
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder().decode

KINDS: Final[tuple[type[m.Message], ...]] = tuple(
    dict.fromkeys((*get_args(m.ToBroker), *get_args(m.ToWorker), *get_args(m.ToClient)))
)


class Drawing:
    """Draws values of types."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._session = "0123456789abcdef"
        self._items = 1  # of each list of one message: columns are of one length

    def message(self, kind: type[m.Message]) -> Any:
        """Return a message's tree, as it stands on the wire, with its verb."""
        self._items = self.random.randint(1, MOST_ITEMS)
        fields = [self.of(field.type) for field in _fields(kind)]
        return [kind.__struct_config__.tag, *fields]

    def of(self, kind: inspect.Type) -> Any:
        """Return a value of a type that the codec takes."""
        if isinstance(kind, inspect.StructType):
            fields = {field.encode_name: self.of(field.type) for field in kind.fields}
            tag = [] if kind.tag is None else [kind.tag]
            return [*tag, *fields.values()] if kind.array_like else fields
        if isinstance(kind, inspect.UnionType):
            return self.of(self.random.choice(kind.types))
        if isinstance(kind, inspect.ListType):
            count = self._size(kind.min_length, kind.max_length)
            return [self.of(kind.item_type) for _ in range(count)]
        if isinstance(kind, inspect.StrType):
            return self._text(kind)
        if isinstance(kind, inspect.BytesType):
            return self.random.randbytes(self._size(kind.min_length, kind.max_length))
        if isinstance(kind, (inspect.IntType, inspect.FloatType)):
            low = kind.ge if kind.ge is not None else kind.gt if kind.gt is not None else 0
            high = kind.le if kind.le is not None else 1000
            drawn = self.random.randint(int(low), int(min(high, low + 1000)))
            return float(drawn) if isinstance(kind, inspect.FloatType) else drawn
        return self._other(kind)

    def _other(self, kind: inspect.Type) -> Any:
        if isinstance(kind, inspect.BoolType):
            return self.random.random() < 0.5
        if isinstance(kind, inspect.LiteralType):
            return self.random.choice(kind.values)
        if isinstance(kind, inspect.EnumType):
            return self.random.choice([each.value for each in kind.cls])
        if isinstance(kind, inspect.DictType):
            return {"id": f"{self._session}-1", "n": self.random.randrange(10)}
        return None

    def _text(self, kind: inspect.StrType) -> str:
        if kind.pattern is not None or (kind.min_length or 0) >= 16:
            return self._session + ("-1" if (kind.min_length or 0) > 16 else "")
        return "echo"[: kind.max_length or 4] if self.random.random() < 0.5 else "m:1b"

    def _size(self, low: int | None, high: int | None) -> int:
        return max(low or 0, min(self._items, self._items if high is None else high))


@cache
def _fields(kind: type[m.Message]) -> Sequence[inspect.Field]:
    told = inspect.type_info(kind)
    assert isinstance(told, inspect.StructType)
    return told.fields


def spoiled(tree: Any, drawing: random.Random, odd: Sequence[Any] = ODD) -> Any:
    """Return a tree of lists, maps and values in which one thing is wrong, gone or too much."""
    if isinstance(tree, list) and tree and drawing.random() < 0.85:
        return _spoiled_list(list(tree), drawing, odd)
    if isinstance(tree, dict) and tree and drawing.random() < 0.85:
        return _spoiled_map(dict(tree), drawing, odd)
    if isinstance(tree, str) and drawing.random() < 0.3:
        return tree + drawing.choice(("\x00", "\n", "%", "\u2028", "x" * 300))
    if isinstance(tree, (int, float)) and drawing.random() < 0.3:
        return tree + drawing.choice((1, -1, 2**40, 0.5))
    return drawing.choice(odd)


def _spoiled_list(tree: list[Any], drawing: random.Random, odd: Sequence[Any]) -> list[Any]:
    at, how = drawing.randrange(len(tree)), drawing.random()
    if how < 0.6:
        tree[at] = spoiled(tree[at], drawing, odd)
    elif how < 0.7:
        del tree[at]
    elif how < 0.8:
        tree.insert(at, drawing.choice(odd))
    elif how < 0.9:
        tree *= drawing.randrange(2, 5)
    else:
        drawing.shuffle(tree)
    return tree


def _spoiled_map(
    tree: dict[Any, Any], drawing: random.Random, odd: Sequence[Any]
) -> dict[Any, Any]:
    name, how = drawing.choice(list(tree)), drawing.random()
    if how < 0.75:
        tree[name] = spoiled(tree[name], drawing, odd)
    elif how < 0.9:
        del tree[name]
    else:
        tree[str(drawing.choice(odd))[:40]] = drawing.choice(odd)
    return tree


def base_frames(
    drawing: Drawing, count: int, kinds: Sequence[type[m.Message]] = KINDS
) -> list[bytes]:
    """Return frames: a fifth as they should be, the others with one thing spoiled."""
    found: list[bytes] = []
    while len(found) < count:
        tree = drawing.message(drawing.random.choice(kinds))
        if drawing.random.random() < 0.8:
            tree = spoiled(tree, drawing.random)
        try:
            found.append(_encode(tree))
        except (OverflowError, msgspec.ValidationError, UnicodeEncodeError, TypeError):
            continue  # no msgpack can say it
    return found


def frames(seed: int, count: int, kinds: Sequence[type[m.Message]] = KINDS) -> Iterator[bytes]:
    """Yield so many bad frames; the same for the same seed."""
    drawing = Drawing(seed)
    bits = drawing.random.getrandbits
    while count > 0:
        bases = base_frames(drawing, BASES, kinds)
        for _ in range(min(count, OF_ONE_DRAW)):
            drawn = bits(64)
            yield changed(bases[drawn & 4095], drawn >> 12, bases)
        count -= OF_ONE_DRAW


def changed(frame: bytes, drawn: int, others: Sequence[bytes]) -> bytes:
    """Return bytes with one change, or none, as the bits of a drawn number say."""
    how, drawn = drawn & 15, drawn >> 4
    if how < 4:
        return frame
    at = (drawn & 0xFFFF) % (len(frame) + 1)
    drawn >>= 16
    if how < 9:
        return frame[:at] + _BYTES[drawn & 255] + frame[at + 1 :]
    if how < 11:
        return frame[:at]
    if how == 11:
        return frame + _BYTES[drawn & 255]
    if how == 12:
        return frame[:at] + _BYTES[drawn & 255] * (1 + (drawn >> 8 & 7)) + frame[at:]
    if how == 13:
        return frame[:at] + _PROMISES[drawn & 7] + frame[at:]
    if how == 14:
        return frame[:at] + others[drawn & 4095 if len(others) > 4095 else 0][at:]
    return frame[:at] + _BYTES[drawn & 255] + frame[at + 1 : at + 1 + (drawn >> 8 & 31)]


def txt_records(seed: int, count: int, good: Mapping[str, str]) -> Iterator[bytes]:
    """Yield TXT records: the pairs of a good one spoiled, dropped, doubled; its bytes changed."""
    drawing = random.Random(seed)
    odd = [str(each).encode("utf-8", "replace")[:250] for each in ODD] + [
        b"\xff\xfe",
        b"=",
        b"\xed\xa0\x80",
    ]
    whole = b"".join(_string(f"{name}={value}".encode()) for name, value in good.items())
    for _ in range(count):
        how = drawing.random()
        if how < 0.4:
            yield changed(whole, drawing.getrandbits(48), (whole,))
            continue
        pairs = [f"{name}={value}".encode() for name, value in good.items()]
        at = drawing.randrange(len(pairs))
        if how < 0.7:
            name = pairs[at].partition(b"=")[0]
            pairs[at] = (name + b"=" + drawing.choice(odd))[:255]
        elif how < 0.8:
            pairs.insert(at, drawing.choice(pairs))
        elif how < 0.9:
            del pairs[at]
        else:
            pairs += [drawing.choice(odd)[:255]] * drawing.randrange(1, 20)
        yield b"".join(map(_string, pairs))


def _string(text: bytes) -> bytes:
    return bytes((len(text),)) + text
