"""Tells where a broker is, by mDNS and in a file for this machine; and hears of workers."""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from d8mesh import __version__
from d8mesh.config import Config
from d8mesh.core.protocol.addresses import LOOPBACK, is_loopback
from d8mesh.core.protocol.route import KnownBroker
from d8mesh.edge import address_file
from d8mesh.edge.discovery import Announcement, Discovery, NodeKind, Sighting
from d8mesh.edge.logs import event
from d8mesh.edge.network import usable_addresses

#: What FLASK_HOST says for all addresses.
_EVERYWHERE: Final = ("0.0.0.0", "::")
#: Of what is heard and not heeded, so much may wait to be counted.
MAX_UNCOUNTED: Final = 65_536
_log: Final = logging.getLogger("d8mesh.broker")


class Announcer:
    """What is told of one broker while it runs.

    Args:
        folder: where its file lies.
        known: how it is reached; its addresses are looked up.
        on_worker: told the public key and the name of each worker that is heard, on the thread
            of discovery.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        known: KnownBroker,
        on_worker: Callable[[bytes, str], None],
    ) -> None:
        self._config, self._folder, self._known = config, folder, known
        self._on_worker = on_worker
        #: why something that was heard is not heeded, until it is counted
        self.ignored = deque[str](maxlen=MAX_UNCOUNTED)
        self._discovery = Discovery(
            mesh=config.mesh,
            addresses=partial(announced_addresses, config),
            on_sighting=self._heard,
            browse=(NodeKind.WORKER,),
            on_trouble=lambda text: event(_log, logging.WARNING, "discovery", trouble=text),
            on_ignored=self.ignored.append,
        )
        self._discovery.announce(
            Announcement(
                kind=NodeKind.ORCHESTRATOR,
                node_id=known.broker_id,
                boot_id=secrets.token_hex(8),
                mesh=config.mesh,
                port=known.port,
                web_port=known.web_port,
                version=__version__,
                server_key=known.server_key,
                proof=known.proof,
                tls=known.tls,
            )
        )

    def begin(self) -> None:
        """Tell of it from now on; the file is for who is on this machine and hears no mDNS."""
        self._discovery.start()
        own = tuple(each.address for each in usable_addresses(self._config.interfaces))
        known, addresses = self._known, (LOOPBACK, *own)
        where = (known.broker_id, addresses, known.port, known.web_port)
        told = KnownBroker(*where, known.server_key, known.proof, known.tls)
        address_file.write(self._folder, told, self._config.mesh)

    def end(self) -> None:
        """Take it back."""
        address_file.remove(self._folder)
        self._discovery.close()

    def _heard(self, sighting: Sighting) -> None:
        """Note a worker of the mesh; it connects by itself, but who cannot is found in the log."""
        addresses = ",".join(sighting.addresses)
        event(_log, logging.INFO, "worker.heard", worker=sighting.node_id, addresses=addresses)
        if sighting.server_key is not None:
            self._on_worker(sighting.server_key, sighting.node_id)


def listens_on(host: str) -> list[str]:
    """Return the addresses that the broker listens on when the REST listens on `host`.

    Loopback always: the REST process reaches the broker there.
    """
    if host in _EVERYWHERE:
        return ["*"]
    return [LOOPBACK] if host == "localhost" else list(dict.fromkeys((host, LOOPBACK)))


def announced_addresses(config: Config) -> list[str]:
    """Return the addresses to announce: none that nobody listens on."""
    usable = [each.address for each in usable_addresses(config.interfaces)]
    if config.web_host in _EVERYWHERE or not usable:
        return usable
    return [LOOPBACK if is_loopback(config.web_host) else config.web_host]
