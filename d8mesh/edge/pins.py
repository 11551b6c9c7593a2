"""The keys of orchestrators that a data folder's workers and clients trust: ``pins.json``.

One file for all processes of the data folder, of the same user: each change is made under a lock,
and put in place in one step. Whoever reads sees what another process wrote at once.

Source: ``docs/SECURITY.md``; `filelock`
"""

from __future__ import annotations

import json
import os
import re
import stat
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import filelock

from d8mesh.core.protocol.membership import fingerprint
from d8mesh.core.protocol.pinning import MAX_PINS, Pin, with_pin, without_pin
from d8mesh.errors import ConfigError
from d8mesh.private import FILE_MODE, is_writable_by_others, make_folder, replace_file
from d8mesh.program import command_name
from d8mesh.setting_forms import NAME_PATTERN

PINS_NAME: Final = "pins.json"
LOCK_FILE: Final = "pins.lock"
#: How long another process may take to change the file: it takes milliseconds.
PINS_LOCK_S: Final = 5.0
#: Meshes that are remembered; another one is an error, as none is forgotten by itself.
MAX_PINNED_MESHES: Final = 256
#: Largest file that is read: what the two bounds allow, and room.
MAX_PINS_BYTES: Final = 8_000_000
_FINGERPRINT_FORM: Final = re.compile(r"([a-z2-7]{4}-){3}[a-z2-7]{4}", re.ASCII)

_Table = dict[str, tuple[Pin, ...]]


class PinFile:
    """The pins of one data folder.

    Thread: any.
    """

    def __init__(self, data: Path) -> None:
        self.path = data / PINS_NAME
        self._lock = threading.Lock()
        self._table: _Table = {}
        self._seen: tuple[int, ...] | None = None

    def of(self, mesh: str) -> tuple[Pin, ...]:
        """Return the pins of a mesh as they are on the disk now; costs a `stat`.

        Raises:
            ConfigError: the file is damaged, or others can write it.
        """
        with self._lock:
            seen = _state_of(self.path)
            if seen != self._seen or seen is None:
                self._table = _read(self.path)
                self._seen = seen
            return self._table.get(mesh, ())

    def add(self, mesh: str, pin: Pin) -> None:
        """Trust another key.

        Raises:
            OSError: the file cannot be written.
            ConfigError: it is damaged, or holds too many meshes.
        """
        self._change(mesh, lambda pins: with_pin(pins, pin))

    def add_first(self, mesh: str, pin: Pin) -> bool:
        """Trust this key if no other of the mesh is trusted; raises as `add` does.

        Returns:
            Whether it is trusted now: another process may have been first.
        """

        def change(pins: tuple[Pin, ...]) -> tuple[Pin, ...]:
            is_open = not pins or any(each.fingerprint == pin.fingerprint for each in pins)
            return with_pin(pins, pin) if is_open else pins

        return pin in self._change(mesh, change)

    def remove(self, mesh: str, of: str) -> None:
        """Trust the key with this fingerprint no longer; raises as `add` does."""
        self._change(mesh, lambda pins: without_pin(pins, of))

    def _change(
        self, mesh: str, change: Callable[[tuple[Pin, ...]], tuple[Pin, ...]]
    ) -> tuple[Pin, ...]:
        """Return the pins of the mesh that are on the disk now."""
        if not self.path.parent.exists():
            make_folder(self.path.parent)
        try:
            with filelock.FileLock(self.path.with_name(LOCK_FILE), PINS_LOCK_S, mode=FILE_MODE):
                table = _read(self.path)
                pins = table[mesh] = change(table.get(mesh, ()))
                if not pins:
                    del table[mesh]
                if len(table) > MAX_PINNED_MESHES:
                    raise ConfigError(
                        f"{self.path}: keys of {MAX_PINNED_MESHES} meshes are remembered, and no "
                        "more: delete the file, or use D8_DATA_DIR"
                    )
                _write(self.path, table)
                return pins
        except filelock.Timeout as error:
            raise OSError(f"{self.path}: another process holds it") from error


def _state_of(path: Path) -> tuple[int, ...] | None:
    """Return what changes whenever the file is replaced; None: there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    return found.st_mtime_ns, found.st_ino, found.st_size, found.st_mode


def _read(path: Path) -> _Table:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MAX_PINS_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    if is_writable_by_others(mode):
        raise ConfigError(
            f"{path}: others on this machine can write it (mode {stat.S_IMODE(mode):04o}, expected "
            f"0600). Run chmod 600 {path}, then see with `{command_name()} join pins` whether all "
            "of these keys are yours"
        )
    try:
        if len(content) > MAX_PINS_BYTES:
            raise ValueError(f"more than {MAX_PINS_BYTES} bytes")
        return {str(mesh): _pins(rows) for mesh, rows in json.loads(content).items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: is no list of keys ({error!r:.80}). Bring it back from a copy; or delete "
            "it, and the first orchestrator that answers is trusted anew"
        ) from error


def _pins(rows: list[Mapping[str, Any]]) -> tuple[Pin, ...]:
    return tuple(_pin(row) for row in rows[:MAX_PINS])


def _pin(row: Mapping[str, Any]) -> Pin:
    key = None if row["key"] is None else bytes.fromhex(row["key"])
    told = str(row["fingerprint"]) if key is None else fingerprint(key)
    broker_id = str(row["broker_id"])
    is_known = key is None or len(key) == 32
    is_named = not broker_id or re.fullmatch(NAME_PATTERN, broker_id, re.ASCII)
    if not is_known or not is_named or not _FINGERPRINT_FORM.fullmatch(told):
        raise ValueError(row)
    return Pin(told, key, broker_id, float(row["since"]))


def _write(path: Path, table: _Table) -> None:
    rows = {
        mesh: [
            {
                "key": None if pin.key is None else pin.key.hex(),
                "fingerprint": pin.fingerprint,
                "broker_id": pin.broker_id,
                "since": pin.since,
            }
            for pin in pins
        ]
        for mesh, pins in table.items()
    }
    replace_file(path, f"{json.dumps(rows, indent=1)}\n".encode())
