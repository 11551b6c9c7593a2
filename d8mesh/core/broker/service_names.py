"""One service, several ids: what workers call it, and the one id that it is kept under.

A worker calls a service of its own machine by that machine's id and the port; another, which was
told the address, by address and port. At which address the first worker is, its connection has
proved: so both are known to mean the same. What is at this orchestrator's own machine is heard of
by loopback, which proves no address; there the two ids stay two.
"""

from __future__ import annotations

from collections.abc import Container
from urllib.parse import urlsplit

from d8mesh.core.protocol.addresses import is_loopback
from d8mesh.core.protocol.messages import OfferedService


class ServiceNames:
    """Ids of services, as each worker tells them and as they are kept."""

    def __init__(self) -> None:
        #: worker id -> the id that it tells -> the id that this is kept under
        self._kept: dict[str, dict[str, str]] = {}
        #: worker id -> address and port of what it has on its own machine -> the id kept
        self._near: dict[str, dict[str, str]] = {}

    def kept(self, worker_id: str, told_id: str) -> str:
        """Return the id that a service is kept under which a worker calls `told_id`."""
        return self._kept.get(worker_id, {}).get(told_id, told_id)

    def tell(
        self, worker_id: str, address: str, offered: list[OfferedService], known: Container[str]
    ) -> None:
        """Take in by which ids a worker at an address knows all its services.

        Args:
            known: the ids that services are kept under now.
        """
        self._kept.pop(worker_id, None)
        self._near.pop(worker_id, None)  # its address may be another now
        found = {each.id: self._find(each, address, known) for each in offered}
        near = {_place(each, address): found[each.id] for each in offered}
        near.pop("", None)
        if found:
            self._kept[worker_id] = found
        if near:
            self._near[worker_id] = near

    def _find(self, offered: OfferedService, address: str, known: Container[str]) -> str:
        for name in (offered.id, _place(offered, address)):
            if name in known:
                return name
            for near in self._near.values():
                if near.get(name) in known:
                    return near[name]
        return offered.id


def _place(offered: OfferedService, address: str) -> str:
    """Return address and port of a service on its worker's own machine; empty: it is not there."""
    try:
        parts = urlsplit(offered.url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return ""
    is_own = host == address or is_loopback(host)
    if offered.is_cloud or not is_own or not port or not address or is_loopback(address):
        return ""
    return f"{address}:{port}"
