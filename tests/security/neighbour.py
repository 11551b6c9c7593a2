"""A healthy client beside the abuse: submits small tasks one by one, and says how many came back.

Run as ``python -m tests.security.neighbour URL``; settings come from the environment. Every
answer is compared with what was asked. A line for each: the number of tasks done so far. It ends
when its standard input does.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Final

from d8mesh.config import Config
from d8mesh.nodes.client import Client

#: Of its tasks: nobody else's in these tests have it.
NEIGHBOUR_PRIORITY: Final = 7
#: Between two tasks: it shall be there, and load nothing.
PAUSE_S: Final = 0.05
#: One task on a busy machine, worker or broker started anew meanwhile.
TASK_S: Final = 60.0


def main(url: str) -> int:
    """Submit until nobody listens any more."""
    is_over = threading.Event()
    threading.Thread(target=_await_end, args=(is_over,), daemon=True).start()
    done = 0
    with Client(url, config=Config.from_env(os.environ)) as client:
        while not is_over.is_set():
            text = f"neighbour {done}"
            result = client.submit("echo", {"text": text}, priority=NEIGHBOUR_PRIORITY).result(
                TASK_S
            )
            if text not in str(result):
                print(f"wrong: {text!r} became {result!r}", flush=True)
                return 1
            done += 1
            print(done, flush=True)
            time.sleep(PAUSE_S)
    return 0


def _await_end(is_over: threading.Event) -> None:
    sys.stdin.read()
    is_over.set()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
