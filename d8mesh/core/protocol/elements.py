"""How many elements a frame has, without making any of them.

An empty array is one byte on the wire and 56 in memory, and untyped fields may hold as many as fit
into a frame. What is made of a frame is bounded by counting first.

Source: https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

from typing import Final

#: Bytes after the first one of a value of fixed size: floats, integers, extensions.
_FIXED_SIZES: Final = {
    0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
    0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,
}  # fmt: skip
#: Bytes that say how long a value is, and bytes after these that are not counted there.
_LENGTHS: Final = {
    0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1),
    0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0),
}  # fmt: skip
#: Bytes that say how many elements follow, and how many one of them is.
_COUNTS: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}


def has_more_than(most: int, frame: bytes | memoryview) -> bool:
    """Return whether a frame has more elements than `most`: values of any kind, keys among them.

    Of a frame that is cut off or wrong only what stands before that is counted.
    """
    at, left, size = 0, 1, len(frame)
    while left and at < size:
        most -= 1
        if most < 0:
            return True
        left -= 1
        first = frame[at]
        at += 1
        if first < 0x80 or first >= 0xE0:
            continue
        if first < 0xC0:
            low = first & 0x0F
            if first < 0x90:
                left += 2 * low
            elif first < 0xA0:
                left += low
            else:
                at += first & 0x1F
        elif first in _LENGTHS:
            width, more = _LENGTHS[first]
            at += width + more + int.from_bytes(frame[at : at + width], "big")
        elif first in _COUNTS:
            width, each = _COUNTS[first]
            left += each * int.from_bytes(frame[at : at + width], "big")
            at += width
        else:
            at += _FIXED_SIZES.get(first, 0)
    return False
