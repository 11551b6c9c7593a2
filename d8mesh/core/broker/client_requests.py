"""What clients say besides submits: they come and go, await, listen, and ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from msgspec import structs

from d8mesh.core.broker import catalogue, explain, reports, store
from d8mesh.core.broker.admission import Admission
from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.outcomes import TaskOutcomes
from d8mesh.core.broker.state import (
    BrokerState,
    ClientState,
    Replay,
    ShowDetails,
    ShowPage,
    ShowTask,
    TellOutcomes,
)
from d8mesh.core.broker.streaming import Streaming
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.task import MAX_COUNTER, Spec, TaskState, parse_id
from d8mesh.errors import (
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


class ClientRequests:
    """Serves the clients."""

    def __init__(
        self, state: BrokerState, outcomes: TaskOutcomes, admission: Admission, streaming: Streaming
    ) -> None:
        self._state = state
        self._outcomes = outcomes
        self._streaming = streaming
        self._admission = admission

    # ------------------------------------------------------------- coming and going

    def hello(self, message: m.ClientHello, peer: Peer) -> None:
        """Open a client's session, or let it go on under another routing id."""
        state = self._state
        client = state.clients.get(message.session)
        if client is None:
            client = ClientState(message.session, peer, state.now)
            state.clients[message.session] = client
        state.clients_by_routing_id.pop(client.peer.routing_id, None)
        client.peer, client.last_heard = peer, state.now
        client.takes_streams = message.takes_streams
        state.clients_by_routing_id[peer.routing_id] = client
        state.note_session(message.session, peer.key)
        self._state.send(peer, state.welcome(peer, message.version, []))

    def leave(self, client: ClientState) -> None:
        """Forget a client; its tasks go on, and what it awaits it may ask for again."""
        state = self._state
        state.clients.pop(client.session, None)
        state.clients_by_routing_id.pop(client.peer.routing_id, None)
        for task_id in client.watched:
            _remove(state.task_watchers, task_id, client.session)
        for task_id in list(client.listened):
            self._stop_listening(client, task_id)

    def is_silent(self, client: ClientState) -> bool:
        """Return whether the client has been silent for too long."""
        limit_s = CLIENT_LEASES * self._state.policy.lease_s
        return self._state.now - client.last_heard > limit_s

    # ---------------------------------------------------------- awaiting, listening

    def watch(self, client: ClientState, message: m.Watch) -> None:
        """Send the outcomes of these tasks, now or when they come; empty: a sign of life."""
        state = self._state
        self._state.send(client.peer, m.Beat(state.epoch))
        finished: list[str] = []
        unknown: list[str] = []
        per_batch: dict[int, list[str]] = {}
        for task_id in message.ids:
            try:
                found = state.task_table.find(task_id)
            except UnknownTaskError:
                unknown.append(task_id)
                continue
            if found is None or state.task_table.state_of(task_id) is None:
                finished.append(task_id)
            elif state.batch_watchers.get(found[0].order) != client.session:
                per_batch.setdefault(found[0].order, []).append(task_id)
        for order, ids in per_batch.items():
            if len(ids) >= WHOLE_BATCH_IDS and order not in state.batch_watchers:
                state.batch_watchers[order] = client.session
            else:
                self._watch_singly(client, ids)
        if unknown:
            states = bytes([m.UNKNOWN_STATE]) * len(unknown)
            self._outcomes.tell(client.session, unknown, states, [b""] * len(unknown))
        if finished:
            self._tell_finished(client, finished)

    def unwatch(self, client: ClientState, ids: list[str]) -> None:
        """These outcomes are not awaited any more."""
        for task_id in ids:
            client.watched.discard(task_id)
            _remove(self._state.task_watchers, task_id, client.session)

    def listen(self, client: ClientState, message: m.Listen) -> None:
        """Start or stop passing on the partial output of a task."""
        state, task_id = self._state, message.id
        if not message.is_on:
            self._stop_listening(client, task_id)
            return
        try:
            key = parse_id(task_id)
            if state.task_table.state_of(task_id) is None:
                accepted = state.task_table.accepted.get(key.session)
                if accepted is not None and accepted.overlap(key.n, 1):
                    return  # finished: the outcome, awaited apart, ends the stream
            is_first = task_id not in state.listeners
            state.listen(client, task_id)  # before its task, if that is still on its way
        except (UnknownTaskError, FloodError) as error:
            state.metrics.reject(error.code)
            return
        task = state.task_table.tasks.get(task_id)
        if task is None or task.state is not TaskState.RUNNING:
            return
        if is_first:
            self._tell_worker(task.worker_id, task_id, is_on=True)
        tail = self._streaming.tail(task)
        if tail.payloads:
            self._state.send(client.peer, tail)

    def _stop_listening(self, client: ClientState, task_id: str) -> None:
        client.listened.discard(task_id)
        _remove(self._state.listeners, task_id, client.session)
        task = self._state.task_table.tasks.get(task_id)
        if task is not None and task_id not in self._state.listeners:
            self._tell_worker(task.worker_id, task_id, is_on=False)

    def _tell_worker(self, worker_id: str, task_id: str, *, is_on: bool) -> None:
        worker = self._state.registry.workers.get(worker_id)
        if worker is not None and worker.is_live and worker.boot_id:
            self._state.tell(worker, m.Listening([task_id], is_on))

    def _watch_singly(self, client: ClientState, ids: list[str]) -> None:
        for task_id in ids:
            if len(client.watched) >= MAX_WATCHED:
                self._state.metrics.reject("watch.too_many")
                return  # the client asks again later
            client.watched.add(task_id)
            self._state.task_watchers.setdefault(task_id, set()).add(client.session)

    def _tell_finished(self, client: ClientState, ids: list[str]) -> None:
        then = TellOutcomes(client.session, ids)
        try:
            self._state.ask_for(client.peer, store.OutcomesOf(ids), then)
        except FloodError as error:
            self._state.metrics.reject(error.code)  # the client asks again later

    def tell_outcomes(self, asked: TellOutcomes, answer: store.StoreAnswer) -> None:
        """Send what the store knows of finished tasks."""
        if isinstance(answer, store.FinishedStates):  # else the client asks again: it is state
            self._outcomes.tell(asked.session, asked.ids, answer.states, answer.payloads)

    # ---------------------------------------------------------------- the questions

    def ask(self, peer: Peer, message: m.Query) -> None:
        """Answer a question.

        Raises:
            D8Error: it cannot be answered, as the error says.
        """
        request, answer = message.request, _QUESTIONS.get(message.what)
        if (report := reports.OF_NOW.get(message.what)) is not None:
            self._state.answer(peer, request, report(self._state))
        elif answer is not None:
            answer(self, peer, request, message.args)
        else:
            raise ForbiddenError(f"{message.what!r} is no question")

    def _status(self, peer: Peer, request: int, args: Args) -> None:
        task_id = _id(args, "id")
        if args.get("full") is True:
            asked = ShowDetails(peer, request, task_id)
            self._state.ask_for(peer, store.DetailsOf(task_id), asked)
        else:
            self._tell_status(ShowTask(peer, request, task_id))

    def _tell_status(self, asked: ShowTask) -> None:
        """Answer from memory, or ask the store for what is finished."""
        body = reports.unfinished(self._state, asked.id, is_single=True)
        if body is None:
            self._state.ask_for(asked.peer, store.EndOf(asked.id), asked)
        else:
            self._state.answer(asked.peer, asked.request, body | asked.more)

    def show_details(self, asked: ShowDetails, answer: store.StoreAnswer) -> None:
        """Answer with how a task stands and all that is kept of it."""
        more: Args = {"data": None, "history": []}
        if isinstance(answer, store.TaskDetails):
            more = {"data": answer.payload or None, "history": reports.history(answer.past)}
        self._tell_status(ShowTask(asked.peer, asked.request, asked.id, more))

    def show_task(self, asked: ShowTask, answer: store.StoreAnswer) -> None:
        """Answer with a finished task."""
        if not isinstance(answer, store.FinishedTask):
            self._refuse_missing(asked, answer)
            return
        body = reports.finished(answer)
        if asked.is_brief:
            body = {"task_id": asked.id, "state": body["state"]}
        if asked.is_explained:
            body = explain.finished(self._state, answer)
        self._state.answer(asked.peer, asked.request, body | asked.more)

    def _explain(self, peer: Peer, request: int, args: Args) -> None:
        task_id = _id(args, "id")
        body = reports.explained(self._state, task_id)
        if body is not None:
            self._state.answer(peer, request, body)
            return
        asked = ShowTask(peer, request, task_id, is_explained=True)
        self._state.ask_for(peer, store.EndOf(task_id), asked)

    def _describe(self, peer: Peer, request: int, args: Args) -> None:
        name = args.get("name")
        if not isinstance(name, str):
            raise InvalidTaskError("name: expected the name of a model")
        self._state.answer(peer, request, catalogue.described(self._state, name))

    def _refuse_missing(self, asked: ShowTask | Replay, answer: store.StoreAnswer) -> None:
        """Refuse a question about a finished task that is unknown or pruned."""
        if isinstance(answer, store.PrunedTask):
            error = PrunedTaskError()
            self._state.refuse(asked.peer, asked.request, error, pruned_at=answer.at)
        else:
            self._state.refuse(asked.peer, asked.request, UnknownTaskError())

    def _queue(self, peer: Peer, request: int, args: Args) -> None:
        question = _page(args | {"type": "", "order": "", "door": ""}, is_open=True)
        asked = ShowPage(peer, request, question.cursor, is_queue=True)
        self._state.ask_for(peer, question, asked)

    def _tasks(self, peer: Peer, request: int, args: Args) -> None:
        wanted = args.get("state") or ""
        if not isinstance(wanted, str) or wanted not in {"", *(s.value for s in TaskState)}:
            known = ", ".join(state.value for state in TaskState)
            raise InvalidTaskError(f"state: saw {str(wanted)[:40]!r}, expected one of {known}")
        state = TaskState(wanted) if wanted else None
        is_open = state is not None and not state.is_final
        question = _page(args, state=None if is_open else state, is_open=is_open)
        self._state.ask_for(peer, question, ShowPage(peer, request, question.cursor, wanted))

    def show_page(self, asked: ShowPage, answer: store.StoreAnswer) -> None:
        """Answer with a page of a listing."""
        if not isinstance(answer, store.TaskPage):
            saw = f"cursor: saw {asked.cursor[:40]!r}, expected a next_cursor of this listing"
            self._state.refuse(asked.peer, asked.request, InvalidTaskError(saw))
            return
        state, bodies, reasons = self._state, list[Args](), reports.SharedReasons()
        for task_id in answer.ids:
            body = reports.unfinished(state, task_id, reasons=reasons)
            if body is None and (task := answer.finished.get(task_id)) is not None:
                body = reports.finished(task)
            if body is not None and asked.state in ("", body["state"]):
                bodies.append(body)
        told: Args = {"tasks": bodies}
        if asked.is_queue:
            told = reports.queue(state, bodies)
        told["next_cursor"] = answer.next_cursor
        self._state.answer(asked.peer, asked.request, told)

    def _cancel(self, peer: Peer, request: int, args: Args) -> None:
        task_id = _id(args, "id")
        if self._state.task_table.state_of(task_id) is None:
            asked = ShowTask(peer, request, task_id, is_brief=True)
            self._state.ask_for(peer, store.EndOf(task_id), asked)
            return
        self._outcomes.cancel([task_id])
        answer: Args = {"task_id": task_id, "state": TaskState.CANCELLED.value}
        self._state.answer(peer, request, answer, waits=True)

    def _replay(self, peer: Peer, request: int, args: Args) -> None:
        state, task_id = self._state, _id(args, "id")
        session, n = args.get("session"), args.get("n")
        client = state.clients_by_routing_id.get(peer.routing_id)
        if client is None or session != client.session:
            raise ForbiddenError("a client submits under its own session only")
        if not isinstance(n, int) or not 0 <= n < MAX_COUNTER:
            raise InvalidTaskError("n: expected a counter")
        if state.is_draining:
            raise DrainingError
        if state.task_table.state_of(task_id) is not None:
            raise InvalidTaskError(f"{task_id} is not finished: only what failed can be replayed")
        asked = Replay(peer, request, task_id, client.session, n)
        self._state.ask_for(peer, store.DetailsOf(task_id), asked)

    def replay_source(self, asked: Replay, answer: store.StoreAnswer) -> None:
        """Submit again what the store has of a task; raises as `ask`."""
        if not isinstance(answer, store.TaskDetails) or answer.state is None:
            self._refuse_missing(asked, answer)
            return
        why = ""
        if answer.state is TaskState.COMPLETED:
            why = f"{asked.id} completed: only what failed can be replayed"
        elif answer.is_erased:
            why = f"{asked.id}: its data was erased when it was delivered; submit it anew"
        elif not answer.payload:
            why = f"{asked.id}: its data was lost, there is nothing to replay"
        if why:
            self._state.refuse(asked.peer, asked.request, InvalidTaskError(why))
            return
        try:
            self._accept_replay(asked, answer.spec, answer.payload)
        except TaskRejectedError as refusal:
            self._state.metrics.reject(refusal.code)
            raise
        task: Args = {"task_id": f"{asked.session}-{asked.n}"}
        self._state.answer(asked.peer, asked.request, task, waits=True)

    def _accept_replay(self, asked: Replay, spec: Spec, payload: bytes) -> None:
        session, n = asked.session, asked.n
        accepted = self._state.task_table.accepted.get(session)
        if accepted is not None and accepted.overlap(n, 1):
            return  # asked twice: the answer is the same
        self._admission.check_room(1, len(payload), session=session)
        again = structs.replace(spec, deadline_at=None, run_at=None, replay_of=asked.id)
        self._admission.take(session, n, again, [payload])


def _page(args: Args, *, state: TaskState | None = None, is_open: bool) -> store.PageOf:
    """Return the question for a page.

    Raises:
        InvalidTaskError: an argument is not as documented.
    """
    limit = args.get("limit", 100)
    order = args.get("order") or "oldest"
    if order not in ("oldest", "newest"):
        raise InvalidTaskError(f"order: saw {str(order)[:40]!r}, expected oldest or newest")
    cursor = args.get("cursor") or ""
    kind, door = args.get("type") or "", args.get("door") or ""
    if not isinstance(limit, int) or not 1 <= limit <= MAX_PAGE:
        raise InvalidTaskError(f"limit: expected 1 to {MAX_PAGE}")
    if not (isinstance(cursor, str) and isinstance(kind, str) and isinstance(door, str)):
        raise InvalidTaskError("cursor, type and door: expected texts")
    return store.PageOf(limit, cursor, kind, state, is_open, order == "newest", door)


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


_QUESTIONS: Final[dict[str, Callable[[ClientRequests, Peer, int, Args], None]]] = {
    "status": ClientRequests._status,
    "queue": ClientRequests._queue,
    "tasks": ClientRequests._tasks,
    "explain": ClientRequests._explain,
    "describe": ClientRequests._describe,
    "cancel": ClientRequests._cancel,
    "replay": ClientRequests._replay,
}
