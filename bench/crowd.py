"""A crowd at the REST port: streams and waits by the thousand, and some who mean no good.

``python -m bench.crowd`` starts an orchestrator and a worker and shows, with STREAMS streams of
one task and WAITS waits open: how long `/health` takes, how soon a chunk has reached all, the
memory of the web process; then the same beside slow headers, slow bodies and readers that stop
reading, and when those are closed. Exits with 1 if a bound is missed.
"""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from bench.findings import percentile
from bench.mesh import Mesh, mesh
from bench.processes import child_of, raise_descriptor_limit
from bench.progress import say
from bench.raw_loop import HOME, python

STREAMS: Final = 2000
WAITS: Final = 500
SLOW: Final = 400
DEAF: Final = 100
#: The bounds: of `/health`, of a chunk, of the web process.
MAX_HEALTH_MS: Final = 50.0
MAX_CHUNK_S: Final = 1.0
MAX_MEMORY_MB: Final = 200.0
#: How long each part is looked at, and how long an end is waited for at most.
LOOK_S: Final = 15.0
PATIENCE_S: Final = 60.0
_AT: Final = re.compile(rb'"at":([\d.]+)')


@dataclass(slots=True)
class Heard:
    """What the streams heard: by the time at which a chunk was said, when it came to whom."""

    delays: dict[float, list[float]] = field(default_factory=dict)
    ended: int = 0

    def slowest_s(self, begun: float, until: float, readers: int) -> tuple[float, int]:
        """Return how long the slowest chunk of that time took to reach all, and how many did.

        Args:
            begun, until: Unix time, in which a chunk was said.
        """
        told = [each for at, each in self.delays.items() if begun <= at <= until]
        whole = [max(each) for each in told if len(each) == readers]
        return (max(whole) if len(whole) == len(told) else float("inf")), len(whole)


class Crowd:
    """The connections of one process, and what they hear."""

    def __init__(self, port: int) -> None:
        self.address = ("127.0.0.1", port)
        self.heard = Heard()
        self._selector = selectors.DefaultSelector()
        self._stack = contextlib.ExitStack()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Crowd:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._stack.close()

    def open(self, request: bytes, *, is_read: bool = False) -> socket.socket:
        """Connect and send."""
        found = self._stack.enter_context(socket.socket())
        if not is_read:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        found.settimeout(PATIENCE_S)
        found.connect(self.address)
        found.sendall(request)
        if is_read:
            self._selector.register(found, selectors.EVENT_READ)
        return found

    def _read(self) -> None:
        while not self._is_over.is_set():
            for key, _ in self._selector.select(0.1) if self._selector.get_map() else ():
                reader = key.fileobj
                assert isinstance(reader, socket.socket)
                part = reader.recv(65_536)
                now = time.time()
                for at in map(float, _AT.findall(part)):
                    self.heard.delays.setdefault(at, []).append(now - at)
                if not part:
                    self.heard.ended += 1
                    self._selector.unregister(reader)
            if not self._selector.get_map():
                time.sleep(0.05)


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def _post(address: tuple[str, int], path: str, body: object) -> Any:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.0\r\nContent-Type: application/json\r\n"
    with socket.create_connection(address, PATIENCE_S) as connection:
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def _is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return bool(connection.recv(4096))
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        connection.settimeout(PATIENCE_S)


def probe(port: int, seconds: float) -> list[float]:
    """Ask `/health` for so long; return how long each answer took, in ms."""
    times = []
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            begun = time.perf_counter()
            connection.sendall(_get("/health"))
            assert b" 200 " in connection.recv(65_536)
            times.append((time.perf_counter() - begun) * 1000)
            time.sleep(0.02)
    return times


def _probed(port: int) -> list[float]:
    done = subprocess.run(
        python("bench.crowd", "probe", str(port), str(LOOK_S)),
        cwd=HOME,
        stdout=subprocess.PIPE,
        check=True,
    )
    return list(json.loads(done.stdout))


class Proof:
    """One run: rows of what was seen and whether it holds."""

    def __init__(self, running: Mesh, crowd: Crowd) -> None:
        self._running, self._crowd = running, crowd
        self._port = crowd.address[1]
        self._web = child_of(running.orchestrator.process.pid, "_web")
        self.rows: list[tuple[str, str, str, bool]] = []

    def row(self, what: str, seen: str, bound: str, holds: bool) -> None:
        """Keep and say what was seen."""
        self.rows.append((what, seen, bound, holds))
        say(f"{what}: {seen} ({bound}) {'holds' if holds else 'MISSED'}")

    def look(self, what: str) -> None:
        """Look at `/health`, the chunks and the memory for a while."""
        begun = time.time()
        times = _probed(self._port)
        p50, p99 = percentile(times, 0.5), percentile(times, 0.99)
        told = f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, worst {max(times):.1f} ms"
        self.row(f"{what}: /health", told, f"p99 ≤ {MAX_HEALTH_MS:g} ms", p99 <= MAX_HEALTH_MS)
        slowest, chunks = self._crowd.heard.slowest_s(begun, time.time() - 2, STREAMS)
        told = f"{slowest * 1000:.0f} ms, the slowest of {chunks}"
        holds = chunks > 0 and slowest <= MAX_CHUNK_S
        self.row(f"{what}: a chunk reaches all {STREAMS}", told, f"≤ {MAX_CHUNK_S:g} s", holds)
        memory = self._web.rss_bytes() / 1e6
        bound = f"≤ {MAX_MEMORY_MB:g} MB"
        self.row(f"{what}: memory", f"{memory:.0f} MB", bound, memory <= MAX_MEMORY_MB)

    def beside(self, what: str, ill: list[socket.socket], drip: bytes, most_s: float) -> None:
        """Look while `ill` connections are there, and see that they are closed in time."""
        ended: list[float] = []
        watching = threading.Thread(target=self._watch, args=(ill, drip, ended))
        watching.start()
        self.look(f"beside {what}")
        watching.join()
        seen = f"all closed after {ended[0]:.0f} s" if ended else f"not within {PATIENCE_S:.0f} s"
        self.row(f"{what} end", seen, f"≤ {most_s:g} s", bool(ended) and ended[0] <= most_s)

    def _watch(self, ill: list[socket.socket], drip: bytes, ended: list[float]) -> None:
        begun = time.monotonic()
        while time.monotonic() < begun + PATIENCE_S:
            time.sleep(1)
            for each in ill if drip else ():
                with contextlib.suppress(OSError):
                    each.sendall(drip)
            if not (any(map(_is_open, ill)) if drip else self._open_of(ill)):
                ended.append(time.monotonic() - begun)
                return

    def _open_of(self, ill: list[socket.socket]) -> int:
        ports = {each.getsockname()[1] for each in ill}
        return sum(
            each.status == psutil.CONN_ESTABLISHED and each.raddr and each.raddr.port in ports
            for each in self._web.process.net_connections("tcp")
        )


@contextlib.contextmanager
def _running() -> Iterator[tuple[Mesh, Crowd]]:
    with mesh(workers=0) as running:
        tasks = str(Path(__file__).with_name("crowd_tasks.py"))
        for number in range(2):
            running.workers.append(
                running.children.start(f"talker {number}", "worker", "--tasks", tasks)
            )
        running.await_workers(2)
        with Crowd(int(running.url.rpartition(":")[2])) as crowd:
            yield running, crowd


def prove() -> int:
    """Run it all; return the exit code."""
    raise_descriptor_limit(4 * STREAMS)
    with _running() as (running, crowd):
        proof = Proof(running, crowd)
        submit = "/api/tasks/submit"
        asked = {"type": "bench_talk", "data": {"times": 300}, "listen": True}
        talking = _post(crowd.address, submit, asked)["task_id"]
        waiting = _post(crowd.address, submit, {"type": "bench_nobody", "data": {}})["task_id"]
        for _ in range(STREAMS):
            crowd.open(_get(f"/api/tasks/{talking}/stream"), is_read=True)
        for _ in range(WAITS):
            crowd.open(_get(f"/api/tasks/{waiting}/wait?timeout_s=60"))
        time.sleep(3)
        proof.look(f"{STREAMS} streams, {WAITS} waits")
        head = b"POST /api/tasks/submit HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        slow = [crowd.open(head) for _ in range(SLOW)]
        proof.beside(f"{SLOW} slow headers", slow, b"X: y\r\n", 12)
        head += b"Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
        slow = [crowd.open(head) for _ in range(SLOW)]
        proof.beside(f"{SLOW} slow bodies", slow, b"x", 22)
        asked = {"type": "bench_pour", "data": {"seconds": PATIENCE_S}, "listen": True}
        pouring = _post(crowd.address, submit, asked)["task_id"]
        deaf = [crowd.open(_get(f"/api/tasks/{pouring}/stream")) for _ in range(DEAF)]
        proof.beside(f"{DEAF} readers that stop reading", deaf, b"", 45)
        proof.row("streams that ended", str(crowd.heard.ended), "none", not crowd.heard.ended)
    print("| | seen | bound | |\n|---|---|---|---|")
    for what, seen, bound, holds in proof.rows:
        print(f"| {what} | {seen} | {bound} | {'holds' if holds else '**missed**'} |")
    return 0 if all(holds for *_, holds in proof.rows) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["probe"]:
        print(json.dumps(probe(int(sys.argv[2]), float(sys.argv[3]))))
        sys.exit(0)
    sys.exit(prove())
