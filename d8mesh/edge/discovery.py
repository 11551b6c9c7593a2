"""mDNS: announce this node, browse for others, and keep both going when the network changes.

A thread of its own looks at the interfaces every few seconds and rebuilds zeroconf when
they change; an absent or broken network is said once and tried again. Callbacks run on
that thread. Names are host and boot id, so that they are unique and need no probing
(RFC 6762 section 8.1 would cost 0.75 s); the identity stands in the TXT record.
Deliberately not here: dialling what was found (`edge.route`).

Source: RFC 6762, RFC 6763; https://python-zeroconf.readthedocs.io
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from typing import Final

from zeroconf import (
    BadTypeInNameException,
    DNSQuestionType,
    IPVersion,
    ServiceBrowser,
    ServiceInfo,
    ServiceStateChange,
    Zeroconf,
)
from zeroconf import Error as ZeroconfError

#: The interfaces are looked at this often.
LOOK_S: Final = 3.0
#: Names from the network that are remembered at once; a storm must not fill the memory.
MAX_NAMES: Final = 256
#: Events waiting to be looked at; more are dropped, and a later query brings them back.
MAX_EVENTS: Final = 1024
#: How long one question for a service's address may take, and how often it is asked.
RESOLVE_MS: Final = 400
RESOLVE_TRIES: Final = 5
#: A whole browse is begun anew this often: Wi-Fi may have swallowed an announcement.
REBROWSE_S: Final = 60.0
_TXT_BYTES: Final = 255
_CLOSE_S: Final = 3.0


class Kind(Enum):
    """What kind of node; the values are the DNS-SD service types."""

    ORCHESTRATOR = "_d8mesh._tcp.local."
    WORKER = "_d8worker._tcp.local."


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """What a node says of itself."""

    kind: Kind
    node_id: str
    boot_id: str
    mesh: str
    port: int
    web_port: int | None
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """A node that was heard; `addresses` as it advertises them, not yet tried."""

    kind: Kind
    node_id: str
    boot_id: str
    mesh: str
    addresses: tuple[str, ...]
    port: int
    web_port: int | None
    version: str


class Discovery:
    """Announces and browses for one mesh.

    Args:
        mesh: only nodes of this mesh are told.
        addresses: returns the addresses of this machine to use, asked every few seconds.
        on_sighting: called for each node heard, and again when it changes.
        on_goodbye: called when a node takes its announcement back. Close nothing for it.
        browse: which kinds to look for.
        on_trouble: called with a sentence for people.

    Thread: `start`, `announce` and `close` may be called from any; they never wait for the
    network, but `close` for its goodbyes (bounded).
    """

    def __init__(
        self,
        *,
        mesh: str,
        addresses: Callable[[], Collection[str]],
        on_sighting: Callable[[Sighting], None],
        on_goodbye: Callable[[Kind, str], None] = lambda kind, node_id: None,
        browse: Collection[Kind] = (),
        on_trouble: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._mesh = mesh
        self._addresses = addresses
        self._on_sighting = on_sighting
        self._on_goodbye = on_goodbye
        self._kinds = tuple(browse)
        self._on_trouble = on_trouble
        self._events: queue.Queue[tuple[ServiceStateChange, str, str] | None] = queue.Queue(
            MAX_EVENTS
        )
        self._own: dict[Kind, Announcement] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="discovery", daemon=True)
        self._zeroconf: Zeroconf | None = None
        self._in_use: tuple[str, ...] = ()
        self._browsers: list[ServiceBrowser] = []
        self._node_ids: dict[str, str] = {}
        self._is_stale = False
        self._next_browse = 0.0

    def announce(self, announcement: Announcement) -> None:
        """Tell the network of this node, in place of what was told of its kind before."""
        self._own[announcement.kind] = announcement
        self._is_stale = True
        self._nudge()

    def start(self) -> None:
        """Begin; trouble with the network is told to `on_trouble` and tried again."""
        self._thread.start()

    def close(self) -> None:
        """Take the announcements back and stop."""
        self._stop.set()
        self._nudge()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)

    def _nudge(self) -> None:
        with contextlib.suppress(queue.Full):
            self._events.put_nowait(None)

    # ------------------------------------------------------------------ the thread

    def _serve(self) -> None:
        next_look = 0.0
        try:
            while not self._stop.is_set():
                now = time.monotonic()
                if now >= next_look or self._is_stale:
                    next_look = now + LOOK_S
                    self._look(now)
                with contextlib.suppress(queue.Empty):
                    event = self._events.get(timeout=max(0.05, next_look - now))
                    if event is not None:
                        self._heard(*event)
        finally:
            self._tear_down()

    def _look(self, now: float) -> None:
        """Rebuild if the interfaces changed; browse anew now and then."""
        try:
            addresses = tuple(sorted(a for a in self._addresses() if ":" not in a))
            if addresses != self._in_use or self._zeroconf is None:
                self._tear_down()
                self._build(addresses)
            elif self._is_stale:
                self._register()
            if self._kinds and self._zeroconf is not None and now >= self._next_browse:
                self._next_browse = now + REBROWSE_S
                self._browse()
        except (OSError, ZeroconfError, BadTypeInNameException) as error:
            self._tear_down()
            self._on_trouble(f"mDNS does not work on {self._in_use or 'any interface'}: {error}")
        self._is_stale = self._is_stale and self._zeroconf is None and not self._stop.is_set()
        if self._is_stale:
            self._is_stale = False  # tried again at the next look

    def _build(self, addresses: tuple[str, ...]) -> None:
        self._in_use = addresses
        if not addresses:
            return
        self._zeroconf = Zeroconf(interfaces=list(addresses), ip_version=IPVersion.V4Only)
        self._next_browse = 0.0
        self._register()

    def _register(self) -> None:
        zeroconf = self._zeroconf
        if zeroconf is None:
            return
        self._is_stale = False
        for announcement in list(self._own.values()):
            info = _service(announcement, self._in_use)
            # The boot id makes the name unique, so there is nothing to probe for.
            zeroconf.register_service(info, cooperating_responders=True)

    def _browse(self) -> None:
        for browser in self._browsers:
            browser.cancel()
        assert self._zeroconf is not None
        # Answers by multicast: a unicast one goes to one of the sockets that share port
        # 5353 on a machine, seldom to the one that asked.
        self._browsers = [
            ServiceBrowser(
                self._zeroconf,
                kind.value,
                handlers=[self._changed],
                question_type=DNSQuestionType.QM,
            )
            for kind in self._kinds
        ]

    def _changed(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        """Note what zeroconf's own thread tells; looked at on ours, as resolving may wait."""
        del zeroconf
        with contextlib.suppress(queue.Full):
            self._events.put_nowait((state_change, service_type, name))

    def _heard(self, change: ServiceStateChange, service_type: str, name: str) -> None:
        kind = Kind(service_type)
        if change is ServiceStateChange.Removed:
            node_id = self._node_ids.pop(name, None)
            if node_id is not None:
                self._on_goodbye(kind, node_id)
            return
        info = self._resolve(service_type, name)
        if info is None or (name not in self._node_ids and len(self._node_ids) >= MAX_NAMES):
            return
        sighting = _sighting(kind, info)
        if sighting is not None and sighting.mesh == self._mesh:
            self._node_ids[name] = sighting.node_id
            self._on_sighting(sighting)

    def _resolve(self, service_type: str, name: str) -> ServiceInfo | None:
        info = ServiceInfo(service_type, name)
        for _ in range(RESOLVE_TRIES):
            zeroconf = self._zeroconf
            if zeroconf is None or self._stop.is_set():
                return None
            if info.load_from_cache(zeroconf):
                return info
            with contextlib.suppress(OSError, ZeroconfError):
                if info.request(zeroconf, RESOLVE_MS, question_type=DNSQuestionType.QM):
                    return info
        return None

    def _tear_down(self) -> None:
        zeroconf, self._zeroconf, self._browsers = self._zeroconf, None, []
        if zeroconf is not None:
            with contextlib.suppress(OSError, ZeroconfError):
                zeroconf.close()


def _service(announcement: Announcement, addresses: tuple[str, ...]) -> ServiceInfo:
    host = socket.gethostname().partition(".")[0][:40] or "host"
    label = f"{host}-{announcement.boot_id[:8]}"
    properties = {
        "id": announcement.node_id,
        "boot": announcement.boot_id,
        "mesh": announcement.mesh,
        "web": str(announcement.web_port or 0),
        "version": announcement.version,
    }
    return ServiceInfo(
        announcement.kind.value,
        f"{label}.{announcement.kind.value}",
        port=announcement.port,
        properties=properties,
        server=f"{label}.local.",
        parsed_addresses=list(addresses),
    )


def _sighting(kind: Kind, info: ServiceInfo) -> Sighting | None:
    """Return what a service says, or None if it is not one of ours."""
    text: dict[str, str] = {}
    for key, value in info.properties.items():
        try:
            text[key.decode("ascii")] = (value or b"").decode("utf-8")
        except UnicodeDecodeError:
            return None
    needed = ("id", "boot", "mesh")
    if not all(0 < len(text.get(key, "")) <= _TXT_BYTES for key in needed):
        return None
    web = text.get("web", "")
    web_port = int(web) if web.isascii() and web.isdigit() and 0 < int(web[:6]) < 65536 else None
    if not info.port:
        return None
    return Sighting(
        kind=kind,
        node_id=text["id"],
        boot_id=text["boot"],
        mesh=text["mesh"],
        addresses=tuple(info.parsed_addresses(IPVersion.V4Only)),
        port=info.port,
        web_port=web_port,
        version=text.get("version", ""),
    )
