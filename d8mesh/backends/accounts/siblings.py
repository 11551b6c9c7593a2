"""What other workers of this machine and data folder have used of the same account.

Each keeps its own file; one that has ended, or is not back yet, still counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from d8mesh.backends.accounts import ledger
from d8mesh.backends.accounts.ledger import KeptAccount, KeptUse


class Siblings:
    """Reads their files, each again only when it has changed.

    Args:
        path: our own file, in a folder beside theirs.

    Thread: one at a time.
    """

    def __init__(self, path: Path) -> None:
        self._own = path
        self._known: dict[Path, tuple[int, KeptAccount]] = {}

    def used(self, model: str) -> Iterator[KeptUse]:
        """Yield what each of them has used with `model`."""
        for path in self._own.parent.parent.glob(f"*/{self._own.name}"):
            if path == self._own:
                continue
            kept = self._read(path)
            if kept is not None and model in kept.models:
                yield kept.models[model]

    def _read(self, path: Path) -> KeptAccount | None:
        try:
            changed = path.stat().st_mtime_ns
            known = self._known.get(path)
            if known is None or known[0] != changed:
                known = self._known[path] = (changed, ledger.decoded(path))
        except (OSError, ValueError, RecursionError):
            return None  # it is its owner who says so, and begins anew
        return known[1]
