"""Tables for a terminal: as wide as what they say, and blocks of lines where that is too wide.

Made by hand: a library that measures and wraps every cell takes a second for 1,000 rows.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Final

from d8mesh.words import escaped

GAP: Final = "  "
#: A number and what it counts stay in one line.
_COUNT: Final = re.compile(r"(?<=\d) (?=[^\W\d])")
_GLUE: Final = "\u00a0"
#: Narrower terminals get lines of this width: nothing can be read in less.
MIN_WIDTH: Final = 20


def lines_of(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None, indent: str = ""
) -> Iterator[str]:
    """Yield the lines of a table; if it does not fit into `width`, a block for each row.

    Args:
        columns: their names; the first names the row.
        rows: cells; control characters are shown as escapes.
        width: columns of the terminal; None: any.
        indent: begins each line.
    """
    cells = [[escaped(cell) for cell in row] for row in rows]
    lines = [list(columns), *cells]
    widths = [max(map(shown_width, column)) for column in zip(*lines, strict=True)]
    needed = len(indent) + sum(widths) + len(GAP) * (len(widths) - 1)
    if width is not None and needed > width and len(columns) > 1:
        for row in cells:
            yield from _block(columns, row, width=width, indent=indent)
        return
    for line in lines:
        padded = (cell + " " * (size - shown_width(cell)) for cell, size in zip(line, widths))  # noqa: B905
        yield (indent + GAP.join(padded)).rstrip()


def wrapped(text: str, width: int | None, *, indent: str = "") -> list[str]:
    """Return `text` in lines of at most `width` columns; None: in one line.

    Words longer than that, as addresses, are not broken: they are to be copied.
    """
    if width is None or len(indent) + shown_width(text) <= width:
        return [indent + text]
    lines = textwrap.wrap(
        _COUNT.sub(_GLUE, text),
        width=max(width, MIN_WIDTH),
        initial_indent=indent,
        subsequent_indent=indent + GAP,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_GLUE, " ") for line in lines]


def cut(text: str, width: int) -> str:
    """Return `text` in at most `width` columns, with … for what is left out."""
    if shown_width(text) <= width:
        return text
    kept, used = [], 1
    for char in text:
        used += shown_width(char)
        if used > width:
            break
        kept.append(char)
    return "".join(kept) + "…"


def shown_width(text: str) -> int:
    """Return the columns that `text` takes: East Asian characters take two, marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def size_text(size_bytes: float | None) -> str:
    """Return a size for people, in the units in which Ollama tells sizes."""
    if not size_bytes:
        return "-"
    if size_bytes < 1e9:
        return f"{size_bytes / 1e6:.0f} MB"
    return f"{size_bytes / 1e9:.1f} GB"


def _block(columns: Sequence[str], row: Sequence[str], *, width: int, indent: str) -> Iterator[str]:
    """Yield one row as lines: its name, then what is filled in of the rest, packed."""
    yield cut(indent + row[0], width)
    inner = indent + GAP
    line = ""
    for name, cell in zip(columns[1:], row[1:], strict=True):
        if not cell:
            continue
        part = f"{name}: {cell}"
        if line and len(inner) + shown_width(line) + len(GAP) + shown_width(part) <= width:
            line += GAP + part
            continue
        if line:
            yield inner + line
        line = part
        while len(inner) + shown_width(line) > width:
            at = line.rfind(" ", 1, width - len(inner) + 1)
            at = at if at > len(name) + 1 else width - len(inner)
            yield inner + line[:at]
            line = GAP + line[at:].lstrip()
    if line:
        yield inner + line
