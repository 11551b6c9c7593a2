"""How others share requests out: the known rules, straight against the machines.

A request is bound when it is sent; as many are under way at once as a client with a pool of
connections would have.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from d8mesh.errors import D8Error

#: The end of a chunked body.
_END: Final = b"0\r\n\r\n"
#: How much the newest answer counts for how long they take.
NEWEST: Final = 0.2


@dataclass(slots=True)
class Endpoint:
    """A machine as a dispatcher sees it."""

    url: str
    number: int
    open: int = 0
    sent: int = 0
    mean_s: float = 0.0

    @property
    def load_s(self) -> float:
        """How long it is about to be busy; as all others while nothing is known of it."""
        return (self.open + 1) * (self.mean_s or 1.0)


Rule = Callable[[Sequence[Endpoint]], Endpoint]


def round_robin(endpoints: Sequence[Endpoint]) -> Endpoint:
    """Choose who had the fewest so far."""
    return min(endpoints, key=lambda each: (each.sent, each.number))


def least_connections(endpoints: Sequence[Endpoint]) -> Endpoint:
    """Choose who has the fewest open."""
    return min(endpoints, key=lambda each: (each.open, each.number))


def least_loaded(endpoints: Sequence[Endpoint]) -> Endpoint:
    """Choose who has the least to do, by what answers took there so far."""
    return min(endpoints, key=lambda each: (each.load_s, each.number))


RULES: Final[dict[str, Rule]] = {
    "round-robin": round_robin,
    "least-connections": least_connections,
    "least-loaded": least_loaded,
}


def makespan_s(urls: Sequence[str], rule: Rule, question: bytes, *, count: int, most: int) -> float:
    """Return how long `count` requests take, at most `most` under way at once."""
    return asyncio.run(_makespan(urls, rule, question, count, most))


async def _makespan(
    urls: Sequence[str], rule: Rule, question: bytes, count: int, most: int
) -> float:
    endpoints = [Endpoint(url, number) for number, url in enumerate(urls)]
    left = iter(range(count))

    async def client() -> None:
        for _ in left:
            endpoint = rule(endpoints)
            endpoint.open, endpoint.sent = endpoint.open + 1, endpoint.sent + 1
            begun = time.perf_counter()
            await chat(endpoint.url, question)
            took_s, endpoint.open = time.perf_counter() - begun, endpoint.open - 1
            known_s = endpoint.mean_s or took_s
            endpoint.mean_s = known_s + NEWEST * (took_s - known_s)

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(most)))
    return time.perf_counter() - begun


def question_of(model: str, words: int) -> bytes:
    """Return a chat that is answered with so many words."""
    message = {"role": "user", "content": f"say {words} words"}
    return json.dumps({"model": model, "messages": [message]}).encode()


async def chat(url: str, question: bytes) -> float:
    """Send a chat and read its answer to the end; return the seconds to its first line.

    Raises:
        D8Error: it is not answered.
    """
    address = urlsplit(url)
    begun = time.perf_counter()
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        head = f"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: {len(question)}\r\n\r\n"
        writer.write(head.encode() + question)
        told = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in told:
            raise D8Error(f"{url} answered {told[:40]!r}")
        part = await reader.read(65_536)
        first_s = time.perf_counter() - begun
        while not part.endswith(_END):
            more = await reader.read(65_536)
            if not more:
                raise D8Error(f"{url} broke off")
            part = part[-len(_END) :] + more
        return first_s
    finally:
        writer.close()
