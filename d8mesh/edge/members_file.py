"""The file of members: which keys an orchestrator let in and showed out, over restarts.

Replaced as a whole, in one step. It holds no secret, but what it says decides who may join, so
nobody else may write it; a damaged one is refused, for it may be what keeps somebody out.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from d8mesh.core.broker.members_view import KeptMember
from d8mesh.errors import ConfigError
from d8mesh.private import is_writable_by_others, replace_file

MEMBERS_NAME: Final = "members.json"
#: More than the largest that is written: 10,000 rows with 16 ids each.
MAX_MEMBERS_FILE_BYTES: Final = 64 * 1024 * 1024
#: Rows of a file that is read; what is kept is bounded by who keeps it.
MAX_MEMBER_ROWS: Final = 20_000


class _MembersFileBody(msgspec.Struct):
    members: Annotated[list[KeptMember], msgspec.Meta(max_length=MAX_MEMBER_ROWS)]
    version: Literal[1] = 1


def read(folder: Path) -> list[KeptMember]:
    """Return what the file in the orchestrator's `folder` holds; nothing if there is none.

    Raises:
        ConfigError: it is there and cannot be read, or is no file of members.
    """
    path = folder / MEMBERS_NAME
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(MAX_MEMBERS_FILE_BYTES + 1)
        if is_writable_by_others(mode):
            raise ValueError(
                f"others on this machine can write it, mode {stat.S_IMODE(mode):04o}; if what it "
                "says is yours, chmod 600 makes it good again"
            )
        if len(text) > MAX_MEMBERS_FILE_BYTES:
            raise ValueError(f"larger than {MAX_MEMBERS_FILE_BYTES} bytes")
        return msgspec.json.decode(text, type=_MembersFileBody).members
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(
            f"{path}: expected the file of members, which says who may join and who may not "
            f"({str(why)[:200]}). Put a copy of it back; or delete it: then nobody is known, with "
            "D8_JOIN=approve all have to be approved again, and without it those who were revoked "
            "may come again"
        ) from error


def write(folder: Path, members: Sequence[KeptMember]) -> None:
    """Replace the file; it is on the disk when this returns.

    Raises:
        OSError: it cannot be written; the one before is as it was.
    """
    text = msgspec.json.format(msgspec.json.encode(_MembersFileBody(list(members))), indent=1)
    replace_file(folder / MEMBERS_NAME, text + b"\n")
