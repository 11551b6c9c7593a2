"""Hears nodes on one set of interfaces and asks for those that were missed.

Quick: a fresh listener asks twice over, by multicast and from a port of its own. The latter
is answered at once and to that port alone (RFC 6762 section 6.7). A unicast answer to port
5353 would go to any one of the processes that share it, and a multicast one is held back
when there was one within the last second (section 6). Wi-Fi, which drops multicast first,
carries such answers best; a firewall that knows mDNS lets the multicast ones in.

Bounded: zeroconf keeps at most 10,000 records, and here nothing grows without its constant.
`ServiceBrowser` is not used: it keeps every name, though taken back, until 3/4 of its time
to live are over, so that goodbye storms fill the memory, and it never asks again for what
it missed at the start.

Source: RFC 6762; `docs/PROTOCOL.md`.  Thread: discovery's, its event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from zeroconf import (  # type: ignore[attr-defined]  # documented, but not in its __all__
    DNSIncoming,
    DNSOutgoing,
    DNSQuestion,
    RecordUpdate,
    RecordUpdateListener,
    ServiceInfo,
    Zeroconf,
    current_time_millis,
)
from zeroconf import Error as ZeroconfError

from d8mesh.core.protocol.addresses import candidates, is_admissible
from d8mesh.core.protocol.announcement import NodeKind, Sighting, from_txt
from d8mesh.errors import ProtocolError

#: Nodes of one kind that are remembered; more are not told until one has fallen silent.
MAX_KNOWN: Final = 256
#: A node that was not heard for so long makes room for another.
SILENT_S: Final = 150.0
#: A node that is heard again, unchanged, is told again after this time.
RETELL_S: Final = 30.0
#: Names that wait to be looked at; more are dropped and come back with a later question.
MAX_WAITING_NAMES: Final = 1024
#: Names looked at in one turn, and how far turns are apart: a storm can't take the machine.
MAX_PER_TURN: Final = 64
TURN_S: Final = 0.1
#: Services whose address did not come along and is asked for, at once and each.
MAX_RESOLVING: Final = 16
RESOLVE_MS: Final = 1000
RESOLVE_TRIES: Final = 3
#: Sentences that were said and are not said again.
MAX_COMPLAINTS: Final = 256
#: Names of other meshes that are remembered, for who finds none of its own.
MAX_STRANGERS: Final = 16
#: Questions after the start, each so long after the one before (RFC 6762 section 5.2).
START_QUESTIONS_S: Final = (1.0, 2.0, 4.0)
#: How often it is asked while nobody of some kind is known, and then.
LONELY_S: Final = 10.0
QUESTION_S: Final = 60.0
#: Random pause before a multicast question (RFC 6762 section 5.2).
_BEFORE_QUERY_S: Final = (0.02, 0.12)
_MAX_PACKET_BYTES: Final = 8966
_MDNS: Final = ("224.0.0.251", 5353)
_A, _PTR, _TXT, _AAAA, _SRV, _IN = 1, 12, 16, 28, 33, 1


@dataclass(frozen=True, slots=True)
class DiscoveryReport:
    """Where it is told what was heard."""

    on_sighting: Callable[[Sighting], None]
    on_trouble: Callable[[str], None]
    #: told why something that was heard is not heeded: `mdns.record`, `mdns.port`, `mdns.address`
    on_ignored: Callable[[str], None] = lambda code: None
    #: other meshes that were heard, at most `MAX_STRANGERS`
    strangers: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Known:
    sighting: Sighting
    heard: float  # monotonic seconds
    told: float


class MulticastListener(RecordUpdateListener):  # zeroconf insists on this base class
    """Listens for the nodes of one mesh until it is closed.

    Args:
        zeroconf: a started one; the listener does not close it.
        own_addresses: this machine's, to recognise who is on it.
    """

    def __init__(
        self,
        zeroconf: Zeroconf,
        report: DiscoveryReport,
        *,
        mesh: str,
        kinds: Collection[NodeKind],
        own_addresses: Collection[str],
    ) -> None:
        self._zeroconf = zeroconf
        self._report = report
        self._mesh = mesh
        self._kinds = {kind.value: kind for kind in kinds}
        self._own_addresses = own_addresses
        #: boot ids of this process: what it announces itself is not told
        self.own_boots: set[str] = set()
        self._known: dict[NodeKind, dict[str, _Known]] = {kind: {} for kind in kinds}
        self._waiting: dict[str, tuple[str, NodeKind, bool]] = {}
        self._servers: dict[str, tuple[str, NodeKind]] = {}
        self._resolving: dict[str, asyncio.Task[None]] = {}
        self._complaints: set[str] = set()
        self._next_turn = 0.0
        self._turn: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        self._transports: list[asyncio.DatagramTransport] = []
        self._question_id = b""

    async def start(self) -> None:
        """Listen, and ask."""
        loop = asyncio.get_running_loop()
        for address in self._own_addresses:
            if ":" in address:
                continue
            with contextlib.suppress(OSError):  # the other way of asking remains
                own_port = _own_port(address)
                transport, _ = await loop.create_datagram_endpoint(
                    lambda: _DirectAnswers(self._heard_directly), sock=own_port
                )
                self._transports.append(transport)
        self._zeroconf.async_add_listener(self, None)
        self._asking = loop.create_task(self._ask_for_ever())

    async def close(self) -> None:
        """Stop; nothing is told after this."""
        self._zeroconf.async_remove_listener(self)
        if self._turn is not None:
            self._turn.cancel()
        tasks = [*self._resolving.values(), *([self._asking] if self._asking else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for transport in self._transports:
            transport.close()

    # --------------------------------------------------------------------- hearing

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """Note which of our services a packet speaks of. Called by zeroconf."""
        del zc
        for update in records:
            record = update.new
            is_gone = record.is_expired(now)
            if record.type == _PTR:
                kind = self._kinds.get(record.name.lower())
                if kind is not None:
                    self._note(str(getattr(record, "alias", "")), kind, is_gone=is_gone)
            elif is_gone:
                continue  # what a service is made of may run out while the service stays
            elif record.type in (_SRV, _TXT):
                kind = self._kinds.get(record.name.lower().partition(".")[2])
                if kind is not None:
                    self._note(record.name, kind, is_gone=False)
            elif record.type in (_A, _AAAA) and record.name.lower() in self._servers:
                self._note(*self._servers[record.name.lower()], is_gone=False)

    def async_update_records_complete(self) -> None:
        """Look at what was noted, now that the cache has it. Called by zeroconf."""
        if self._waiting and self._turn is None:
            loop = asyncio.get_running_loop()
            if loop.time() >= self._next_turn:
                self._take_turn()
            else:
                self._turn = loop.call_at(self._next_turn, self._take_turn)

    def _note(self, name: str, kind: NodeKind, *, is_gone: bool) -> None:
        key = name.lower()
        if key in self._waiting or len(self._waiting) < MAX_WAITING_NAMES:
            self._waiting[key] = (name, kind, is_gone)

    def _take_turn(self) -> None:
        loop = asyncio.get_running_loop()
        self._turn, self._next_turn = None, loop.time() + TURN_S
        try:
            for key in list(self._waiting)[:MAX_PER_TURN]:
                name, kind, is_gone = self._waiting.pop(key)
                if is_gone:
                    self._forget(key, kind)
                else:
                    self._look_at(name, kind)
        finally:  # also after a callback that raised
            if self._waiting:
                self._turn = loop.call_at(self._next_turn, self._take_turn)

    def _forget(self, key: str, kind: NodeKind) -> None:
        """A goodbye: only that a return is news. Anybody can send one, so nothing is closed."""
        if self._known[kind].pop(key, None) is not None:
            self._servers = {s: each for s, each in self._servers.items() if each[0] != key}

    def _look_at(self, name: str, kind: NodeKind) -> None:
        try:
            info = ServiceInfo(kind.value, name)
        except ZeroconfError:
            self._complain(f"the mDNS name {name!a:.80} is none of ours")
            return
        if info.load_from_cache(self._zeroconf):
            self._judge(info, kind)
        elif name.lower() not in self._resolving and len(self._resolving) < MAX_RESOLVING:
            task = asyncio.get_running_loop().create_task(self._resolve(info, kind))
            self._resolving[name.lower()] = task

    async def _resolve(self, info: ServiceInfo, kind: NodeKind) -> None:
        try:
            for _ in range(RESOLVE_TRIES):
                with contextlib.suppress(OSError, ZeroconfError):
                    if await info.async_request(self._zeroconf, RESOLVE_MS):
                        self._judge(info, kind)
                        return
        finally:
            self._resolving.pop(info.name.lower(), None)

    # -------------------------------------------------------------------- telling

    def _judge(self, info: ServiceInfo, kind: NodeKind) -> None:
        """Tell of a service, if it is a node of our mesh at an address that may be ours."""
        advertised = info.parsed_scoped_addresses()
        usable = candidates(advertised, own=self._own_addresses)
        try:
            sighting = from_txt(kind, info.text or b"", port=info.port or 0, addresses=usable)
        except ProtocolError as error:
            self._report.on_ignored("mdns.record" if info.port else "mdns.port")
            self._complain(f"{info.name!a:.80} ignored: {error}")
            return
        if sighting.mesh != self._mesh:
            if len(self._report.strangers) < MAX_STRANGERS:
                self._report.strangers.add(sighting.mesh)
            return
        if sighting.boot_id in self.own_boots:
            return
        foreign = [address for address in advertised if not is_admissible(address)]
        if foreign:
            self._report.on_ignored("mdns.address")
        for address in foreign:
            self._complain(f"address {address} of {info.name!a:.80} ignored: not a private one")
        if usable:
            self._tell(info, sighting)

    def _tell(self, info: ServiceInfo, sighting: Sighting) -> None:
        key, now = info.name.lower(), time.monotonic()
        of_kind = self._known[sighting.kind]
        known = of_kind.pop(key, None)
        if known is None and len(of_kind) >= MAX_KNOWN and not self._make_room(of_kind, now):
            return
        is_news = known is None or known.sighting != sighting or now - known.told >= RETELL_S
        told = now if known is None or is_news else known.told
        of_kind[key] = _Known(sighting, now, told)  # the one heard last stands last
        if known is None and info.server is not None:
            self._servers[info.server.lower()] = (key, sighting.kind)
        if is_news:
            self._report.on_sighting(sighting)

    def _make_room(self, of_kind: dict[str, _Known], now: float) -> bool:
        silent = next(iter(of_kind))
        if now - of_kind[silent].heard < SILENT_S:
            return False
        del of_kind[silent]
        self._servers = {s: each for s, each in self._servers.items() if each[0] != silent}
        return True

    def _complain(self, text: str) -> None:
        if text not in self._complaints and len(self._complaints) < MAX_COMPLAINTS:
            self._complaints.add(text)
            self._report.on_trouble(text)

    # --------------------------------------------------------------------- asking

    async def _ask_for_ever(self) -> None:
        for wait_s in START_QUESTIONS_S:
            await self._ask()
            await asyncio.sleep(wait_s)
        while True:
            await self._ask()
            is_lonely = not all(self._known.values())
            await asyncio.sleep(LONELY_S if is_lonely else QUESTION_S)

    async def _ask(self) -> None:
        """Ask from our own port, then by multicast."""
        # Another id each time: responders ignore the same packet within 0.8 s.
        self._question_id = random.getrandbits(16).to_bytes(2)
        question = b"".join(
            [
                self._question_id,
                struct.pack("!5H", 0, len(self._kinds), 0, 0, 0),
                *(_encoded(name) + struct.pack("!2H", _PTR, _IN) for name in self._kinds),
            ]
        )
        for transport in self._transports:
            transport.sendto(question, _MDNS)
        await asyncio.sleep(random.uniform(*_BEFORE_QUERY_S))
        now = current_time_millis()
        out = DNSOutgoing(0)
        for name in self._kinds:
            out.add_question(DNSQuestion(name, _PTR, _IN))
        for name in self._kinds:
            answers = self._zeroconf.cache.get_all_by_details(name, _PTR, _IN)[:MAX_KNOWN]
            for record in answers:
                if not record.is_stale(now):
                    out.add_answer_at_time(record, now)
        self._zeroconf.async_send(out)

    def _heard_directly(self, packet: bytes, source: tuple[str, int]) -> None:
        if packet[:2] != self._question_id or len(packet) > _MAX_PACKET_BYTES:
            return
        if source[1] != _MDNS[1] or not is_admissible(source[0]):
            return
        message = DNSIncoming(packet, source, None, current_time_millis())
        if message.valid and not message.is_query():
            self._zeroconf.record_manager.async_updates_from_response(message)


class _DirectAnswers(asyncio.DatagramProtocol):
    def __init__(self, on_packet: Callable[[bytes, tuple[str, int]], None]) -> None:
        self._on_packet = on_packet

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._on_packet(data, addr)

    def error_received(self, exc: Exception) -> None:
        """Nothing to do: an interface that went away is seen at the next look."""


def _own_port(address: str) -> socket.socket:
    """Return a socket that asks by multicast on the interface of `address`."""
    own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        own.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        own.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        own.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        own.setblocking(False)
        own.bind((address, 0))
    except OSError:
        own.close()
        raise
    return own


def _encoded(name: str) -> bytes:
    labels = [label.encode("ascii") for label in name.rstrip(".").split(".")]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
