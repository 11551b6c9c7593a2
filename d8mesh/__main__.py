"""``python -m d8mesh``: the command line."""

from __future__ import annotations

import sys

from d8mesh.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
