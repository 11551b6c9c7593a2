"""Objects that hold each other still go, seldom as they are looked for."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, weakref
from d8mesh.edge.garbage import LOOK_OBJECTS, collect_seldom

class Knot:
    def __init__(self):
        self.own = self

collect_seldom()
assert gc.get_freeze_count() > 1000
gone = []
weakref.finalize(Knot(), gone.append, True)
assert not gone
kept = [[] for _ in range(2 * LOOK_OBJECTS)]
assert gone
"""


def test_what_holds_only_itself_goes_after_so_many_objects_were_made() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=60)
