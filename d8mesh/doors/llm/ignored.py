"""The header that names what of a request has no effect: nothing is dropped in silence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

IGNORED_FIELDS_HEADER: Final = "X-D8-Ignored"
#: Names that are told, and characters of each: proxies refuse heads of more than some thousands.
MAX_TOLD_FIELDS: Final = 32
MAX_TOLD_FIELD_CHARS: Final = 64


def ignored_fields_header(names: Iterable[str]) -> dict[str, str]:
    """Return the header, in printable ASCII; empty if there are no names."""
    told = list(dict.fromkeys(names))
    if not told:
        return {}
    plain = [
        "".join(each for each in name if each.isascii() and each.isprintable())
        for name in told[:MAX_TOLD_FIELDS]
    ]
    more = len(told) - MAX_TOLD_FIELDS
    listed = [name[:MAX_TOLD_FIELD_CHARS] for name in plain]
    return {
        IGNORED_FIELDS_HEADER: ", ".join([*listed, *([f"and {more} more"] if more > 0 else [])])
    }
