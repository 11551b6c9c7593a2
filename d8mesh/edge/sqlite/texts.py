"""What was asked and answered by tasks that came in by a door, so kept that it can be erased.

Erasing overwrites bytes where they are: nothing is moved or made free, so no page keeps a copy.
That holds as long as no row with such bytes is ever moved. SQLite moves rows where a tree grows in
its middle and where rows are deleted beside them, leaves what it moved on the old page, and
`secure_delete` does not help there. So both places grow at their end only: the data of tasks in
`batches` by order of acceptance, results in `texts` by order of arrival. A run of outcomes holds
references to these.

Source: https://www.sqlite.org/pragma.html#pragma_secure_delete, https://www.sqlite.org/fileformat2.html
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import apsw
import msgspec

from d8mesh.core.protocol.task import Spec
from d8mesh.edge.sqlite.schema import CHUNKS, Value, covering, fetch, insert_sql
from d8mesh.edge.sqlite.seal import RESULT_COLUMN, Plain

#: Begins a reference to a text, and no msgpack: it stands there in place of a result.
REFERENCE_MARK: Final = b"\xc1"
_REFERENCE_BYTES: Final = 9
#: A text begins with its length (4 bytes) and whether it was erased (1 byte).
_HEAD_BYTES: Final = 5
#: Behind a text: what is kept of it says that it was erased, which may make it longer.
_SLACK_BYTES: Final = 16
#: What is kept where what should be kept has no room; shorter than the slack.
ERASED_ONLY: Final = msgspec.msgpack.encode({"erased": True})
#: Batches whose tasks' places are remembered: tasks are delivered in the order in which they came.
_REMEMBERED_BATCHES: Final = 8
#: As much of a list of payloads as is read at once to find where they are.
_LOOK_BYTES: Final = 65_536
_BIN_SIZES: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4}


def is_erased(payload: bytes) -> bool:
    """Return whether a task's data was overwritten: a map in msgpack begins otherwise."""
    return payload[:1] == b"\0"


class Texts:
    """The results of such tasks, on the writing connection; `seal` seals them."""

    def __init__(self, db: apsw.Connection, seal: Plain) -> None:
        self._db, self._seal = db, seal
        (top,) = fetch(db, "SELECT coalesce(max(number), 0) FROM texts")[0]
        self._next = top + 1
        #: of the open batches of tasks that came in by a door: where they begin, in order, and end
        self._starts: list[int] = []
        self._ends: dict[int, int] = {}
        for first, count, spec in fetch(
            db, "SELECT first, count, spec FROM batches WHERE is_done = 0 ORDER BY first"
        ):
            if _source_in(spec):
                self.open(first, count)
        #: seq of a batch -> where in its column the payload of each task begins, and its length
        self._places: OrderedDict[int, list[tuple[int, int]]] = OrderedDict()

    def open(self, first: int, count: int) -> None:
        """Take in a batch of tasks that came in by a door; its results will be texts."""
        insort(self._starts, first)
        self._ends[first] = first + count

    def close(self, firsts: Iterable[int]) -> None:
        """All tasks of these batches are finished; those of no door are passed over."""
        for first in firsts:
            if self._ends.pop(first, None) is not None:
                del self._starts[bisect_right(self._starts, first) - 1]

    def stored(self, row: int, results: list[bytes]) -> list[bytes]:
        """Return what stands in a run of outcomes, from `row` on, for these results."""
        results = self._seal.close_all(RESULT_COLUMN, row, results)
        starts = self._starts
        if not starts:
            return results
        at = bisect_right(starts, row) - 1
        return self._keep(results) if at >= 0 and row < self._ends[starts[at]] else results

    def _keep(self, results: list[bytes]) -> list[bytes]:
        """Write results, and return the references to them."""
        references: list[bytes] = []
        values: list[Value] = []
        for result in results:
            values += (self._next, as_text(result, is_erased=False))
            references.append(REFERENCE_MARK + self._next.to_bytes(8, "big"))
            self._next += 1
        start, left = 0, len(results)
        for rows in CHUNKS:
            while left >= rows:
                end = start + 2 * rows
                self._db.execute(insert_sql("texts", 2, rows), values[start:end])
                start, left = end, left - rows
        return references

    def erase(self, row: int, rest: bytes) -> bool:
        """Overwrite what a finished task asked and answered; return whether it could be.

        It cannot if it came in by no door, was pruned, or was erased before.

        Args:
            rest: what is kept of its result, as it is stored.
        """
        run = covering(self._db, "outcomes", row, "first, payloads")
        batch = covering(self._db, "batches", row, "first, seq, spec")
        if run is None or batch is None or not _source_in(batch[2]):
            return False
        result = msgspec.msgpack.decode(run[1], type=list[bytes])[row - run[0]]
        if not is_reference(result) or not self._erase_text(number_in(result), rest):
            return False
        self._erase_data(batch[1], row - batch[0])
        self._db.execute(_ERASE_PAST, (row,))
        return True

    def _erase_text(self, number: int, rest: bytes) -> bool:
        if not fetch(self._db, "SELECT 1 FROM texts WHERE number = ?", (number,)):
            return False
        with self._db.blob_open("main", "texts", "text", number, True) as blob:
            room = blob.length() - _HEAD_BYTES
            kept = rest if len(rest) <= room else ERASED_ONLY
            if blob.read(_HEAD_BYTES)[-1:] != b"\0":
                return False
            blob.seek(0)
            blob.write(len(kept).to_bytes(4, "big") + b"\1" + kept + bytes(room - len(kept)))
        return True

    def _erase_data(self, seq: int, index: int) -> None:
        with self._db.blob_open("main", "batches", "payloads", seq, True) as blob:
            places = self._places.get(seq)
            if places is None:
                places = self._places[seq] = _places_in(blob)
                if len(self._places) > _REMEMBERED_BATCHES:
                    self._places.popitem(last=False)
            start, size = places[index]
            blob.seek(start)
            blob.write(bytes(size))

    def prune(self, reach: tuple[int, int]) -> bool:
        """Forget the texts of a batch, from the first row of `reach` to before the second.

        Returns whether its tasks came in by a door: else there are none. If so `secure_delete` is
        on from here on, for what the caller deletes.
        """
        specs = fetch(self._db, "SELECT spec FROM batches WHERE first = ?", reach[:1])
        if not specs or not _source_in(specs[0][0]):
            return False
        self._db.execute("PRAGMA secure_delete = ON")  # the caller's deletions are to be thorough
        self._db.execute("DELETE FROM erasures WHERE row >= ? AND row < ?", reach)
        for (blob,) in fetch(
            self._db, "SELECT payloads FROM outcomes WHERE first >= ? AND first < ?", reach
        ):
            for result in msgspec.msgpack.decode(blob, type=list[bytes]):
                if is_reference(result):
                    self._db.execute("DELETE FROM texts WHERE number = ?", (number_in(result),))
        return True


def is_reference(result: bytes) -> bool:
    """Return whether what stands for a result refers to a text."""
    return len(result) == _REFERENCE_BYTES and result[:1] == REFERENCE_MARK


def as_text(result: bytes, *, is_erased: bool) -> bytes:
    """Return the text that holds a result, or what was kept of it."""
    head = len(result).to_bytes(4, "big") + (b"\1" if is_erased else b"\0")
    return head + result + bytes(_SLACK_BYTES)


def text_in(text: bytes) -> tuple[bytes, bool]:
    """Return the result in a text, and whether it was erased."""
    return text[_HEAD_BYTES : _HEAD_BYTES + int.from_bytes(text[:4], "big")], text[4] != 0


def text_of(db: apsw.Connection, reference: bytes) -> tuple[bytes, bool]:
    """Return a result that is referred to, and whether it was erased; one that is lost is empty."""
    found = fetch(db, "SELECT text FROM texts WHERE number = ?", (number_in(reference),))
    return text_in(found[0][0]) if found else (b"", False)


def _source_in(spec: bytes) -> str:
    return msgspec.msgpack.decode(spec, type=Spec).source


_BLANKS: Final = "replace(hex(zeroblob(length(CAST({0} AS BLOB)))), '00', ' ')"
#: The reasons and tracebacks of attempts may quote what was said: as many blanks stand there then.
_ERASE_PAST: Final = (
    f"UPDATE failures SET why = {_BLANKS.format('why')}, traceback = CASE WHEN traceback IS NOT"
    f" NULL THEN {_BLANKS.format('traceback')} END WHERE row = ?"
)


def number_in(reference: bytes) -> int:
    """Return the number of the text that is referred to."""
    return int.from_bytes(reference[1:], "big")


def _places_in(blob: apsw.Blob) -> list[tuple[int, int]]:
    """Return where in a list of payloads in msgpack each begins, and its length."""
    window, base, size = b"", 0, blob.length()

    def at(start: int, count: int) -> bytes:
        nonlocal window, base
        if start < base or start + count > base + len(window):
            blob.seek(start)
            window, base = blob.read(min(max(count, _LOOK_BYTES), size - start)), start
        return window[start - base : start - base + count]

    kind = at(0, 1)[0]
    width = {0xDC: 2, 0xDD: 4}.get(kind, 0)
    count = int.from_bytes(at(1, width), "big") if width else kind & 0x0F
    places: list[tuple[int, int]] = []
    position = 1 + width
    for _ in range(count):
        width = _BIN_SIZES[at(position, 1)[0]]
        length = int.from_bytes(at(position + 1, width), "big")
        places.append((position + 1 + width, length))
        position += 1 + width + length
    return places
