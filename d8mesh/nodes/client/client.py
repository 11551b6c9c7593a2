"""The Python client: finds the mesh, submits tasks in batches, brings their results.

Any number of threads may use one `Client`; the I/O thread of its `ClientNode` runs the session.
What is submitted has its final id at once and is *acknowledged* when the orchestrator has
it on disk: `Client.submit_many` waits for that, `Client.submit` does not (`Task.wait_accepted`
and `Client.flush` do), so that single submits too travel in batches.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Unpack, cast

from d8mesh.config import Config
from d8mesh.edge.installation import config_of, settled
from d8mesh.errors import WaitTimeoutError
from d8mesh.nodes.client.closing import CLOSE_S
from d8mesh.nodes.client.executor import TaskExecutor
from d8mesh.nodes.client.groups import (
    SubmitOptions,
    Template,
    check_key,
    encode_data,
    filled,
    group_of,
    refuse_listening,
)
from d8mesh.nodes.client.handle import Task
from d8mesh.nodes.client.mapping import Mapped, window_of
from d8mesh.nodes.client.node import ClientNode
from d8mesh.nodes.client.overview import Explanation, Models, Stats, WorkerInfo
from d8mesh.nodes.client.results import Listing, Result
from d8mesh.nodes.client.timeouts import (
    DEFAULT_QUESTION_S,
    bounded,
    countdown,
    takes_timeout_s,
    told_whole,
)
from d8mesh.nodes.client.wishes import wish_of
from d8mesh.nodes.reconnector.search import checked


class Client:
    """A client of one mesh.

    Args:
        url: ``http://HOST:PORT`` of an orchestrator; None: found by mDNS.
        config: settings; None: read from the environment (D8_MESH, ORCHESTRATOR_URL, …).
        endpoint: ``tcp://HOST:PORT`` of a broker, if that is known; ``?key=`` and its public key
            may follow.

    Raises:
        ConfigError: `url` or `endpoint` is not of that form, or the key file cannot be used.

    Thread: every method may be called from any thread.
    """

    def __init__(
        self, url: str | None = None, *, config: Config | None = None, endpoint: str | None = None
    ) -> None:
        config = config_of(os.environ) if config is None else settled(config)
        #: its session, which the handles of its tasks share
        self.node = ClientNode(config, endpoint=endpoint, url=checked(url, endpoint))

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: object, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """As `close`; an exception that is under way stays, with a note of what is missing."""
        if error is None:
            self.close()
        else:
            self.node.close_beside(error)

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
        shared = group_of(type, wish_of(type, data, is_one=True), options)
        timeout, is_listened = options.get("timeout"), bool(options.get("listen"))
        node = self.node
        if not idempotency_key:
            return Task(self, *node.submitter.append(shared, payload, timeout, True, is_listened))
        check_key(idempotency_key)
        submission = node.submitter.enqueue(
            [filled(shared, [payload])], timeout, key=idempotency_key, is_listened=is_listened
        )
        node.waiters.wait_settled(submission, timeout)
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
        shared = group_of(type, wish_of(type, data, is_one=True), options)
        timeout = bounded(options.get("timeout"))
        node = self.node
        node.check_alive()
        with node.direct_calls.caller() as is_one_of_few:
            route = node.reconnector.route
            if is_one_of_few and node.session.is_up and route is not None and not route.is_http:
                result = node.direct_calls.call(route, filled(shared, [payload]), timeout)
                if result is not None:
                    return result
            left_s = countdown(timeout)
            task = Task(self, *node.submitter.append(shared, payload, timeout))
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
        node, template = self.node, Template(type, options)
        left_s = countdown(template.timeout_s)
        try:
            submissions = [
                node.submitter.enqueue([group], left_s(), is_listened=template.is_listened)
                for group in template.cut(datas)
            ]
            for submission in submissions:
                node.waiters.wait_settled(submission, left_s())
        except WaitTimeoutError as error:
            raise told_whole(error, template.timeout_s) from None
        return [Task(self, each, index) for each in submissions for index in range(each.count)]

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
        mapped = Mapped(self, type, datas, options)
        mapped.in_flight = window_of(in_flight)
        mapped.keeps_errors = bool(return_exceptions)
        return mapped.start()

    def executor(self, type: str, **options: Unpack[SubmitOptions]) -> TaskExecutor:
        """Return a `concurrent.futures.Executor` whose futures are tasks of this type.

        Raises:
            InvalidTaskError: a type or an option that is not allowed.
        """
        group_of(type, "", options)
        return TaskExecutor(self.node, lambda data: self.submit(type, data, **options))

    @takes_timeout_s
    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything submitted so far is acknowledged.

        Raises:
            TaskRejectedError: a part of what was submitted since the last flush was refused.
            WaitTimeoutError: `timeout` is over.
        """
        self.node.check_may_wait()
        self.node.waiters.flush(timeout)

    # -------------------------------------------------------------------- the others

    def task(self, task_id: str | Task) -> Task:
        """Return a handle of a task that was submitted anywhere.

        Args:
            task_id: its id, or another handle of it.

        Raises:
            UnknownTaskError: that is no id of a task (InvalidTaskError: and no text).
        """
        known = task_id.id if isinstance(task_id, Task) else task_id
        return Task(self, *self.node.submitter.watch(known))

    @takes_timeout_s
    def workers(self, *, timeout: float | None = DEFAULT_QUESTION_S) -> list[WorkerInfo]:
        """Return the workers that the orchestrator knows.

        Raises:
            BrokerUnavailableError: no answer within `timeout`.
        """
        body = self.ask("workers", {}, timeout=timeout)
        return cast("list[WorkerInfo]", body["workers"])

    @takes_timeout_s
    def stats(self, *, timeout: float | None = DEFAULT_QUESTION_S) -> Stats:
        """Return how many workers and tasks there are.

        Raises:
            BrokerUnavailableError: no answer within `timeout`.
        """
        return cast("Stats", self.ask("stats", {}, timeout=timeout))

    @takes_timeout_s
    def models(self, *, timeout: float | None = DEFAULT_QUESTION_S) -> Models:
        """Return every language model of the mesh: where it is, where loaded, who waits for it.

        Raises:
            BrokerUnavailableError: no answer within `timeout`.
        """
        return cast("Models", self.ask("models", {}, timeout=timeout))

    @takes_timeout_s
    def explain(self, task_id: str, *, timeout: float | None = DEFAULT_QUESTION_S) -> Explanation:
        """Return why a task waits and what would run it, or why it ran where it ran.

        Raises:
            UnknownTaskError: the orchestrator does not know it, or no longer.
            BrokerUnavailableError: no answer within `timeout`.
        """
        return cast("Explanation", self.ask("explain", {"id": task_id}, timeout=timeout))

    @takes_timeout_s
    def tasks(
        self,
        *,
        state: str | None = "",
        type: str | None = "",
        door: str | None = "",
        newest_first: bool = False,
        timeout: float | None = DEFAULT_QUESTION_S,
    ) -> Iterator[dict[str, Any]]:
        """Yield the status bodies of tasks, as `Task.status` returns them.

        Args:
            state: queued, delayed, running, completed, failed, cancelled; empty: all.
            type: of one task type only; empty: of all.
            door: of what came in by one door only, as ollama or openai; empty: of all.
            newest_first: those that were submitted last come first; else the oldest do.
            timeout: of each page.

        Raises:
            InvalidTaskError: there is no such state.
            BrokerUnavailableError: no answer within `timeout`.
        """
        listing = Listing(state, type, door, newest_first=newest_first)
        while not listing.is_over:
            yield from listing.bodies(self.ask("tasks", listing.args, timeout=timeout))

    @takes_timeout_s
    def replay(self, task_id: str, *, timeout: float | None = DEFAULT_QUESTION_S) -> Task:
        """Submit a failed or cancelled task anew, under a new id; return its handle.

        Raises:
            InvalidTaskError: it is not finished, completed, or its data is lost.
            UnknownTaskError: the orchestrator does not know it, or no longer.
            BrokerUnavailableError: no answer within `timeout`.
        """
        session, n = self.node.submitter.next_id()
        args = {"id": task_id, "session": session, "n": n}
        return self.task(str(self.ask("replay", args, timeout=timeout)["task_id"]))

    @property
    def is_connected(self) -> bool:
        """True while an orchestrator answers."""
        return self.node.session.is_up

    @property
    def is_over_http(self) -> bool:
        """True while only the REST port can be reached."""
        return self.node.runner.is_over_http

    @takes_timeout_s
    def wait_connected(self, timeout: float | None = None) -> bool:
        """Wait until an orchestrator answers; return whether one does.

        Raises:
            InvalidTaskError: `timeout` is no number of seconds; so do all that wait.
            NodeClosedError: the client is closed.
        """
        return self.node.wait_connected(bounded(timeout))

    @property
    def trouble(self) -> str:
        """Why no orchestrator answers, for people; empty: one does. Takes half a second at most."""
        return self.node.reasons.trouble()

    @takes_timeout_s
    def ask(
        self, what: str, args: Mapping[str, object], *, timeout: float | None = DEFAULT_QUESTION_S
    ) -> dict[str, Any]:
        """Ask the orchestrator something (see ``docs/PROTOCOL.md``, Questions).

        Raises:
            D8Error: what it answered instead.
            BrokerUnavailableError: no answer within `timeout`.
        """
        return self.node.ask(what, args, DEFAULT_QUESTION_S if timeout is None else timeout)

    @takes_timeout_s
    def close(self, timeout: float | None = CLOSE_S) -> None:
        """Wait for what was submitted to be acknowledged, say goodbye, and stop.

        Leaving a ``with`` does the same. A second call does nothing, nor does one in a forked
        child: what was submitted is the parent's. `timeout` includes finding an orchestrator.

        Raises:
            NotAcknowledgedError: something is not acknowledged within `timeout`, or was refused
                and nobody was told; it has the ids. The client is closed.
        """
        self.node.close(bounded(timeout))


_lock: Final = threading.Lock()
_own: Client | None = None


def own_client() -> Client:
    """Return the client that the unpickled handles of this process share."""
    global _own
    with _lock:
        if _own is None or _own.node.is_over:  # closed by somebody, or this is a child of a fork
            _own = Client()
        return _own


Task.own_client = own_client
