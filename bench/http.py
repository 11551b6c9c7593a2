"""ASGI servers side by side, each with the same small application of `d8mesh.http`.

``python -m bench.http [ours uvicorn-h11 uvicorn-httptools hypercorn granian]`` measures (``ours``
is `d8mesh.http.server`; pip install the others): requests per second with keep-alive, `/health`
beside many waits and streams, memory, start-up; and what each does to bad or slow input.
``NAME=FOLDER`` measures what another checkout serves. Load comes from `bench.load`. Figures of one
run on two cores stand in ``docs/HTTP.md``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Final

import psutil

from d8mesh.http.answers import Response, answer
from d8mesh.http.application import Application
from d8mesh.http.events import SSE, Event, Item, stream
from d8mesh.http.guard import Guard, Rejections
from d8mesh.http.routes import Door, HttpRoute, Request
from d8mesh.http.strict import parse_json

SERVERS: Final = ("ours", "uvicorn-h11", "uvicorn-httptools", "hypercorn", "granian")
HOST: Final = "127.0.0.1"
HOME: Final = Path(__file__).resolve().parents[1]
MAX_BODY_BYTES: Final = 1_000_000
WAITS: Final = 256
STREAMS: Final = 50
CONNECTIONS: Final = (1, 32, 256)
LOAD_S: Final = 2.0
ROUNDS: Final = 5


# ------------------------------------------------------------------ what is served


async def _health(request: Request) -> Response:
    return answer({"status": "healthy"})


async def _constant(request: Request) -> Response:
    return answer({"status": "submitted", "type": request.value["type"]}, 201)


async def _wait(request: Request) -> Response:
    await asyncio.sleep(float(request.args.get("s", "20")))
    return answer({"waited": True})


async def _stream(request: Request) -> Response:
    return stream(_alive(), SSE)


async def _alive() -> AsyncGenerator[Item, None]:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        yield "alive"
        await asyncio.sleep(0.5)


async def _write(request: Request) -> Response:
    return stream(_endless(), SSE)


async def _endless() -> AsyncGenerator[Item, None]:
    text = "x" * 65_536
    while True:
        yield Event("chunk", {"text": text})
        await asyncio.sleep(0)


def _application() -> Application:
    """Return what serves JSON in and out, a wait, and streams."""
    routes = [
        HttpRoute(rule="/health", call=_health, is_light=True),
        HttpRoute(
            rule="/constant",
            call=_constant,
            method="POST",
            schema=parse_json,
            max_body_bytes=MAX_BODY_BYTES,
        ),
        HttpRoute(rule="/wait", call=_wait),
        HttpRoute(rule="/stream", call=_stream),
        HttpRoute(rule="/write", call=_write),
    ]
    return Application([Door(routes=routes)], Guard(["x"]), Rejections())


application = _application()


def serve(name: str, port: int) -> None:
    """Be the server `name` until killed."""
    if name == "ours":
        asyncio.run(_serve_ours(port))
    elif name.startswith("uvicorn"):
        import uvicorn

        uvicorn.run(
            application,
            host=HOST,
            port=port,
            http=name.partition("-")[2],
            ws="none",
            lifespan="off",
            access_log=False,
            log_level="critical",
        )
    elif name == "hypercorn":
        from hypercorn.asyncio import serve as hypercorn_serve
        from hypercorn.config import Config

        config = Config()
        config.bind = [f"{HOST}:{port}"]
        config.keep_alive_max_requests = 10**9
        asyncio.run(hypercorn_serve(application, config))
    else:
        from granian import Granian
        from granian.constants import HTTPModes, Interfaces
        from granian.http import HTTP1Settings

        Granian(
            "bench.http:application",
            address=HOST,
            port=port,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(header_read_timeout=10_000),
            websockets=False,
            log_enabled=False,
        ).serve()


async def _serve_ours(port: int) -> None:
    from d8mesh.edge.network import bind
    from d8mesh.http.server import Server

    server = Server(application, [bind(HOST, port)], lambda peer: True, Rejections())
    await server.start()
    await asyncio.Event().wait()


# ---------------------------------------------------------------------- measuring


def measure(name: str, folder: Path) -> dict[str, str]:
    """Return the figures of one server, as text; not how much it takes."""
    found: dict[str, str] = {}
    with _running(name, folder) as (port, start_s, root):
        found["start-up"] = f"{start_s:.2f} s"
        found["memory at start"] = f"{_memory_mb(root):.0f} MB"
        with contextlib.ExitStack() as stack:
            health = _beside_waits(port, stack)
            found[f"/health beside {WAITS} waits, {STREAMS} streams"] = health
            found["memory then"] = f"{_memory_mb(root):.0f} MB"
            found["ends when told to, beside those"] = _end(root)
    for label, probe in _PROBES.items():
        with _running(name, folder) as (port, _, _):
            found[label] = probe(port)
    return found


def measure_rates(servers: dict[str, Path]) -> dict[str, dict[str, str]]:
    """Return how much each server takes, measured in turns: what else runs here hits them all."""
    from bench.findings import percentile  # not in the servers, whose memory is measured
    from bench.load import LoadJob, run_load

    seen: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    for _ in range(ROUNDS):
        for name, folder in servers.items():
            with _running(name, folder) as (port, _, _):
                for connections in CONNECTIONS:
                    told = run_load(
                        LoadJob(
                            url=f"http://{HOST}:{port}",
                            kind="constant",
                            connections=connections,
                            seconds=LOAD_S,
                        )
                    )
                    p50_ms, p99_ms = (percentile(told.times, each) * 1000 for each in (0.5, 0.99))
                    seen.setdefault((name, connections), []).append((told.rate, p50_ms, p99_ms))
    found: dict[str, dict[str, str]] = {}
    for (name, connections), samples in seen.items():
        rate, p50_ms, p99_ms = (statistics.median(each) for each in zip(*samples, strict=True))
        found.setdefault(name, {})[f"JSON, {connections} connections"] = (
            f"{rate:,.0f}/s ({p50_ms:.2f} / {p99_ms:.1f} ms)"
        )
    return found


@contextlib.contextmanager
def _running(name: str, folder: Path) -> Iterator[tuple[int, float, int]]:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.http", "--serve", name, str(port)],
        cwd=folder,
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
    """Return the resident memory of a process and all that it started."""
    process = psutil.Process(root)
    family = [process, *process.children(recursive=True)]
    return float(sum(each.memory_info().rss for each in family)) / 1e6


def _end(root: int) -> str:
    process = psutil.Process(root)
    begun = time.monotonic()
    process.terminate()
    try:
        process.wait(10)
    except psutil.TimeoutExpired:
        return "not within 10 s"
    return f"{time.monotonic() - begun:.2f} s"


def _get(port: int, path: str, timeout_s: float = 5.0) -> bytes:
    with socket.create_connection((HOST, port), timeout=timeout_s) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return _read_all(connection)


def _read_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def _beside_waits(port: int, stack: contextlib.ExitStack) -> str:
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


def _stalled(port: int) -> str:
    """Open 100 streams that nobody reads; tell how `/health` fares, and when they end."""
    alive = []
    for _ in range(100):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((HOST, port))
        connection.sendall(b"GET /write HTTP/1.1\r\nHost: x\r\n\r\n")
        alive.append(connection)
    time.sleep(2)
    health = _health_times(port)
    begun = time.monotonic()
    peers = {connection.getsockname()[1] for connection in alive}
    left = len(peers)
    while left and time.monotonic() < begun + 45:
        time.sleep(1)
        open_now = psutil.net_connections("tcp")
        left = sum(
            each.status == "ESTABLISHED" and bool(each.raddr) and each.raddr.port in peers
            for each in open_now
            if each.laddr.port == port
        )
    for connection in alive:
        connection.close()
    told = f"{left} of 100 still open after 45 s"
    return f"/health {health}; " + (
        told if left else f"all closed after {time.monotonic() - begun:.0f} s"
    )


_POST: Final = b"POST /constant HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
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
    "100 readers that stop reading": _stalled,
}


def main(arguments: list[str]) -> int:
    """Measure the servers named, or be one of them."""
    if arguments[:1] == ["--serve"]:
        serve(arguments[1], int(arguments[2]))
        return 0
    from bench.progress import say

    servers = {}
    for argument in arguments or SERVERS:
        name, _, folder = argument.partition("=")
        servers[name] = Path(folder or HOME)
    tables = measure_rates(servers)
    for name, table in tables.items():
        say(f"{name}: {table}")
        table |= measure(name, servers[name])
        say(f"{name}: {table}")
    print("| | " + " | ".join(tables) + " |")
    print("|---" * (len(tables) + 1) + "|")
    for label in next(iter(tables.values())):
        print(f"| {label} | " + " | ".join(table[label] for table in tables.values()) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
