"""The file of an account: what was used of it, by model, so that a restart does not forget.

Times in it are Unix seconds. The file is replaced in one step; one that cannot be read is put
aside and told, and the account begins anew.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from d8mesh.private import make_file

#: Of the file's form; another one is not read.
VERSION: Final = 1
#: A hundred models with a thousand requests a minute each take some 3 MB.
MAX_LEDGER_BYTES: Final = 8 * 1024 * 1024
#: What a damaged file is called from then on.
DAMAGED: Final = ".damaged"

_Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
_At: TypeAlias = Annotated[float, Meta(ge=0, le=1e12)]


class KeptUse(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was used with one model."""

    #: when each request of the last minute was sent, and its tokens
    recent: list[tuple[_At, _Count]] = []
    day_ends_at: _At = 0.0
    day_requests: _Count = 0
    day_tokens: _Count = 0
    blocked_until_at: _At = 0.0
    blocked_why: str = ""
    #: bounds that the service told
    learnt: dict[str, _Count] = {}


class KeptAccount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was used with one key."""

    models: dict[str, KeptUse]
    version: int = VERSION


def read(path: Path) -> tuple[KeptAccount, str]:
    """Return what the file holds, and what people should know of it; "" if that is nothing."""
    try:
        kept = decoded(path)
    except FileNotFoundError:
        return KeptAccount({}), ""
    except (OSError, ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        with contextlib.suppress(OSError):
            path.replace(path.with_name(path.name + DAMAGED))
        told = f"{path.name}, which says what was used of the account, cannot be read ({error})"
        return KeptAccount({}), f"{told}: begun anew, what was used today is not known"
    return kept, ""


def decoded(path: Path) -> KeptAccount:
    """Return what the file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none of ours; so does `RecursionError`.
    """
    with path.open("rb") as file:
        content = file.read(MAX_LEDGER_BYTES + 1)
    if len(content) > MAX_LEDGER_BYTES:
        raise ValueError("it is too large")
    kept = msgspec.json.decode(content, type=KeptAccount)
    if kept.version != VERSION:
        raise ValueError(f"it has the version {kept.version}, not {VERSION}")
    return kept


def write(path: Path, kept: KeptAccount) -> None:
    """Replace the file.

    Raises:
        OSError: the disk does not take it.
    """
    fresh = path.with_name(f"{path.name}.new")
    make_file(fresh)
    with fresh.open("wb") as file:
        file.write(msgspec.json.encode(kept))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
