"""A client process: ``python -m tests.chaos.load NAME LOG MESH URL RATE``.

Submits batches at a steady rate, bounded by what is unfinished; notes what was acknowledged and
every outcome. Started again after a kill it opens its unfinished ids anew. The file
``LOG/stop`` ends it once nothing is unfinished. An empty URL: the mesh is found by mDNS.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import sys
import time
from pathlib import Path

from d8mesh import Client, Task
from d8mesh.config import Config
from d8mesh.errors import D8Error, TaskCancelledError, TaskFailedError
from tests.chaos.diary import Diary, fingerprint, read
from tests.chaos.handlers import TASK_TYPE

BATCH = 40
#: More than this unfinished: the mesh is behind, nothing new is submitted.
MAX_UNFINISHED = 1000


def main() -> None:
    """Run until told to stop."""
    name, log, mesh, url, rate = sys.argv[1:6]
    folder = Path(log)
    path = folder / f"client-{name}.jsonl"
    unfinished = unfinished_of(path)
    diary = Diary(path)
    config = Config(mesh=mesh, interfaces=("127.0.0.1",) if url else ())
    with Client(url or None, config=config) as client:
        tasks = {task_id: client.task(task_id) for task_id in unfinished}
        diary.note("opened", count=len(tasks))
        pause_s = BATCH / float(rate)
        due = time.monotonic()
        while True:
            is_stopping = (folder / "stop").exists()
            collect(tasks, diary)
            if is_stopping and not tasks:
                break
            if is_stopping or len(tasks) > MAX_UNFINISHED or time.monotonic() < due:
                time.sleep(0.02)
                continue
            due = max(due + pause_s, time.monotonic() - 2 * pause_s)
            submit(client, tasks, diary, folder)
    diary.note("drained")


def unfinished_of(path: Path) -> list[str]:
    """Return the acknowledged ids that have no outcome in a diary."""
    found: dict[str, None] = {}
    for row in read(path):
        if row["e"] == "acked":
            found.update(dict.fromkeys(row["ids"]))
        elif row["e"] == "got":
            found.pop(row["id"], None)
    return list(found)


def duration_ms() -> int:
    """Most tasks are short; one in twenty-five takes a second or two."""
    dice = random.random()
    if dice < 0.04:
        return random.randint(700, 2000)
    return random.randint(100, 300) if dice < 0.1 else random.randint(0, 20)


def submit(client: Client, tasks: dict[str, Task], diary: Diary, folder: Path) -> None:
    """Submit one batch and note its acknowledgement."""
    base = secrets.token_hex(6)
    datas = [{"text": f"{base}-{n}", "ms": duration_ms(), "log": str(folder)} for n in range(BATCH)]
    try:
        made = client.submit_many(TASK_TYPE, datas)
    except D8Error as error:
        diary.note("refused", why=str(error))
        return
    diary.note("acked", ids=[task.id for task in made], base=base)
    tasks.update((task.id, task) for task in made)


def collect(tasks: dict[str, Task], diary: Diary) -> None:
    """Note what is finished."""
    for task in [task for task in tasks.values() if task.done()]:
        outcome: object = None
        with contextlib.suppress(TaskCancelledError):
            try:
                outcome = task.result(5)
                diary.note("got", id=task.id, state="completed", sum=fingerprint(outcome))
            except TaskFailedError as error:
                diary.note("got", id=task.id, state="failed", sum=fingerprint(dict(error.result)))
            except D8Error as error:
                diary.note("got", id=task.id, state="missing", why=str(error), sum="")
        del tasks[task.id]


if __name__ == "__main__":
    main()
