"""Rows out of the bytes of a SQLite file that SQLite itself refuses to read.

`Pages` lays the committed pages of the log over the database; `Trees` walks one tree of
pages after the other and goes on behind whatever is damaged. Reads bytes only: where they
come from, and what a row of which table means, is the caller's.

Source: https://www.sqlite.org/fileformat2.html
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

Value: TypeAlias = int | float | str | bytes | None
#: Lowest and highest row id there can be, each one further out.
LOWEST: Final = -(2**63) - 1
HIGHEST: Final = 2**63 - 1
#: Levels of a tree: with two children a page, 40 levels are more than any file can hold.
MAX_LEVELS: Final = 40
#: Bytes of a page where the file's own head cannot be read: SQLite's default.
DEFAULT_PAGE_BYTES: Final = 4096
#: Bytes of one row, as SQLite bounds it.
MAX_ROW_BYTES: Final = 1_000_000_000

_LEAF, _INNER, _INDEX_LEAF, _INDEX_INNER = 0x0D, 0x05, 0x0A, 0x02
_MAGIC: Final = b"SQLite format 3\x00"
#: Of a column by its kind: NULL, integers, a real, the numbers 0 and 1.
_WIDTHS: Final = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)


class Row(NamedTuple):
    """One row: its id (0 in an index), its values, and how many bytes of its end are missing."""

    rowid: int
    values: list[Value]
    missing_bytes: int


class Gap(NamedTuple):
    """Row ids above `low`, up to `high`, may have been on a damaged page."""

    low: int
    high: int


class _DamagedError(Exception):
    """These bytes are not what they should be."""


@dataclass(slots=True)
class Found:
    """What a walk over one tree saw beside the rows."""

    damaged_pages: list[int] = field(default_factory=list)
    damaged_cells: int = 0
    gaps: list[Gap] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """True when nothing of it was damaged."""
        return not (self.damaged_pages or self.damaged_cells or self.gaps)


class Pages:
    """The pages of a database with those that its log, empty if there is none, has committed."""

    def __init__(self, database: Sequence[int] | memoryview, log: memoryview) -> None:
        self._database = memoryview(database)  # type: ignore[arg-type]
        self._log = log
        #: frames of the log behind a break: of commits that are not whole, or of none
        self.ignored_frames = 0
        head = bytes(self._database[:100])
        self.has_head = head.startswith(_MAGIC) and len(head) == 100
        page_bytes = DEFAULT_PAGE_BYTES
        if self.has_head:
            told = struct.unpack_from(">H", head, 16)[0]
            told = 65536 if told == 1 else told
            if told >= 512 and told & (told - 1) == 0:
                page_bytes = told
        self.page_bytes = page_bytes
        self._frames: dict[int, int] = {}
        self._read_log()
        in_file = len(self._database) // page_bytes
        self.count = max([in_file, *self._frames])

    def page(self, number: int) -> memoryview | None:
        """Return the bytes of a page, counted from 1; None if there is no such."""
        size = self.page_bytes
        at = self._frames.get(number)
        if at is not None:
            return self._log[at : at + size]
        if not 1 <= number <= len(self._database) // size:
            return None
        return self._database[(number - 1) * size : number * size]

    def _read_log(self) -> None:
        """Note the pages of every whole commit, as SQLite's own recovery would."""
        log, size = self._log, self.page_bytes
        if len(log) < 32:
            return
        magic, _, page_bytes, _, salt1, salt2, c1, c2 = struct.unpack_from(">8I", log)
        if magic not in (0x377F0682, 0x377F0683) or page_bytes != size:
            return
        order = ">" if magic & 1 else "<"
        sums = _checksum(log[:24], order, (0, 0))
        if sums != (c1, c2):
            return
        pending: dict[int, int] = {}
        is_broken = False
        for at in range(32, len(log) - size - 23, size + 24):
            number, is_commit, s1, s2, c1, c2 = struct.unpack_from(">6I", log, at)
            if (s1, s2) != (salt1, salt2):
                return
            if not is_broken:
                sums = _checksum(log[at : at + 8], order, sums)
                sums = _checksum(log[at + 24 : at + 24 + size], order, sums)
                is_broken = sums != (c1, c2) or not number
            if is_broken:
                self.ignored_frames += 1
                continue
            pending[number] = at + 24
            if is_commit:
                self._frames |= pending
                pending.clear()


def _checksum(data: memoryview, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    a, b = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for at in range(0, len(words), 2):
        a = a + words[at] + b & 0xFFFFFFFF
        b = b + words[at + 1] + a & 0xFFFFFFFF
    return a, b


class Trees:
    """The trees of a file; remembers which pages it has seen, so that none is read twice."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        head = pages.page(1) if pages.has_head else None
        reserved = 0 if head is None or head[20] >= 128 else head[20]
        self._usable = pages.page_bytes - reserved
        self._seen: set[int] = set()

    def roots(self) -> dict[str, int]:
        """Return where the trees begin, by the file's own table of contents."""
        told = (row.values for row in self.rows(1, Found()) if len(row.values) == 5)
        names = ((name, root) for _, name, _, root, _ in told if isinstance(root, int) and root > 1)
        return {name: root for name, root in names if isinstance(name, str)}

    def rows(self, root: int, found: Found) -> Iterator[Row]:
        """Yield the readable rows of a table, by rising id; `found` tells the rest."""
        yield from self._table(root, LOWEST, HIGHEST, found, 0)

    def entries(self, root: int, found: Found) -> Iterator[Row]:
        """Yield the readable rows of an index, or of a table without row ids."""
        yield from self._index(root, found, 0)

    def strays(self, kind: str) -> Iterator[Row]:
        """Yield rows of the leaves that no walk has reached: their way there is damaged.

        Pages that the file calls free are left out. What table a row is of is not known.

        Args:
            kind: ``table`` or ``index``.
        """
        with_id, free = kind == "table", self._free()
        wanted = _LEAF if with_id else _INDEX_LEAF
        for number in range(2, self._pages.count + 1):
            page = self._pages.page(number)
            if number in self._seen or number in free or page is None or page[0] != wanted:
                continue
            last = LOWEST
            for at in self._cells(page, 0):
                try:
                    row = self._row(page, at, has_id=with_id)
                except _DamagedError:
                    continue
                if with_id:
                    if row.rowid <= last:
                        break
                    last = row.rowid
                yield row

    # ------------------------------------------------------------------- one tree

    def _table(self, number: int, low: int, high: int, found: Found, depth: int) -> Iterator[Row]:
        page, head = self._page(number, (_LEAF, _INNER), found, depth)
        if page is None:
            found.gaps.append(Gap(low, high))
            return
        if page[head] == _LEAF:
            yield from self._leaf(page, head, Gap(low, high), found)
            return
        last = low
        for at in self._cells(page, head):
            try:
                child, key = _inner_cell(page, at)
                if not last <= key <= high:
                    raise _DamagedError
            except _DamagedError:
                found.damaged_cells += 1
                continue  # the next child's range begins where this one's did
            yield from self._table(child, last, key, found, depth + 1)
            last = key
        right = struct.unpack_from(">I", page, head + 8)[0]
        yield from self._table(right, last, high, found, depth + 1)

    def _leaf(self, page: memoryview, head: int, reach: Gap, found: Found) -> Iterator[Row]:
        last, is_behind_gap = reach.low, False
        for at in self._cells(page, head):
            try:
                row = self._row(page, at, has_id=True)
                if not last < row.rowid <= reach.high:
                    raise _DamagedError
            except _DamagedError:
                found.damaged_cells += 1
                is_behind_gap = True
                continue
            if is_behind_gap:
                found.gaps.append(Gap(last, row.rowid - 1))
                is_behind_gap = False
            last = row.rowid
            yield row
        if is_behind_gap:
            found.gaps.append(Gap(last, reach.high))

    def _index(self, number: int, found: Found, depth: int) -> Iterator[Row]:
        page, head = self._page(number, (_INDEX_LEAF, _INDEX_INNER), found, depth)
        if page is None:
            return
        is_leaf = page[head] == _INDEX_LEAF
        for at in self._cells(page, head):
            try:
                if not is_leaf:
                    child = _u32(page, at)
                    yield from self._index(child, found, depth + 1)
                yield self._row(page, at if is_leaf else at + 4, has_id=False)
            except _DamagedError:
                found.damaged_cells += 1
        if not is_leaf:
            yield from self._index(_u32(page, head + 8), found, depth + 1)

    def _page(
        self, number: int, kinds: tuple[int, int], found: Found, depth: int
    ) -> tuple[memoryview | None, int]:
        page = self._pages.page(number)
        head = 100 if number == 1 else 0
        if page is None or number in self._seen or depth > MAX_LEVELS or page[head] not in kinds:
            found.damaged_pages.append(number)
            return None, head
        self._seen.add(number)
        return page, head

    def _cells(self, page: memoryview, head: int) -> list[int]:
        """Return where the cells of a page begin; those that are outside of it too."""
        kind, count = page[head], struct.unpack_from(">H", page, head + 3)[0]
        start = head + (12 if kind in (_INNER, _INDEX_INNER) else 8)
        count = min(count, (len(page) - start) // 2)
        return list(struct.unpack_from(f">{count}H", page, start))

    # -------------------------------------------------------------------- one cell

    def _row(self, page: memoryview, at: int, *, has_id: bool) -> Row:
        if at < 8:
            raise _DamagedError
        size, at = _varint(page, at)
        rowid = 0
        if has_id:
            rowid, at = _varint(page, at)
            rowid -= (rowid >> 63) << 64
        if not 0 < size <= MAX_ROW_BYTES:
            raise _DamagedError
        usable = self._usable
        most = usable - 35 if has_id else (usable - 12) * 64 // 255 - 23
        local = size
        if size > most:
            least = (usable - 12) * 32 // 255 - 23
            local = least + (size - least) % (usable - 4)
            local = local if local <= most else least
        if at + local > len(page):
            raise _DamagedError
        data = bytes(page[at : at + local])
        if local < size:
            data = self._overflow(data, _u32(page, at + local), size)
        return Row(rowid, _values(data, size), size - len(data))

    def _overflow(self, data: bytes, number: int, size: int) -> bytes:
        """Return the row's bytes with those of its further pages, as far as they can be had."""
        parts, have, room = [data], len(data), self._usable - 4
        while have < size:
            page = self._pages.page(number)
            if page is None or number in self._seen:
                break
            following, needed = _u32(page, 0), min(room, size - have)
            is_last = have + needed == size
            # A page that does not lead on, or not to an end, is not ours: nor is what it holds.
            if (following != 0) == is_last or following > self._pages.count:
                break
            self._seen.add(number)
            parts.append(bytes(page[4 : 4 + needed]))
            have += needed
            number = following
        return b"".join(parts)

    def _free(self) -> set[int]:
        """Return the pages that the file calls free, as far as that can be read."""
        free: set[int] = set()
        head = self._pages.page(1)
        if head is None or bytes(head[:16]) != _MAGIC:
            return free
        number = _u32(head, 32)
        while number and number not in free:
            page = self._pages.page(number)
            if page is None:
                break
            free.add(number)
            count = min(_u32(page, 4), (len(page) - 8) // 4)
            free.update(struct.unpack_from(f">{count}I", page, 8))
            number = _u32(page, 0)
        return free


def _inner_cell(page: memoryview, at: int) -> tuple[int, int]:
    key, _ = _varint(page, at + 4)
    return _u32(page, at), key - ((key >> 63) << 64)


def _u32(page: memoryview, at: int) -> int:
    if not 0 <= at <= len(page) - 4:
        raise _DamagedError
    return int(struct.unpack_from(">I", page, at)[0])


def _varint(data: memoryview | bytes, at: int) -> tuple[int, int]:
    value = 0
    for index in range(9):
        if at + index >= len(data):
            raise _DamagedError
        byte = data[at + index]
        if index == 8:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + index + 1
    raise _DamagedError


def _values(data: bytes, size: int) -> list[Value]:
    """Return the columns of a record; the last one there is may be cut off."""
    head_bytes, at = _varint(data, 0)
    if not at <= head_bytes <= min(len(data), size):
        raise _DamagedError
    kinds = []
    while at < head_bytes:
        kind, at = _varint(data, at)
        kinds.append(kind)
    values: list[Value] = []
    at = head_bytes
    for kind in kinds:
        width = _width(kind)
        if at + width > size:
            raise _DamagedError
        if at + width > len(data):
            values.append(data[at:] if kind >= 12 and kind % 2 == 0 else None)
        else:
            values.append(_value(kind, data[at : at + width]))
        at += width
    return values


def _width(kind: int) -> int:
    if kind in (10, 11):
        raise _DamagedError
    return _WIDTHS[kind] if kind < 10 else (kind - 12) // 2


def _value(kind: int, data: bytes) -> Value:
    if kind == 0:
        return None
    if kind < 7:
        return int.from_bytes(data, "big", signed=True)
    if kind == 7:
        return float(struct.unpack(">d", data)[0])
    if kind in (8, 9):
        return kind - 8
    if kind % 2 == 0:
        return data
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _DamagedError from error
