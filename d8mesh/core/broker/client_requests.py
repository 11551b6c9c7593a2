"""What clients say besides submits: they come and go, await, listen, and ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from d8mesh.core.broker import reports
from d8mesh.core.broker.admission import Admission
from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.outcomes import TaskOutcomes
from d8mesh.core.broker.state import BrokerState, ClientState
from d8mesh.core.broker.streaming import Streaming
from d8mesh.core.broker.worker_sessions import refuse_hello
from d8mesh.core.protocol.messages import (
    UNKNOWN_STATE,
    Beat,
    ClientHello,
    Listen,
    Listening,
    Query,
    Watch,
    Welcome,
)
from d8mesh.core.protocol.task import MAX_COUNTER, Spec, TaskState, parse_id
from d8mesh.errors import (
    D8Error,
    DrainingError,
    FloodError,
    ForbiddenError,
    InvalidTaskError,
    PrunedTaskError,
    TaskRejectedError,
    UnknownTaskError,
)

#: A client that says nothing for this many leases is forgotten (it can come back).
CLIENT_LEASES: Final = 3
#: This many ids of one batch in a watch, and the whole batch is watched instead.
WHOLE_BATCH_IDS: Final = 16
#: Tasks one client may await singly: bounds its part of the memory.
MAX_WATCHED: Final = 200_000
#: Largest page of a listing.
MAX_PAGE: Final = 1000

Args: TypeAlias = dict[str, object]
Rows: TypeAlias = list[tuple[object, ...]]


class ClientRequests:
    """Serves the clients of a pool."""

    def __init__(
        self,
        broker: BrokerState,
        task_outcomes: TaskOutcomes,
        admission: Admission,
        streaming: Streaming,
    ) -> None:
        self._state = broker
        self._outcomes = task_outcomes
        self._streaming = streaming
        self._admission = admission
        self.asks: dict[str, Callable[[Peer, int, Args], None]] = {
            "health": lambda peer, n, _: broker.answer(peer, n, reports.health(broker)),
            "stats": lambda peer, n, _: broker.answer(peer, n, reports.stats(broker)),
            "workers": lambda peer, n, _: broker.answer(peer, n, reports.workers(broker)),
            "status": self._status,
            "queue": self._queue,
            "tasks": self._tasks,
            "cancel": self._cancel,
            "replay": self._replay,
        }

    # ------------------------------------------------------------- coming and going

    def hello(self, message: ClientHello, peer: Peer) -> None:
        """Open a client's session, or let it go on under another routing id."""
        broker = self._state
        refusal = refuse_hello(message.version, message.mesh, broker)
        if refusal is not None:
            broker.reject(refusal.code)
            broker.send(peer, refusal)
            return
        client = broker.clients.get(message.session)
        if client is None:
            client = ClientState(message.session, peer, broker.now)
            broker.clients[message.session] = client
        broker.clients_by_routing_id.pop(client.peer.routing_id, None)
        client.peer, client.last_heard = peer, broker.now
        broker.clients_by_routing_id[peer.routing_id] = client
        policy = broker.policy
        broker.send(
            peer,
            Welcome(
                message.version,
                broker.epoch,
                policy.broker_id,
                policy.heartbeat_s,
                policy.lease_s,
                [],
            ),
        )

    def leave(self, client: ClientState) -> None:
        """Forget a client; its tasks go on, and what it awaits it may ask for again."""
        broker = self._state
        broker.clients.pop(client.session, None)
        broker.clients_by_routing_id.pop(client.peer.routing_id, None)
        for task_id in client.watched:
            _remove(broker.task_watchers, task_id, client.session)
        for task_id in list(client.listened):
            self._stop_listening(client, task_id)

    def is_silent(self, client: ClientState) -> bool:
        """Return whether the client has been silent for too long."""
        limit_s = CLIENT_LEASES * self._state.policy.lease_s
        return self._state.now - client.last_heard > limit_s

    # ---------------------------------------------------------- awaiting, listening

    def watch(self, client: ClientState, message: Watch) -> None:
        """Send the outcomes of these tasks, now or when they come; empty: a sign of life."""
        broker = self._state
        broker.send(client.peer, Beat(broker.epoch))
        finished: list[str] = []
        unknown: list[str] = []
        per_batch: dict[int, list[str]] = {}
        for task_id in message.ids:
            try:
                found = broker.task_table.find(task_id)
            except UnknownTaskError:
                unknown.append(task_id)
                continue
            if found is None or broker.task_table.state_of(task_id) is None:
                finished.append(task_id)
            elif broker.batch_watchers.get(found[0].order) != client.session:
                per_batch.setdefault(found[0].order, []).append(task_id)
        for order, ids in per_batch.items():
            if len(ids) >= WHOLE_BATCH_IDS and order not in broker.batch_watchers:
                broker.batch_watchers[order] = client.session
            else:
                self._watch_singly(client, ids)
        if unknown:
            states = bytes([UNKNOWN_STATE]) * len(unknown)
            self._outcomes.tell(client.session, unknown, states, [b""] * len(unknown))
        if finished:
            self._tell_finished(client, finished)

    def unwatch(self, client: ClientState, ids: list[str]) -> None:
        """These outcomes are not awaited any more."""
        for task_id in ids:
            client.watched.discard(task_id)
            _remove(self._state.task_watchers, task_id, client.session)

    def listen(self, client: ClientState, message: Listen) -> None:
        """Start or stop passing on the partial output of a task."""
        broker, task_id = self._state, message.id
        if not message.is_on:
            self._stop_listening(client, task_id)
            return
        try:
            key = parse_id(task_id)
            if broker.task_table.state_of(task_id) is None:
                accepted = broker.task_table.accepted.get(key.session)
                if accepted is not None and accepted.overlap(key.n, 1):
                    return  # finished: the outcome, awaited apart, ends the stream
            is_first = task_id not in broker.listeners
            broker.listen(client, task_id)  # before its task, if that is still on its way
        except (UnknownTaskError, FloodError) as error:
            broker.reject(error.code)
            return
        task = broker.task_table.tasks.get(task_id)
        if task is None or task.state is not TaskState.RUNNING:
            return
        if is_first:
            self._tell_worker(task.worker_id, task_id, is_on=True)
        tail = self._streaming.tail(task)
        if tail.payloads:
            broker.send(client.peer, tail)

    def _stop_listening(self, client: ClientState, task_id: str) -> None:
        client.listened.discard(task_id)
        _remove(self._state.listeners, task_id, client.session)
        task = self._state.task_table.tasks.get(task_id)
        if task is not None and task_id not in self._state.listeners:
            self._tell_worker(task.worker_id, task_id, is_on=False)

    def _tell_worker(self, worker_id: str, task_id: str, *, is_on: bool) -> None:
        worker_state = self._state.registry.worker_states.get(worker_id)
        if worker_state is not None and worker_state.is_live and worker_state.boot_id:
            self._state.tell(worker_state, Listening([task_id], is_on))

    def _watch_singly(self, client: ClientState, ids: list[str]) -> None:
        for task_id in ids:
            if len(client.watched) >= MAX_WATCHED:
                self._state.reject("watch.too_many")
                return  # the client asks again later
            client.watched.add(task_id)
            self._state.task_watchers.setdefault(task_id, set()).add(client.session)

    def _tell_finished(self, client: ClientState, ids: list[str]) -> None:
        def then(rows: Rows, error: str) -> None:
            if error:
                return  # the client asks again: what it awaits is state
            found = {str(row[0]): (row[1], row[2]) for row in rows}
            states = bytearray()
            payloads: list[bytes] = []
            for task_id in ids:
                code, payload = found.get(task_id, (UNKNOWN_STATE, b""))
                assert isinstance(code, int)
                states.append(code)
                payloads.append(payload if isinstance(payload, bytes) else b"")
            self._outcomes.tell(client.session, ids, bytes(states), payloads)

        try:
            self._state.load_for(client.peer, "outcomes", (ids,), then)
        except FloodError as error:
            self._state.reject(error.code)  # the client asks again later

    # ---------------------------------------------------------------- the questions

    def ask(
        self, client: ClientState, message: Query, more: dict[str, Callable[..., None]]
    ) -> None:
        """Answer a question, one of these or of `more`."""
        what = self.asks.get(message.what) or more.get(message.what)
        try:
            if what is None:
                raise ForbiddenError(f"{message.what!r} is no question")
            what(client.peer, message.request, message.args)
        except D8Error as error:
            self._state.reject(error.code)
            self._state.refuse(client.peer, message.request, error)
        except (TypeError, ValueError, OverflowError, LookupError) as error:
            # Arguments are read before anything is recorded: odd ones hurt who sent them.
            self._state.reject(InvalidTaskError.code)
            told = InvalidTaskError(f"{message.what}: its arguments make no sense: {error}"[:500])
            self._state.refuse(client.peer, message.request, told)

    def _status(self, peer: Peer, request: int, args: Args) -> None:
        task_id = _id(args, "id")
        if args.get("full") is True:
            self._full_status(peer, request, task_id)
            return
        body = reports.unfinished(self._state, task_id, is_single=True)
        if body is not None:
            self._state.answer(peer, request, body)
            return
        self._with_finished(peer, request, task_id, self._state.answer)

    def _full_status(self, peer: Peer, request: int, task_id: str) -> None:
        """Answer with the input and all that went wrong too, which lie in the journal."""

        def loaded(rows: Rows, error: str) -> None:
            if error:
                self._state.refuse(peer, request, D8Error(error))
                return
            data, past = rows[0] if rows else (None, [])
            more: Args = {"data": data or None, "history": past}
            body = reports.unfinished(self._state, task_id, is_single=True)
            if body is not None:
                self._state.answer(peer, request, body | more)
            else:
                self._with_finished(
                    peer,
                    request,
                    task_id,
                    lambda p, n, found: self._state.answer(p, n, found | more),
                )

        self._state.load_for(peer, "full", (task_id,), loaded)

    def _with_finished(
        self, peer: Peer, request: int, task_id: str, then: Callable[[Peer, int, Args], None]
    ) -> None:
        """Call `then` with the body of a finished task, or refuse."""

        def loaded(rows: Rows, error: str) -> None:
            if not self._is_refused(peer, request, rows, error):
                then(peer, request, reports.finished(rows[0]))

        self._state.load_for(peer, "task", (task_id,), loaded)

    def _is_refused(self, peer: Peer, request: int, rows: Rows, error: str) -> bool:
        """Refuse a question about a finished task that is unknown, pruned or unreadable."""
        if error:
            self._state.refuse(peer, request, D8Error(error))
        elif not rows:
            self._state.refuse(peer, request, UnknownTaskError())
        elif len(rows[0]) == 1:
            self._state.refuse(peer, request, PrunedTaskError(), pruned_at=rows[0][0])
        else:
            return False
        return True

    def _queue(self, peer: Peer, request: int, args: Args) -> None:
        task_table = self._state.task_table
        totals = task_table.totals
        counts: Args = {
            "pending": task_table.queued,
            "assigned": task_table.running,
            "completed": totals.completed,
            "failed": totals.failed,
            "cancelled": totals.cancelled,
        }

        def then(rows: Rows, next_cursor: object) -> None:
            listed = [reports.unfinished(self._state, str(row[0])) for row in rows]
            keys = ("task_id", "type", "priority", "status", "created_at", "state")
            queue = [{key: body[key] for key in keys} for body in listed if body is not None]
            self._state.answer(
                peer, request, {"queue": queue, **counts, "next_cursor": next_cursor}
            )

        self._list(peer, request, {**args, "state": "open", "type": "", "order": ""}, then)

    def _tasks(self, peer: Peer, request: int, args: Args) -> None:
        wanted = args.get("state") or ""
        if not isinstance(wanted, str) or wanted not in {"", *(s.value for s in TaskState)}:
            known = ", ".join(state.value for state in TaskState)
            raise InvalidTaskError(f"state: saw {str(wanted)[:40]!r}, expected one of {known}")

        def then(rows: Rows, next_cursor: object) -> None:
            bodies = []
            for row in rows:
                body = reports.unfinished(self._state, str(row[0]))
                if body is None and row[4] is not None:
                    body = reports.finished(row)
                if body is not None and wanted in ("", body["state"]):
                    bodies.append(body)
            self._state.answer(peer, request, {"tasks": bodies, "next_cursor": next_cursor})

        is_open = wanted and not TaskState(wanted).is_final
        self._list(peer, request, {**args, "state": "open" if is_open else wanted}, then)

    def _list(
        self, peer: Peer, request: int, args: Args, then: Callable[[Rows, object], None]
    ) -> None:
        limit = args.get("limit", 100)
        order = args.get("order") or "oldest"
        if order not in ("oldest", "newest"):
            raise InvalidTaskError(f"order: saw {str(order)[:40]!r}, expected oldest or newest")
        cursor = args.get("cursor") or ""
        kind = args.get("type") or ""
        if not isinstance(limit, int) or not 1 <= limit <= MAX_PAGE:
            raise InvalidTaskError(f"limit: expected 1 to {MAX_PAGE}")
        if not isinstance(cursor, str) or not isinstance(kind, str):
            raise InvalidTaskError("cursor and type: expected texts")

        def loaded(rows: Rows, error: str) -> None:
            if error:
                self._state.refuse(peer, request, InvalidTaskError(error))
            else:
                then(rows[1:], rows[0][0])

        self._state.load_for(peer, "list", (args["state"], kind, limit, cursor, order), loaded)

    def _cancel(self, peer: Peer, request: int, args: Args) -> None:
        task_id = _id(args, "id")

        def known(peer: Peer, request: int, body: Args) -> None:
            self._state.answer(peer, request, {"task_id": task_id, "state": body["state"]})

        if self._state.task_table.state_of(task_id) is None:
            self._with_finished(peer, request, task_id, known)
            return
        self._outcomes.cancel([task_id])
        answer: Args = {"task_id": task_id, "state": TaskState.CANCELLED.value}
        self._state.answer(peer, request, answer, waits=True)

    def _replay(self, peer: Peer, request: int, args: Args) -> None:
        broker, task_id = self._state, _id(args, "id")
        session, n = args.get("session"), args.get("n")
        client = broker.clients_by_routing_id.get(peer.routing_id)
        if client is None or session != client.session:
            raise ForbiddenError("a client submits under its own session only")
        if not isinstance(n, int) or not 0 <= n < MAX_COUNTER:
            raise InvalidTaskError("n: expected a counter")
        if broker.is_draining:
            raise DrainingError
        if broker.task_table.state_of(task_id) is not None:
            raise InvalidTaskError(f"{task_id} is not finished: only what failed can be replayed")

        def loaded(rows: Rows, error: str) -> None:
            if self._is_refused(peer, request, rows, error):
                return
            spec, payload, state = rows[0]
            if state == 1:
                what = InvalidTaskError(f"{task_id} completed: only what failed can be replayed")
                self._state.refuse(peer, request, what)
                return
            assert isinstance(spec, Spec)
            assert isinstance(payload, bytes)
            if not payload:
                what = InvalidTaskError(f"{task_id}: its data was lost, there is nothing to replay")
                self._state.refuse(peer, request, what)
                return
            try:
                self._accept_replay(client.session, n, task_id, spec, payload)
            except TaskRejectedError as refusal:
                self._state.reject(refusal.code)
                self._state.refuse(peer, request, refusal)
                return
            self._state.answer(peer, request, {"task_id": f"{session}-{n}"}, waits=True)

        broker.load_for(peer, "replay", (task_id,), loaded)

    def _accept_replay(self, session: str, n: int, origin: str, spec: Spec, payload: bytes) -> None:
        accepted = self._state.task_table.accepted.get(session)
        if accepted is not None and accepted.overlap(n, 1):
            return  # asked twice: the answer is the same
        self._admission.check_room(1, len(payload), session=session)
        again = Spec(
            type=spec.type,
            priority=spec.priority,
            max_attempts=spec.max_attempts,
            model=spec.model,
            is_fenced=spec.is_fenced,
            replay_of=origin,
        )
        self._admission.take(session, n, again, [payload])


def _id(args: Args, name: str) -> str:
    value = args.get(name)
    if not isinstance(value, str):
        raise UnknownTaskError
    parse_id(value)
    return value


def _remove(index: dict[str, set[str]], task_id: str, session: str) -> None:
    sessions = index.get(task_id)
    if sessions is not None:
        sessions.discard(session)
        if not sessions:
            del index[task_id]
