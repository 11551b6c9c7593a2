"""Accounts with services in the cloud: what each allows, and what was used of it.

`account` counts and says no, `bounds` knows what is allowed, `ledger` keeps it over restarts,
`days` knows when a provider's day ends. Sends nothing, and never shows a key.
"""

from __future__ import annotations

import hashlib


def service_id_of(provider: str, key: str) -> str:
    """Return what an account is called: the provider, and 12 hexadecimal digits of the key's hash.

    Nobody can tell the key from it.
    """
    return f"{provider}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
