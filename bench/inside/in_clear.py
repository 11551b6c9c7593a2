"""Runs a module with all of ZeroMQ's connections in clear: only to measure what CURVE costs.

    python -m bench.inside.in_clear MODULE ARGUMENTS

No setting and no option of d8mesh does this. It is the same code, but for the key pair that its
sockets are given; so the gate is asked, and knows no keys.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from typing import Any

from d8mesh.edge.transport.router import RouterEndpoint
from d8mesh.edge.transport.sockets import DealerLink


def _without_keys(make: Callable[..., None]) -> Callable[..., None]:
    def made(*arguments: Any, **given: Any) -> None:
        make(*arguments, **given | {"keys": None})

    return made


def main() -> None:
    """Run the module that is named."""
    for kind in (RouterEndpoint, DealerLink):
        kind.__init__ = _without_keys(kind.__init__)  # type: ignore[method-assign]
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
