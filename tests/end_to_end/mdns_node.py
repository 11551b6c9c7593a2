"""A node that only announces and listens: one JSON line for each thing it hears.

``python mdns_node.py MESH [--announce KIND BOOT PORT] [--browse KIND]… [--on ADDRESS]``
ends, with its goodbyes, when its standard input does or it gets SIGTERM. A line ``usage``
on standard input is answered with its CPU seconds and memory.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from d8mesh.edge.discovery import Announcement, Discovery, NodeKind, Sighting
from d8mesh.edge.network import usable_addresses


def say(**what: object) -> None:
    print(json.dumps({"at": time.time(), **what}), flush=True)


def addresses_of(interfaces: list[str]) -> Callable[[], list[str]]:
    return lambda: [each.address for each in usable_addresses(interfaces)]


def saw(sighting: Sighting) -> None:
    say(
        event="sighting",
        kind=sighting.kind.name,
        id=sighting.node_id,
        boot=sighting.boot_id,
        addresses=sighting.addresses,
        port=sighting.port,
    )


def resident_kb() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mesh")
    parser.add_argument("--announce", nargs=3, metavar=("KIND", "BOOT", "PORT"))
    parser.add_argument("--browse", action="append", default=[])
    parser.add_argument("--on", action="append", default=[])
    given = parser.parse_args()
    discovery = Discovery(
        mesh=given.mesh,
        addresses=addresses_of(given.on),
        on_sighting=saw,
        browse=[NodeKind[name] for name in given.browse],
        on_trouble=lambda text: say(event="trouble", text=text),
    )
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    say(event="started")  # first: what is heard may come within the millisecond
    discovery.start()
    if given.announce:
        kind, boot, port = given.announce
        discovery.announce(
            Announcement(
                kind=NodeKind[kind],
                node_id=f"id-{boot}",
                boot_id=boot,
                mesh=given.mesh,
                port=int(port),
                web_port=7001,
                version="1",
            )
        )
    threading.Thread(target=answer, args=(stop,), daemon=True).start()
    stop.wait()
    discovery.close()
    say(event="closed")


def answer(stop: threading.Event) -> None:
    for line in sys.stdin:
        if line.strip() == "usage":
            say(
                event="usage",
                cpu_s=time.process_time(),
                resident_kb=resident_kb(),
                threads=threading.active_count(),
            )
    stop.set()


if __name__ == "__main__":
    main()
