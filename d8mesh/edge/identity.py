"""Who a worker is across restarts: its folder, its id, and where it found orchestrators.

A worker locks the first free folder ``workers/N`` under the data folder for as long as it
lives; the id in it stays the same at every start.

Source: `filelock`
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import socket
from pathlib import Path
from typing import Final

import filelock

from d8mesh.core.protocol.route import KnownBroker
from d8mesh.errors import WorkerError
from d8mesh.private import FILE_MODE, make_folder, replace_file
from d8mesh.setting_forms import NAME_PATTERN

WORKERS_FOLDER: Final = "workers"
LOCK_NAME: Final = "lock"
ID_NAME: Final = "id"
BROKERS_NAME: Final = "orchestrators.json"
#: Workers on one machine and data folder.
MAX_WORKERS: Final = 256
#: Orchestrators remembered; more are forgotten, oldest first.
MAX_REMEMBERED_BROKERS: Final = 32
#: The file is tiny; a larger one is not ours.
MAX_BROKERS_BYTES: Final = 65_536


class Identity:
    """One worker's locked folder.

    Args:
        name: the id wanted (WORKER_ID), None for the stored one. A second process with the
            same name gets a suffix.

    Raises:
        WorkerError: no folder can be made or locked.
    """

    def __init__(self, data: Path, name: str | None = None) -> None:
        self.workers = data / WORKERS_FOLDER
        self.folder, self._lock, number = _first_free(self.workers)
        self._is_named = bool(name)
        #: the id before the last `rename`; "": there was none
        self.called_before = ""
        try:
            self.worker_id = self._named(name, number) if name else self._stored()
        except BaseException:  # also on Ctrl-C: what was taken is let go
            self._lock.release()
            raise

    @property
    def brokers(self) -> list[KnownBroker]:
        """The orchestrators reached last, newest first; none if the file is unreadable."""
        found: list[KnownBroker] = []
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            with (self.folder / BROKERS_NAME).open("rb") as file:
                rows = json.loads(file.read(MAX_BROKERS_BYTES))
            for row in rows[:MAX_REMEMBERED_BROKERS]:
                web, port, address = row["web_port"], int(row["port"]), str(row["address"])
                key, proof = bytes.fromhex(row["server_key"]), bytes.fromhex(row["proof"])
                where = (str(row["broker_id"]), (address,), port, web)
                if 0 < port < 65536:
                    found.append(KnownBroker(*where, key or None, proof, str(row["tls"])))
        return found

    def remember(self, reached: KnownBroker) -> None:
        """Note where an orchestrator was reached; trouble with the disk is no fault."""
        before = self.brokers
        if reached in before:
            return
        kept = [reached, *(each for each in before if each.broker_id != reached.broker_id)]
        rows = [
            {
                "broker_id": each.broker_id,
                "address": each.addresses[0],
                "port": each.port,
                "web_port": each.web_port,
                "server_key": (each.server_key or b"").hex(),
                "proof": each.proof.hex(),
                "tls": each.tls,
            }
            for each in kept[:MAX_REMEMBERED_BROKERS]
        ]
        self._write(BROKERS_NAME, json.dumps(rows))

    def rename(self, worker_id: str) -> None:
        """Keep another id, as somebody else has this one; a name that was given stays given."""
        self.called_before, self.worker_id = self.worker_id, worker_id
        if not self._is_named:
            self._write(ID_NAME, worker_id)

    def close(self) -> None:
        """Let the folder go."""
        self._lock.release()

    def _stored(self) -> str:
        with contextlib.suppress(OSError):
            text = (self.folder / ID_NAME).read_text("utf-8").strip()
            if re.fullmatch(NAME_PATTERN, text, re.ASCII):
                return text
        worker_id = f"{_host()}-{secrets.token_hex(4)}"
        self._write(ID_NAME, worker_id)
        return worker_id

    def _named(self, name: str, number: int) -> str:
        """Return `name`, or with this folder's number if another process here has it."""
        is_taken = False
        for other in range(1, number):
            with contextlib.suppress(OSError):
                text = (self.workers / str(other) / "name").read_text("utf-8")
                is_taken = is_taken or (text == name and _is_held(self.workers / str(other)))
        taken_name = f"{name[:120]}-{number}" if is_taken else name
        self._write("name", name)
        return taken_name

    def _write(self, name: str, text: str) -> None:
        """Replace a file in one step."""
        with contextlib.suppress(OSError):
            replace_file(self.folder / name, text.encode())


def _host() -> str:
    name = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname().partition(".")[0]).strip("-")
    return name[:40] or "worker"


def _first_free(workers: Path) -> tuple[Path, filelock.BaseFileLock, int]:
    if not str(workers).isascii() and not _is_utf_8(workers):  # SQLite could not open an outbox
        raise WorkerError(
            f"cannot use the folder {str(workers)[:200]!r}: its name is no UTF-8. Set D8_DATA_DIR "
            "to another one"
        )
    for number in range(1, MAX_WORKERS + 1):
        folder = workers / str(number)
        try:
            make_folder(folder)
            # Not bound to a thread: whoever stops the worker lets it go.
            lock = filelock.FileLock(folder / LOCK_NAME, mode=FILE_MODE, thread_local=False)
            lock.acquire(timeout=0)
        except filelock.Timeout:
            continue
        except OSError as error:
            raise WorkerError(
                f"cannot use the folder {folder}: {error}. Set D8_DATA_DIR to a folder that "
                "can be written"
            ) from error
        return folder, lock, number
    raise WorkerError(f"{MAX_WORKERS} workers run on {workers} already: set another D8_DATA_DIR")


def _is_utf_8(path: Path) -> bool:
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_held(folder: Path) -> bool:
    lock = filelock.FileLock(folder / LOCK_NAME, mode=FILE_MODE)
    try:
        lock.acquire(timeout=0)
    except (filelock.Timeout, OSError):
        return True
    lock.release()
    return False
