"""Threads that call: ``python -m tests.chaos.caller NAME LOG MESH URL``.

Each thread has one task in flight (`Client.call`) and notes its outcome; what a call was at when
its process died, nobody is owed. ``LOG/stop`` ends them once no call is under way.
"""

from __future__ import annotations

import secrets
import sys
import threading
import time
from pathlib import Path

from d8mesh import Client
from d8mesh.errors import D8Error, TaskFailedError
from tests.chaos.diary import Diary, fingerprint
from tests.chaos.handlers import TASK_TYPE
from tests.chaos.load import duration_ms
from tests.chaos.settings import config_of

CALLERS = 3
#: Of every thread between two calls: the load of the others shall not be drowned.
PAUSE_S = 0.05
#: The longest pause is now and then longer than that after which a connection is greeted anew.
LONG_PAUSE_S = 4.0
LONG_PAUSE_EVERY = 100


def main() -> None:
    """Run until told to stop."""
    name, log, mesh, url = sys.argv[1:5]
    folder = Path(log)
    diary = Diary(folder / f"client-{name}.jsonl")
    config = config_of(mesh, url, folder.parent / name)
    with Client(url or None, config=config) as client:
        threads = [
            threading.Thread(target=call_on, args=(client, diary, folder)) for _ in range(CALLERS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    diary.note("drained")


def call_on(client: Client, diary: Diary, folder: Path) -> None:
    """Call, and call again."""
    count = 0
    while not (folder / "stop").exists():
        count += 1
        call(client, diary, folder)
        time.sleep(LONG_PAUSE_S if count % LONG_PAUSE_EVERY == 0 else PAUSE_S)


def call(client: Client, diary: Diary, folder: Path) -> None:
    """Call once, and note what came of it under the id that the handler was told."""
    base = secrets.token_hex(6)
    data = {"text": f"{base}-0", "ms": duration_ms(), "log": str(folder), "call": base}
    try:
        result = client.call(TASK_TYPE, data, priority=10)  # not behind the others' batches
    except TaskFailedError as error:
        diary.note("call_failed", call=base, code=str(error.result.get("code")))
    except D8Error as error:
        diary.note("refused", why=str(error))
    else:
        task_id = result["output"]["id"]
        diary.note("acked", ids=[task_id], base=base)
        diary.note("got", id=task_id, state="completed", sum=fingerprint(result))


if __name__ == "__main__":
    main()
