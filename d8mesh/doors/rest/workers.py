"""The calls of polling workers, and those about workers."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from typing import Any, Final

from werkzeug.wrappers import Request, Response

from d8mesh.doors.rest.dialect import lacks_output, named_in, reported, task_body
from d8mesh.doors.rest.mesh import ASK_S, Mesh, Places
from d8mesh.doors.rest.schemas import (
    Beating,
    Register,
    Report,
    ReportOf,
    WorkerId,
    check_registration,
    convert,
    seconds,
)
from d8mesh.errors import (
    D8Error,
    InvalidTaskError,
    PayloadTooLargeError,
    UnknownTaskError,
    UnknownWorkerError,
)
from d8mesh.http.answers import Refusal, answer
from d8mesh.http.guard import CUT_OFF, body_of
from d8mesh.http.strict import parse_json

#: The longest a poll may wait; a longer wish is cut.
MAX_POLL_S: Final = 60.0
#: A waiting poll is asked anew after about this long: a worker that hung up is not handed a
#: task for much longer. Not all at the same time: hundreds at once would hold up the rest.
SLICE_S: Final = 8.0


class WorkerCalls:
    """Answers ``/api/workers/…`` and the reports of results."""

    def __init__(self, mesh: Mesh, waits: Places) -> None:
        self._mesh = mesh
        self._waits = waits

    def register(self, request: Request) -> Response:
        """``POST /api/workers/register``"""
        body = convert(parse_json(body_of(request)), Register)
        check_registration(body)
        args = {
            "worker_id": body.worker_id,
            "worker_type": body.worker_type,
            "capabilities": body.capabilities,
            "status": body.status or "online",
        }
        self._mesh.ask("poll.register", args, timeout=ASK_S)
        message = f"Worker {body.worker_id} registered"
        told = {"status": "registered", "success": True, "worker_id": body.worker_id}
        return answer({**told, "message": message})

    def heartbeat(self, request: Request, worker_id: str) -> Response:
        """``POST /api/workers/{id}/heartbeat``"""
        args: dict[str, object] = {"worker_id": _known(worker_id)}
        task_ids = convert(_optional_object(request), Beating).task_ids
        args |= {} if task_ids is None else {"task_ids": task_ids}
        self._mesh.ask("poll.heartbeat", args, timeout=ASK_S)
        return answer({"status": "ok"})

    def unregister(self, request: Request, worker_id: str) -> Response:
        """``POST /api/workers/{id}/unregister``"""
        _optional_object(request)
        return self._unregister(_known(worker_id))

    def unregister_by_body(self, request: Request) -> Response:
        """``POST /api/workers/unregister``"""
        return self._unregister(convert(parse_json(body_of(request)), WorkerId).worker_id)

    def poll(self, request: Request, worker_id: str) -> Response:
        """``GET /api/workers/{id}/tasks``"""
        wait_s = seconds(request.args, "wait", default=0.0, most=MAX_POLL_S, is_cut=True)
        if request.method == "HEAD":  # a task handed out to nobody would be lost for a while
            return self.heartbeat(request, worker_id)
        if not wait_s:
            return self._next(worker_id, 0.0)
        with self._waits.one() as may_wait:
            until = time.monotonic() + (wait_s if may_wait else 0.0)
            while True:
                left_s = max(0.0, until - time.monotonic())
                slice_s = min(left_s, SLICE_S * random.uniform(0.6, 1.4))
                response = self._next(worker_id, slice_s)
                is_over = left_s <= slice_s or response.get_data() != _NO_TASK
                if is_over or is_gone(request):
                    return response

    def results(self, request: Request) -> Response:
        """``POST /api/workers/results``"""
        with self._told_if_refused(request, ""):
            body = convert(parse_json(_noted_body(request)), ReportOf)
            return self._report(body.task_id, body.worker_id, body.result)

    def result(self, request: Request, task_id: str) -> Response:
        """``POST /api/tasks/{id}/result``"""
        with self._told_if_refused(request, task_id):
            body = convert(parse_json(_noted_body(request)), Report)
            return self._report(task_id, body.worker_id, body.result)

    def listed(self, request: Request) -> Response:
        """``GET /api/workers/list``"""
        return answer(self._mesh.ask("workers", {}, timeout=ASK_S))

    def stats(self, request: Request) -> Response:
        """``GET /api/stats`` and ``GET /api/workers/stats``"""
        return answer(self._mesh.ask("stats", {}, timeout=ASK_S))

    def _unregister(self, worker_id: str) -> Response:
        self._mesh.ask("poll.unregister", {"worker_id": worker_id}, timeout=ASK_S)
        return answer({"status": "unregistered", "success": True})

    def _next(self, worker_id: str, wait_s: float) -> Response:
        args = {"worker_id": _known(worker_id), "wait_s": wait_s}
        task = self._mesh.ask("poll.next", args, timeout=wait_s + ASK_S)["task"]
        return answer({"task": None if task is None else task_body(task)})

    @contextlib.contextmanager
    def _told_if_refused(self, request: Request, task_id: str) -> Iterator[None]:
        """End the attempt whose report cannot be taken: its worker knows no other to send.

        Left alone the task would be handed to the same worker again, and end in the same way.
        """
        try:
            yield
        except (InvalidTaskError, PayloadTooLargeError, Refusal) as error:
            if error.code == CUT_OFF:
                raise  # it was on its way, and may be sent again
            named = named_in(request.environ.get(_BODY, b""))
            args = {"task_id": task_id or named.get("task_id", ""), "error": str(error)}
            args["worker_id"] = named.get("worker_id", "")
            if 1 <= len(args["task_id"]) <= 128:
                with contextlib.suppress(D8Error):
                    self._mesh.ask("poll.refused", args, timeout=ASK_S)
            raise

    def _report(self, task_id: str, worker_id: str, result: Any) -> Response:
        if len(task_id) > 128:
            raise UnknownTaskError
        task_type = ""
        if lacks_output(result):
            task_type = self._mesh.ask("status", {"id": task_id}, timeout=ASK_S)["type"]
        is_success, payload = reported(result, worker_id=worker_id, task_type=task_type)
        args = {
            "task_id": task_id,
            "worker_id": worker_id,
            "is_success": is_success,
            "result": payload,
        }
        self._mesh.ask("poll.report", args, timeout=ASK_S)
        return answer({"status": "received", "success": True})


def _noted_body(request: Request) -> bytes:
    """Return the body, and keep it for who wants to know whose it was."""
    request.environ[_BODY] = body = body_of(request)
    return body


def is_gone(request: Request) -> bool:
    """Return whether the asker is known to have hung up."""
    disconnected = request.environ.get("waitress.client_disconnected")
    return bool(disconnected is not None and disconnected())


_BODY: Final = "d8.body"
_NO_TASK: Final = answer({"task": None}).get_data()


def _known(worker_id: str) -> str:
    """Return an id out of a path; one that nobody can have registered is unknown."""
    if not 1 <= len(worker_id) <= 128:
        raise UnknownWorkerError
    return worker_id


def _optional_object(request: Request) -> dict[str, Any]:
    """Return a body that may be missing or null; empty if it is."""
    body = body_of(request)
    given = parse_json(body) if body else None
    return {} if given is None else convert(given, dict)
