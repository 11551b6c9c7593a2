"""Crash images: what a disk may hold after the power went, from a recording.

For a cut point in the recording: all that was written to a file before its last sync is there, in
full. Of what was written to it after, any part may be: each 512-byte sector of each write arrived
or did not, whatever their order was. A truncation is like a write; the size that an unsynced write
gave to the file may have arrived without its bytes, which then read as zeros.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.power_cut.recorder import Cut, Deleted, Entry, Sync, Write

SECTOR: Final = 512


class Disk:
    """The synced state of every file, advanced entry by entry through a recording."""

    def __init__(self) -> None:
        self._safe: dict[str, bytearray] = {}
        self._loose: dict[str, list[Entry]] = {}

    def advance(self, entry: Entry) -> None:
        """Take one entry in."""
        if isinstance(entry, Sync):
            data = self._safe.setdefault(entry.file, bytearray())
            for done in self._loose.pop(entry.file, []):
                apply(data, done)
        elif isinstance(entry, Deleted):
            self._safe.pop(entry.file, None)
            self._loose.pop(entry.file, None)
        else:
            self._loose.setdefault(entry.file, []).append(entry)

    def lose_power(self, folder: Path, dice: random.Random) -> None:
        """Write what may be found afterwards into `folder`."""
        # Some cuts keep nearly all of the loose writes, some nearly none.
        kept_share = dice.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        for file in {*self._safe, *self._loose}:
            data = bytearray(self._safe.get(file, b""))
            for entry in _torn(self._loose.get(file, []), kept_share, dice):
                apply(data, entry)
            (folder / file).write_bytes(data)


def apply(data: bytearray, entry: Entry) -> None:
    """Do to a file's bytes what an entry says."""
    if isinstance(entry, Write):
        if len(data) < entry.offset:
            data.extend(bytes(entry.offset - len(data)))
        data[entry.offset : entry.offset + len(entry.data)] = entry.data
    elif isinstance(entry, Cut):
        if len(data) < entry.size:
            data.extend(bytes(entry.size - len(data)))
        del data[entry.size :]


def _torn(entries: Sequence[Entry], kept_share: float, dice: random.Random) -> list[Entry]:
    """Return a random part of the entries, some of them torn at sectors, in a random order."""
    kept: list[Entry] = []
    for entry in entries:
        if dice.random() >= kept_share:
            continue
        if not isinstance(entry, Write) or dice.random() < 0.5:
            kept.append(entry)
            continue
        kept += [sector for sector in _sectors(entry) if dice.random() < 0.7]
    if dice.random() < 0.5:  # a disk may reorder; where two meet, either may come last
        dice.shuffle(kept)
    return kept


def _sectors(entry: Write) -> list[Write]:
    """Cut a write at multiples of the sector size of the file."""
    pieces = []
    start = 0
    while start < len(entry.data):
        at = entry.offset + start
        size = min(SECTOR - at % SECTOR, len(entry.data) - start)
        pieces.append(Write(entry.file, at, entry.data[start : start + size]))
        start += size
    return pieces
