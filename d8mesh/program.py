"""The name under which a person started d8mesh: what hints tell them to type again."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

#: Tells child processes how their parent was started.
VARIABLE: Final = "D8_STARTED_AS"
LAUNCHER: Final = "start_d8.py"
INSTALLED: Final = "d8mesh"
_PYTHON: Final = "python" if os.name == "nt" else "python3"


def command_name() -> str:
    """Return ``python3 start_d8.py``, ``d8mesh`` or ``python3 -m d8mesh``: what works here.

    A program of somebody's own that imports the library gets what there is: the launcher
    beside the package, or the installed command.
    """
    told = os.environ.get(VARIABLE)
    if told:
        return told
    place = Path(sys.argv[0] if sys.argv else "")
    package = Path(__file__).resolve().parent
    if place.name == LAUNCHER:
        return f"{_PYTHON} {LAUNCHER}"
    if place.stem == INSTALLED:
        return INSTALLED
    if place.name == "__main__.py" and place.resolve().parent == package:
        return f"{_PYTHON} -m {INSTALLED}"
    return f"{_PYTHON} {LAUNCHER}" if (package.parent / LAUNCHER).exists() else INSTALLED
