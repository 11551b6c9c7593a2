"""Lines that tell how far a long measurement is."""

from __future__ import annotations

import sys
import time

_begun = time.monotonic()


def say(text: str) -> None:
    """Print one line with the time since the start, at once, beside what is printed for use."""
    print(f"[{time.monotonic() - _begun:7.1f} s] {text}", file=sys.stderr, flush=True)
