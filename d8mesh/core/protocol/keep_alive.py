"""How long a model stays in memory after an answer: numbers of seconds, or texts such as ``10m``.

Source: Ollama, ``api/types.go``: a number counts seconds, a text is a duration of Go's; what is
below zero means for ever.
"""

from __future__ import annotations

import math
import re
from typing import Final

_NUMBER_UNIT: Final = re.compile(r"(\d+\.?\d*|\.\d+)(h|ms|m|s|us|µs|μs|ns)")
_DURATION: Final = re.compile(rf"([+-]?)(0|(?:{_NUMBER_UNIT.pattern})+)")
_SECONDS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6,
                   "ns": 1e-9}  # fmt: skip
#: Of a text that says how long.
MAX_KEEP_ALIVE_CHARS: Final = 64


def keep_alive_s(value: object) -> float | None:
    """Return the seconds that `value` says, infinity for ever; None if it says none."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if math.isnan(value):
            return None
        return math.inf if value < 0 else float(value)
    if not isinstance(value, str) or len(value) > MAX_KEEP_ALIVE_CHARS:
        return None
    found = _DURATION.fullmatch(value)
    if found is None:
        return None
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _NUMBER_UNIT.findall(found[2]))
    return math.inf if found[1] == "-" and seconds else seconds
