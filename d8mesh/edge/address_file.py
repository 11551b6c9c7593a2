"""Where this machine's orchestrator listens, in a file beside its journal.

For the clients and workers of the same data folder that hear nothing by mDNS: some systems carry
no multicast from a machine to itself. What stands there is a hint like any other address: it may
be out of date, and is proven by the HELLO.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Final

from d8mesh.core.protocol.addresses import LOOPBACK, is_admissible
from d8mesh.core.protocol.route import KnownBroker
from d8mesh.private import replace_file
from d8mesh.setting_forms import NAME_PATTERN

#: The folder of the orchestrator in the data folder, and the file in it.
FOLDER: Final = "orchestrator"
NAME: Final = "address.json"
#: The file is tiny; a larger one is not ours.
MAX_ADDRESS_FILE_BYTES: Final = 16_384
#: Of a public key.
PUBLIC_KEY_BYTES: Final = 32
#: Addresses of one machine that are written down and tried.
MAX_ADDRESSES: Final = 16


def write(folder: Path, own: KnownBroker, mesh: str) -> None:
    """Replace the file in the orchestrator's `folder`; trouble with the disk is no fault."""
    with contextlib.suppress(OSError):
        told = asdict(own) | {"mesh": mesh, "proof": own.proof.hex()}
        told["server_key"] = None if own.server_key is None else own.server_key.hex()
        replace_file(folder / NAME, json.dumps(told).encode())


def remove(folder: Path) -> None:
    """Take it back."""
    with contextlib.suppress(OSError):
        (folder / NAME).unlink(missing_ok=True)


def read(data: Path, mesh: str) -> KnownBroker | None:
    """Return what the orchestrator of this data folder and mesh wrote down, if anything sound."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        with (data / FOLDER / NAME).open("rb") as file:
            text = file.read(MAX_ADDRESS_FILE_BYTES + 1)
        found = json.loads(text) if len(text) <= MAX_ADDRESS_FILE_BYTES else {}
        if found["mesh"] == mesh and re.fullmatch(NAME_PATTERN, found["broker_id"], re.ASCII):
            texts = [each for each in found["addresses"] if isinstance(each, str)]
            addresses = [LOOPBACK, *filter(is_admissible, texts)]
            return KnownBroker(
                broker_id=found["broker_id"],
                addresses=tuple(dict.fromkeys(addresses))[:MAX_ADDRESSES],
                port=_port(found["port"]),
                web_port=None if found["web_port"] is None else _port(found["web_port"]),
                server_key=_bytes(found["server_key"]),
                proof=bytes.fromhex(found["proof"]),
                tls=str(found["tls"]),
            )
    return None


def _bytes(value: object) -> bytes:
    found = bytes.fromhex(value) if isinstance(value, str) else b""
    if len(found) != PUBLIC_KEY_BYTES:
        raise ValueError(value)
    return found


def _port(value: object) -> int:
    if type(value) is not int or not 0 < value < 65_536:
        raise ValueError(value)
    return value
