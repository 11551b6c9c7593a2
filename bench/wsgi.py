"""WSGI servers side by side, each with the same small Werkzeug application.

``python -m bench.wsgi [waitress cheroot granian ours]`` measures (``ours`` is waitress as
`d8mesh.http.server` sets it up; pip install the others):
requests per second with keep-alive, `/health` beside many waits and streams, memory,
start-up; and what each does to bad or slow input. Load comes from ``wrk`` if there is one,
else from threads of this process (which then are the limit). Figures of one run on two
cores stand in ``docs/WSGI.md``.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from werkzeug.wrappers import Request, Response

SERVERS: Final = ("waitress", "cheroot", "granian", "ours")
HOST: Final = "127.0.0.1"
#: As many threads as 256 waits and 50 streams need, and some for what is short.
THREADS: Final = 340
MAX_BODY_BYTES: Final = 1_000_000
WAITS: Final = 256
STREAMS: Final = 50
LOAD_S: Final = 4.0
BODY: Final = json.dumps(
    {"type": "agent_action", "data": {"messages": [{"role": "user", "content": "hello " * 20}]}}
).encode()
_released = threading.Event()


# ------------------------------------------------------------------ what is served


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    """Serve JSON in and out, a wait and a stream."""
    request = Request(environ)
    if request.path == "/wait":
        _released.wait(float(request.args.get("s", "20")))
        return _json({"waited": True})(environ, start_response)
    if request.path == "/stream":
        return Response(_stream(), mimetype="text/event-stream")(environ, start_response)
    if request.path == "/echo":
        body = json.loads(request.get_data())
        return _json({"status": "submitted", "type": body["type"]}, 201)(environ, start_response)
    return _json({"status": "healthy"})(environ, start_response)


def _json(body: object, status: int = 200) -> Response:
    return Response(json.dumps(body), status=status, mimetype="application/json")


def _stream() -> Iterator[bytes]:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        yield b": alive\n\n"
        time.sleep(0.5)


def serve(name: str, port: int) -> None:
    """Be the server `name` until killed."""
    if name == "ours":
        from d8mesh.edge.network import bind
        from d8mesh.http.server import Limits, Listener

        limits = Limits(threads=THREADS, urgent=("/health",), body_bytes=MAX_BODY_BYTES)
        Listener(application, bind(HOST, port), limits, lambda *_: None).run()
    elif name == "waitress":
        import waitress

        waitress.serve(
            application,
            host=HOST,
            port=port,
            threads=THREADS,
            connection_limit=1000,
            channel_timeout=10,
            max_request_body_size=MAX_BODY_BYTES,
            max_request_header_size=16_384,
            asyncore_use_poll=True,
            channel_request_lookahead=1,
        )
    elif name == "cheroot":
        from cheroot.wsgi import Server

        server = Server((HOST, port), application, numthreads=THREADS, timeout=10)
        server.max_request_body_size = MAX_BODY_BYTES
        server.max_request_header_size = 16_384
        server.safe_start()
    else:
        from granian import Granian
        from granian.constants import HTTPModes, Interfaces
        from granian.http import HTTP1Settings

        Granian(
            "bench.wsgi:application",
            address=HOST,
            port=port,
            interface=Interfaces.WSGI,
            blocking_threads=THREADS,
            backpressure=1000,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(header_read_timeout=10_000),
            websockets=False,
            log_enabled=False,
        ).serve()


# ---------------------------------------------------------------------- measuring


def measure(name: str) -> dict[str, str]:
    """Return the figures of one server, as text."""
    found: dict[str, str] = {}
    with _running(name) as (port, start_s, root):
        found["start-up"] = f"{start_s:.2f} s"
        found["memory at start"] = f"{_memory_mb(root):.0f} MB"
        for connections in (1, 32):
            rate, p50_ms, p99_ms = _load(port, connections)
            found[f"JSON, {connections} connections"] = (
                f"{rate:,.0f}/s ({p50_ms:.2f} / {p99_ms:.1f} ms)"
            )
        found[f"/health beside {WAITS} waits, {STREAMS} streams"] = _beside_waits(port)
        found["memory then"] = f"{_memory_mb(root):.0f} MB"
    for label, probe in _PROBES.items():
        with _running(name) as (port, _, _):
            found[label] = probe(port)
    return found


@contextlib.contextmanager
def _running(name: str) -> Iterator[tuple[int, float, int]]:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.wsgi", "--serve", name, str(port)],
        cwd=Path(__file__).resolve().parents[1],
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            with contextlib.suppress(OSError):
                _get(port, "/health")
                break
            if time.monotonic() > begun + 20:
                raise SystemExit(f"{name} does not start")
            time.sleep(0.01)
        yield port, time.monotonic() - begun, process.pid
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _memory_mb(root: int) -> float:
    """Return the resident memory of a process and all that it started (Linux)."""
    parents: dict[int, int] = {}
    sizes: dict[int, float] = {}
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            text = path.read_text()
            pid = int(path.parent.name)
            parents[pid] = int(_found(r"PPid:\s+(\d+)", text))
            size = re.search(r"VmRSS:\s+(\d+) kB", text)
            sizes[pid] = int(size[1]) / 1024 if size else 0.0
    family = {root}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(sizes.get(pid, 0.0) for pid in family)


def _get(port: int, path: str, timeout_s: float = 5.0) -> bytes:
    with socket.create_connection((HOST, port), timeout=timeout_s) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return _read_all(connection)


def _read_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def _load(port: int, connections: int) -> tuple[float, float, float]:
    """Return requests/s and the p50 and p99 of the answering time in ms."""
    if shutil.which("wrk"):
        return _load_by_wrk(port, connections)
    times: list[float] = []
    until = time.monotonic() + LOAD_S
    head = f"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()

    def run() -> None:
        with socket.create_connection((HOST, port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while time.monotonic() < until:
                begun = time.perf_counter()
                connection.sendall(head + BODY)
                connection.recv(65536)
                times.append(time.perf_counter() - begun)

    threads = [threading.Thread(target=run) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cut = statistics.quantiles(times, n=100)
    return len(times) / LOAD_S, cut[49] * 1000, cut[98] * 1000


def _load_by_wrk(port: int, connections: int) -> tuple[float, float, float]:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "post.lua")
        script.write_text(
            "wrk.method='POST'\nwrk.headers['Content-Type']='application/json'\n"
            f"wrk.body=[[{BODY.decode()}]]\n"
        )
        done = subprocess.run(
            [
                *("wrk", "-t1", f"-c{connections}", f"-d{LOAD_S:.0f}s", "--latency"),
                *("-s", str(script), f"http://{HOST}:{port}/echo"),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
    rate = float(_found(r"Requests/sec:\s+([\d.]+)", done.stdout))
    return rate, _milliseconds("50%", done.stdout), _milliseconds("99%", done.stdout)


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise SystemExit(f"not understood: {text}")
    return match[1]


def _milliseconds(quantile: str, text: str) -> float:
    value = _found(rf"{quantile}\s+([\d.]+\w+)", text)
    number, unit = re.fullmatch(r"([\d.]+)(\w+)", value).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]


def _beside_waits(port: int) -> str:
    with contextlib.ExitStack() as stack:
        for path in ["/wait?s=15"] * WAITS + ["/stream"] * STREAMS:
            connection = stack.enter_context(socket.create_connection((HOST, port), timeout=20))
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        time.sleep(2)
        return _health_times(port)


def _health_times(port: int) -> str:
    times = []
    for _ in range(50):
        begun = time.perf_counter()
        try:
            _get(port, "/health", timeout_s=5)
        except OSError:
            return "no answer in 5 s"
        times.append((time.perf_counter() - begun) * 1000)
    return f"{statistics.median(times):.1f} ms, worst {max(times):.1f} ms"


# ----------------------------------------------------------------- bad, slow input


def _say(port: int, text: bytes, wait_s: float = 3.0) -> str:
    """Send raw bytes; tell the first line of the answer and whether it closed."""
    with socket.create_connection((HOST, port), timeout=wait_s) as connection:
        answer = b""
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(text)  # an answer may come before all is sent
            while part := connection.recv(65536):
                answer += part
            end = "closed"
        except TimeoutError:
            end = "open"
        except OSError:
            end = "reset"
    line = answer.split(b"\r\n", 1)[0].decode("latin-1").replace("HTTP/1.1 ", "")
    return f"{line or 'nothing'}, {end}"


def _slow(port: int, head: bytes, drip: bytes) -> str:
    """Open 400 connections that dribble; tell how `/health` fares and when they end."""
    alive = []
    for _ in range(400):
        with contextlib.suppress(OSError):
            connection = socket.create_connection((HOST, port), timeout=3)
            connection.sendall(head)
            alive.append(connection)
    health = _health_times(port) if len(alive) else "-"
    begun = time.monotonic()
    while alive and time.monotonic() < begun + 25:
        time.sleep(1)
        for connection in alive[:]:
            try:
                connection.sendall(drip)
                connection.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    if not connection.recv(4096):
                        raise OSError
                connection.setblocking(True)
            except OSError:
                alive.remove(connection)
    left = f"{len(alive)} of 400 still open after 25 s"
    if not alive:
        left = f"all closed after {time.monotonic() - begun:.0f} s"
    for connection in alive:
        connection.close()
    return f"/health {health}; {left}"


_POST: Final = b"POST /echo HTTP/1.1\r\nHost: x\r\n"
_GET: Final = b"GET /health HTTP/1.1\r\nHost: x\r\n"
_CHUNK: Final = b"10000\r\n" + b"x" * 65536 + b"\r\n"
_PROBES: Final[dict[str, Callable[[int], str]]] = {
    "Content-Length and Transfer-Encoding": lambda port: _say(
        port, _POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "two Content-Lengths": lambda port: _say(
        port, _POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} "
    ),
    "Content-Length: +10": lambda port: _say(port, _POST + b"Content-Length: +2\r\n\r\n{}"),
    "bare LF": lambda port: _say(port, b"GET /health HTTP/1.1\nHost: x\n\n"),
    "NUL in a header": lambda port: _say(port, b"GET /health HTTP/1.1\r\nHost: x\0y\r\n\r\n"),
    "garbage": lambda port: _say(port, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"),
    "header of 100 KB": lambda port: _say(
        port, b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"
    ),
    "declared body of 10 MB": lambda port: _say(
        port, _POST + b"Content-Length: 10000000\r\n\r\n" + b"x" * 100_000
    ),
    "chunked body of 10 MB": lambda port: _say(
        port,
        _POST
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + (b"10000\r\n" + b"x" * 65536 + b"\r\n") * 160,
    ),
    "400 slow headers": lambda port: _slow(
        port, b"GET /health HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n"
    ),
    "400 slow bodies": lambda port: _slow(port, _POST + b"Content-Length: 1000\r\n\r\n", b"x"),
}


def main(arguments: list[str]) -> int:
    """Measure the servers named, or be one of them."""
    if arguments[:1] == ["--serve"]:
        serve(arguments[1], int(arguments[2]))
        return 0
    tables = {name: measure(name) for name in arguments or SERVERS}
    print("| | " + " | ".join(tables) + " |")
    print("|---" * (len(tables) + 1) + "|")
    for label in next(iter(tables.values())):
        print(f"| {label} | " + " | ".join(table[label] for table in tables.values()) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
