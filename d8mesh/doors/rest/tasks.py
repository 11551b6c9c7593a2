"""The calls that submit tasks, look at them, and change them."""

from __future__ import annotations

import random
import time
from typing import Any, Final

from werkzeug.wrappers import Request, Response

from d8mesh.core.protocol.addresses import is_loopback
from d8mesh.core.protocol.messages import MAX_WARNINGS
from d8mesh.core.protocol.task import TaskState
from d8mesh.doors.rest.dialect import status_body
from d8mesh.doors.rest.mesh import ASK_S, SUBMIT_S, Mesh, Places
from d8mesh.doors.rest.schemas import (
    SubmitBatch,
    SubmitOne,
    convert,
    flag,
    groups_of,
    idempotency_key,
    integer,
    seconds,
    unknown_keys,
)
from d8mesh.doors.rest.workers import is_gone
from d8mesh.errors import InvalidTaskError, UnknownTaskError
from d8mesh.http.answers import answer
from d8mesh.http.guard import body_of
from d8mesh.http.strict import parse_json
from d8mesh.nodes.client.submissions import Sent, digest_of

SUBMIT_KEYS: Final = frozenset(SubmitOne.__struct_fields__)
MAX_WAIT_S: Final = 60.0
DEFAULT_WAIT_S: Final = 30.0
#: While a request waits, it is looked about this often whether its asker is still there;
#: not for all at the same time.
SLICE_S: Final = 8.0
MAX_PAGE: Final = 1000
DEFAULT_PAGE: Final = 100
#: Longest cursor that is passed on; ours are shorter.
MAX_CURSOR_CHARS: Final = 128
_FINAL: Final = frozenset(state.value for state in TaskState if state.is_final)


class TaskCalls:
    """Answers ``/api/tasks…`` but for results and streams."""

    def __init__(self, mesh: Mesh, waits: Places) -> None:
        self._mesh = mesh
        self._waits = waits

    def submit(self, request: Request) -> Response:
        """``POST /api/tasks/submit``"""
        body = parse_json(body_of(request))
        task = convert(body, SubmitOne)
        sent = self._submit(request, [task], is_batch=False)
        (task_id,) = sent.ids
        told: dict[str, Any] = {"task_id": task_id, "status": "submitted"}
        told["message"] = f"Task {task_id} submitted"
        return answer(told | _warned(unknown_keys(body, SubmitOne), sent), _code(sent))

    def submit_batch(self, request: Request) -> Response:
        """``POST /api/tasks/submit_batch``"""
        body = parse_json(body_of(request))
        tasks = convert(body, SubmitBatch).tasks
        sent = self._submit(request, tasks, is_batch=True)
        found = unknown_keys(body, SubmitBatch)
        for task in body["tasks"]:
            if not SUBMIT_KEYS.issuperset(task):
                found += unknown_keys(task, SubmitOne)
        told: dict[str, Any] = {"task_ids": sent.ids, "status": "submitted"}
        return answer(told | _warned(found, sent), _code(sent))

    def status(self, request: Request, task_id: str) -> Response:
        """``GET /api/tasks/status/{id}``"""
        if not flag(request.args, "full"):
            return answer(self.status_of(task_id))
        args = {"id": _id(task_id), "full": True}
        is_near = is_loopback(request.remote_addr or "")
        body = self._mesh.ask("status", args, timeout=ASK_S)
        return answer(status_body(body, has_tracebacks=is_near))

    def wait(self, request: Request, task_id: str) -> Response:
        """``GET /api/tasks/{id}/wait``"""
        wait_s = seconds(request.args, "timeout_s", default=DEFAULT_WAIT_S, most=MAX_WAIT_S)
        body = self.status_of(task_id)
        if body["state"] in _FINAL:
            return answer(body)
        with self._waits.one() as may_wait:
            until = time.monotonic() + (wait_s if may_wait else 0.0)
            while (left_s := until - time.monotonic()) > 0 and not is_gone(request):
                slice_s = min(left_s, SLICE_S * random.uniform(0.6, 1.4))
                if self._mesh.wait_finished(task_id, slice_s):
                    break
        return answer(self.status_of(task_id))

    def cancel(self, request: Request, task_id: str) -> Response:
        """``POST /api/tasks/{id}/cancel``"""
        body_of(request)
        return answer(self._mesh.ask("cancel", {"id": _id(task_id)}, timeout=ASK_S))

    def replay(self, request: Request, task_id: str) -> Response:
        """``POST /api/tasks/{id}/replay``"""
        body_of(request)
        session, n = self._mesh.next_id()
        args = {"id": _id(task_id), "session": session, "n": n}
        return answer(self._mesh.ask("replay", args, timeout=SUBMIT_S), 201)

    def queue(self, request: Request) -> Response:
        """``GET /api/tasks/queue``"""
        return answer(self._mesh.ask("queue", _page(request), timeout=ASK_S))

    def listed(self, request: Request) -> Response:
        """``GET /api/tasks``"""
        args = _page(request)
        args |= {name: request.args.get(name, "") for name in ("state", "type", "order")}
        if len(str(args["type"])) > MAX_CURSOR_CHARS:
            raise InvalidTaskError(f"type: expected at most {MAX_CURSOR_CHARS} characters")
        body = self._mesh.ask("tasks", args, timeout=ASK_S)
        body["tasks"] = [status_body(task) for task in body["tasks"]]
        return answer(body)

    def status_of(self, task_id: str) -> dict[str, Any]:
        """Return the documented status body.

        Raises:
            UnknownTaskError: there is no such task; `PrunedTaskError`: there was one.
        """
        return status_body(self._mesh.ask("status", {"id": _id(task_id)}, timeout=ASK_S))

    def _submit(self, request: Request, tasks: list[SubmitOne], *, is_batch: bool) -> Sent:
        key = idempotency_key(request.headers.get("Idempotency-Key"))
        groups = groups_of(tasks, is_batch=is_batch)
        if len({task.listen for task in tasks}) > 1:
            raise InvalidTaskError("listen: expected the same of all tasks of a batch")
        return self._mesh.submit_groups(
            groups,
            key=key,
            digest=digest_of(groups) if key else b"",
            is_watched=False,
            is_listened=tasks[0].listen,
            timeout_s=SUBMIT_S,
        )


def _warned(found: list[str], sent: Sent) -> dict[str, Any]:
    """Return the warnings of a submit, each text once, if there are any."""
    told = list(dict.fromkeys([*found, *sent.warnings]))[:MAX_WARNINGS]
    return {"warnings": told} if told else {}


def _code(sent: Sent) -> int:
    return 200 if sent.is_repeat else 201


def _id(task_id: str) -> str:
    if len(task_id) > MAX_CURSOR_CHARS:
        raise UnknownTaskError
    return task_id


def _page(request: Request) -> dict[str, object]:
    cursor = request.args.get("cursor", "")
    if len(cursor) > MAX_CURSOR_CHARS:
        raise InvalidTaskError("cursor: expected what next_cursor said")
    limit = integer(request.args, "limit", default=DEFAULT_PAGE, most=MAX_PAGE)
    return {"limit": limit, "cursor": cursor}
