"""The command `logs`: the newest lines of this machine's processes, in the order of their times."""

from __future__ import annotations

import argparse
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from d8mesh.config import Config
from d8mesh.edge.terminal import say, tell
from d8mesh.errors import D8Error
from d8mesh.program import command_name
from d8mesh.words import tr

#: Bytes read from the end of one file: far more than any line takes.
CHUNK_BYTES: Final = 65_536
#: Bytes of one file that are looked through for the newest lines.
MAX_TAIL_BYTES: Final = 5_000_000
#: How often the files are looked at while following.
FILES_LOOK_S: Final = 0.3
INTERRUPTED: Final = 130
#: A line of ours begins so; other lines belong to the one before (a traceback).
_STAMP: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ")


@dataclass(slots=True)
class Entry:
    """One log line and what belongs to it."""

    time: str
    lines: list[str] = field(default_factory=list)


def run(config: Config, options: argparse.Namespace) -> int:
    """Print the newest log lines; with ``--follow`` what comes, until Ctrl-C.

    Raises:
        D8Error: there are no logs, or none of that name.
    """
    folder = Path(config.data_dir) / "logs"
    files = _files(folder, options.name)
    tell(tr("logs in {folder}: {names}", folder=folder, names=", ".join(f.name for f in files)))
    tails = [Tail(file) for file in files]
    for line in newest([tail.read(options.lines) for tail in tails], options.lines):
        say(line)
    if not options.follow:
        return 0
    pause = threading.Event()
    try:
        while True:
            known = {tail.file for tail in tails}
            tails += [Tail(file) for file in _named(folder, options.name) if file not in known]
            for line in newest([tail.more() for tail in tails], None):
                say(line)
            pause.wait(FILES_LOOK_S)
    except KeyboardInterrupt:
        return INTERRUPTED


class Tail:
    """The end of one log file, and what is written to it later.

    Args:
        file: the newest file of a process; older ones have ``.1``, ``.2`` behind its name.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._at = 0
        self._node: int | None = None
        self._rest = b""

    def read(self, count: int) -> list[Entry]:
        """Return the last `count` entries or more, also of the file before; begin to follow."""
        content, self._at, self._node = _end_of(self.file, count)
        whole, _, self._rest = content.rpartition(b"\n")
        entries = _entries(whole)
        if len(entries) < count:
            before, _, _ = _end_of(self.file.with_name(f"{self.file.name}.1"), count)
            entries = [*_entries(before.rstrip(b"\n")), *entries]
        return entries

    def more(self) -> list[Entry]:
        """Return what was written since the last look; a file begun anew is read from its start."""
        try:
            with self.file.open("rb") as opened:
                size = opened.seek(0, 2)
                node = self.file.stat().st_ino
                if size < self._at or (self._node is not None and node != self._node):
                    self._at, self._rest = 0, b""
                self._node = node
                opened.seek(self._at)
                content = opened.read(MAX_TAIL_BYTES)
                self._at += len(content)
        except OSError:
            return []  # it is being renamed: the next look finds it
        whole, found, rest = (self._rest + content).rpartition(b"\n")
        self._rest = rest
        return _entries(whole) if found else []


def newest(of_files: Sequence[list[Entry]], count: int | None) -> Iterator[str]:
    """Yield the lines of the last `count` entries of all files, in the order of their times."""
    entries = sorted((entry for file in of_files for entry in file), key=lambda each: each.time)
    for entry in entries if count is None else entries[-count:]:
        yield from entry.lines


def _entries(content: bytes) -> list[Entry]:
    entries: list[Entry] = []
    for line in content.decode("utf-8", "replace").split("\n") if content else ():
        if _STAMP.match(line) or not entries:
            entries.append(Entry(line[:24] if _STAMP.match(line) else ""))
        entries[-1].lines.append(line)
    if entries and not entries[0].time:
        del entries[0]  # its beginning lies further up
    return entries


def _end_of(file: Path, count: int) -> tuple[bytes, int, int | None]:
    """Return the end of a file with some more than `count` lines, its size, its number."""
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, 2)
            content, wanted = b"", CHUNK_BYTES
            while len(content) < min(size, MAX_TAIL_BYTES) and content.count(b"\n") <= 2 * count:
                opened.seek(max(0, size - wanted))
                content = opened.read(wanted)
                wanted *= 2
            if len(content) < size:
                content = content.partition(b"\n")[2]  # the first line is cut
            return content, size, file.stat().st_ino
    except OSError:
        return b"", 0, None


def _files(folder: Path, name: str) -> list[Path]:
    found = _named(folder, name)
    if found:
        return found
    there = ", ".join(file.stem for file in _named(folder, ""))
    if there:
        raise D8Error(f"there is no log of {name!r} in {folder}; there are: {there}")
    raise D8Error(
        f"there are no logs in {folder}: nothing has run here yet, or D8_DATA_DIR is another "
        f"folder (`{command_name()} logs --data DIR`)"
    )


def _named(folder: Path, name: str) -> list[Path]:
    """Return the logs of `name` and of its doubles: worker, worker-2, …"""
    files = sorted(folder.glob("*.log"), key=lambda file: file.stem)
    name = name.removesuffix(".log")
    is_of = re.compile(rf"{re.escape(name)}(-\d+)?" if name else ".*").fullmatch
    return [file for file in files if is_of(file.stem)]
