"""The Python client: finds the mesh, submits tasks in batches, brings their results.

Any number of threads may use one `Client`; its own I/O thread runs the `ClientSession`.
What is submitted has its final id at once and is *acknowledged* when the orchestrator has
it on disk: `Client.submit_many` waits for that, `Client.submit` does not (`Task.wait_accepted`
and `Client.flush` do), so that single submits too travel in batches.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from types import TracebackType
from typing import Any, Final, Unpack, cast

from d8mesh.config import Config
from d8mesh.core.protocol.messages import Group
from d8mesh.edge.installation import config_of, settled
from d8mesh.edge.transport.connector import Connector
from d8mesh.edge.transport.sockets import Waker
from d8mesh.errors import NodeClosedError, WaitTimeoutError
from d8mesh.nodes.client import farewell
from d8mesh.nodes.client.cancellations import Cancellations
from d8mesh.nodes.client.completion_waiters import CompletionWaiters
from d8mesh.nodes.client.completions import Completions
from d8mesh.nodes.client.direct_call import DirectCalls
from d8mesh.nodes.client.executor import TaskExecutor
from d8mesh.nodes.client.farewell import Farewell
from d8mesh.nodes.client.handle import ASK_S, Result, Task, listed, result_of
from d8mesh.nodes.client.hub import Hub
from d8mesh.nodes.client.listening import Outputs
from d8mesh.nodes.client.mapping import Mapped, window_of
from d8mesh.nodes.client.overview import Stats, WorkerInfo
from d8mesh.nodes.client.questions import Questions
from d8mesh.nodes.client.reasons import Reasons
from d8mesh.nodes.client.runner import ClientRunner
from d8mesh.nodes.client.sessions import new_session
from d8mesh.nodes.client.submissions import (
    Post,
    Sent,
    SubmitOptions,
    awaiting,
    check_key,
    encode_data,
    group_of,
    kind_of,
    model_of,
    refuse_listening,
)
from d8mesh.nodes.client.submitter import Submitter
from d8mesh.nodes.client.timeouts import bounded, countdown, takes_timeout_s, told_whole
from d8mesh.nodes.reconnector.reconnector import Reconnector
from d8mesh.nodes.reconnector.search import Search, checked

#: How long `close` waits for what was submitted to be acknowledged.
CLOSE_S: Final = farewell.CLOSE_S
#: How long the I/O thread may take to say goodbye.
END_S: Final = 3.0


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
        self, url: str | None = None, *, config: Config | None = None, endpoint: str | None = None
    ) -> None:
        config = config_of(os.environ) if config is None else settled(config)
        url = checked(url, endpoint)
        make_session = partial(new_session, config.mesh)
        self._session = make_session()
        self._pid = os.getpid()
        self._is_closed = False
        self._waker = Waker()
        given = endpoint or url or config.orchestrator_url

        def make_reconnector(wake: Callable[[], None]) -> Reconnector:
            return Reconnector(Search(config, given=given), Connector(wake))

        self._reconnector = make_reconnector(self._waker.wake)
        self._reasons = Reasons(
            self._session,
            self._reconnector,
            ask=lambda what, args, timeout_s: self._questions.ask(what, args, timeout_s),
            check_alive=self._check_alive,
        )
        self._waiters = CompletionWaiters(self._check_alive, self._reasons.of)
        completions = Completions()
        self._runner = ClientRunner(
            self._session, self._waiters, self._waker, self._reconnector, completions=completions
        )
        self._submitter = Submitter(self._session, self._waiters, self._runner)
        self._questions = Questions(
            self._session, self._runner, self._check_alive, self._reasons.trouble
        )
        #: for the handles of its tasks
        self.hub = Hub(
            self._session,
            self._waiters,
            self._runner,
            completions=completions,
            cancellations=Cancellations(self._session, self._runner, self._questions),
            check_alive=self._check_alive,
        )
        #: the partial output of its tasks
        self.outputs = Outputs(
            self._session, self._waiters, self._runner, self.hub.check_may_wait, self._reasons.of
        )
        self._direct_calls = DirectCalls(
            make_session=make_session,
            make_reconnector=make_reconnector,
            check_alive=self._check_alive,
            why=self._reasons.of,
        )
        self._farewell = Farewell(
            self._waiters,
            wait_all=self.hub.wait_all,
            why=lambda: self._reasons.of("").text,
            end=self._end,
        )
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

    def submit(
        self,
        type: str,
        data: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> Task:
        """Submit one task and return its handle; its id is final, its acknowledgement on its way.

        Args:
            type: which handler is to run it.
            data: a JSON object: text keys, 64-bit integers, finite floats; None: an empty one.
                NumPy's scalars, enums and the like are converted.
            idempotency_key: the same key and body give the same task (1 to 128 characters);
                waits for the acknowledgement, which says which task that is.
            options: see `SubmitOptions`.

        Raises:
            InvalidTaskError: `data` or an option is not as described.
            PayloadTooLargeError: `data` is larger than 32 MB.
            WaitTimeoutError: there was no room within `timeout`.
        """
        data = {} if data is None else data
        payload = encode_data(data)
        kind = kind_of(type, model_of(type, data), options)
        timeout, is_listened = options.get("timeout"), bool(options.get("listen"))
        if not idempotency_key:
            return Task(self, *self._submitter.append(kind, payload, timeout, True, is_listened))
        check_key(idempotency_key)
        group = group_of(kind, [payload])
        post = Post(idempotency_key, is_listened=is_listened)
        submission = self._submitter.enqueue([group], timeout, post)
        self._waiters.wait_settled(submission, timeout)
        return Task(self, submission, 0)

    def call(
        self, type: str, data: Mapping[str, Any] | None = None, **options: Unpack[SubmitOptions]
    ) -> Result:
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
        data = {} if data is None else data
        refuse_listening(options)
        payload = encode_data(data)
        kind = kind_of(type, model_of(type, data), options)
        timeout = bounded(options.get("timeout"))
        self._check_alive()
        with self._direct_calls.caller() as is_one_of_few:
            route = self._reconnector.route
            if is_one_of_few and self._session.is_up and route is not None and not route.is_http:
                outcome = self._direct_calls.call(route, group_of(kind, [payload]), timeout)
                if outcome is not None:
                    return result_of(*outcome)
            left_s = countdown(timeout)
            task = Task(self, *self._submitter.append(kind, payload, timeout))
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
        submissions = self._submitter.enqueue_many(type, datas, options)
        return [
            Task(self, submission, index)
            for submission in submissions
            for index in range(submission.count)
        ]

    @takes_timeout_s
    def map(
        self,
        type: str,
        datas: Iterable[Mapping[str, Any]],
        *,
        return_exceptions: bool = False,
        in_flight: int | None = None,
        **options: Unpack[SubmitOptions],
    ) -> Generator[Any, None, None]:
        """Submit a task for each of `datas`, and return what yields their results in order.

        The first ones are submitted now, more as results are taken: `datas` may be endless. When
        the iterator ends early (an error, `timeout`, `close`, a `break` out of its loop), what is
        still in flight is cancelled; one that nobody has begun to iterate leaves it as it is.

        Args:
            type: which handler is to run them.
            datas: their data, as of `submit`. What has a length travels in large submissions; what
                has not is taken one by one, as it comes.
            return_exceptions: yield the error of a task that did not succeed in its place.
            in_flight: how many are submitted and not yet yielded (20,000).
            options: as of `submit`, but `timeout` is how long, from now, all of it may take.

        Raises:
            InvalidTaskError: a type, option or data that is not allowed.
            Whatever `Task.result` raises, at the first task that did not succeed.
        """
        mapped = Mapped(self, self._submitter, type, datas, options)
        mapped.in_flight = window_of(in_flight)
        mapped.keeps_errors = bool(return_exceptions)
        return mapped.start()

    def executor(self, type: str, **options: Unpack[SubmitOptions]) -> TaskExecutor:
        """Return a `concurrent.futures.Executor` whose futures are tasks of this type.

        Raises:
            InvalidTaskError: a type or an option that is not allowed.
        """
        kind_of(type, "", options)
        return TaskExecutor(self, type, options)

    def submit_groups(
        self,
        groups: Sequence[Group],
        *,
        key: str = "",
        digest: bytes = b"",
        is_watched: bool = False,
        is_listened: bool = False,
        timeout_s: float = ASK_S,
    ) -> Sent:
        """Submit all of these or nothing, and wait until it is acknowledged.

        A full queue is not waited for.

        Raises:
            TaskRejectedError: refused; nothing was accepted.
            WaitTimeoutError: no answer within `timeout_s`.
        """
        post = Post(key, digest, is_watched or is_listened, is_listened, is_patient=False)
        submission, index = self._submitter.place(groups, timeout_s, post)
        self._waiters.wait_settled(submission, timeout_s)
        indices = range(submission.count) if index is None else [index]
        ids = [submission.task_id(each) for each in indices]
        return Sent(ids, submission.is_repeat, submission.warnings)

    @takes_timeout_s
    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything submitted so far is acknowledged.

        Raises:
            TaskRejectedError: a part of what was submitted since the last flush was refused.
            WaitTimeoutError: `timeout` is over.
        """
        self.hub.check_may_wait()
        self._waiters.flush(timeout)

    # -------------------------------------------------------------------- the others

    def task(self, task_id: str | Task) -> Task:
        """Return a handle of a task that was submitted anywhere.

        Args:
            task_id: its id, or another handle of it.

        Raises:
            UnknownTaskError: that is no id of a task (InvalidTaskError: and no text).
        """
        known = task_id.id if isinstance(task_id, Task) else task_id
        submission = awaiting(known)
        if (place := self._waiters.place_of(known)) is not None:
            return Task(self, *place)  # its own, on its way: nobody else knows it
        self.hub.watch(submission)
        return Task(self, submission, 0)

    @takes_timeout_s
    def workers(self, *, timeout: float | None = ASK_S) -> list[WorkerInfo]:
        """Return the workers that the orchestrator knows.

        Raises:
            BrokerUnavailableError: no answer within `timeout`.
        """
        body = self.ask("workers", {}, timeout=timeout)
        return cast("list[WorkerInfo]", body["workers"])

    @takes_timeout_s
    def stats(self, *, timeout: float | None = ASK_S) -> Stats:
        """Return how many workers and tasks there are.

        Raises:
            BrokerUnavailableError: no answer within `timeout`.
        """
        return cast("Stats", self.ask("stats", {}, timeout=timeout))

    @takes_timeout_s
    def tasks(
        self,
        *,
        state: str | None = "",
        type: str | None = "",
        newest_first: bool = False,
        timeout: float | None = ASK_S,
    ) -> Iterator[dict[str, Any]]:
        """Yield the status bodies of tasks, as `Task.status` returns them.

        Args:
            state: queued, delayed, running, completed, failed, cancelled; empty: all.
            type: of one task type only; empty: of all.
            newest_first: those that were submitted last come first; else the oldest do.
            timeout: of each page.

        Raises:
            InvalidTaskError: there is no such state.
            BrokerUnavailableError: no answer within `timeout`.
        """
        ask = partial(self.ask, "tasks", timeout=timeout)
        order = {"order": "newest"} if newest_first else {}
        return listed(ask, {"state": state or "", "type": type or "", **order})

    @takes_timeout_s
    def replay(self, task_id: str, *, timeout: float | None = ASK_S) -> Task:
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

    @takes_timeout_s
    def wait_connected(self, timeout: float | None = None) -> bool:
        """Wait until an orchestrator answers; return whether one does.

        Raises:
            InvalidTaskError: `timeout` is no number of seconds; so do all that wait.
            NodeClosedError: the client is closed.
        """
        return self.hub.wait_connected(bounded(timeout))

    @property
    def trouble(self) -> str:
        """Why no orchestrator answers, for people; empty: one does. Takes half a second at most."""
        return self._reasons.trouble()

    @takes_timeout_s
    def ask(
        self, what: str, args: Mapping[str, object], *, timeout: float | None = ASK_S
    ) -> dict[str, Any]:
        """Ask the orchestrator something (see ``docs/PROTOCOL.md``, Questions).

        Raises:
            D8Error: what it answered instead.
            BrokerUnavailableError: no answer within `timeout`.
        """
        self.hub.check_may_wait()
        return self._questions.ask(what, args, ASK_S if timeout is None else timeout)

    def wait_finished(self, task_id: str, timeout_s: float) -> bool:
        """Wait for an acknowledged task's outcome; return whether it is finished (or unknown)."""
        submission = awaiting(task_id)
        self._runner.do(lambda now: self._session.watch(submission))
        try:
            self._waiters.wait_for(
                submission, lambda: bool(submission.states[0]), timeout_s, what=task_id
            )
        except WaitTimeoutError:
            return False
        finally:
            self._runner.do(lambda now: self._session.unwatch(submission))
        return True

    @takes_timeout_s
    def close(self, timeout: float | None = CLOSE_S) -> None:
        """Wait for what was submitted to be acknowledged, say goodbye, and stop.

        Leaving a ``with`` does the same. A second call does nothing, nor does one in a forked
        child: what was submitted is the parent's. `timeout` includes finding an orchestrator.

        Raises:
            NotAcknowledgedError: something is not acknowledged within `timeout`, or was refused
                and nobody was told; it has the ids. The client is closed.
        """
        wait_s = bounded(timeout)
        if os.getpid() != self._pid:
            return
        self._farewell.say(0.0 if self._runner.is_caller else wait_s)

    def _end(self) -> None:
        """Let all go, without waiting for what is missing."""
        farewell.forget(self)
        self._is_closed = True
        self._direct_calls.close()
        self._runner.close(END_S)
        self._reconnector.close()
        self._waiters.close()

    # ---------------------------------------------------------- for handles and `web`

    @property
    def waiters(self) -> CompletionWaiters:
        """Where what happens to submissions is waited for."""
        return self._waiters

    def _check_alive(self) -> None:
        if self._runner.fatal is not None:
            raise copy(self._runner.fatal)  # each its own: an error grows with who raises it
        if self._is_closed:
            raise NodeClosedError
        if os.getpid() != self._pid:
            raise NodeClosedError("a client does not survive a fork: make a new one in the child")
