"""What of a batch is answered: its output and error files, which say so themselves."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from d8mesh.doors.batches.answer_lines import AnswerLine, TokenCounts, number_in, usage_in
from d8mesh.doors.batches.line_file import LineFile

#: As many lines as are under way at once, and are handed on at once.
LAST_ANSWERED: Final = 4096


class AnswerRecord:
    """The two files of a batch that runs.

    Args:
        output, errors: where they are.
        last_line: the number of the input's last line.

    Thread: any, one at a time.
    """

    def __init__(self, output: Path, errors: Path, last_line: int) -> None:
        self._output, self._errors = LineFile(output), LineFile(errors)
        #: `_has[n]`: line n is answered
        self._has = bytearray(last_line + 1)
        self.completed = self.failed = 0
        self.tokens = TokenCounts()
        #: lines that were answered last before this record was opened
        self.last_answered: deque[int] = deque(maxlen=LAST_ANSWERED)

    def open(self) -> None:
        """Read what is there; a torn last line was never answered."""
        self._output.open(lambda line: self._read(line, is_failed=False))
        self._errors.open(lambda line: self._read(line, is_failed=True))

    def close(self) -> None:
        """Let the files go."""
        self._output.close()
        self._errors.close()

    def has(self, number: int) -> bool:
        """Return whether a line is answered."""
        return bool(self._has[number])

    def append(self, lines: Sequence[AnswerLine]) -> None:
        """Have answers on the disk; those that are there already are left out.

        Raises:
            DiskLowError: not all could be written; the same call again writes the rest.
        """
        for file, is_failed in ((self._output, False), (self._errors, True)):
            fresh = [
                line for line in lines if line.is_failed is is_failed and not self.has(line.number)
            ]
            file.append([line.content for line in fresh])
            for line in fresh:
                usage = None if is_failed else line.usage
                self._count(line.number, is_failed=is_failed, usage=usage)

    def _read(self, line: bytes, *, is_failed: bool) -> None:
        number = number_in(line)
        if 0 < number < len(self._has) and not self._has[number]:
            usage = None if is_failed else usage_in(line)
            self._count(number, is_failed=is_failed, usage=usage)
            self.last_answered.append(number)

    def _count(self, number: int, *, is_failed: bool, usage: object) -> None:
        self._has[number] = 1
        self.tokens.add(usage)
        if is_failed:
            self.failed += 1
        else:
            self.completed += 1
