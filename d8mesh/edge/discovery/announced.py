"""Hears which LLM services other machines announce, such as ``_ollama._tcp``.

Ollama announces nothing by itself: whoever shares one so has set that up. An announcement proves
nothing of who made it, so only private addresses count, and few. Deliberately not here: whether an
Ollama answers there.

Source: RFC 6763; https://python-zeroconf.readthedocs.io
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Collection
from typing import Final

from zeroconf import Error as ZeroconfError
from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from d8mesh.core.protocol.addresses import endpoint, is_admissible, is_loopback

#: What an Ollama is announced as.
OLLAMA_TYPE: Final = "_ollama._tcp.local."
#: Services that are remembered; more are not heard until one is gone.
MAX_ANNOUNCED: Final = 16
#: How long the address of one may take to come.
RESOLVE_S: Final = 3.0
#: After trouble with the network it is tried again so often.
ANEW_S: Final = 10.0
#: A network that hangs may not hold the process.
MDNS_CLOSE_S: Final = 2.0
MDNS_END_S: Final = 3.0


class AnnouncedServices:
    """Listens until it is closed.

    Args:
        addresses: returns this machine's addresses to listen on.
        on_change: called with the URLs of all that are announced now, whenever that has changed.
        on_trouble: called with a sentence for people; the same one is said once.

    Thread: `start` and `close` any; the callbacks run on its own.
    """

    def __init__(
        self,
        *,
        addresses: Callable[[], Collection[str]],
        on_change: Callable[[Collection[str]], None],
        on_trouble: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._addresses, self._on_change, self._on_trouble = addresses, on_change, on_trouble
        self._urls: dict[str, str] = {}
        #: there is no network but this machine: its loopback addresses are meant
        self._is_alone = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._trouble = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="announced", daemon=True)

    def start(self) -> None:
        """Begin to listen; trouble with the network is told and tried again."""
        self._thread.start()

    def close(self) -> None:
        """Stop, within a few seconds."""
        self._is_closing = True
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # closed in between
                loop.call_soon_threadsafe(self._stop.set)
        if self._thread.is_alive():
            self._thread.join(MDNS_END_S)

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        while not self._is_closing:
            try:
                await self._listen()
            except (OSError, RuntimeError, ZeroconfError) as error:
                text = f"announcements of Ollamas are not heard now, trying again: {error}"
                if text != self._trouble:
                    self._trouble = text
                    self._on_trouble(text)
            await self._pause(ANEW_S)

    async def _listen(self) -> None:
        """Listen until it is closed, or the addresses of this machine have changed."""
        used = sorted(self._addresses())
        if not used:
            raise OSError("no usable network interface is up (see D8_INTERFACES)")
        self._is_alone = all(map(is_loopback, used))
        versions = {":" in address for address in used}
        version = IPVersion.All if len(versions) == 2 else IPVersion.V4Only
        version = IPVersion.V6Only if versions == {True} else version
        zeroconf = AsyncZeroconf(interfaces=used, ip_version=version)
        browser: AsyncServiceBrowser | None = None
        try:
            await zeroconf.zeroconf.async_wait_for_start()
            browser = AsyncServiceBrowser(zeroconf.zeroconf, OLLAMA_TYPE, handlers=[self._heard])
            self._trouble = ""
            while not self._is_closing and sorted(self._addresses()) == used:
                await self._pause(ANEW_S)
        finally:
            with contextlib.suppress(OSError, RuntimeError, ZeroconfError, TimeoutError):
                async with asyncio.timeout(MDNS_CLOSE_S):
                    if browser is not None:
                        await browser.async_cancel()
                    await zeroconf.async_close()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0 if self._is_closing else seconds):
                await self._stop.wait()

    def _heard(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        if state_change is ServiceStateChange.Removed:
            if self._urls.pop(name, None) is not None:
                self._tell()
        elif name in self._urls or len(self._urls) + len(self._tasks) < MAX_ANNOUNCED:
            task = asyncio.ensure_future(self._resolve(zeroconf, service_type, name))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _resolve(self, zeroconf: Zeroconf, service_type: str, name: str) -> None:
        info = AsyncServiceInfo(service_type, name)
        if not await info.async_request(zeroconf, RESOLVE_S * 1000):
            return
        usable = [each for each in info.parsed_addresses() if self._is_usable(each)]
        if not usable or not info.port:
            return
        address = min(usable, key=lambda each: (":" in each, each))
        url = endpoint(address, info.port, "http")
        if self._urls.get(name) != url:
            self._urls[name] = url
            self._tell()

    def _tell(self) -> None:
        self._on_change(tuple(dict.fromkeys(self._urls.values())))

    def _is_usable(self, address: str) -> bool:
        """Tell whether it is a private address that means the same to us."""
        if address.lower().startswith("fe80:") or not is_admissible(address):
            return False
        return self._is_alone or not is_loopback(address)
