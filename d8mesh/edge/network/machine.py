"""What this machine is called, and an id that stays the same for all its processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
import sys
import uuid
from pathlib import Path
from typing import Final

#: Of this machine's name, as much as others are told.
MAX_HOST_CHARS: Final = 100
#: The stored id, in the user's data folder: not in D8_DATA_DIR, which each process may have its
#: own of.
MACHINE_ID_NAME: Final = "machine-id"


def host_name() -> str:
    """Return this machine's name as it may be told: bytes that are no UTF-8 become U+FFFD."""
    name = socket.gethostname().encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    shown = "".join(char if char.isprintable() else "\ufffd" for char in name)
    return shown[:MAX_HOST_CHARS]


def machine_id() -> str:
    """Return what stands for this machine: the same for all its processes and starts.

    A hash, so that the system's own id is told to nobody. Copied disks have the same one.
    """
    text = _system_id() or _kept_id() or _card_id()
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8, person=b"d8mesh")
    return digest.hexdigest()


def _system_id() -> str:
    if sys.platform == "win32":
        import winreg

        place = r"SOFTWARE\Microsoft\Cryptography"
        with contextlib.suppress(OSError):
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, place) as key:
                return str(winreg.QueryValueEx(key, "MachineGuid")[0])
        return ""
    for source in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if text := source.read_text("ascii").strip():
                return text
    return ""


def _kept_id() -> str:
    """Return the id that an earlier start wrote down; "" where that is not the way.

    macOS tells no id without a program of its own, and a card's number changes with what is
    plugged in. Whoever is first writes one down; of two at once the second reads the first's.
    """
    if str(sys.platform) != "darwin":
        return ""
    import platformdirs  # slow to import

    file = platformdirs.user_data_path("d8mesh", appauthor=False) / MACHINE_ID_NAME
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f"{MACHINE_ID_NAME}.{os.getpid()}")
        fresh.write_text(secrets.token_hex(16), "ascii")  # whole before it has its name
        with contextlib.suppress(OSError):  # it is there already
            os.link(fresh, file)
        fresh.unlink()
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return file.read_text("ascii").strip()
    return ""


def _card_id() -> str:
    node = uuid.getnode()
    is_made_up = bool(node >> 40 & 1)  # no network card: a random number each time
    return socket.gethostname() if is_made_up else f"{node:012x}"
