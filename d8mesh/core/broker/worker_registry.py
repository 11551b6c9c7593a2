"""The workers as the dispatcher knows them, and who is free for what.

A `WorkerState` is what is known of a worker at this orchestrator: mesh workers (ZeroMQ) and polling
workers (REST) alike. The indexes answer "who is free for this type" without walking all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.records import TaskRecord
from d8mesh.core.protocol.model_names import plain_name

#: After this many failures in a row a worker's share is halved, and again for each more.
STREAK_BEFORE_HALVING: Final = 3
#: A share is halved at most this often: a worker that mends itself must be noticed.
MAX_HALVINGS: Final = 6
#: Workers that left are listed as offline, at most this many of them.
MAX_OFFLINE_WORKERS: Final = 1000
#: A worker that has wanted no task for so long is not waited for by what others may do too;
#: polling workers ask every few seconds.
ASKS_S: Final = 30.0


#: The peer of a worker that no connection belongs to.
NOWHERE: Final = Peer(b"")


class Dialect(Enum):
    """How a worker speaks."""

    MESH = "mesh"
    POLLING = "polling"


#: For the path of every task: to look a member up costs as much as a function call.
POLLING: Final = Dialect.POLLING


@dataclass(slots=True, eq=False)
class Poll:
    """A polling worker's request for a task that waits for its answer."""

    peer: Peer
    request: int
    until: float
    #: its time was over while tasks for it were being loaded: it waits for them
    is_loading: bool = False


@dataclass(slots=True, eq=False)
class WorkerState:
    """One worker. `window` is how many attempts it wants outstanding in total."""

    worker_id: str
    dialect: Dialect
    peer: Peer = NOWHERE
    boot_id: str = ""
    #: boot ids that had this worker before
    displaced: tuple[str, ...] = ()
    worker_type: str = ""
    host: str = ""
    status_port: int = 0
    types: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    #: types that it answers by LLM services: those the broker places, beside its window
    placed_types: frozenset[str] = frozenset()
    #: ids and machines of the services that it reaches, in small letters
    places: frozenset[str] = frozenset()
    #: how many of `outstanding` are placed
    placed: int = 0
    #: something could not be sent to it; it has not spoken since
    is_mute: bool = False
    #: since when nothing could be sent to it, if that is later than `last_heard` (monotonic)
    vanished_at: float = -1.0
    slots: int = 1
    window: int = 0
    is_live: bool = True
    last_heard: float = 0.0
    last_heard_at: float = 0.0
    #: when its last `Welcome` was sent; that waits for the commit of its wake-up, and so does all
    #: that is sent to it in the same one (`now` is still this): it may not overtake
    welcomed: float = -1.0
    running: int = 0
    stuck: int = 0
    #: why it offers less than it could, in its own words; empty: it does not
    trouble: str = ""
    work_seq: int = 0
    #: when it was last handed something (monotonic)
    last_assignment: float = 0.0
    #: numbers of its `Results` that came in with this wake-up
    results: list[int] = field(default_factory=list)
    #: numbers of those that are on disk, to be acknowledged with the next assignment
    owed: list[int] = field(default_factory=list)
    #: when the last of them was, and whether a timer for them runs
    owed_since: float = 0.0
    is_owed_timed: bool = False
    failures_in_a_row: int = 0
    outstanding: dict[str, TaskRecord] = field(default_factory=dict)
    #: how many attempts it was asked to give back and has not yet
    recalled: int = 0
    #: attempts that were taken from it when nobody was heard: theirs if it turns out to have died
    unsure: dict[str, int] = field(default_factory=dict)
    poll: Poll | None = None
    #: it wanted tasks not long ago; a polling one: it polled
    has_asked: bool = True
    asked: float = 0.0
    is_free: bool = False

    @property
    def free(self) -> int:
        """How many more attempts it may be given now."""
        if not self.is_live:
            return 0
        if self.dialect is POLLING:
            return 1 if self.poll is not None else 0
        window = self.window
        if self.failures_in_a_row >= STREAK_BEFORE_HALVING:
            halvings = min(self.failures_in_a_row - STREAK_BEFORE_HALVING + 1, MAX_HALVINGS)
            window = min(window, max(1, self.slots >> halvings)) if window else 0
        room = window - len(self.outstanding) + self.placed
        return room if room > 0 else 0

    @property
    def own_types(self) -> frozenset[str]:
        """The types of tasks that its slots run."""
        return self.types - self.placed_types if self.placed_types else self.types

    @property
    def may_have_room(self) -> bool:
        """False while nothing lets expect that it takes tasks again: nobody should wait for it.

        A worker of which every slot is stuck, or whose disk is full, wants nothing and holds
        nothing; a polling worker may heartbeat and not ask.
        """
        return self.has_asked or bool(self.outstanding)

    def note_asking(self, now: float) -> None:
        """Bring `has_asked` up to date."""
        if self.dialect is not POLLING and (self.window > 0 or self.outstanding):
            self.asked = now
        self.has_asked = now - self.asked < ASKS_S

    def answers(self, kind: str) -> bool:
        """Return whether it runs tasks of a type, by its slots or by services."""
        return kind in self.types or kind in self.placed_types

    def is_at(self, machine: str) -> bool:
        """Return whether this is the machine or worker, or reaches the service, of that name."""
        name = machine.lower()
        return name in (self.worker_id.lower(), self.host.lower()) or name in self.places

    @property
    def is_busy(self) -> bool:
        """True when it has something to do."""
        return bool(self.outstanding) or self.running > 0


class WorkerRegistry:
    """All workers, and the indexes over them."""

    def __init__(self) -> None:
        self.workers: dict[str, WorkerState] = {}
        self._by_routing_id: dict[bytes, WorkerState] = {}
        #: type -> free workers, first in line first
        self.free: dict[str, dict[str, WorkerState]] = {}
        #: type -> live workers, and plain name of a model -> live workers
        self.serving: dict[str, dict[str, WorkerState]] = {}
        self.offering: dict[str, dict[str, WorkerState]] = {}
        #: type that nobody offers -> the most similar one that is offered, as far as looked for
        self.nearest: dict[str, str] = {}
        #: plain names of models whose workers have just gone, and whether the broker has just come:
        #: a worker with any model may be about to join again
        self.absent: frozenset[str] = frozenset()
        self.is_young = False

    def by_peer(self, peer: Peer) -> WorkerState | None:
        """Return the mesh worker behind a routing id."""
        return self._by_routing_id.get(peer.routing_id)

    def add(self, worker: WorkerState) -> None:
        """Take in a worker (replacing one of the same worker id)."""
        old = self.workers.pop(worker.worker_id, None)
        if old is not None:
            self.leave(old)
        self.workers[worker.worker_id] = worker
        self._index(worker)
        self._bound_offline()

    def move(self, worker: WorkerState, peer: Peer) -> None:
        """The mesh worker's session goes on under another routing id."""
        self._by_routing_id.pop(worker.peer.routing_id, None)
        worker.peer = peer
        self._by_routing_id[peer.routing_id] = worker

    def offer(self, worker: WorkerState, types: Iterable[str], models: Iterable[str]) -> None:
        """Change what a worker offers."""
        self._unindex(worker)
        worker.types, worker.models = frozenset(types), frozenset(models)
        self._index(worker)

    def place(self, worker: WorkerState, types: Iterable[str]) -> None:
        """Change which types a worker answers by services."""
        placed = frozenset(types)
        if placed != worker.placed_types:
            self._unindex(worker)
            worker.placed_types = placed
            self._index(worker)

    def leave(self, worker: WorkerState) -> None:
        """The worker is gone; it stays listed as offline."""
        if worker.is_live and worker.models:
            self.absent |= {plain_name(model) for model in worker.models}
        self._unindex(worker)
        worker.is_live = False
        worker.poll = None
        if self._by_routing_id.get(worker.peer.routing_id) is worker:
            del self._by_routing_id[worker.peer.routing_id]

    def rejoin(self, worker: WorkerState) -> None:
        """A worker that was offline speaks again."""
        worker.is_live = True
        self._index(worker)

    def remove(self, worker: WorkerState) -> None:
        """Forget a worker altogether."""
        self.leave(worker)
        self.workers.pop(worker.worker_id, None)

    def note_absent(self, heard_after: float, *, is_young: bool) -> None:
        """Bring up to date which models may be back soon.

        Args:
            heard_after: workers that have gone count if they were heard after this (monotonic).
            is_young: the broker itself has not been there for long.
        """
        gone = [w for w in self.workers.values() if not w.is_live and w.last_heard > heard_after]
        self.absent = frozenset(plain_name(model) for worker in gone for model in worker.models)
        self.is_young = is_young

    def is_expected(self, model: str) -> bool:
        """Return whether a worker with `model` (a plain name) may join at any moment."""
        return self.is_young or model in self.absent

    def refresh(self, worker: WorkerState) -> None:
        """Bring the index of free workers up to date after a change of the worker's free count."""
        is_free = worker.free > 0
        if is_free is worker.is_free:
            return
        worker.is_free, free = is_free, self.free
        for kind in worker.own_types:
            line = free.get(kind)
            if not is_free:
                _discard(free, kind, worker)
            elif line is None:
                free[kind] = {worker.worker_id: worker}
            else:
                line[worker.worker_id] = worker

    def to_the_end(self, worker: WorkerState, kind: str) -> None:
        """Put a free worker last in line for its type, so that all get their share."""
        line = self.free.get(kind)
        if line and worker.worker_id in line:
            line[worker.worker_id] = line.pop(worker.worker_id)

    def _index(self, worker: WorkerState) -> None:
        if not worker.is_live:
            return
        if worker.dialect is Dialect.MESH and worker.peer.routing_id:
            self._by_routing_id[worker.peer.routing_id] = worker
        self.nearest.clear()
        for kind in worker.types | worker.placed_types:
            self.serving.setdefault(kind, {})[worker.worker_id] = worker
        for model in map(plain_name, worker.models):
            self.offering.setdefault(model, {})[worker.worker_id] = worker
        worker.is_free = False
        self.refresh(worker)

    def _unindex(self, worker: WorkerState) -> None:
        self.nearest.clear()
        for kind in worker.types | worker.placed_types:
            _discard(self.serving, kind, worker)
            _discard(self.free, kind, worker)
        for model in map(plain_name, worker.models):
            _discard(self.offering, model, worker)
        worker.is_free = False

    def _bound_offline(self) -> None:
        if len(self.workers) <= MAX_OFFLINE_WORKERS:
            return
        gone = [w for w in self.workers.values() if not w.is_live and w.dialect is Dialect.MESH]
        gone.sort(key=lambda worker: worker.last_heard)
        for worker in gone[: -MAX_OFFLINE_WORKERS or None]:
            del self.workers[worker.worker_id]


def _discard(index: dict[str, dict[str, WorkerState]], name: str, worker: WorkerState) -> None:
    line = index.get(name)
    if line is not None and line.get(worker.worker_id) is worker:
        del line[worker.worker_id]
        if not line:
            del index[name]
