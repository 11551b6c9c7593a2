"""Accounts with services in the cloud: what each allows, and what was used of it.

`account` counts and says no, `bounds` knows what is allowed, `ledger` keeps it over restarts,
`days` knows when a provider's day ends. Sends nothing, and never shows a key.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

from d8mesh.core.protocol.messages import Budget


class Accounted(Protocol):
    """What a backend with an account has beside `Backend`."""

    @property
    def service_id(self) -> str:
        """The same for all who use this key: `service_id_of`."""

    def budget(self, model: str) -> Budget | None:
        """Return what the account allows for `model`, and what was used of it here."""

    def keep_in(self, folder: Path) -> None:
        """Keep what is used in `folder`, which is this worker's alone; take up what is there."""


def service_id_of(provider: str, key: str) -> str:
    """Return what an account is called: the provider, and 12 hexadecimal digits of the key's hash.

    Nobody can tell the key from it.
    """
    return f"{provider}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
