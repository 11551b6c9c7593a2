"""A load of chats over raw sockets: one process, one connection a stream, every byte kept.

Runs as a process of its own (``python -m bench.chat_load JOB``, a JSON object) and prints what it
saw as JSON. What an answer says is looked at after its time was taken: the stand-ins say ``w0 w1 w2
…``, so what is lost, doubled or out of order is seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Final
from urllib.parse import urlsplit

from bench.raw_loop import HOME, python
from d8mesh.errors import D8Error

#: The end of a chunked body, and a text in either form that is not empty.
_END: Final = b"0\r\n\r\n"
_SAID: Final = re.compile(rb'"content": ?"[^"]')
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
#: Beyond what any scene takes.
ENOUGH_S: Final = 240.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatJob:
    """What to send.

    Args:
        urls: asked in turn.
        path: ``/api/chat`` or ``/v1/chat/completions``.
        count: how many chats; `at_once` of them are under way.
        words: of each answer.
        spread_s: the first chats of all connections begin so far apart in all.
    """

    urls: list[str]
    path: str
    model: str
    words: int
    count: int
    at_once: int
    is_streamed: bool = True
    key: str = ""
    spread_s: float = 0.0


@dataclass(slots=True)
class ChatsSeen:
    """What was seen: seconds, and of each chat or token the milliseconds."""

    wall_s: float = 0.0
    good: int = 0
    errors: int = 0
    first_error: str = ""
    tokens: int = 0
    #: from the request to the first text of its answer
    first_ms: list[float] = field(default_factory=list)
    #: from one text of an answer to the next
    gap_ms: list[float] = field(default_factory=list)


def chats(job: ChatJob) -> ChatsSeen:
    """Run a load in a process of its own and return what it saw."""
    done = subprocess.run(
        python("bench.chat_load", json.dumps(asdict(job))),
        cwd=HOME,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        timeout=ENOUGH_S + 30,
    )
    if done.returncode:
        raise D8Error(f"the load of chats ended with {done.returncode}")
    return ChatsSeen(**json.loads(done.stdout))


class _Connection(asyncio.Protocol):
    """One connection: a chat after another, each with the times of its parts."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._answer: asyncio.Future[None] | None = None
        self._parts: list[tuple[float, bytes]] = []
        self._expected: int | None = None
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parts.append((time.perf_counter(), data))
        if len(self._parts) == 1:
            head, mark, body = data.partition(b"\r\n\r\n")
            sized = _LENGTH.search(head)
            self._expected = int(sized[1]) + len(head) + len(mark) if sized else None
            self._tail = body
        if self._expected is not None:
            self._expected -= len(data)
            is_over = self._expected <= 0
        else:
            self._tail = (self._tail + data)[-len(_END) :]
            is_over = self._tail == _END
        if is_over:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)

    async def ask(self, request: bytes) -> tuple[float, list[tuple[float, bytes]]]:
        """Return when it was sent, and the parts of its answer."""
        self._parts, self._answer = [], asyncio.get_running_loop().create_future()
        begun = time.perf_counter()
        self._transport.write(request)
        await self._answer
        return begun, self._parts

    def close(self) -> None:
        """Let it go."""
        self._transport.close()


async def _run(job: ChatJob) -> ChatsSeen:
    seen, kept = ChatsSeen(), list[tuple[float, list[tuple[float, bytes]]]]()
    waiting = deque(range(job.count))
    requests = [_request(job, url) for url in job.urls]
    loop = asyncio.get_running_loop()
    started: list[tuple[_Connection, int]] = []
    for n in range(min(job.at_once, job.count)):
        at = n % len(job.urls)
        place = urlsplit(job.urls[at])
        host, port = place.hostname or "", place.port or 80
        _, connection = await loop.create_connection(_Connection, host, port)
        started.append((connection, at))

    async def go_on(number: int, connection: _Connection, at: int) -> None:
        await asyncio.sleep(job.spread_s * number / job.at_once)
        while waiting:
            waiting.popleft()
            kept.append(await connection.ask(requests[at]))

    gc.disable()  # all that comes is kept: looking through it again and again would be seen as gaps
    begun = time.perf_counter()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ENOUGH_S):
            await asyncio.gather(*(go_on(n, *each) for n, each in enumerate(started)))
    if unanswered := job.count - len(kept):
        seen.errors, seen.first_error = unanswered, f"no answer within {ENOUGH_S:.0f} s"
    seen.wall_s = time.perf_counter() - begun
    for connection, _ in started:
        connection.close()
    for sent, parts in kept:
        _look(job, seen, sent, parts)
    return seen


def _request(job: ChatJob, url: str) -> bytes:
    message = {"role": "user", "content": f"say {job.words} words"}
    body = {"model": job.model, "messages": [message], "stream": job.is_streamed}
    content = json.dumps(body).encode()
    key = f"Authorization: Bearer {job.key}\r\n" if job.key else ""
    head = (
        f"POST {job.path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n{key}"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def _look(job: ChatJob, seen: ChatsSeen, sent: float, parts: list[tuple[float, bytes]]) -> None:
    """Count an answer, and its times."""
    raw = b"".join(data for _, data in parts)
    words = "".join(_texts(raw, is_streamed=job.is_streamed)).split()
    if words != [f"w{n}" for n in range(job.words)]:
        seen.errors += 1
        seen.first_error = seen.first_error or raw[-600:].decode("utf-8", "replace")
        return
    seen.good += 1
    seen.tokens += len(words)
    arrivals = [at for at, data in parts for _ in _SAID.findall(data)]
    if arrivals:  # one that was cut between two reads is not counted, and nobody minds
        seen.first_ms.append(1000 * (arrivals[0] - sent))
        seen.gap_ms += [1000 * (after - before) for before, after in pairwise(arrivals)]


def _texts(raw: bytes, *, is_streamed: bool) -> Iterator[str]:
    """Yield what the answer says."""
    _, _, body = raw.partition(b"\r\n\r\n")
    if b"chunked" in raw[: len(raw) - len(body)].lower():
        body = b"".join(_chunks(body))
    lines = body.splitlines() if is_streamed else [body]
    for line in lines:
        content = line.removeprefix(b"data:").strip()
        if not content.startswith(b"{"):
            continue
        told = json.loads(content)
        choice: dict[str, Any] = next(iter(told.get("choices") or ()), {})
        message = told.get("message") or choice.get("delta") or choice.get("message") or {}
        yield message.get("content") or ""


def _chunks(body: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(body):
        end = body.find(b"\r\n", at)
        size = int(body[at:end] or b"0", 16)
        yield body[end + 2 : end + 2 + size]
        at = end + size + 4


def main(arguments: Sequence[str]) -> None:
    """Run the job, print what was seen."""
    print(json.dumps(asdict(asyncio.run(_run(ChatJob(**json.loads(arguments[0])))))))


if __name__ == "__main__":
    main(sys.argv[1:])
