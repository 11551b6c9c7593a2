"""HTTP calls for the tests of the stand-in, with the plain client of the standard library."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.split(b"\n") if line]


@contextmanager
def asking(url: str, method: str, path: str, body: object = None) -> Iterator[Any]:
    """Send a request and have its response, unread."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_S)
    try:
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, content)
        yield connection.getresponse()
    finally:
        connection.close()


def call(url: str, method: str, path: str, body: object = None) -> Answered:
    with asking(url, method, path, body) as response:
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answered(response.status, headers, response.read())


def get(url: str, path: str) -> Answered:
    return call(url, "GET", path)


def post(url: str, path: str, body: object) -> Answered:
    return call(url, "POST", path, body)


def ask(url: str, model: str, text: str, **more: object) -> Answered:
    """Chat, streamed unless `more` says otherwise."""
    messages = [{"role": "user", "content": text}]
    return post(url, "/api/chat", {"model": model, "messages": messages} | more)


def text_of(lines: list[Any]) -> str:
    return "".join(line["message"]["content"] for line in lines if "message" in line)
