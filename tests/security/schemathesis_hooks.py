"""Makes schemathesis ask for what is there: half of its good requests name a model and a task of
ours, and none waits for long.

schemathesis loads it by the variable SCHEMATHESIS_HOOKS; what is there it reads from D8_KNOWN, a
JSON object of names and values.
"""

from __future__ import annotations

import json
import os
from typing import Any, Final

import schemathesis

#: name of a parameter or field -> a value that leads somewhere
KNOWN: Final[dict[str, Any]] = json.loads(os.environ.get("D8_KNOWN", "{}"))
#: Calls that wait, and how they are told not to.
WAITING: Final = {
    "/api/tasks/{task_id}/wait": "timeout_s",
    "/api/workers/{worker_id}/tasks": "wait",
}
SHORT_S: Final = 0.1


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Name what is there, and wait for nothing long."""
    name = WAITING.get(case.operation.path)
    if name is not None:
        query = dict(case.query or {})
        if name not in query or _is_long(query[name]):
            case.query = {**query, name: SHORT_S}
    if case.meta is None or not case.meta.generation.mode.is_positive or len(repr(case.body)) % 2:
        return
    for given in (case.path_parameters, case.body):
        if isinstance(given, dict):
            given.update({name: value for name, value in KNOWN.items() if name in given})


def _is_long(value: Any) -> bool:
    try:
        return SHORT_S < float(value) <= 60
    except (TypeError, ValueError):
        return False
