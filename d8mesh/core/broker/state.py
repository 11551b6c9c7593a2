"""What the parts of the dispatcher share: the collections, the policy, the clock, what comes later.

All of it is data: what goes on when a time has come, or the store has answered, has a name.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappush
from typing import Final, TypeAlias

from msgspec import Struct

from d8mesh.core.broker.effects import Effect, Fault, Load, Peer, Record, Send
from d8mesh.core.broker.members import Members
from d8mesh.core.broker.metrics import Metrics
from d8mesh.core.broker.queue import ReadyQueue
from d8mesh.core.broker.records import Batch
from d8mesh.core.broker.services import ServiceTable
from d8mesh.core.broker.store import PayloadsOf, PrunableBatches, Question
from d8mesh.core.broker.task_table import TaskTable
from d8mesh.core.broker.worker_registry import WorkerRegistry, WorkerState
from d8mesh.core.protocol.membership import welcome_proof
from d8mesh.core.protocol.messages import Answer, Message, Welcome
from d8mesh.core.protocol.model_names import matching
from d8mesh.core.protocol.task import Fact
from d8mesh.core.protocol.tokens import TokenSigner
from d8mesh.core.protocol.wish import Cloud
from d8mesh.errors import D8Error, FloodError

#: Sessions of clients whose keys are remembered, those that came last.
MAX_SESSION_KEYS: Final = 10_000
#: Tasks that one client may listen to at the same time: bounds its part of the memory.
MAX_LISTENED: Final = 200_000
#: Questions of clients to the store that may be under way, and those of one client: more than
#: requests may wait in the REST process, for what may end for all at once.
MAX_LOADS: Final = 10_000
MAX_LOADS_OF_CLIENT: Final = 5000

#: Beyond its own timeout an attempt is left to its worker this much longer.
ATTEMPT_GRACE_S: Final = 30.0
#: An attempt at an LLM service is judged there, by its progress, for a long answer is no fault, and
#: a pull takes hours; this ends what nobody judged.
PLACED_TIME_S: Final = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The numbers the rules use; times in seconds. Defaults are those of the documents."""

    broker_id: str
    mesh: str
    version: str = ""
    broker_port: int = 0
    server_key: bytes = b""  #: our public key
    mesh_secret: bytes | None = field(default=None, repr=False)  #: None: no mesh key is set
    tls: str = ""  #: fingerprint of the REST port's certificate; empty: plain HTTP
    heartbeat_s: float = 3.0
    lease_s: float = 10.0
    polling_timeout_s: float = 60.0
    task_timeout_s: float = 300.0
    max_attempts: int = 3
    queue_size: int = 1_000_000
    queue_bytes: int = 4_000_000_000
    retention_s: float = 7 * 86_400.0
    retention_count: int = 1_000_000
    #: whether tasks that do not say may go to LLM services in the cloud
    cloud: Cloud = Cloud.NEVER
    #: model, "" for all -> the options that it is loaded with, the same in the whole mesh
    load_options: dict[str, dict[str, int | bool]] = field(default_factory=dict)

    @property
    def full_time_s(self) -> float:
        """How far ahead a fresh attempt without a deadline is overdue."""
        return self.task_timeout_s + ATTEMPT_GRACE_S

    def options_of(self, model: str) -> dict[str, object]:
        """Return the options that a model is loaded with."""
        found: dict[str, object] = dict(self.load_options.get("", {}))
        own = matching(model, [name for name in self.load_options if name])
        return found | self.load_options[own] if own is not None else found


class Retry(Struct, frozen=True, gc=False):
    """The pause of a task is over."""

    task_id: str


class PassDeadline(Struct, frozen=True, gc=False):
    """The tasks of a batch that are not finished are too late."""

    session: str
    first: int


class SayOwed(Struct, frozen=True, gc=False):
    """No assignment came with which a worker's results could be acknowledged."""

    worker_id: str


class CatchUp(Struct, frozen=True, gc=False):
    """Who could not be sent partial output is sent what is kept."""


class EraseDue(Struct, frozen=True, gc=False):
    """What a task asked and answered was delivered, and has been kept for as long as it should."""

    task_id: str


Timer: TypeAlias = Retry | PassDeadline | SayOwed | CatchUp | EraseDue


class TellOutcomes(Struct, frozen=True, gc=False):
    """Tell a client how tasks ended."""

    session: str
    ids: list[str]


class ClientAsked(Struct, frozen=True):
    """A question that waits for the store, and who waits for the answer."""

    peer: Peer
    request: int


class ThankForReport(ClientAsked, frozen=True):
    """A polling worker reported a task that is not open."""


class ShowTask(ClientAsked, frozen=True):
    """Answer with how a finished task stands, and with `more`.

    `is_brief`: its state only; `is_explained`: why it ran where it ran.
    """

    id: str
    more: dict[str, object] = {}
    is_brief: bool = False
    is_explained: bool = False


class ShowDetails(ClientAsked, frozen=True):
    """Answer with how a task stands, its input and all that went wrong."""

    id: str


class ShowPage(ClientAsked, frozen=True):
    """Answer with a page of tasks, those in a state only; `is_queue`: as the queue's."""

    cursor: str
    state: str = ""
    is_queue: bool = False


class Replay(ClientAsked, frozen=True):
    """Submit a finished task again, as number `n` of a session."""

    id: str
    session: str
    n: int


#: What a client waits for; a fault on the way is told to it.
Reply: TypeAlias = ThankForReport | ShowTask | ShowDetails | ShowPage | Replay
#: The broker's own questions say by themselves what goes on: payloads come into memory, batches
#: are forgotten.
Continuation: TypeAlias = PayloadsOf | PrunableBatches | TellOutcomes | Reply


@dataclass(slots=True, eq=False)
class ClientState:
    """A client as the dispatcher knows it."""

    session: str
    peer: Peer
    last_heard: float
    watched: set[str] = field(default_factory=set)
    listened: set[str] = field(default_factory=set)
    #: its questions to the store that are under way
    loads: int = 0
    #: it reads partial output of several tasks together
    takes_streams: bool = False


@dataclass(slots=True, eq=False)
class BrokerState:
    """Everything the dispatcher's parts work on, and how they let things happen, send and ask.

    What is to be done are the effects that the present call of the brain returns; between two
    calls there is none. All but `signer` and `draw` is data.
    """

    policy: Policy
    epoch: int
    signer: TokenSigner
    #: returns a random number in [0, 1)
    draw: Callable[[], float]
    task_table: TaskTable = field(default_factory=TaskTable)
    queue: ReadyQueue = field(default_factory=ReadyQueue)
    registry: WorkerRegistry = field(default_factory=WorkerRegistry)
    members: Members = field(default_factory=Members)
    services: ServiceTable = field(default_factory=ServiceTable)
    clients: dict[str, ClientState] = field(default_factory=dict)
    clients_by_routing_id: dict[bytes, ClientState] = field(default_factory=dict)
    #: session -> key of its client, whether that is there or not; who came last stands last
    session_keys: dict[str, bytes] = field(default_factory=dict)
    #: batches that somebody waits for at a door, taken in since the last sweep
    waited_for: list[Batch] = field(default_factory=list)
    #: order of a batch -> session that awaits all of it
    batch_watchers: dict[int, str] = field(default_factory=dict)
    #: task id -> sessions that await it
    task_watchers: dict[str, set[str]] = field(default_factory=dict)
    #: task id -> sessions that listen to its chunks
    listeners: dict[str, set[str]] = field(default_factory=dict)
    now: float = 0.0
    at: float = 0.0
    #: when this start was (Unix seconds)
    started_at: float = 0.0
    next_assignment: int = 1
    #: batches whose last task has finished, not yet told to the store
    closed: list[tuple[str, int]] = field(default_factory=list)
    #: what is to be gone on with, and when (monotonic): a heap; the second number keeps the order
    timers: list[tuple[float, int, Timer]] = field(default_factory=list)
    timer_count: int = 0
    #: when the oldest wake-up was whose facts are not durable yet; what is to be sent at once
    #: may promise nothing that stands on them
    unconfirmed_since: float = math.inf
    is_draining: bool = False
    is_disk_low: bool = False
    #: number of a question to the store -> what goes on with the answer, and the session of the
    #: client for whom it was asked
    loads: dict[int, tuple[Continuation, str]] = field(default_factory=dict)
    next_load: int = 1
    metrics: Metrics = field(init=False)
    effects: list[Effect] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.metrics = Metrics(totals=self.task_table.totals)

    def welcome(self, peer: Peer, version: int, dropped: list[str]) -> Welcome:
        """Return the answer to a HELLO."""
        us, proof = self.policy, b""
        if us.mesh_secret is not None and peer.key is not None:
            proof = welcome_proof(us.mesh_secret, us.server_key, peer.key)
        times = (us.heartbeat_s, us.lease_s)
        return Welcome(version, self.epoch, us.broker_id, *times, dropped, proof)

    def listen(self, client: ClientState, task_id: str) -> None:
        """Let a client hear a task that is not finished, also one that is yet to come.

        Raises:
            FloodError: it listens to as many as it may.
        """
        if len(client.listened) >= MAX_LISTENED and task_id not in client.listened:
            raise FloodError
        client.listened.add(task_id)
        self.listeners.setdefault(task_id, set()).add(client.session)

    def after(self, pause_s: float, timer: Timer) -> None:
        """Go on with `timer` in a later tick, `pause_s` from now."""
        self.timer_count += 1
        heappush(self.timers, (self.now + pause_s, self.timer_count, timer))

    def part_with(self, worker: WorkerState) -> None:
        """A worker is gone: from the registry, and from the services that it reached."""
        if worker.places:
            self.services.leave(worker, self.now)
            self.registry.place(worker, ())
            worker.places = frozenset()
        self.registry.leave(worker)

    def note_session(self, session: str, key: bytes | None) -> None:
        """A session is the client's with this key from now on."""
        self.session_keys.pop(session, None)
        if key is not None:
            self.session_keys[session] = key
            if len(self.session_keys) > MAX_SESSION_KEYS:
                del self.session_keys[next(iter(self.session_keys))]

    # ------------------------------------------------------- effects of the present call

    def record(self, fact: Fact) -> None:
        """Let `fact` happen: in the task table now, on disk with this batch.

        Raises:
            IllegalTransitionError, UnknownTaskError: it cannot; nothing has happened.
        """
        self.task_table.apply(fact)
        self.effects.append(Record(fact))

    def send(self, peer: Peer, message: Message, *, waits: bool = False) -> None:
        """Send `message`; `waits`: it promises something, so only after the commit."""
        self.effects.append(Send(peer, message, waits))

    def tell(self, worker: WorkerState, message: Message) -> None:
        """Send a worker something that promises nothing; its `Welcome` goes before it."""
        not_durable_since = min(self.now, self.unconfirmed_since)
        self.send(worker.peer, message, waits=worker.welcomed >= not_durable_since)

    def answer(
        self, peer: Peer, request: int, body: dict[str, object], *, waits: bool = False
    ) -> None:
        """Answer a `Query`."""
        self.send(peer, Answer(request, "", body), waits=waits)

    def refuse(self, peer: Peer, request: int, error: D8Error, **more: object) -> None:
        """Answer a `Query` with an error."""
        self.send(peer, Answer(request, error.code, {"error": str(error), **more}))

    def ask(self, question: Question, then: Continuation, session: str = "") -> None:
        """Ask the store, and go on with `then` when it has answered.

        Args:
            session: of the client for whom it is asked.
        """
        number, self.next_load = self.next_load, self.next_load + 1
        self.loads[number] = (then, session)
        self.effects.append(Load(number, question, session))

    def ask_for(self, peer: Peer, question: Question, then: Continuation) -> None:
        """Ask the store for a client, which `peer` is: a part of what is under way at most.

        Raises:
            FloodError: the client, or all together, have asked too much at the same time.
        """
        client = self.clients_by_routing_id.get(peer.routing_id)
        if client is None:
            return  # it left before the question led to this one
        if client.loads >= MAX_LOADS_OF_CLIENT or len(self.loads) >= MAX_LOADS:
            raise FloodError
        client.loads += 1
        self.ask(question, then, client.session)

    def tell_fault(self, where: str, error: Exception) -> None:
        """Have a fault of ours told in the log."""
        self.effects.append(Fault(where, "".join(traceback.format_exception(error))))

    def take(self) -> list[Effect]:
        """Return what is to be done; the call of the brain ends with that."""
        effects, self.effects = self.effects, []
        return effects
