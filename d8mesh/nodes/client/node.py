"""The Python client: finds the mesh, submits tasks in batches, brings their results.

Any number of threads may use one `Client`; its own I/O thread runs the `ClientSession`.
What is submitted has its final id at once and is *acknowledged* when the orchestrator has
it on disk: `Client.submit_many` waits for that, `Client.submit` does not (`Task.wait_accepted`
and `Client.flush` do), so that single submits too travel in batches.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, Unpack

from d8mesh.config import Config
from d8mesh.core.addresses import parse_endpoint
from d8mesh.core.client_session import ClientSession
from d8mesh.core.messages import Group, Stream
from d8mesh.core.parcel import Parcel
from d8mesh.edge.sockets import Waker
from d8mesh.edge.waits import wait_for
from d8mesh.errors import ConfigError, NodeClosedError, WaitTimeoutError
from d8mesh.nodes.client import farewell
from d8mesh.nodes.client.board import Board
from d8mesh.nodes.client.dial import Dialler
from d8mesh.nodes.client.farewell import Farewell
from d8mesh.nodes.client.handle import (
    ASK_S,
    Result,
    Task,
    listed,
    result_of,
    results_of,
)
from d8mesh.nodes.client.hotline import Hotlines
from d8mesh.nodes.client.listening import listen, output_of
from d8mesh.nodes.client.parcels import (
    Kind,
    SubmitOptions,
    awaiting,
    check_key,
    cut,
    encode_data,
    group_of,
    kind_in,
    kind_of,
    model_of,
    size_of,
)
from d8mesh.nodes.client.patience import bounded, countdown, takes_timeout_s, told_whole
from d8mesh.nodes.client.questions import Questions
from d8mesh.nodes.client.reasons import Reasons
from d8mesh.nodes.client.runner import Runner
from d8mesh.nodes.client.submitter import Submitter

#: How long `close` waits for what was submitted to be acknowledged.
CLOSE_S: Final = farewell.CLOSE_S
#: How long the I/O thread may take to say goodbye.
END_S: Final = 3.0
_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuv"
_SESSION_CHARS: Final = 16
#: Of this machine's name, as much as the orchestrator is told.
MAX_HOST_CHARS: Final = 100


class Client:
    """A client of one mesh.

    Args:
        url: ``http://HOST:PORT`` of an orchestrator; None: found by mDNS.
        config: settings; None: read from the environment (D8_MESH, ORCHESTRATOR_URL, …).
        endpoint: ``tcp://HOST:PORT`` of a broker, if that is known.

    Raises:
        ConfigError: `url` or `endpoint` is not of that form.

    Thread: every method may be called from any thread.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        config: Config | None = None,
        endpoint: str | None = None,
    ) -> None:
        config = Config.from_env(os.environ) if config is None else config
        for name, given in (("url", url), ("endpoint", endpoint)):
            if given is not None and not isinstance(given, str):
                raise ConfigError(f"{name}: saw {given!r:.80}, expected a text, or None")
        if url is not None:
            url = Config.from_env({"ORCHESTRATOR_URL": url}).orchestrator_url
        if endpoint is not None:
            parse_endpoint(endpoint)
        make_session = partial(_new_session, config.mesh)
        self._session = make_session()
        self._pid = os.getpid()
        self._is_closed = False
        self._waker = Waker()
        make_dialler = partial(
            Dialler, config, endpoint=endpoint, url=url or config.orchestrator_url
        )
        self._dialler = make_dialler(wake=self._waker.wake)
        self._reasons = Reasons(self._session, self._dialler, self._ask, self._check_alive)
        self._board = Board(self._check_alive, self._reasons.of)
        self._runner = Runner(self._session, self._board, self._waker, self._dialler)
        self._submitter = Submitter(self._session, self._board, self._runner)
        self._questions = Questions(
            self._session, self._runner, self._check_alive, self._reasons.trouble
        )
        self._hotlines = Hotlines(
            make_session=make_session,
            make_dialler=make_dialler,
            check_alive=self._check_alive,
            why=self._reasons.of,
        )
        self._farewell = Farewell(self._board, lambda: self._reasons.of("").text, self._end)
        self._runner.start()
        farewell.close_at_exit(self)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: object, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """As `close`; an exception that is under way stays, with a note of what is missing."""
        if error is None:
            self.close()
        elif os.getpid() == self._pid:
            self._farewell.say_beside(CLOSE_S, error)

    # ------------------------------------------------------------------- submitting

    @takes_timeout_s
    def submit(
        self,
        type: str,
        data: Mapping[str, Any],
        *,
        idempotency_key: str = "",
        **options: Unpack[SubmitOptions],
    ) -> Task:
        """Submit one task and return its handle; its id is final, its acknowledgement on its way.

        Args:
            type: which handler is to run it.
            data: a JSON object: text keys, 64-bit integers, finite floats.
            idempotency_key: the same key and body give the same task (1 to 128 characters);
                waits for the acknowledgement, which says which task that is.
            options: see `SubmitOptions`.

        Raises:
            InvalidTaskError: `data` or an option is not as described.
            PayloadTooLargeError: `data` is larger than 32 MB.
            WaitTimeoutError: there was no room within `timeout`.
        """
        payload = encode_data(data)
        kind = kind_of(type, model_of(type, data), options)
        timeout = options.get("timeout")
        if not idempotency_key:
            return self._append(kind, payload, timeout)
        check_key(idempotency_key)
        group = group_of(kind, [payload])
        parcel = self._submitter.enqueue([group], timeout, key=idempotency_key)
        self._board.wait_settled(parcel, timeout)
        return Task(self, parcel, 0)

    @takes_timeout_s
    def call(self, type: str, data: Mapping[str, Any], **options: Unpack[SubmitOptions]) -> Result:
        """Submit one task and wait for its result: `submit` and `Task.result` in one, and quicker.

        The calling thread talks to the orchestrator itself, on a connection of its own that is
        kept for its next call. For many tasks at once `map` and `submit_many` are far quicker.

        Args:
            type, data: as of `submit`.
            options: as of `submit`, but `timeout` is how long to wait for the result.

        Raises:
            As of `submit` and of `Task.result`. After a `WaitTimeoutError`, which names the task,
            it goes on if the orchestrator has it by then; `task` opens it.
        """
        payload = encode_data(data)
        kind = kind_of(type, model_of(type, data), options)
        timeout = bounded(options.get("timeout"))
        self._check_alive()
        with self._hotlines.caller() as is_one_of_few:
            endpoint = self._dialler.endpoint
            if is_one_of_few and self._session.is_up and endpoint.startswith("tcp"):
                outcome = self._hotlines.call(endpoint, group_of(kind, [payload]), timeout)
                if outcome is not None:
                    return result_of(*outcome)
            left_s = countdown(timeout)
            task = self._append(kind, payload, timeout)
            try:
                return task.result(left_s())
            except WaitTimeoutError as error:
                raise told_whole(error, timeout) from None

    @takes_timeout_s
    def submit_many(
        self, type: str, datas: Iterable[Mapping[str, Any]], **options: Unpack[SubmitOptions]
    ) -> list[Task]:
        """Submit many tasks of one type; return their handles once all are acknowledged.

        Raises:
            TaskRejectedError: a part was refused; the other parts may have been accepted.
            Others as of `submit`.
        """
        timeout = options.get("timeout")
        left_s = countdown(timeout)
        parcels: list[Parcel] = []
        try:
            for model, payloads in cut(type, datas):
                kind = kind_of(type, model, options)
                parcels.append(self._submitter.enqueue([group_of(kind, payloads)], left_s()))
            for parcel in parcels:
                self._board.wait_settled(parcel, left_s())
        except WaitTimeoutError as error:
            raise told_whole(error, timeout) from None
        return [Task(self, parcel, index) for parcel in parcels for index in range(parcel.count)]

    @takes_timeout_s
    def map(
        self, type: str, datas: Iterable[Mapping[str, Any]], *, timeout: float | None = None
    ) -> Iterator[Result]:
        """Submit many tasks, now, and return what yields their results in order.

        Raises:
            Whatever `Task.result` raises, at the first task that did not succeed.
        """
        left_s = countdown(timeout)
        tasks = self.submit_many(type, datas, timeout=timeout)
        tasks.reverse()
        return results_of(tasks, left_s, timeout)

    def submit_groups(
        self,
        groups: Sequence[Group],
        *,
        key: str = "",
        digest: bytes = b"",
        is_watched: bool = False,
        timeout_s: float = ASK_S,
    ) -> tuple[list[str], bool]:
        """Submit all of these or nothing, and wait until it is acknowledged.

        A full queue is not waited for.

        Returns:
            The ids in order, and whether the key was used before with the same body.

        Raises:
            TaskRejectedError: refused; nothing was accepted.
            WaitTimeoutError: no answer within `timeout_s`.
        """
        count, _ = size_of(groups)
        if count == 1 and not key:  # it travels with what others submit at the same time
            task = self._append(kind_in(groups[0]), groups[0].payloads[0], timeout_s, is_watched)
            task.wait_accepted(timeout_s)
            return [task.id], False
        parcel = self._submitter.enqueue(
            list(groups), timeout_s, key=key, digest=digest, is_watched=is_watched
        )
        self._board.wait_settled(parcel, timeout_s)
        return [parcel.task_id(index) for index in range(parcel.count)], parcel.is_repeat

    @takes_timeout_s
    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything submitted so far is acknowledged.

        Raises:
            TaskRejectedError: a part of what was submitted since the last flush was refused.
            WaitTimeoutError: `timeout` is over.
        """
        self._board.flush(timeout)

    # -------------------------------------------------------------------- the others

    def task(self, task_id: str) -> Task:
        """Return a handle of a task that was submitted anywhere."""
        parcel = awaiting(task_id)
        self._runner.do(lambda now: self._session.watch(parcel))
        return Task(self, parcel, 0)

    @takes_timeout_s
    def tasks(
        self, *, state: str = "", type: str = "", timeout: float = ASK_S
    ) -> Iterator[dict[str, Any]]:
        """Yield the status bodies of tasks, oldest first, as `Task.status` returns them.

        Args:
            state: queued, delayed, running, completed, failed, cancelled; empty: all.
            type: of one task type only; empty: of all.
            timeout: of each page.

        Raises:
            InvalidTaskError: there is no such state.
            BrokerUnavailableError: no answer within `timeout`.
        """
        ask = partial(self.ask, "tasks", timeout=timeout)
        return listed(ask, {"state": state, "type": type})

    @takes_timeout_s
    def replay(self, task_id: str, *, timeout: float = ASK_S) -> Task:
        """Submit a failed or cancelled task anew, under a new id; return its handle.

        Raises:
            InvalidTaskError: it is not finished, completed, or its data is lost.
            UnknownTaskError: the orchestrator does not know it, or no longer.
            BrokerUnavailableError: no answer within `timeout`.
        """
        session, n = self.next_id()
        args = {"id": task_id, "session": session, "n": n}
        return self.task(str(self.ask("replay", args, timeout=timeout)["task_id"]))

    def next_id(self) -> tuple[str, int]:
        """Return a session and a counter that make an unused task id."""
        return self._session.name, self._submitter.next_n()

    @property
    def is_connected(self) -> bool:
        """True while an orchestrator answers."""
        return self._session.is_up

    @property
    def is_over_http(self) -> bool:
        """True while only the REST port can be reached."""
        return self._runner.is_over_http

    @property
    def listened(self) -> frozenset[str]:
        """The tasks whose partial output is listened to."""
        return frozenset(self._runner.listeners.copy())

    @takes_timeout_s
    def wait_connected(self, timeout: float | None = None) -> bool:
        """Wait until an orchestrator answers; return whether one does.

        Raises:
            InvalidTaskError: `timeout` is no number of seconds; so do all that wait.
        """
        return wait_for(self._runner.connected, bounded(timeout))

    @property
    def trouble(self) -> str:
        """Why no orchestrator answers, for people; empty: one does. Takes half a second at most."""
        return self._reasons.trouble()

    @takes_timeout_s
    def ask(
        self, what: str, args: Mapping[str, object], *, timeout: float = ASK_S
    ) -> dict[str, Any]:
        """Ask the orchestrator something (see ``docs/PROTOCOL.md``, Questions).

        Raises:
            D8Error: what it answered instead.
            BrokerUnavailableError: no answer within `timeout`.
        """
        return self._questions.ask(what, args, timeout)

    def wait_finished(self, task_id: str, timeout_s: float) -> bool:
        """Wait for an acknowledged task's outcome; return whether it is finished (or unknown)."""
        parcel = awaiting(task_id)
        self._runner.do(lambda now: self._session.watch(parcel))
        try:
            self._board.wait_for(parcel, lambda: bool(parcel.states[0]), timeout_s, what=task_id)
        except WaitTimeoutError:
            return False
        finally:
            self._runner.do(lambda now: self._session.unwatch(parcel))
        return True

    def listen(self, task_id: str, on_event: Callable[[Stream | None], None]) -> Callable[[], None]:
        """Hear a task's partial output; return what stops it.

        Args:
            task_id: the task.
            on_event: called from the I/O thread with each `Stream`, and with None once the
                task is finished.
        """
        return listen(self._runner, self._session, task_id, on_event)

    @takes_timeout_s
    def close(self, timeout: float | None = CLOSE_S) -> None:
        """Wait for what was submitted to be acknowledged, say goodbye, and stop.

        A second call does nothing. Leaving a ``with`` does the same. In a forked child it does
        nothing: what was submitted is the parent's.

        Args:
            timeout: how long to wait for a connection and for acknowledgements, in seconds.

        Raises:
            NotAcknowledgedError: something is not acknowledged within `timeout`, or was refused
                and nobody was told; it has the ids. The client is closed.
        """
        wait_s = bounded(timeout)
        if os.getpid() != self._pid:
            return
        self._farewell.say(0.0 if self._runner.is_own_thread else wait_s)

    def _end(self) -> None:
        """Let all go, without waiting for what is missing."""
        farewell.forget(self)
        self._is_closed = True
        self._hotlines.close()
        self._runner.close(END_S)
        self._dialler.close()
        self._board.close()

    # ---------------------------------------------------------- for handles and `web`

    @property
    def board(self) -> Board:
        """Where what happens to parcels is waited for."""
        return self._board

    def stream_of(self, task: Task, timeout_s: float | None) -> Iterator[Any]:
        """Yield a task's partial output; see `Task.stream`."""
        self._board.wait_settled(task.parcel, timeout_s)  # before, nobody knows the task
        start = partial(self.listen, task.id)
        yield from output_of(start, self._check_alive, task.id, timeout_s, self._reasons.of)

    def _ask(self, what: str, args: Mapping[str, object], timeout_s: float) -> dict[str, Any]:
        return self._questions.ask(what, args, timeout_s)

    def _append(
        self, kind: Kind, payload: bytes, timeout_s: float | None, is_watched: bool = True
    ) -> Task:
        return Task(self, *self._submitter.append(kind, payload, timeout_s, is_watched))

    def _check_alive(self) -> None:
        if self._runner.fatal is not None:
            raise self._runner.fatal
        if self._is_closed:
            raise NodeClosedError
        if os.getpid() != self._pid:
            raise NodeClosedError("a client does not survive a fork: make a new one in the child")


def _new_session(mesh: str) -> ClientSession:
    """Return a session with a name that nobody has had before."""
    name = "".join(secrets.choice(_ALPHABET) for _ in range(_SESSION_CHARS))
    return ClientSession(name, mesh, socket.gethostname()[:MAX_HOST_CHARS])
