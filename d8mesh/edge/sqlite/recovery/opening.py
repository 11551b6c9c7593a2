"""What of a recovered journal opens with its key; what does not is as good as lost.

Of a journal that is not encrypted everything opens.
"""

from __future__ import annotations

import contextlib
from typing import Final

import apsw
import msgspec

from d8mesh.edge.sqlite.payload_key import PAYLOAD_KEY_FILE
from d8mesh.edge.sqlite.schema import Value, fetch
from d8mesh.edge.sqlite.seal import (
    DATA_COLUMN,
    DIGEST_COLUMN,
    RESULT_COLUMN,
    Plain,
    Seal,
    SealError,
    plain_bytes,
)
from d8mesh.edge.sqlite.texts import ERASED_ONLY, is_reference, number_in, text_of

NO_FIT: Final = (
    f"no payload of the journal can be decrypted with the key in {PAYLOAD_KEY_FILE} beside it: put "
    "the right key file there; nothing was changed"
)


def opens_any(db: apsw.Connection, seal: Plain) -> bool:
    """Return whether the data of some task opens."""
    return any(
        stored and _opens(seal, DATA_COLUMN, row, stored)
        for first, blob in db.execute("SELECT first, payloads FROM batches")
        for row, stored in enumerate(payloads_in(blob), first)
    )


def drop_data(db: apsw.Connection, seal: Plain) -> list[int]:
    """Empty what does not open of the data of tasks; return whose it was."""
    lost: list[int] = []
    for first, blob in fetch(db, "SELECT first, payloads FROM batches"):
        if not isinstance(seal, Seal):
            break
        payloads = payloads_in(blob)
        bad = [
            row
            for row, stored in enumerate(payloads, first)
            if any(stored)
            and not _opens(seal, DATA_COLUMN, row, stored)  # all zeros: it was erased
        ]
        for row in bad:
            payloads[row - first] = b""
        if bad:
            values = (msgspec.msgpack.encode(payloads), sum(map(plain_bytes, payloads)), first)
            db.execute("UPDATE batches SET payloads = ?, bytes = ? WHERE first = ?", values)
        lost += bad
    return lost


def lacks_result(db: apsw.Connection, seal: Plain, row: int, stored: bytes) -> bool:
    """Return whether a task's result, or the text that it refers to, is lost or does not open."""
    if is_reference(stored):
        if not fetch(db, "SELECT 1 FROM texts WHERE number = ?", (number_in(stored),)):
            return True
        stored, was_erased = text_of(db, stored)
        if was_erased and stored == ERASED_ONLY:
            return False
    return not _opens(seal, RESULT_COLUMN, row, stored)


def drop_reasons(db: apsw.Connection, seal: Plain) -> None:
    """Empty the reasons and tracebacks, and drop the keys of clients, that do not open."""
    for number, row, why, traceback in fetch(db, "SELECT rowid, row, why, traceback FROM failures"):
        fitting = [_fitting(seal, row, text) for text in (why, traceback)]
        if fitting != [why, traceback]:
            sql = "UPDATE failures SET why = ?, traceback = ? WHERE rowid = ?"
            db.execute(sql, (fitting[0] or "", fitting[1], number))
    for key, first, digest in fetch(db, "SELECT key, first, digest FROM keys"):
        if not _opens(seal, DIGEST_COLUMN, first, digest):
            db.execute("DELETE FROM keys WHERE key = ?", (key,))


def _opens(seal: Plain, column: bytes, row: int, stored: bytes) -> bool:
    with contextlib.suppress(SealError):
        seal.open(column, row, stored)
        return True
    return False


def _fitting(seal: Plain, row: int, text: str | None) -> str | None:
    with contextlib.suppress(SealError):
        seal.open_text(row, text or "")
        return text
    return None


def payloads_in(blob: Value) -> list[bytes]:
    """Return the elements of an encoded list of bytes as far as they are there."""
    data = blob if isinstance(blob, bytes) else b""
    with contextlib.suppress(msgspec.MsgspecError):
        return msgspec.msgpack.decode(data, type=list[bytes])
    found: list[bytes] = []
    sizes = {0xC4: 1, 0xC5: 2, 0xC6: 4}
    at = {0xDC: 3, 0xDD: 5}.get(data[0], 1 if data[0] >> 4 == 9 else len(data)) if data else 0
    while at < len(data) and data[at] in sizes:
        width = sizes[data[at]]
        size = int.from_bytes(data[at + 1 : at + 1 + width], "big")
        start = at + 1 + width
        if start + size > len(data):
            break
        found.append(data[start : start + size])
        at = start + size
    return found
