"""A client in a process of its own, which does what it is told: ``ENDPOINT`` is its argument.

A line ``many COUNT BYTES`` has it run that many tasks at once, ``one COUNT BYTES`` one after
another, each with a payload of so many bytes. The answer is a line of JSON: the seconds of all of
the first, or of each of the others.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Final

from d8mesh.nodes.client import Client

RESULT_S: Final = 600.0
CONNECT_S: Final = 60.0
#: Bytes of msgpack around the text of a payload.
AROUND: Final = 5


def main() -> None:
    """Do what comes in, line by line."""
    with Client(endpoint=sys.argv[1]) as client:
        if not client.wait_connected(CONNECT_S):
            raise SystemExit(client.trouble)
        print("up", flush=True)
        for line in sys.stdin:
            what, count, size = line.split()
            data = {"x": "x" * (int(size) - AROUND)}
            work = _many if what == "many" else _one
            print(json.dumps(work(client, data, int(count))), flush=True)


def _many(client: Client, data: dict[str, str], count: int) -> float:
    begun = time.perf_counter()
    done = sum(1 for _ in client.map("echo", [data] * count, timeout=RESULT_S))
    assert done == count
    return time.perf_counter() - begun


def _one(client: Client, data: dict[str, str], count: int) -> list[float]:
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        client.call("echo", data, timeout=RESULT_S)
        times.append(time.perf_counter() - begun)
    return times


if __name__ == "__main__":
    main()
