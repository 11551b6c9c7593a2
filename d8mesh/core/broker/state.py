"""What the parts of the dispatcher share: the collections, the policy, and the way out.

`record` is the only way a fact comes about: it changes the task table and asks for its commit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from d8mesh.core.broker.effects import Effect, Load, Peer, Record, Send
from d8mesh.core.broker.queue import ReadyQueue
from d8mesh.core.broker.task_table import TaskTable
from d8mesh.core.broker.worker_registry import WorkerRegistry, WorkerState
from d8mesh.core.protocol.messages import Answer, Message
from d8mesh.core.protocol.task import Fact
from d8mesh.core.protocol.tokens import TokenSigner
from d8mesh.errors import D8Error, FloodError

#: Questions of clients to the journal that may be under way, and those of one client: more than
#: the REST process has threads.
MAX_LOADS: Final = 10_000
MAX_LOADS_OF_CLIENT: Final = 1000

#: Tasks that one client may listen to at the same time: bounds its part of the memory.
MAX_LISTENED: Final = 200_000

#: What is done with the answer of the journal: rows, or an error.
Then: TypeAlias = Callable[[list[tuple[object, ...]], str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The numbers the rules use; times in seconds. Defaults are those of the documents."""

    broker_id: str
    mesh: str
    version: str = ""
    broker_port: int = 0
    heartbeat_s: float = 3.0
    lease_s: float = 10.0
    polling_timeout_s: float = 60.0
    task_timeout_s: float = 300.0
    max_attempts: int = 3
    queue_size: int = 1_000_000
    queue_bytes: int = 4_000_000_000
    retention_s: float = 7 * 86_400.0
    retention_count: int = 1_000_000


@dataclass(slots=True, eq=False)
class ClientState:
    """A client as the dispatcher knows it."""

    session: str
    peer: Peer
    last_heard: float
    watched: set[str] = field(default_factory=set)
    listened: set[str] = field(default_factory=set)
    #: its questions to the journal that are under way
    loads: int = 0


@dataclass(slots=True, eq=False)
class BrokerState:
    """Everything the dispatcher's parts work on."""

    policy: Policy
    signer: TokenSigner
    epoch: int
    #: returns a random number in [0, 1); seeded in tests
    draw: Callable[[], float]
    task_table: TaskTable = field(default_factory=TaskTable)
    queue: ReadyQueue = field(default_factory=ReadyQueue)
    registry: WorkerRegistry = field(default_factory=WorkerRegistry)
    clients: dict[str, ClientState] = field(default_factory=dict)
    clients_by_routing_id: dict[bytes, ClientState] = field(default_factory=dict)
    #: order of a batch -> session that awaits all of it
    batch_watchers: dict[int, str] = field(default_factory=dict)
    #: task id -> sessions that await it
    task_watchers: dict[str, set[str]] = field(default_factory=dict)
    #: task id -> sessions that listen to its chunks
    listeners: dict[str, set[str]] = field(default_factory=dict)
    now: float = 0.0
    at: float = 0.0
    next_assignment: int = 1
    #: batches whose last task has finished, not yet told to the journal
    closed: list[tuple[str, int]] = field(default_factory=list)
    #: sends the listeners of a task (id, sessions) what they missed, before they hear of the end
    say_last: Callable[[str, set[str]], None] = field(default=lambda task_id, sessions: None)
    is_draining: bool = False
    is_disk_low: bool = False
    #: refusals by reason, for the counters
    rejected: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    _out: list[Effect] = field(default_factory=list)
    _loads: dict[int, Then] = field(default_factory=dict)
    _next_load: int = 1

    def listen(self, client: ClientState, task_id: str) -> None:
        """Let a client hear a task that is not finished, also one that is yet to come.

        Raises:
            FloodError: it listens to as many as it may.
        """
        if len(client.listened) >= MAX_LISTENED and task_id not in client.listened:
            raise FloodError
        client.listened.add(task_id)
        self.listeners.setdefault(task_id, set()).add(client.session)

    def record(self, fact: Fact) -> None:
        """Let `fact` happen: in the task table now, on disk with this batch."""
        self.task_table.apply(fact)
        self._out.append(Record(fact))

    def send(self, peer: Peer, message: Message, *, waits: bool = False) -> None:
        """Send `message`; `waits`: it promises something, so only after the commit."""
        self._out.append(Send(peer, message, waits))

    def tell(self, worker_state: WorkerState, message: Message) -> None:
        """Send a worker something that promises nothing; its `Welcome` goes before it."""
        self.send(worker_state.peer, message, waits=worker_state.welcomed == self.now)

    def answer(
        self, peer: Peer, request: int, body: dict[str, object], *, waits: bool = False
    ) -> None:
        """Answer an `Query`."""
        self.send(peer, Answer(request, "", body), waits=waits)

    def refuse(self, peer: Peer, request: int, error: D8Error, **more: object) -> None:
        """Answer an `Query` with an error."""
        self.send(peer, Answer(request, error.code, {"error": str(error), **more}))

    def load(self, what: str, args: tuple[object, ...], then: Then) -> None:
        """Ask the journal; `then(rows, error)` is called when the answer is there."""
        number, self._next_load = self._next_load, self._next_load + 1
        self._loads[number] = then
        self._out.append(Load(number, what, args))

    def load_for(self, peer: Peer, what: str, args: tuple[object, ...], then: Then) -> None:
        """Ask the journal for a client, which `peer` is: a part of what is under way at most.

        Raises:
            FloodError: the client, or all together, have asked too much at the same time.
        """
        client = self.clients_by_routing_id[peer.routing_id]
        if client.loads >= MAX_LOADS_OF_CLIENT or len(self._loads) >= MAX_LOADS:
            raise FloodError
        client.loads += 1

        def answered(rows: list[tuple[object, ...]], error: str) -> None:
            client.loads -= 1
            then(rows, error)

        self.load(what, args, answered)

    def loaded(self, number: int, rows: list[tuple[object, ...]], error: str) -> None:
        """Hand an answer of the journal to who asked."""
        then = self._loads.pop(number, None)
        if then is not None:
            then(rows, error)

    def reject(self, reason: str) -> None:
        """Count a refusal."""
        self.rejected[reason] = self.rejected.get(reason, 0) + 1

    def take_effects(self) -> list[Effect]:
        """Return what has been asked for since the last call."""
        out, self._out = self._out, []
        return out
