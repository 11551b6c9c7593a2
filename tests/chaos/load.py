"""A client process: ``python -m tests.chaos.load NAME LOG MESH URL RATE``.

Submits batches at a steady rate, bounded by what is unfinished, some of them with a wish (see
`wishes`); notes what was acknowledged and every outcome. Started again after a kill it opens its
unfinished ids anew, and sends again what went under a key. ``LOG/stop`` ends it once nothing is
unfinished. An empty URL: the mesh is found by mDNS.
"""

from __future__ import annotations

import random
import secrets
import sys
import time
from pathlib import Path
from typing import Any

from d8mesh import Client, Task
from d8mesh.errors import D8Error, TaskCancelledError, TaskFailedError
from tests.chaos import wishes
from tests.chaos.diary import Diary, fingerprint, read
from tests.chaos.handlers import TASK_TYPE
from tests.chaos.settings import config_of

BATCH = 40
#: So often one task of the highest priority is submitted: it shows when the mesh takes up new
#: work, however much waits.
PROBE_EVERY_S = 0.5
#: A question is given up after this long; the load goes on.
ASK_S = 3.0
#: More than this unfinished: the mesh is behind, nothing new is submitted.
MAX_UNFINISHED = 1000


def main() -> None:
    """Run until told to stop."""
    name, log, mesh, url, rate = sys.argv[1:6]
    folder = Path(log)
    path = folder / f"client-{name}.jsonl"
    unfinished = unfinished_of(path)
    diary = Diary(path)
    config = config_of(mesh, url, folder.parent / name)
    with Client(url or None, config=config) as client:
        tasks = {task_id: client.task(task_id) for task_id in unfinished}
        diary.note("opened", count=len(tasks))
        for key in open_keys_of(path):
            submit_keyed(client, tasks, diary, folder, key)
        due = probe_due = time.monotonic()
        while True:
            is_stopping = (folder / "stop").exists()
            collect(client, tasks, diary)
            if is_stopping and not tasks:
                break
            if not is_stopping and time.monotonic() >= probe_due:
                submit(client, tasks, diary, folder, 1, priority=10)
                probe_due = time.monotonic() + PROBE_EVERY_S
            if is_stopping or len(tasks) > MAX_UNFINISHED or time.monotonic() < due:
                time.sleep(0.02)
                continue
            kind = random.choice(wishes.KINDS) if random.random() < wishes.SHARE else ""
            count = {"": BATCH, "keyed": 1}.get(kind, wishes.BATCH)
            due = max(due + count / float(rate), time.monotonic() - 2 * BATCH / float(rate))
            if not kind:
                submit(client, tasks, diary, folder, BATCH)
            elif kind == "keyed":
                submit_keyed(client, tasks, diary, folder, secrets.token_hex(6))
            else:
                submit_wish(client, tasks, diary, folder, kind)
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


def open_keys_of(path: Path) -> list[str]:
    """Return the key that was in use when a client died, if it was not acknowledged twice."""
    open_keys: list[str] = []
    for row in read(path):
        if row["e"] == "keying":
            open_keys = [row["key"]] * 2
        elif row["e"] == "acked" and "key" in row:
            open_keys = open_keys[:-1]
    return open_keys


def duration_ms() -> int:
    """Most tasks are short; one in twenty-five takes a second or two."""
    dice = random.random()
    if dice < 0.04:
        return random.randint(700, 2000)
    return random.randint(100, 300) if dice < 0.1 else random.randint(0, 20)


def submit(
    client: Client, tasks: dict[str, Task], diary: Diary, folder: Path, count: int, **options: Any
) -> None:
    """Submit one batch and note its acknowledgement."""
    base = secrets.token_hex(6)
    datas = [{"text": f"{base}-{n}", "ms": duration_ms(), "log": str(folder)} for n in range(count)]
    try:
        made = client.submit_many(TASK_TYPE, datas, **options)
    except D8Error as error:
        diary.note("refused", why=str(error))
        return
    diary.note("acked", ids=[task.id for task in made], base=base)
    tasks.update((task.id, task) for task in made)


def submit_wish(
    client: Client, tasks: dict[str, Task], diary: Diary, folder: Path, kind: str
) -> None:
    """Submit a few tasks that ask for something, and cancel some of those nobody wants."""
    base = secrets.token_hex(6)
    datas = [
        {"text": f"{base}-{n}", "ms": wishes.duration_ms(kind), "log": str(folder)}
        for n in range(wishes.BATCH)
    ]
    wish, options = wishes.draw(kind)
    try:
        made = client.submit_many(TASK_TYPE, datas, **options)
    except D8Error as error:
        diary.note("refused", why=str(error))
        return
    diary.note("acked", ids=[task.id for task in made], base=base, wish=wish.row)
    tasks.update((task.id, task) for task in made)
    if kind == "unwanted":
        for task in random.sample(made, wishes.BATCH // 2):
            cancel(task, diary)


def cancel(task: Task, diary: Diary) -> None:
    """Cancel a task and note what was said of it."""
    diary.note("cancelling", id=task.id)
    try:
        state = "cancelled" if task.cancel(ASK_S) else task.status(ASK_S)["state"]
        diary.note("said", id=task.id, state=state)
    except D8Error as error:
        diary.note("unanswered", id=task.id, why=str(error))


def submit_keyed(
    client: Client, tasks: dict[str, Task], diary: Diary, folder: Path, key: str
) -> None:
    """Submit one task under a key, and the same again: they are one task."""
    data = {"text": f"{key}-0", "ms": int(key[:2], 16), "log": str(folder)}
    diary.note("keying", key=key)
    for _ in range(2):
        try:
            task = client.submit(TASK_TYPE, data, idempotency_key=key)
        except D8Error as error:
            diary.note("refused", why=str(error))
            return
        diary.note("acked", ids=[task.id], base=key, key=key)
        tasks[task.id] = task


def replay(client: Client, task: Task, tasks: dict[str, Task], diary: Diary) -> None:
    """Submit a cancelled task anew."""
    try:
        again = client.replay(task.id, timeout=ASK_S)
    except D8Error as error:
        diary.note("unanswered", id=task.id, why=str(error))
        return
    diary.note("acked", ids=[again.id], base="", origin=task.id)
    tasks[again.id] = again


def collect(client: Client, tasks: dict[str, Task], diary: Diary) -> None:
    """Note what is finished."""
    for task in [task for task in tasks.values() if task.done()]:
        try:
            outcome = task.result(5)
            diary.note("got", id=task.id, state="completed", sum=fingerprint(outcome))
        except TaskCancelledError:
            diary.note("got", id=task.id, state="cancelled", sum="")
            replay(client, task, tasks, diary)
        except TaskFailedError as error:
            diary.note("got", id=task.id, state="failed", sum=fingerprint(dict(error.result)))
        except D8Error as error:
            diary.note("got", id=task.id, state="missing", why=str(error), sum="")
        del tasks[task.id]


if __name__ == "__main__":
    main()
