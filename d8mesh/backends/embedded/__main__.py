"""The child with a model: see `d8mesh.backends.embedded.server`."""

from __future__ import annotations

import sys

from d8mesh.backends.embedded.server import main

if __name__ == "__main__":
    sys.exit(main())
