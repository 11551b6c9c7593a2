"""How often this process looks for objects that only hold each other.

Most of what a request or an attempt makes goes by itself when it is done.
"""

from __future__ import annotations

import gc
from typing import Final

#: Objects made, less those that have gone, between two looks: many requests make as many at once.
#: Python's own 700 cost each request of a model some 50 microseconds.
LOOK_OBJECTS: Final = 10_000


def collect_seldom() -> None:
    """Look for them seldom, and never among what is there by now: call it once all is imported."""
    gc.freeze()
    gc.set_threshold(LOOK_OBJECTS)
