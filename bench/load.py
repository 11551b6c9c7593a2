"""A load generator for HTTP: one process, raw sockets, keep-alive, closed loop.

Each connection follows a script and sends its next request when it has the answer to its
last. Runs as a process of its own (``python -m bench.load JOB``, a JSON object) and prints
what it saw as JSON; without a time (``seconds`` 0) it goes on until its standard input ends.
``python -m bench.load answer PORT`` is a server that answers a constant
without looking: against it the generator shows its own ceiling.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Final
from urllib.parse import urlsplit

import msgspec

from bench.raw_loop import HOME, python
from d8mesh.errors import D8Error

#: Before it counts, it lets connections and threads come up for this share of its time.
WARM_SHARE: Final = 0.2
#: Latencies told at the end.
KEPT: Final = 20_000
READ_BYTES: Final = 65_536
TASK: Final = b'{"type":"%s","data":{"x":"' + b"x" * 52 + b'"}}'
START_S: Final = 30.0
END_S: Final = 30.0
#: How often it looks whether its standard input has ended.
LOOK_S: Final = 0.2

#: A script yields (request, does its answer end a cycle?) and is sent (status, body).
Step = tuple[bytes, bool]
Answer = tuple[int, bytes]
Script = Generator[Step, Answer, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadJob:
    """What to send.

    Args:
        kind: names the script.
        seconds: for how long; 0: until standard input ends.
        nice: how much lower the generator's priority is.
    """

    url: str
    kind: str
    connections: int
    seconds: float
    nice: int = 0
    task_type: str = "echo"


@dataclass(slots=True)
class Seen:
    """What the generator saw: cycles done while it counted, and how long each took."""

    cycles: int = 0
    seconds: float = 0.0
    errors: int = 0
    first_error: str = ""
    times: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Cycles per second."""
        return self.cycles / self.seconds if self.seconds else 0.0


def run_load(job: LoadJob) -> Seen:
    """Run the generator as a process until its time is over; return what it saw."""
    done = subprocess.run(
        python("bench.load", json.dumps(asdict(job))),
        cwd=HOME,
        stdout=subprocess.PIPE,
        check=True,
        timeout=job.seconds + 60,
    )
    return Seen(**json.loads(done.stdout.splitlines()[-1]))


@contextlib.contextmanager
def load_beside(job: LoadJob) -> Iterator[Seen]:
    """Keep the generator at work for as long as the context lasts.

    What is yielded is filled in at the end.

    Raises:
        D8Error: the generator ended early, or did not end when told to.
    """
    process = subprocess.Popen(
        python("bench.load", json.dumps(asdict(replace(job, seconds=0.0)))),
        cwd=HOME,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    seen = Seen()
    try:
        assert process.stdout is not None
        process.stdout.readline()  # it says when all its connections stand
        yield seen
        if process.poll() is not None:
            raise D8Error("the load generator ended too early")
        told, _ = process.communicate(timeout=END_S)  # closes its standard input
        if process.returncode or not told:
            raise D8Error(f"the load generator ended with exit code {process.returncode}")
        for name, value in json.loads(told.splitlines()[-1]).items():
            setattr(seen, name, value)
    except subprocess.TimeoutExpired:
        raise D8Error(f"the load generator did not end within {END_S:.0f} s") from None
    finally:
        process.kill()
        process.communicate()


# ---------------------------------------------------------------------------- the scripts


def _request(method: bytes, path: str, host: str, body: bytes = b"") -> bytes:
    head = b"%s %s HTTP/1.1\r\nHost: %s\r\n" % (method, path.encode(), host.encode())
    if body:
        head += b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    return head + b"\r\n" + body


def _constant(host: str, job: LoadJob, number: int) -> Script:
    del number
    step = (_request(b"POST", "/constant", host, TASK % job.task_type.encode()), True)
    while True:
        yield step


def _submit(host: str, job: LoadJob, number: int) -> Script:
    del number
    body = TASK % job.task_type.encode()
    step = (_request(b"POST", "/api/tasks/submit", host, body), True)
    while True:
        yield step


def _status(host: str, job: LoadJob, number: int) -> Script:
    del number
    body = TASK % job.task_type.encode()
    _, answer = yield _request(b"POST", "/api/tasks/submit", host, body), False
    task_id = msgspec.json.decode(answer)["task_id"]
    step = (_request(b"GET", f"/api/tasks/status/{task_id}", host), True)
    while True:
        yield step


def _wait(host: str, job: LoadJob, number: int) -> Script:
    """A cycle is a submit and the long poll that brings its result."""
    del number
    body = TASK % job.task_type.encode()
    submit = (_request(b"POST", "/api/tasks/submit", host, body), False)
    while True:
        _, answer = yield submit
        task_id = msgspec.json.decode(answer)["task_id"]
        yield _request(b"GET", f"/api/tasks/{task_id}/wait?timeout_s=30", host), True


def _polling_worker(host: str, job: LoadJob, number: int) -> Script:
    """A cycle is a task fetched and its result reported."""
    name = f"poll-{os.getpid()}-{number}"
    about = {
        "worker_id": name,
        "worker_type": "bench",
        "capabilities": {"task_types": [job.task_type]},
    }
    yield _request(b"POST", "/api/workers/register", host, json.dumps(about).encode()), False
    fetch = (_request(b"GET", f"/api/workers/{name}/tasks?wait=1", host), False)
    report = b'{"worker_id":"%s","result":{"success":true,"output":1}}' % name.encode()
    while True:
        _, answer = yield fetch
        task = msgspec.json.decode(answer)["task"]
        if task is not None:
            yield _request(b"POST", f"/api/tasks/{task['task_id']}/result", host, report), True


SCRIPTS: Final[dict[str, Callable[[str, LoadJob, int], Script]]] = {
    "constant": _constant,
    "submit": _submit,
    "status": _status,
    "wait": _wait,
    "poll": _polling_worker,
}


# ------------------------------------------------------------------------- the generator


class _Connection:
    """One connection and where its script stands."""

    __slots__ = ("_answer", "_buffer", "_is_last", "_script", "begun", "socket")

    def __init__(self, address: tuple[str, int], script: Script) -> None:
        self.socket = socket.create_connection(address, timeout=START_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._script = script
        self._buffer = b""
        self._answer: Answer = (0, b"")
        self.begun = 0.0
        self._is_last = True

    def begin(self) -> None:
        """Send the first request."""
        self._send(next(self._script))

    def read(self) -> tuple[bool, int] | None:
        """Take in what came; return whether a whole answer ended a cycle, and its status."""
        part = self.socket.recv(READ_BYTES)
        if not part:
            raise ConnectionError("the server closed the connection")
        buffer = self._buffer + part
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            self._buffer = buffer
            return None
        length = _content_length(buffer[:end])
        if len(buffer) < end + 4 + length:
            self._buffer = buffer
            return None
        self._buffer = buffer[end + 4 + length :]
        self._answer = (int(buffer[9:12]), buffer[end + 4 : end + 4 + length])
        return self._is_last, self._answer[0]

    def go_on(self) -> None:
        """Send what the script says next."""
        self._send(self._script.send(self._answer))

    def _send(self, step: Step) -> None:
        request, is_last = step
        if self._is_last:
            self.begun = time.perf_counter()
        self._is_last = is_last
        self.socket.sendall(request)


def _content_length(head: bytes) -> int:
    lower = head.lower()
    start = lower.find(b"content-length:")
    if start < 0:
        return 0
    return int(lower[start + 15 :].split(b"\r\n", 1)[0])


def generate(job: LoadJob, on_up: Callable[[], None]) -> Seen:
    """Send until the time is over; `on_up` is called when all connections are at work."""
    told = urlsplit(job.url)
    address = (str(told.hostname), int(told.port or 80))
    script = SCRIPTS[job.kind]
    connections = [
        _Connection(address, script(told.netloc, job, number)) for number in range(job.connections)
    ]
    seen = Seen()
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for each in connections:
            stack.enter_context(each.socket)
            selector.register(each.socket, selectors.EVENT_READ, each)
            each.begin()
        on_up()
        now = time.perf_counter()
        if job.seconds:
            begun = now + job.seconds * WARM_SHARE
            seen.seconds = _drive(selector, seen, begun, now + job.seconds) - begun
        else:
            seen.seconds = _drive(selector, seen, now, math.inf) - now
    step = max(1, len(seen.times) // KEPT)
    seen.times = [round(value, 7) for value in seen.times[::step]]
    return seen


def _drive(selector: selectors.BaseSelector, seen: Seen, begun: float, until: float) -> float:
    """Send until then, or until standard input ends if that is never; return when it was."""
    told = threading.Event()
    if until == math.inf:
        threading.Thread(target=_await_end, args=(told,), daemon=True).start()
    now = time.perf_counter()
    while now < until and not told.is_set():
        for key, _ in selector.select(max(0.0, min(LOOK_S, until - now))):
            connection: _Connection = key.data
            answered = connection.read()
            if answered is None:
                continue
            is_last, status = answered
            now = time.perf_counter()
            if status >= 400:
                seen.errors += 1
                seen.first_error = seen.first_error or f"status {status}"
                if not is_last:  # the script would misread the answer
                    raise ConnectionError(f"the server answered {status}")
            elif is_last and begun <= now < until:
                seen.cycles += 1
                seen.times.append(now - connection.begun)
            connection.go_on()
        now = time.perf_counter()
    return min(now, until)


def _await_end(told: threading.Event) -> None:
    sys.stdin.read()
    told.set()


def answer_blindly(port: int) -> None:
    """Answer whatever comes with a constant: a server that costs as little as one can."""
    constant = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}"
    selector = selectors.DefaultSelector()
    listening = socket.create_server(("127.0.0.1", port), backlog=1024)
    selector.register(listening, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listening:
                accepted, _ = listening.accept()
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(accepted, selectors.EVENT_READ, accepted)
            else:
                _answer_one(selector, key.data, constant)


def _answer_one(
    selector: selectors.BaseSelector, connection: socket.socket, constant: bytes
) -> None:
    with contextlib.suppress(OSError):  # a generator that is done resets its connections
        if connection.recv(READ_BYTES):
            connection.sendall(constant)
            return
    selector.unregister(connection)
    connection.close()


def main(arguments: list[str]) -> int:
    """Be the generator, or the server that shows its ceiling."""
    if arguments[0] == "answer":
        answer_blindly(int(arguments[1]))
    job = LoadJob(**json.loads(arguments[0]))
    if job.nice and hasattr(os, "nice"):
        os.nice(job.nice)
    seen = generate(job, lambda: print("up", flush=True))
    print(json.dumps(asdict(seen)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
