"""What CURVE costs: the same mesh encrypted and in clear, in turn within one run.

The side in clear is started by `bench.inside.in_clear`; d8mesh itself has no way to do without
encryption.
"""

from __future__ import annotations

from typing import Final

from bench.findings import Findings
from bench.plan import Plan
from bench.sides import WORKERS, Kind, compare

ENCRYPTED: Final = Kind("encrypted")
CLEAR: Final = Kind("in clear", script="bench.inside.in_clear")
OVER: Final = "Encrypted over in clear"


def measure(plan: Plan) -> Findings:
    """Measure both sides in turn."""
    found = Findings()
    found.note(
        f"Each side: a broker, {WORKERS} workers and a client on loopback, by ZeroMQ alone. In "
        "clear: the same code, started by a script of the bench that gives its sockets no keys."
    )
    compare(found, plan, ENCRYPTED, CLEAR, OVER)
    return found
