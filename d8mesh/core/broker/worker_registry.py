"""The workers as the dispatcher knows them: workers, and who is free for what.

A `WorkerState` is a worker's place at this orchestrator: mesh workers (ZeroMQ) and polling
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
    #: numbers of those that are on disk, to be acknowledged with the next hand-out
    owed: list[int] = field(default_factory=list)
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
        room = window - len(self.outstanding)
        return room if room > 0 else 0

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

    @property
    def is_busy(self) -> bool:
        """True when it has something to do."""
        return bool(self.outstanding) or self.running > 0


class WorkerRegistry:
    """All workers, and the indexes over them."""

    def __init__(self) -> None:
        self.worker_states: dict[str, WorkerState] = {}
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

    def add(self, worker_state: WorkerState) -> None:
        """Take in a worker (replacing one of the same worker id)."""
        old = self.worker_states.pop(worker_state.worker_id, None)
        if old is not None:
            self.leave(old)
        self.worker_states[worker_state.worker_id] = worker_state
        self._index(worker_state)
        self._bound_offline()

    def move(self, worker_state: WorkerState, peer: Peer) -> None:
        """The mesh worker's session goes on under another routing id."""
        self._by_routing_id.pop(worker_state.peer.routing_id, None)
        worker_state.peer = peer
        self._by_routing_id[peer.routing_id] = worker_state

    def offer(self, worker_state: WorkerState, types: Iterable[str], models: Iterable[str]) -> None:
        """Change what a worker offers."""
        self._unindex(worker_state)
        worker_state.types, worker_state.models = frozenset(types), frozenset(models)
        self._index(worker_state)

    def leave(self, worker_state: WorkerState) -> None:
        """The worker is gone; the worker stays listed as offline."""
        if worker_state.is_live and worker_state.models:
            self.absent |= {plain_name(model) for model in worker_state.models}
        self._unindex(worker_state)
        worker_state.is_live = False
        worker_state.poll = None
        if self._by_routing_id.get(worker_state.peer.routing_id) is worker_state:
            del self._by_routing_id[worker_state.peer.routing_id]

    def rejoin(self, worker_state: WorkerState) -> None:
        """A worker that was offline speaks again."""
        worker_state.is_live = True
        self._index(worker_state)

    def remove(self, worker_state: WorkerState) -> None:
        """Forget a worker altogether."""
        self.leave(worker_state)
        self.worker_states.pop(worker_state.worker_id, None)

    def note_absent(self, heard_after: float, *, is_young: bool) -> None:
        """Bring up to date which models may be back soon.

        Args:
            heard_after: workers that have gone count if they were heard after this (monotonic).
            is_young: the broker itself has not been there for long.
        """
        gone = [
            s for s in self.worker_states.values() if not s.is_live and s.last_heard > heard_after
        ]
        self.absent = frozenset(
            plain_name(model) for worker_state in gone for model in worker_state.models
        )
        self.is_young = is_young

    def is_expected(self, model: str) -> bool:
        """Return whether a worker with `model` (a plain name) may join at any moment."""
        return self.is_young or model in self.absent

    def refresh(self, worker_state: WorkerState) -> None:
        """Bring the index of free workers up to date after a change of the worker's free count."""
        is_free = worker_state.free > 0
        if is_free is worker_state.is_free:
            return
        worker_state.is_free, free = is_free, self.free
        for kind in worker_state.types:
            line = free.get(kind)
            if not is_free:
                _discard(free, kind, worker_state)
            elif line is None:
                free[kind] = {worker_state.worker_id: worker_state}
            else:
                line[worker_state.worker_id] = worker_state

    def to_the_end(self, worker_state: WorkerState, kind: str) -> None:
        """Put a free worker last in line for its type, so that all get their share."""
        line = self.free.get(kind)
        if line and worker_state.worker_id in line:
            line[worker_state.worker_id] = line.pop(worker_state.worker_id)

    def _index(self, worker_state: WorkerState) -> None:
        if not worker_state.is_live:
            return
        if worker_state.dialect is Dialect.MESH and worker_state.peer.routing_id:
            self._by_routing_id[worker_state.peer.routing_id] = worker_state
        self.nearest.clear()
        for kind in worker_state.types:
            self.serving.setdefault(kind, {})[worker_state.worker_id] = worker_state
        for model in map(plain_name, worker_state.models):
            self.offering.setdefault(model, {})[worker_state.worker_id] = worker_state
        worker_state.is_free = False
        self.refresh(worker_state)

    def _unindex(self, worker_state: WorkerState) -> None:
        self.nearest.clear()
        for kind in worker_state.types:
            _discard(self.serving, kind, worker_state)
            _discard(self.free, kind, worker_state)
        for model in map(plain_name, worker_state.models):
            _discard(self.offering, model, worker_state)
        worker_state.is_free = False

    def _bound_offline(self) -> None:
        if len(self.worker_states) <= MAX_OFFLINE_WORKERS:
            return
        gone = [
            s for s in self.worker_states.values() if not s.is_live and s.dialect is Dialect.MESH
        ]
        for worker_state in sorted(gone, key=lambda worker_state: worker_state.last_heard)[
            : -MAX_OFFLINE_WORKERS or None
        ]:
            del self.worker_states[worker_state.worker_id]

    def check(self) -> None:
        """Assert that the indexes agree with the workers (for tests)."""
        for kind, line in self.free.items():
            assert line, kind
            for worker_state in line.values():
                assert worker_state.is_live, worker_state.worker_id
                assert kind in worker_state.types, worker_state.worker_id
                assert worker_state.free > 0, worker_state.worker_id
        for worker_state in self.worker_states.values():
            assert worker_state.is_free == (worker_state.free > 0), worker_state.worker_id
            for kind in worker_state.types if worker_state.free else ():
                assert self.free[kind][worker_state.worker_id] is worker_state


def _discard(
    index: dict[str, dict[str, WorkerState]], name: str, worker_state: WorkerState
) -> None:
    line = index.get(name)
    if line is not None and line.get(worker_state.worker_id) is worker_state:
        del line[worker_state.worker_id]
        if not line:
            del index[name]
