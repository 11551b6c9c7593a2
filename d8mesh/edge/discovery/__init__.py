"""mDNS: announce this node, listen for others, and keep both going when the network changes.

One thread with an event loop of its own. It looks at the interfaces every few seconds and
starts anew when they change; a network that is absent or broken is said once and tried
again. Loopback is always used: processes of one machine find each other whatever
its network cards do. Deliberately not here: connecting to what was found.

Names carry the boot id, so they are unique, and `cooperating_responders` skips the probing
(RFC 6762 section 8.1; zeroconf takes 1.2 s for it). How listening is quick: `listener`.

Source: RFC 6762, RFC 6763; https://python-zeroconf.readthedocs.io
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Collection
from typing import Final

import ifaddr
from zeroconf import Error as ZeroconfError
from zeroconf import IPVersion, ServiceInfo
from zeroconf.asyncio import AsyncZeroconf

from d8mesh.core.protocol.addresses import LOOPBACK, is_loopback
from d8mesh.core.protocol.announcement import Announcement, NodeKind, Sighting, to_txt
from d8mesh.edge.discovery.listener import DiscoveryReport, MulticastListener

__all__ = ["Announcement", "Discovery", "NodeKind", "Sighting"]

#: The addresses are looked at this often.
ADDRESSES_LOOK_S: Final = 3.0
#: And the cards they belong to this often: that one came back with the same address is noticed
#: then. To ask the system for them takes a millisecond.
CARD_LOOK_S: Final = 10.0
#: Bytes of the host name in an instance name: with the boot id it must fit into 63.
_MAX_HOST_BYTES: Final = 40
_BOOT_DIGITS: Final = 12
#: Goodbyes take 0.25 s (three of them); a network that hangs may not hold the process.
_GOODBYE_S: Final = 2.0
_THREAD_END_S: Final = 3.0

_Cards = tuple[tuple[int, str], ...]


class Discovery:
    """Announces and browses for one mesh.

    Args:
        mesh: only nodes of this mesh are told.
        addresses: returns the addresses of this machine to use, asked every few seconds.
        on_sighting: called for each node heard, when what it says has changed, and again
            now and then (`listener.RETELL_S`) while it is heard. Never for ourselves.
        browse: which kinds to look for.
        on_trouble: called with a sentence for people; the same one is said once.
        on_ignored: called with a code for each thing heard that is not heeded.

    Thread: `start`, `announce` and `close` may be called from any; they never wait for the
    network, but `close` for its goodbyes (bounded). The callbacks run on discovery's own
    thread and hold it up: put what they bring into a queue.
    """

    def __init__(
        self,
        *,
        mesh: str,
        addresses: Callable[[], Collection[str]],
        on_sighting: Callable[[Sighting], None] = lambda sighting: None,
        browse: Collection[NodeKind] = (),
        on_trouble: Callable[[str], None] = lambda text: None,
        on_ignored: Callable[[str], None] = lambda code: None,
    ) -> None:
        self._mesh = mesh
        self._addresses = addresses
        self._kinds = tuple(dict.fromkeys(browse))
        self._report = DiscoveryReport(on_sighting, on_trouble, on_ignored)
        self._own: dict[NodeKind, Announcement] = {}
        self._said: dict[NodeKind, tuple[Announcement, ServiceInfo]] = {}
        self._zeroconf: AsyncZeroconf | None = None
        self._listener: MulticastListener | None = None
        self._used: frozenset[str] = frozenset()
        self._cards: _Cards = ()
        self._next_card_look = 0.0
        self._trouble = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="discovery", daemon=True)

    @property
    def strangers(self) -> tuple[str, ...]:
        """Other meshes that were heard, some of them."""
        return tuple(sorted(self._report.strangers.copy()))

    def announce(self, announcement: Announcement) -> None:
        """Tell the network of this node, in place of what was told of its kind before."""
        self._own[announcement.kind] = announcement
        self._nudge()

    def start(self) -> None:
        """Begin; trouble with the network is told to `on_trouble` and tried again."""
        self._thread.start()

    def close(self) -> None:
        """Take the announcements back and stop, within 3 s."""
        self._is_closing = True
        self._nudge()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_THREAD_END_S)

    def _nudge(self) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # closed in between
                loop.call_soon_threadsafe(self._wake.set)

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:  # the last line of defence: the process goes on without
            self._report.on_trouble(f"mDNS stopped: {error!r}; name nodes by ORCHESTRATOR_URL")

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            while not self._is_closing:
                self._wake.clear()
                await self._look()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0 if self._is_closing else ADDRESSES_LOOK_S):
                        await self._wake.wait()
        finally:
            await self._tear_down(is_goodbye=True)

    async def _look(self) -> None:
        """Start anew if the interfaces changed, and say what is not yet said."""
        try:
            if self._has_moved() or self._zeroconf is None:
                await self._tear_down(is_goodbye=False)
                await self._build()
            await self._say()
            self._trouble = ""
        except Exception as error:  # whatever it is: the node goes on, and so do the looks
            await self._tear_down(is_goodbye=False)
            text = f"mDNS does not work now, trying again: {error}"
            if text != self._trouble:
                self._trouble = text
                self._report.on_trouble(text)

    def _has_moved(self) -> bool:
        """Note where the node is; True if that has changed."""
        used, now = frozenset(self._addresses()), time.monotonic()
        if used == self._used and now < self._next_card_look:
            return False
        before, self._cards = self._cards, _cards_of(used)
        self._used, self._next_card_look = used, now + CARD_LOOK_S
        return before != self._cards

    async def _build(self) -> None:
        addresses = [address for _, address in self._cards]
        if not addresses:
            raise OSError("no usable network interface is up (see D8_INTERFACES)")
        versions = {":" in address for address in addresses}
        version = IPVersion.All if len(versions) == 2 else IPVersion.V4Only
        version = IPVersion.V6Only if versions == {True} else version
        self._zeroconf = AsyncZeroconf(interfaces=addresses, ip_version=version)
        await self._zeroconf.zeroconf.async_wait_for_start()
        if self._kinds:
            self._listener = MulticastListener(
                self._zeroconf.zeroconf,
                self._report,
                mesh=self._mesh,
                kinds=self._kinds,
                own_addresses=addresses,
            )
            self._listener.own_boots = {own.boot_id for own in self._own.values()}
            await self._listener.start()

    async def _say(self) -> None:
        zeroconf = self._zeroconf
        assert zeroconf is not None
        for kind, announcement in list(self._own.items()):
            said = self._said.get(kind)
            if said is not None and said[0] == announcement:
                continue
            if self._listener is not None:
                self._listener.own_boots.add(announcement.boot_id)
            info = _service(announcement, [address for _, address in self._cards])
            self._said[kind] = (announcement, info)
            if said is not None and said[1].name == info.name:
                await zeroconf.async_update_service(info)
                continue
            if said is not None:
                await zeroconf.async_unregister_service(said[1])
            await zeroconf.async_register_service(info, cooperating_responders=True)

    async def _tear_down(self, *, is_goodbye: bool) -> None:
        """End what was built; goodbyes only when we leave, not when we merely move."""
        zeroconf, self._zeroconf = self._zeroconf, None
        listener, self._listener = self._listener, None
        self._said.clear()
        if listener is not None:
            await listener.close()
        if zeroconf is not None:
            if not is_goodbye:
                registry = zeroconf.zeroconf.registry
                registry.async_remove(registry.async_get_service_infos())
            with contextlib.suppress(OSError, RuntimeError, ZeroconfError, TimeoutError):
                async with asyncio.timeout(_GOODBYE_S):
                    await zeroconf.async_close()


def _cards_of(addresses: Collection[str]) -> _Cards:
    """Return interface index and address of each, and of loopback if it is up.

    The index tells a card that was pulled and plugged in again with the same address.
    """
    return tuple(
        sorted(
            (adapter.index or 0, address)
            for adapter in ifaddr.get_adapters()
            for ip in adapter.ips
            for address in [ip.ip if isinstance(ip.ip, str) else ip.ip[0]]
            if address in addresses or (addresses and address == LOOPBACK)
        )
    )


def _service(announcement: Announcement, addresses: Collection[str]) -> ServiceInfo:
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname().partition(".")[0])
    label = f"{host[:_MAX_HOST_BYTES] or 'host'}-{announcement.boot_id[:_BOOT_DIGITS]}"
    label = re.sub(r"[^A-Za-z0-9-]", "-", label)
    outward = [address for address in addresses if not is_loopback(address)]
    return ServiceInfo(
        announcement.kind.value,
        f"{label}.{announcement.kind.value}",
        port=announcement.port,
        properties=to_txt(announcement),
        server=f"{label}.local.",
        parsed_addresses=outward or list(addresses),
    )
