"""Outboxes that are damaged, or that nobody serves any more: what is in them goes on elsewhere.

A damaged one is set aside and what can be read of it goes on in a new one: what it lacked is run
again. What a worker that is gone left behind is adopted by the next one.

Source: `filelock`
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import apsw
import filelock

from d8mesh.core.protocol.tokens import TOKEN_BYTES
from d8mesh.core.worker.effects import KeptResult
from d8mesh.edge.sqlite.files import beside, mapped, swap, sync
from d8mesh.edge.sqlite.outbox import LOCK_NAME, OUTBOX_NAME, OUTBOX_VERSION, Outbox
from d8mesh.edge.sqlite.recovery.pages import Found, Pages, Row, Trees
from d8mesh.errors import KeyFileError, OutboxBrokenError, WorkerError
from d8mesh.private import FILE_MODE, make_folder


@dataclass(frozen=True, slots=True)
class Mended:
    """What was saved of a damaged outbox; what it lacked is run again by somebody."""

    moved_to: Path
    saved: int
    damaged: int
    #: pages that could not be read: how many results were on them is not known
    damaged_pages: int


def open_mended(folder: Path, *, is_sealed: bool | None = None) -> tuple[Outbox, Mended | None]:
    """Open an outbox; a damaged one is set aside, and a new one has what can be read of it.

    Args:
        is_sealed: as for `Outbox`.

    Raises:
        OutboxBrokenError: it is of a newer version.
        OutboxKeyError: the key of its payloads is missing, or is another one.
        KeyFileError: the key file cannot be used.
        WorkerError: the disk is full or fails.
    """
    _finish_swap(folder)
    try:
        outbox = Outbox(folder, is_sealed=is_sealed)
        try:
            outbox.load()
        except WorkerError:
            outbox.close()
            raise
        return outbox, None
    except OutboxBrokenError:
        if _is_newer(folder / OUTBOX_NAME):
            raise
    try:
        mended = _mend(folder)
    except (apsw.Error, OSError) as error:
        raise WorkerError(f"cannot mend the outbox in {folder}: {error}") from error
    return Outbox(folder, is_sealed=is_sealed), mended


def _is_newer(path: Path) -> bool:
    """Tell it by the file's head: a newer one is not damaged for that."""
    with path.open("rb") as file:
        head = file.read(64)
    return head.startswith(b"SQLite") and int.from_bytes(head[60:64], "big") > OUTBOX_VERSION


def _mend(folder: Path) -> Mended:
    """Build a new outbox of what can be read, then move the old one aside."""
    path = folder / OUTBOX_NAME
    found = Found()
    results: dict[bytes, KeptResult] = {}
    damaged = 0
    with contextlib.ExitStack() as stack:
        trees = Trees(Pages(mapped(path, stack), mapped(beside(path, "-wal"), stack)))
        for row in _rows(trees, found):
            kept = _kept(row)
            damaged += kept is None
            if kept is not None:
                results.setdefault(kept.token, kept)
        del trees  # Windows moves no file that is mapped
    fresh, part = beside(path, ".new"), folder / "mended"
    make_folder(part)
    for old in part.iterdir():
        old.unlink()
    outbox = Outbox(part)
    outbox.keep(list(results.values()))
    outbox.close()
    sync(part / OUTBOX_NAME)
    (part / OUTBOX_NAME).replace(fresh)
    part.rmdir()
    moved_to = _finish_swap(folder)
    assert moved_to is not None
    return Mended(moved_to, len(results), damaged + found.damaged_cells, len(found.damaged_pages))


def _rows(trees: Trees, found: Found) -> Iterator[Row]:
    root = trees.roots().get("results")
    if root is not None:
        yield from trees.rows(root, found)
    else:
        found.damaged_pages.append(1)
    if not found.is_whole:
        yield from (row for row in trees.strays("table") if len(row.values) in (5, 6))


def _kept(row: Row) -> KeptResult | None:
    """Return the result in a row; None if it is not what was written."""
    token, broker, task, kind, payload = (row.values + [None] * 5)[:5]
    if (
        row.missing_bytes
        or not isinstance(token, bytes)
        or len(token) != TOKEN_BYTES
        or not isinstance(broker, str)
        or not isinstance(task, str)
        or not isinstance(kind, int)
        or not isinstance(payload, bytes)
        or (len(row.values) > 5 and row.values[5] != crc32(payload))
    ):
        return None
    return KeptResult(broker, task, token, kind, payload)


def _finish_swap(folder: Path) -> Path | None:
    """Put the finished new file in the old one's place, also after a power cut in between."""
    path = folder / OUTBOX_NAME
    fresh = beside(path, ".new")
    if not fresh.exists():
        return None
    aside = path.with_name(f"outbox-broken-{time.strftime('%Y%m%d-%H%M%S')}.db")
    swap(path, fresh, aside)
    return aside


def adopt(own: Outbox, workers: Path, *, own_folder: Path) -> int:
    """Move what lies in outboxes that nobody holds into `own`; return how many results.

    Of a damaged one what can be read; one of a newer version is left where it is.

    Args:
        own: the outbox to fill.
        workers: the folder with one folder for each worker of this machine.
        own_folder: the one of them that belongs to `own`.
    """
    count = 0
    for path in sorted(workers.glob(f"*/{OUTBOX_NAME}")):
        if path.parent == own_folder:
            continue
        lock = filelock.FileLock(path.parent / LOCK_NAME, mode=FILE_MODE)
        try:
            lock.acquire(timeout=0)
        except (filelock.Timeout, OSError):
            continue
        try:
            count += _move(path.parent, own)
        except (WorkerError, KeyFileError):
            continue
        finally:
            lock.release()
    return count


def _move(folder: Path, own: Outbox) -> int:
    other, _ = open_mended(folder)
    try:
        results = other.load()
        if results:
            own.keep(results)
            other.forget([row.token for row in results])
        return len(results)
    finally:
        other.close()
