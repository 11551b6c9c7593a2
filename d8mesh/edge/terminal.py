"""The terminal: what is printed cannot drive it, and whoever reads it may go.

A reader goes as ``head`` does after its lines.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import sys
from typing import Final, TextIO

from d8mesh.words import escaped

#: What JSON leaves as it is and a terminal might obey.
_HARMFUL_IN_JSON: Final = re.compile(
    "[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def is_reader_gone(error: OSError) -> bool:
    """Return whether a write failed because nobody reads any more."""
    if isinstance(error, BrokenPipeError):
        return True
    return sys.platform == "win32" and error.errno == errno.EINVAL


def silence() -> None:
    """Send what is still to be written nowhere, so that nothing fails at the exit either."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # without a descriptor: no pipe
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def say(text: str, *, end: str = "\n") -> None:
    """Print a result at once; a reader that has gone stops nothing but the printing.

    Lines and tabs stay; other control characters are printed as escapes.
    """
    try:
        print(visible(text), end=end, flush=True)
    except OSError as error:
        if not is_reader_gone(error):
            raise
        silence()


def say_anyway(text: str) -> None:
    """Print a line as `say` does, for what goes on with or without a console.

    One that cannot be written (a full disk behind it, closed by somebody) is left alone.
    """
    with contextlib.suppress(OSError, ValueError):
        try:
            say(text)
        except UnicodeEncodeError:  # a pipe of an older code page
            say(text.encode("ascii", "backslashreplace").decode("ascii"))


def tell(text: str) -> None:
    """Print words about what happens, on standard error; see `say`."""
    _tell(sys.stderr, visible(text), "\n")


def _tell(stream: TextIO | None, text: str, end: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody listens: nothing is lost
        print(text, end=end, file=stream, flush=True)


def visible(text: str) -> str:
    """Return `text` with its lines and tabs, and all other control characters as escapes."""
    return escaped(text, keep="\n\t")


def as_json(body: object, *, indent: int | None = None) -> str:
    """Return `body` as JSON that is text for people too: no character in it drives a terminal."""
    text = json.dumps(body, ensure_ascii=False, indent=indent, default=str)
    return _HARMFUL_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def width() -> int | None:
    """Return the columns of the terminal, or of ``COLUMNS``; None: nobody bounds the lines."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    if not is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        return None
    return shutil.get_terminal_size().columns
