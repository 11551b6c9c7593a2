"""Logs: one bounded, rotating file for each process, in ``event key=value`` lines.

Sets up the standard `logging` and renders lines; it decides nothing about what is worth
saying. Whatever is logged, by us or by a library, comes out as one line without control
characters, so nothing a peer sends can forge a line or drive a terminal.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import time
from collections import OrderedDict
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

from d8mesh.private import make_file, make_folder

#: Characters of one value: enough for an address, an id or a short error.
MAX_VALUE_CHARS: Final = 200
#: Characters of one line without its traceback: a peer must not fill the disk.
MAX_LINE_CHARS: Final = 2000
#: Bytes of one file, and how many older ones are kept: 20 MB for each process at most.
MAX_FILE_BYTES: Final = 5_000_000
KEPT_FILES: Final = 3
#: Processes of one role on one machine that get a file of their own.
MAX_FILES_PER_ROLE: Final = 64
#: Warnings remembered as said; the oldest is forgotten and may be said again.
MAX_REMEMBERED: Final = 1024

#: Locks on the log files of this process, held until it ends.
_held_locks: list[io.BufferedRandom] = []


def setup(role: str, *, level: str, folder: Path | None, to_stderr: bool) -> None:
    """Send everything logged in this process to its own file, and to stderr if wanted.

    A second call replaces what the first set up. A folder that cannot be written is said
    on stderr and never stops the program.

    Args:
        role: what this process is (``orchestrator``, ``worker``): names the file. A
            second process of the same role writes to ``ROLE-2.log``, and so on.
        level: of our own lines; libraries log from WARNING up whatever this is.
        folder: where the files go, made if missing; None for no file.
    """
    _tear_down()
    once = Once()
    formatter = LineFormatter(role)
    handlers: list[logging.Handler] = []
    problem = ""
    if folder is not None:
        try:
            handlers.append(_file_handler(role, folder))
        except OSError as error:
            problem = line("logs.no_file", folder=folder, error=error)
    if to_stderr or problem:
        handlers.append(logging.StreamHandler(sys.stderr))
    for handler in handlers:
        handler.setFormatter(formatter)
        handler.addFilter(once)
    root = logging.getLogger()
    for handler in handlers or [logging.NullHandler()]:
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("d8mesh").setLevel(level)
    logging.raiseExceptions = False  # a full disk must not print a traceback for each line
    if problem:
        logging.getLogger("d8mesh.logs").warning("%s", problem)


def event(logger: logging.Logger, level: int, name: str, /, **fields: object) -> None:
    """Log `name` with its fields as one ``event key=value`` line."""
    if logger.isEnabledFor(level):
        logger.log(level, "%s", line(name, **fields))


def traced(
    logger: logging.Logger, level: int, name: str, traceback: str, /, **fields: object
) -> None:
    """Log `name` with its fields, and a traceback that is text already, on lines of its own."""
    if logger.isEnabledFor(level):
        text = line(name, **fields)
        record = logger.makeRecord(logger.name, level, __file__, 0, "%s", (text,), None)
        record.exc_text = traceback or None  # as other formatters than ours show it too
        logger.handle(record)


def line(name: str, /, **fields: object) -> str:
    """Render ``name key=value …``: values escaped, quoted if need be, and bounded."""
    return " ".join([name, *(f"{key}={_value(value)}" for key, value in fields.items())])


def escape(text: str) -> str:
    """Return `text` with every character that is not printable written as an escape."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


class LineFormatter(logging.Formatter):
    """One line for each record, in UTC; a traceback follows indented, escaped too."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._origin = f"{escape(role)}[{os.getpid()}]"

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        text = f"{at}.{int(record.msecs):03d}Z {record.levelname} {self._origin} "
        text += _bounded(escape(_message(record)), MAX_LINE_CHARS)
        rows: list[str] = []
        if record.exc_info and record.exc_info[0] is not None:
            rows = self.formatException(record.exc_info).splitlines()
        elif record.exc_text:
            rows = record.exc_text.split("\n")
        text += "".join(f"\n    | {_bounded(escape(row), MAX_LINE_CHARS)}" for row in rows)
        return text


class Once(logging.Filter):
    """Let a warning through once; the same text again counts as DEBUG."""

    def __init__(self) -> None:
        super().__init__()
        self._said: OrderedDict[tuple[str, str], None] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            # Several handlers see one record: the first of them has decided already.
            return not getattr(record, "is_hidden_repeat", False)
        if getattr(record, "is_first", False):
            return True
        key = (record.name, _message(record))
        if key not in self._said:
            self._said[key] = None
            if len(self._said) > MAX_REMEMBERED:
                self._said.popitem(last=False)
            record.is_first = True
            return True
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        shown = logging.getLogger(record.name).isEnabledFor(logging.DEBUG)
        record.is_hidden_repeat = not shown
        return shown


class _PrivateFileHandler(RotatingFileHandler):
    """A rotating file, and each next one, that nobody else may read."""

    def _open(self) -> io.TextIOWrapper:
        make_file(Path(self.baseFilename))
        return super()._open()


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # arguments that do not fit their message
        return str(record.msg)


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = _bounded(escape(str(value)), MAX_VALUE_CHARS)
    if text and not any(char in text for char in ' "=\\'):
        return text
    return '"' + text.replace('"', '\\"') + '"'


def _bounded(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _tear_down() -> None:
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    while _held_locks:
        _held_locks.pop().close()


def _file_handler(role: str, folder: Path) -> logging.Handler:
    make_folder(folder)
    name = "".join(char if char.isalnum() or char in "-_" else "_" for char in role)[:64]
    for number in range(1, MAX_FILES_PER_ROLE + 1):
        stem = name if number == 1 else f"{name}-{number}"
        make_file(folder / f".{stem}.lock")
        lock = (folder / f".{stem}.lock").open("a+b")
        if _lock(lock):
            _held_locks.append(lock)
            return _PrivateFileHandler(
                folder / f"{stem}.log",
                maxBytes=MAX_FILE_BYTES,
                backupCount=KEPT_FILES,
                encoding="utf-8",
                delay=True,
            )
        lock.close()
    raise OSError(f"{MAX_FILES_PER_ROLE} processes log as {name} already")


def _lock(file: io.BufferedRandom) -> bool:
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
