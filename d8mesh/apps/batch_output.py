"""Where the answers of the command `batch` go: a line for each row, whole, in the order wished.

In the order of the input, an answer that comes early waits in a file beside, on the disk too.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from d8mesh.doors.batches.line_file import LineFile
from d8mesh.errors import ConfigError

INPUT_ORDER: Final = "input"
#: Beside the file of the answers: those that came early.
EARLY_SUFFIX: Final = ".early"
#: How our lines begin: plain ones, and those as OpenAI has them.
_NUMBER_OF: Final = re.compile(rb'\{"(?:n":|id":"batch_req_[0-9a-f]+_)([0-9]{1,12})[",}]')


def number_of(line: bytes) -> int:
    """Return which row a line of ours answers; 0 if it is none."""
    found = _NUMBER_OF.match(line)
    return int(found[1]) if found else 0


class AnswersOut:
    """The answers of one batch.

    Args:
        path: of the file; None: standard output, and nothing is remembered.
        count: rows of the input.
        is_ordered: in the order of the input; else as they come.
        is_failed: says whether a line tells of a failure.

    Thread: any, one at a time.
    """

    def __init__(
        self,
        path: Path | None,
        count: int,
        *,
        is_ordered: bool,
        is_failed: Callable[[bytes], bool],
    ) -> None:
        self._path, self._is_ordered, self._is_failed = path, is_ordered, is_failed
        self._has = bytearray(count + 1)
        self._failed = bytearray(count + 1)
        self.count = count
        self.done = self.failed = 0
        #: the row whose answer is to be written next, in the order of the input
        self._next = 1
        #: where in the file beside an answer stands, and how long it is; 0: it does not
        self._at = array("q", bytes(8 * (count + 1)))
        self._length = array("l", bytes(array("l").itemsize * (count + 1)))
        self._stack = contextlib.ExitStack()
        folder = None
        if path is None:
            folder = Path(
                self._stack.enter_context(tempfile.TemporaryDirectory(prefix="d8-batch-"))
            )
        self._out = None if path is None else LineFile(path)
        early = folder / "early" if folder else early_path(path)
        self._early = LineFile(early) if is_ordered else None
        self._reader: BinaryIO | None = None

    def open(self) -> None:
        """Read what is there.

        Raises:
            ConfigError: the file holds other things than our answers.
        """
        if self._out is not None:
            self._out.open(self._read_answer)
        if self._early is not None:
            self._early.open(self._read_early)
            self._reader = self._stack.enter_context(self._early.path.open("rb"))
            self._write_ordered([])

    def close(self) -> None:
        """Let the files go; the one beside is removed when nothing waits in it."""
        for file in (self._out, self._early):
            if file is not None:
                file.close()
        self._stack.close()
        if self._early is not None and self.is_complete:
            with contextlib.suppress(OSError):
                self._early.path.unlink()

    def has(self, number: int) -> bool:
        """Return whether a row is answered."""
        return bool(self._has[number])

    @property
    def is_complete(self) -> bool:
        """True when every row is answered."""
        return self.done == self.count

    def failed_numbers(self) -> Iterator[int]:
        """Yield the rows that were answered with a failure."""
        return (number for number in range(1, self.count + 1) if self._failed[number])

    def add(self, answers: Sequence[tuple[int, bytes]]) -> None:
        """Have answers on the disk; those that are there already are left out.

        Raises:
            DiskLowError: they could not be written.
        """
        fresh = {number: line for number, line in answers if not self._has[number]}
        if self._early is None:
            self._append(list(fresh.values()))
        else:
            self._write_ordered(list(fresh.items()))
        for number, line in fresh.items():
            self._note(number, line)

    # --------------------------------------------------------------------- the order

    def _write_ordered(self, answers: Sequence[tuple[int, bytes]]) -> None:
        """Write what is next in the order; what is early goes beside."""
        assert self._early is not None
        now = dict(answers)
        early = [(number, line) for number, line in now.items() if number > self._next]
        ready = self._ready(now)
        # what can be written at once needs no place beside
        late = [(number, line) for number, line in early if number >= self._next + len(ready)]
        at = self._early.size_bytes
        self._early.append([line for _, line in late])
        for number, line in late:
            self._at[number], self._length[number] = at, len(line)
            at += len(line) + 1
        self._append(ready)
        self._next += len(ready)

    def _ready(self, now: dict[int, bytes]) -> list[bytes]:
        """Return the answers from the next row on without a gap."""
        found: list[bytes] = []
        number = self._next
        while number <= self.count:
            line = now.get(number)
            if line is None and self._length[number] and self._reader is not None:
                self._reader.seek(self._at[number])
                line = self._reader.read(self._length[number])
            if line is None:
                break
            found.append(line)
            number += 1
        return found

    def _append(self, lines: Sequence[bytes]) -> None:
        if self._out is not None:
            self._out.append(lines)
        elif lines:
            sys.stdout.buffer.write(b"\n".join(lines) + b"\n")
            sys.stdout.buffer.flush()

    # -------------------------------------------------------------------- reading again

    def _read_answer(self, line: bytes) -> None:
        number = number_of(line)
        is_next = not self._is_ordered or number == self._next
        if not 0 < number <= self.count or self._has[number] or not is_next:
            name = self._path.name if self._path else "-"
            raise ConfigError(
                f"--out {name}: line {self.done + 1} is none that this command wrote: it was "
                "changed, or is of something else; take another --out"
            )
        self._next = number + 1
        self._note(number, line)

    def _read_early(self, line: bytes) -> None:
        assert self._early is not None
        number = number_of(line)
        if 0 < number <= self.count and not self._has[number]:
            self._at[number] = self._early.size_bytes - len(line) - 1
            self._length[number] = len(line)
            self._note(number, line)

    def _note(self, number: int, line: bytes) -> None:
        self._has[number] = 1
        self.done += 1
        if self._is_failed(line):
            self._failed[number] = 1
            self.failed += 1


def early_path(path: Path | None) -> Path:
    """Return where answers wait that came early."""
    assert path is not None
    return path.with_name(path.name + EARLY_SUFFIX)


def without_failures(path: Path, is_failed: Callable[[bytes], bool], *, is_ordered: bool) -> None:
    """Take the failures out of a file of answers, so that their rows are asked again.

    In the order of the input, what stands behind the first of them goes to the file beside.
    """
    kept, beside = path.with_name(path.name + ".kept"), early_path(path)
    has_gap = False
    with path.open("rb") as given, kept.open("wb") as good, beside.open("ab") as early:
        for line in given:
            if not line.endswith(b"\n"):
                break
            if is_failed(line[:-1]):
                has_gap = True
            else:
                (early if has_gap and is_ordered else good).write(line)
        for file in (good, early):
            file.flush()
            os.fsync(file.fileno())
    if is_ordered:
        _without(beside, is_failed)
    else:
        beside.unlink()
    kept.replace(path)


def _without(path: Path, is_failed: Callable[[bytes], bool]) -> None:
    kept = path.with_name(path.name + ".kept")
    with path.open("rb") as given, kept.open("wb") as good:
        good.writelines(line for line in given if not is_failed(line.rstrip(b"\n")))
        good.flush()
        os.fsync(good.fileno())
    kept.replace(path)
