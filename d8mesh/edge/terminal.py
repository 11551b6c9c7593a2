"""Standard output when whoever reads it may have gone, as ``head`` does after its lines."""

from __future__ import annotations

import contextlib
import errno
import os
import sys


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


def say(text: str) -> None:
    """Print a line at once; a reader that has gone stops nothing but the printing."""
    try:
        print(text, flush=True)
    except OSError as error:
        if not is_reader_gone(error):
            raise
        silence()
