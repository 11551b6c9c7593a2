"""What every process under test writes down: JSON lines, one unbuffered write for each.

A line is in the system's page cache when `Diary.note` returns: `kill -9` cannot take it back.
Times are `time.monotonic`, which all processes of a Linux machine share.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Diary:
    """One file, appended to by one process at a time and its successors."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(self._fd, b"\n")  # a line that a killed predecessor left half ends here

    def note(self, event: str, **what: object) -> None:
        """Write one line."""
        line = json.dumps({"e": event, "at": round(time.monotonic(), 4), **what})
        os.write(self._fd, line.encode() + b"\n")

    def close(self) -> None:
        """Let the file go."""
        os.close(self._fd)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a diary."""
    if not path.exists():
        return
    for line in path.read_text("utf-8", "replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def fingerprint(result: object) -> str:
    """Return what tells one recorded result from another."""
    text = json.dumps(result, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest(text: str) -> str:
    """Return the SHA-256 of a task's text, which its result must carry."""
    return hashlib.sha256(text.encode()).hexdigest()
