"""Whom a worker or client may contact: pins who has answered, tells of who is passed over."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from d8mesh.config import Config
from d8mesh.core.protocol.membership import fingerprint
from d8mesh.core.protocol.pinning import FirstContact, Pin, Trust, trust_in, with_pin
from d8mesh.core.protocol.route import KnownBroker
from d8mesh.edge import address_file
from d8mesh.edge.logs import event
from d8mesh.edge.pins import PinFile
from d8mesh.errors import ConfigError
from d8mesh.program import command_name

#: Orchestrators told of to people although they are passed over; of more nothing is said: whoever
#: makes up so many wants to fill the logs.
MAX_STRANGE: Final = 16
#: One that was not heard for so long is not told of any more.
STRANGE_S: Final = 300.0
#: Fingerprints and addresses named in one sentence.
MAX_NAMED_KEYS: Final = 3
_log: Final = logging.getLogger("d8mesh.trust")


class _Stranger(NamedTuple):
    text: str
    heard: float  # monotonic seconds


class OrchestratorTrust:
    """What one worker or client knows of the orchestrators of its mesh.

    Args:
        config: mesh and data folder stand there.
        secret: of the mesh key; None: there is none.
        is_one_named: a person has said where one is: where nothing is known yet, it is the first.

    Raises:
        ConfigError: the file with the pins cannot be used.

    Thread: any.
    """

    def __init__(self, config: Config, secret: bytes | None, *, is_one_named: bool = False) -> None:
        self._config, self._secret = config, secret
        self._file = PinFile(Path(config.data_dir))
        self._lock = threading.Lock()
        self._first = FirstContact()
        if is_one_named:
            self._first.expect(time.monotonic())
        self._pinned = self._file.of(config.mesh)
        #: pins that the disk did not take
        self._unkept: tuple[Pin, ...] = ()
        #: keys that a person has given with an address: trusted as long as they are given
        self._given: tuple[Pin, ...] = ()
        self._strangers: dict[bytes, _Stranger] = {}
        self._is_broken = False

    def give(self, key: bytes) -> None:
        """Trust the key that a person has given; where one is given, no other is the first."""
        self._given = with_pin(self._given, Pin(fingerprint(key), key))

    def prefer(self, key: bytes | None) -> None:
        """This key is told at the address that a person has named."""
        if key is not None:
            with self._lock:
                self._first.prefer(key, time.monotonic())

    def may_contact(self, broker: KnownBroker, *, is_heard: bool = True) -> bool:
        """Return whether anything may be sent to who is said to be there.

        Args:
            is_heard: it is there now, so that people are told if it is passed over.
        """
        trust = self._trust_in(broker)
        if not self._is_open(broker, trust, is_heard=is_heard):
            return False
        if trust is Trust.FIRST:
            with self._lock:
                return self._first.may(broker.server_key or b"", time.monotonic())
        return True

    def is_trusted(self, broker: KnownBroker) -> bool:
        """As `may_contact`, for a question of a person: nobody's turn is taken by it."""
        return self._is_open(broker, self._trust_in(broker), is_heard=True)

    def _is_open(self, broker: KnownBroker, trust: Trust, *, is_heard: bool) -> bool:
        if trust.is_open:
            self._let_in(broker.server_key or b"")
        elif is_heard:
            self._note(broker, trust)
        return trust.is_open

    def turned_away(self, url: str, why: str) -> None:
        """Somebody answers at the URL that a person has named, and is not to be talked to."""
        self._keep(url.encode(), lambda: why)

    def let_through(self, url: str) -> None:
        """Whoever answers at the URL can be talked to."""
        self._let_in(url.encode())

    def unreachable(self, key: bytes | None) -> None:
        """Nobody answers there: another one may be tried at once."""
        if key is not None:
            with self._lock:
                self._first.failed(key)

    def answered(self, key: bytes | None) -> None:
        """It has shown that the key is its own, but lets us wait."""
        if key is not None:
            with self._lock:
                self._first.answered(key, time.monotonic())

    def welcomed(self, key: bytes | None, broker_id: str) -> bool:
        """It has answered as an orchestrator of our mesh does: its key is trusted from now on.

        Returns:
            False: it was contacted while nothing was known, and another was the first to answer.
        """
        pins, mesh = self._pins(), self._config.mesh
        if key is None or any(pin.key == key for pin in pins):
            return True
        pin = Pin(fingerprint(key), key, broker_id, time.time())
        is_known = any(each.is_of(key) for each in pins) or self._is_own(key)
        try:
            if self._secret is not None or is_known:
                self._file.add(mesh, pin)
            elif pins or not self._file.add_first(mesh, pin):
                return False
        except (OSError, ConfigError) as error:
            self._unkept = with_pin(self._unkept, pin)
            event(_log, logging.WARNING, "pin.unkept", why=str(error))
        event(_log, logging.INFO, "orchestrator.pinned", broker=broker_id, key=pin.fingerprint)
        return True

    @property
    def only_key(self) -> bytes | None:
        """The key of the mesh's only orchestrator that is known; with a mesh key none is enough."""
        pins = [] if self._secret is not None else self._pins()
        return pins[0].key if len(pins) == 1 else None

    @property
    def pinned_ids(self) -> frozenset[str]:
        """The ids under which the orchestrators of this mesh have answered."""
        return frozenset(pin.broker_id for pin in self._pins() if pin.broker_id)

    def why_not(self, broker: KnownBroker) -> str:
        """Return why who is said to be there is not contacted."""
        trust = self._trust_in(broker)
        if trust.is_open:
            return "another orchestrator of this mesh is tried first"
        return self._sentence(broker, trust)

    @property
    def strangers(self) -> list[str]:
        """Who is passed over and why, a sentence each."""
        now = time.monotonic()
        return [
            each.text for each in list(self._strangers.values()) if now - each.heard < STRANGE_S
        ]

    # ------------------------------------------------------------------------ helpers

    def _trust_in(self, broker: KnownBroker) -> Trust:
        key, pins = broker.server_key, self._pins()
        trust = trust_in(broker, pins, secret=self._secret)
        if trust in (Trust.PINNED, Trust.PROVEN) or key is None:
            return trust
        is_own = any(pin.key == key for pin in self._given) or self._is_own(key)
        return trust_in(broker, pins, secret=self._secret, is_own=is_own)

    def _is_own(self, key: bytes) -> bool:
        """Return whether the orchestrator of this data folder has this key."""
        written = address_file.read(Path(self._config.data_dir), self._config.mesh)
        return written is not None and written.server_key == key

    def _pins(self) -> tuple[Pin, ...]:
        """Return what is pinned now; should the file become unreadable, what it said before."""
        try:
            self._pinned = self._file.of(self._config.mesh)
            self._is_broken = False
        except ConfigError as error:
            if not self._is_broken:
                event(_log, logging.ERROR, "pins.unreadable", why=str(error))
            self._is_broken = True
        return self._pinned + self._unkept + self._given

    def _let_in(self, key: bytes) -> None:
        if key in self._strangers:  # mostly not: no lock is taken for each look
            with self._lock:
                self._strangers.pop(key, None)

    def _note(self, broker: KnownBroker, trust: Trust) -> None:
        key = broker.server_key or broker.broker_id.encode()
        self._keep(key, lambda: self._sentence(broker, trust))

    def _keep(self, key: bytes, sentence: Callable[[], str]) -> None:
        now = time.monotonic()
        with self._lock:
            strangers = self._strangers
            known = strangers.pop(key, None)
            if len(strangers) >= MAX_STRANGE:
                oldest = next(iter(strangers))
                if strangers[oldest].heard > now - STRANGE_S:
                    return
                del strangers[oldest]
            text = sentence() if known is None else known.text
            strangers[key] = _Stranger(text, now)  # the one heard last stands last
        if known is None:
            event(_log, logging.WARNING, "orchestrator.strange", why=text)

    def _sentence(self, broker: KnownBroker, trust: Trust) -> str:
        mesh, theirs = self._config.mesh, fingerprint(broker.server_key or b"")
        at = f"{', '.join(broker.addresses[:MAX_NAMED_KEYS])} port {broker.port}"
        if trust is Trust.KEYLESS:
            return (
                f"{broker.broker_id} at {at} tells no key: nothing is said to it. It is of an "
                "older version: install the same d8mesh on both machines"
            )
        if trust is Trust.UNPROVEN:
            return (
                f"{broker.broker_id} at {at} does not know the D8_MESH_KEY of this machine: "
                "nothing is said to it. Set the same D8_MESH_KEY on both machines"
            )
        ours = ", ".join(pin.fingerprint for pin in self._pins()[:MAX_NAMED_KEYS])
        return (
            f"{broker.broker_id} at {at} has the key {theirs}, but of mesh {mesh!r} this machine "
            f"knows {ours}: nothing is said to it. If it is yours (a second one, or one that was "
            f"installed anew), run here: {trusting(self._config, theirs)}"
        )


def trusting(config: Config, told: str) -> str:
    """Return the command that has this machine trust the key with fingerprint `told`."""
    mesh = "" if config.mesh == Config().mesh else f"D8_MESH={config.mesh} "
    return f"{mesh}{command_name()} join trust {told}"
