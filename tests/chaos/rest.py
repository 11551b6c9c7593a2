"""Plain HTTP: ``python -m tests.chaos.rest submit|poll NAME LOG RATE``.

``submit`` sends single tasks with an idempotency key, again until it has an answer, and waits
for their outcomes; ``poll`` is a polling worker. Both read the orchestrator's URL from
``LOG/url`` for each request, since its address may change.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from tests.chaos.diary import Diary, fingerprint, read
from tests.chaos.handlers import TASK_TYPE, run_one
from tests.chaos.load import duration_ms, unfinished_of

#: A poll is held for 5 s; longer silence means that nobody is there any more.
ANSWER_S = 8.0
PAUSE_S = 0.1
_open = build_opener(ProxyHandler({})).open


def call(folder: Path, path: str, body: object = None, key: str = "") -> tuple[int, Any]:
    """Return status and body of one request; (0, None) if nobody answered."""
    url = (folder / "url").read_text("utf-8").strip()
    headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
    if token := os.environ.get("D8_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    try:
        with _open(Request(url + path, data=data, headers=headers), timeout=ANSWER_S) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, error.read()[:500].decode("utf-8", "replace")
    except (OSError, HTTPException, ValueError):  # it may be killed in the middle of an answer
        return 0, None


def submit(folder: Path, name: str, rate: float) -> None:
    """Submit singles, wait for each outcome, until stopped."""
    path = folder / f"client-{name}.jsonl"
    waiting = unfinished_of(path)
    diary = Diary(path)
    due = time.monotonic()
    while True:
        is_stopping = (folder / "stop").exists()
        if is_stopping and not waiting:
            break
        if not is_stopping and len(waiting) < 50 and time.monotonic() >= due:
            due = max(due + 1 / rate, time.monotonic() - 2)
            waiting += submit_one(folder, diary)
        elif waiting:
            waiting = [task_id for task_id in waiting if not look(folder, task_id, diary)]
            time.sleep(0.02)
        else:
            time.sleep(0.02)
    diary.note("drained")


def submit_one(folder: Path, diary: Diary) -> list[str]:
    """Submit one task, again and again under the same key; return its id."""
    base = secrets.token_hex(6)
    data = {"text": f"{base}-0", "ms": duration_ms(), "log": str(folder)}
    body = {"type": TASK_TYPE, "data": data, "priority": 10}
    while True:
        status, answer = call(folder, "/api/tasks/submit", body, key=base)
        if status in (200, 201):
            diary.note("acked", ids=[answer["task_id"]], base=base)
            return [answer["task_id"]]
        if 400 <= status < 500 and status not in (408, 429):
            diary.note("refused", why=f"{status} {answer}")
            return []
        time.sleep(PAUSE_S)


def look(folder: Path, task_id: str, diary: Diary) -> bool:
    """Note the outcome if there is one."""
    status, body = call(folder, f"/api/tasks/status/{task_id}")
    if status in (404, 410):
        diary.note("got", id=task_id, state="missing", why=f"{status} {body}", sum="")
        return True
    if status != 200 or body["status"] not in ("completed", "failed"):
        return False
    diary.note("got", id=task_id, state=body["state"], sum=fingerprint(body["result"]))
    return True


def poll(folder: Path, name: str) -> None:
    """Be a polling worker until stopped; the end is a kill like any other."""
    capabilities = {"task_types": [TASK_TYPE], "slots": 1}
    me = {"worker_id": name, "worker_type": "poller", "capabilities": capabilities}
    diary = Diary(folder / f"poller-{name}.jsonl")
    is_known = False
    while True:
        if not is_known:
            is_known = call(folder, "/api/workers/register", me)[0] == 200
        status, answer = call(folder, f"/api/workers/{name}/tasks?wait=5")
        if status != 200:
            diary.note("trouble", status=status, answer=str(answer))
            is_known = status == 0 and is_known
            time.sleep(PAUSE_S)
        elif answer["task"]:
            report(folder, name, answer["task"], diary)


def report(folder: Path, name: str, task: dict[str, Any], diary: Diary) -> None:
    """Run the task and report it until somebody has heard."""
    output = run_one(task["data"], task["task_id"], task["attempt"])
    result = {"success": True, "output": output}
    body = {"worker_id": name, "result": result}
    while True:
        status, answer = call(folder, f"/api/tasks/{task['task_id']}/result", body)
        if status == 200:
            return
        diary.note("trouble", status=status, answer=str(answer))
        if status in (400, 403, 404, 409, 410):
            return
        time.sleep(PAUSE_S)


def is_drained(path: Path) -> bool:
    """Tell whether a client has seen every outcome and ended."""
    return any(row["e"] == "drained" for row in read(path))


if __name__ == "__main__":
    if sys.argv[1] == "submit":
        submit(Path(sys.argv[3]), sys.argv[2], float(sys.argv[4]))
    else:
        poll(Path(sys.argv[3]), sys.argv[2])
