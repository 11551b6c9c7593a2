"""Which names in a Host header are this machine's: others come from a page elsewhere."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final

from d8mesh.core.protocol.addresses import host_is_allowed, is_address
from d8mesh.edge.network import own_names

#: The machine's names and addresses are looked up again after this long.
NAMES_S: Final = 5.0
#: They are looked up sooner for a name that is not among them, but not more often than this; for
#: an address at once, which this machine may have got a moment ago.
NAMES_AGAIN_S: Final = 0.5


class OwnHosts:
    """The names and addresses of this machine as they are now, and those of a setting.

    Args:
        allowed: further names.

    Thread: any.
    """

    def __init__(self, allowed: Collection[str]) -> None:
        self._allowed = allowed
        self._names: frozenset[str] = frozenset()
        self._names_at = float("-inf")

    def __contains__(self, host: str) -> bool:
        age_s = time.monotonic() - self._names_at
        if age_s < NAMES_S and host_is_allowed(host, self._names, self._allowed):
            return True
        if age_s >= NAMES_AGAIN_S or is_address(host):
            self._names, self._names_at = own_names(), time.monotonic()
        return host_is_allowed(host, self._names, self._allowed)
