"""Ollamas that other machines announce by mDNS, as services of a worker's pool."""

from __future__ import annotations

from collections.abc import Callable, Collection

from d8mesh.backends.backend import Backend
from d8mesh.backends.services import Service, ServicePool
from d8mesh.edge.discovery.announced import AnnouncedServices
from d8mesh.words import tr, translated


class AnnouncedOllamas:
    """Adds what is announced to the pool, and drops what is announced no longer.

    Args:
        make: makes the backend for a URL.
        tell: says a finished line to people.

    Thread: `heed` one at a time.
    """

    def __init__(
        self,
        pool: ServicePool,
        *,
        make: Callable[[str], Backend],
        addresses: Callable[[], Collection[str]],
        tell: Callable[[str], None],
    ) -> None:
        self._pool, self._make, self._tell = pool, make, tell
        self._added: dict[str, Service] = {}
        self._listener = AnnouncedServices(
            addresses=addresses,
            on_change=self.heed,
            on_trouble=lambda text: tell(tr("note: {text}", text=translated(text))),
        )

    def start(self) -> None:
        """Begin to listen."""
        self._listener.start()

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def heed(self, urls: Collection[str]) -> None:
        """Take in what is announced now: all of it."""
        for url in [url for url in self._added if url not in urls]:
            self._pool.drop(self._added.pop(url))
            self._tell(tr("the Ollama at {url} is announced no longer", url=url))
        known = {each.backend.url for each in self._pool.services}
        for url in urls:
            if url not in known and (service := self._pool.add(self._make(url))) is not None:
                self._added[url] = service
                self._tell(tr("an Ollama is announced at {url}", url=url))
