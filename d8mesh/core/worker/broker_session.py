"""One worker's dealings with one broker: what it holds, what awaits acknowledgement."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
from msgspec.structs import replace

from d8mesh.core.protocol.membership import NOTHING_TO_SHOW, UNPROVEN, Credentials
from d8mesh.core.protocol.messages import (
    MAX_BATCH_TASKS,
    MAX_STREAM_BYTES,
    SOFT_FRAME_BYTES,
    VERSIONS,
    Chunks,
    Placement,
    Refused,
    Welcome,
    WorkerHello,
)
from d8mesh.core.worker.effects import Attempt, KeptResult

#: Until the first Welcome tells them: the documented heartbeat and lease.
HEARTBEAT_S: Final = 3.0
LEASE_S: Final = 10.0
#: As long as no clock runs (monotonic seconds).
NEVER: Final = 1e12
#: Of why an attempt could not be run, as much as travels; and what is said if nothing is known.
MAX_REASON_CHARS: Final = 500
NO_REASON: Final = "what its handler needs is busy or down"
#: Partial output kept for a broker that is away; who listens is told that some is missing.
MAX_PIECES_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Who the worker is and what it offers."""

    mesh: str
    worker_id: str
    boot_id: str
    worker_type: str
    machine_id: str
    host: str
    status_port: int
    slots: int
    task_types: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    #: why it offers less than it could, for people
    trouble: str = ""
    #: what it shows an orchestrator, and asks of one
    credentials: Credentials = NOTHING_TO_SHOW


def failure(worker_id: str, error: str, duration_s: float) -> bytes:
    """Return the result object of an attempt that the worker itself gives up."""
    return msgspec.msgpack.encode(
        {"success": False, "error": error, "worker_id": worker_id, "duration_s": duration_s}
    )


def reason_in(payload: bytes) -> str:
    """Return why an attempt could not be run, as a slot says it."""
    return payload.decode("utf-8", "replace")[:MAX_REASON_CHARS] or NO_REASON


@dataclass(slots=True, eq=False)
class ResultBatch:
    """Results that travel, and are acknowledged, together."""

    ids: list[str] = field(default_factory=list)
    tokens: list[bytes] = field(default_factory=list)
    kinds: bytearray = field(default_factory=bytearray)
    payloads: list[bytes] = field(default_factory=list)
    size: int = 0
    sent: float = 0.0

    def add(self, task_id: str, token: bytes, kind: int, payload: bytes) -> None:
        """Put one more result in."""
        self.ids.append(task_id)
        self.tokens.append(token)
        self.kinds.append(kind)
        self.payloads.append(payload)
        self.size += len(payload)

    def rows(self) -> Iterator[tuple[str, bytes, int, bytes]]:
        """Return id, token, kind and payload of each result."""
        return zip(self.ids, self.tokens, self.kinds, self.payloads, strict=True)

    def has_room(self, size_bytes: int) -> bool:
        """Tell whether a result of that size belongs into this message, not the next."""
        return not self.ids or (
            self.size + size_bytes <= SOFT_FRAME_BYTES and len(self.ids) < MAX_BATCH_TASKS
        )


@dataclass(slots=True, eq=False)
class BrokerSession:
    """The state of one link; it outlives its transport."""

    key: str
    #: the public key of who is at the other end
    server_key: bytes | None = None
    is_up: bool = False
    is_welcome: bool = False
    #: why its last HELLO was refused; of interest while it is not welcome
    refusal: str = ""
    #: why its session ended; empty while it stands, or never did
    lost: str = ""
    broker_id: str = ""
    epoch: int = 0
    heartbeat_s: float = HEARTBEAT_S
    lease_s: float = LEASE_S
    #: attempts waiting or running: id -> token, oldest first
    open: dict[str, bytes] = field(default_factory=dict)
    #: those of them that run at a service, beside the slots, and where
    placed: dict[str, Placement] = field(default_factory=dict)
    #: where attempts are to run that the next `Work` brings
    placing: dict[str, Placement] = field(default_factory=dict)
    #: results on their way, by the number of their message
    unacknowledged: dict[int, ResultBatch] = field(default_factory=dict)
    #: results that wait for a session
    waiting: list[ResultBatch] = field(default_factory=list)
    #: partial output on its way: task id, token, number, payload, oldest first
    pieces: deque[tuple[str, bytes, int, bytes]] = field(default_factory=deque)
    pieces_bytes: int = 0
    work_seq: int = 0
    window: int = 0
    heard: float = 0.0
    next_hello: float = 0.0
    next_heartbeat: float = 0.0
    #: since when this broker has been offered nothing, 0 if it is offered something
    starved_since: float = 0.0

    def lose(self, why: str) -> None:
        """The session stands no longer; what was said first of why it ended counts."""
        if self.broker_id:  # also one that was just greeted anew
            self.lost = self.lost or why
        self.is_welcome = False

    def collect(self, task_id: str, token: bytes, kind: int, payload: bytes) -> None:
        """Note a result for the next message."""
        if not self.waiting or not self.waiting[-1].has_room(len(payload)):
            self.waiting.append(ResultBatch())
        batch = self.waiting[-1]
        batch.ids.append(task_id)
        batch.tokens.append(token)
        batch.kinds.append(kind)
        batch.payloads.append(payload)
        batch.size += len(payload)

    def keep_piece(self, task_id: str, token: bytes, number: int, payload: bytes) -> None:
        """Note partial output for the next message; beyond the bound the oldest goes."""
        self.pieces.append((task_id, token, number, payload))
        self.pieces_bytes += len(payload)
        while self.pieces_bytes > MAX_PIECES_BYTES and len(self.pieces) > 1 and not self.is_welcome:
            self.pieces_bytes -= len(self.pieces.popleft()[3])

    def take_pieces(self) -> Iterator[Chunks]:
        """Yield the partial output that is kept, in messages that fit; it is kept no longer."""
        pieces, self.pieces, self.pieces_bytes = self.pieces, deque(), 0
        message, size = Chunks([], [], [], []), 0
        for task_id, token, number, payload in pieces:
            if message.ids and (
                size + len(payload) > MAX_STREAM_BYTES or len(message.ids) >= MAX_BATCH_TASKS
            ):
                yield message
                message, size = Chunks([], [], [], []), 0
            message.ids.append(task_id)
            message.tokens.append(token)
            message.seqs.append(number)
            message.payloads.append(payload)
            size += len(payload)
        if message.ids:
            yield message

    @property
    def in_slots(self) -> int:
        """How many attempts wait or run in slots."""
        return len(self.open) - len(self.placed)

    def place(
        self, attempts: Iterable[Attempt], placing: Mapping[str, Placement]
    ) -> tuple[list[Attempt], list[Attempt]]:
        """Return which of these, which are open, are for the slots, and which for a service."""
        in_slots, placed = list[Attempt](), list[Attempt]()
        for attempt in attempts:
            placement = placing.get(attempt.id)
            if placement is None:
                in_slots.append(attempt)
            else:
                placed.append(replace(attempt, placement=placement))
                self.placed[attempt.id] = placement
        return in_slots, placed

    def close(self, task_id: str, token: bytes) -> bool:
        """Strike this attempt, if it is open, off; return whether it was."""
        if self.open.get(task_id) != token:
            return False
        del self.open[task_id]
        self.placed.pop(task_id, None)
        return True

    def take_open(self, ids: Iterable[str]) -> list[bytes]:
        """Strike the attempts of these tasks off; return the tokens of those that were open."""
        tokens: list[bytes] = []
        for task_id in ids:
            token = self.open.pop(task_id, None)
            if token is not None:
                tokens.append(token)
                self.placed.pop(task_id, None)
        return tokens

    @property
    def is_idle(self) -> bool:
        """True when nothing of it waits or runs here, or awaits it while it is there."""
        return not (self.open or (self.is_welcome and (self.unacknowledged or self.waiting)))

    def next_deadline(self, resend_s: float) -> float:
        """Return when something is due next (monotonic seconds), a second sending included."""
        if not self.is_up:
            return NEVER
        dues = [self.heard + self.lease_s]
        dues.append(self.next_heartbeat if self.is_welcome else self.next_hello)
        dues += [batch.sent + resend_s for batch in self.unacknowledged.values()]
        return min(dues)

    def batches(self) -> Iterator[ResultBatch]:
        """Return all results that no broker has acknowledged."""
        yield from self.unacknowledged.values()
        yield from self.waiting

    def results(self) -> list[KeptResult]:
        """Return the same, one by one, as they lie in the outbox."""
        return [
            KeptResult(self.broker_id, *row) for batch in self.batches() for row in batch.rows()
        ]

    def take_back_unacknowledged(self, sent_before: float) -> None:
        """Let results that were sent before then, and never acknowledged, be sent again."""
        late = [seq for seq, batch in self.unacknowledged.items() if batch.sent <= sent_before]
        self.waiting[:0] = [self.unacknowledged.pop(seq) for seq in late]

    def held(self) -> tuple[list[str], list[bytes]]:
        """Return ids and tokens of all this worker holds of this broker's."""
        ids, tokens = list(self.open), list(self.open.values())
        for batch in self.batches():
            ids += batch.ids
            tokens += batch.tokens
        return ids[:MAX_BATCH_TASKS], tokens[:MAX_BATCH_TASKS]

    def drop(self, dropped: set[str]) -> ResultBatch:
        """Take the results of these tasks out, and return them."""
        gone = ResultBatch()
        for batch in self.batches():
            if dropped.isdisjoint(batch.ids):
                continue
            rest = ResultBatch()
            for row in batch.rows():
                (gone if row[0] in dropped else rest).add(*row)
            batch.ids, batch.tokens, batch.kinds = rest.ids, rest.tokens, rest.kinds
            batch.payloads, batch.size = rest.payloads, rest.size
        self.waiting = [batch for batch in self.waiting if batch.ids]
        self.unacknowledged = {seq: b for seq, b in self.unacknowledged.items() if b.ids}
        return gone


def unproven(message: Welcome) -> Refused:
    """Return what a WELCOME without the proof of our mesh key comes to."""
    return Refused(0, "access.orchestrator_key", f"{message.broker_id} {UNPROVEN}")


def hello(
    me: Profile, window: int, broker: BrokerSession, owed: Iterable[KeptResult]
) -> WorkerHello:
    """Return the message that opens a session.

    Args:
        owed: results that no link has; those that may be this broker's are held too, lest it
            gives their tasks to others before they can be handed in.
    """
    ids, tokens = broker.held()
    for row in owed:
        if broker.broker_id in ("", row.broker_id) and len(ids) < MAX_BATCH_TASKS:
            ids.append(row.task_id)
            tokens.append(row.token)
    return WorkerHello(
        VERSIONS[0], me.mesh, me.worker_id, me.boot_id, me.worker_type, me.machine_id, me.host,
        me.status_port, list(me.task_types), list(me.models), me.slots, window, ids, tokens,
        me.trouble, me.credentials.shown_to(broker.server_key),
    )  # fmt: skip
