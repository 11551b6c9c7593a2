"""Who asks from another machine: each line of standard input is a request, each answer a line.

Run there as a program: ``python -m tests.security.stranger ADDRESS``. A request is JSON: its port,
its bytes (as latin-1), and what is still to be sent after the answer has come; an answer has what
came back until the connection was closed, and what of it came before the rest was sent.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.end_to_end.hosts import Host
from tests.security.raw_http import ANSWER_S, Told, head

ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class StrangersAsk:
    """One request, as it is sent."""

    content: bytes
    port: int = 7001
    #: sent once the answer has begun to come
    rest_bytes: int = 0


class Stranger:
    """Asks the orchestrator at an address from another host."""

    def __init__(self, host: Host, address: str) -> None:
        self._address = address
        self._process = host.popen(
            [sys.executable, "-m", "tests.security.stranger", address],
            env={"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
        )

    def ask(self, method: str, path: str, *lines: str, body: bytes = b"", port: int = 7001) -> Told:
        """Send a request with more lines of its head."""
        sized = (f"Content-Length: {len(body)}",) if body else ()
        asked = head(method, path, *lines, *sized, host=self._address) + body
        (told,) = self.all_of([StrangersAsk(asked, port)])
        return told

    def all_of(self, asked: Sequence[StrangersAsk]) -> list[Told]:
        """Send all of these, one after another, each on a connection of its own."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        found: list[Told] = []
        for each in asked:
            line = {"content": each.content.decode("latin-1"), "port": each.port}
            self._process.stdin.write(json.dumps(line | {"rest_bytes": each.rest_bytes}) + "\n")
            self._process.stdin.flush()
            told = json.loads(self._process.stdout.readline())
            found.append(_told(told["answer"].encode("latin-1")))
        return found


def _told(answer: bytes) -> Told:
    begun, _, body = answer.partition(b"\r\n\r\n")
    words = begun.split()
    return Told(int(words[1]) if len(words) > 1 else 0, begun.decode("latin-1"), body)


def _answer(address: str, asked: dict[str, Any]) -> bytes:
    place = (address, asked["port"])
    with socket.create_connection(place, timeout=ANSWER_S) as connection:
        connection.sendall(asked["content"].encode("latin-1"))
        answer = connection.recv(65_536)
        left = asked["rest_bytes"]
        with contextlib.suppress(OSError):
            while left > 0:
                connection.sendall(b"x" * 65_536)
                left -= 65_536
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65_536):
                answer += part
    return answer


if __name__ == "__main__":
    for text in sys.stdin:
        told = _answer(sys.argv[1], json.loads(text)).decode("latin-1")
        print(json.dumps({"answer": told}), flush=True)
