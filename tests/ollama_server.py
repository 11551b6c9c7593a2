"""A small real HTTP server that speaks Ollama's API, and misbehaves when told to.

For tests (``with OllamaServer() as server``) and by hand::

    python tests/ollama_server.py --port 7100

It computes nothing: it answers with the question, or with JSON if that is asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final

MODELS: Final = ("deepseek-r1:8b", "qwen2.5:3b")
#: What `OllamaServer.behaviour` may be: how it answers a chat.
BEHAVIOURS: Final = (
    "ok", "busy", "compressed", "cut", "deep_json", "endless", "endless_error", "endless_line",
    "error", "error_line", "missing", "not_json", "redirect", "silent", "stall", "wrong_shape",
)  # fmt: skip
#: The same for ``/api/tags`` and ``/api/ps``, in `OllamaServer.probe_behaviour`.
PROBE_BEHAVIOURS: Final = ("ok", "compressed", "drip", "endless_line", "error", "not_json",
                           "redirect", "silent", "wrong_shape")  # fmt: skip
#: Unpacked size of the compressed answer: far more than a packed one has any need of.
BOMB_BYTES: Final = 64 * 1024 * 1024

#: What ``/api/show`` tells of models that are not chat models; others can do all else.
CAPABILITIES: Final = {
    "nomic-embed-text:latest": ("embedding",),
    "mxbai-embed-large:latest": ("embedding",),
    "bge-m3:latest": ("embedding",),
    "all-minilm:latest": ("embedding",),
}
FAMILIES: Final = {
    "nomic-embed-text:latest": "nomic-bert",
    "mxbai-embed-large:latest": "bert",
    "bge-m3:latest": "bert",
    "all-minilm:latest": "bert",
}

Answer = Callable[[list[dict[str, Any]]], str]


def default_answer(messages: list[dict[str, Any]]) -> str:
    """Return niches as JSON if the question speaks of them, else the question."""
    question = str(messages[-1].get("content", "")) if messages else ""
    if '"niches"' in question:
        scores = {"demand": 70, "growth": 60, "feasibility": 80, "competition": 30}
        niche = {"name": "Repair cafés", "description": "Places to mend things.", **scores}
        return json.dumps({"niches": [niche]})
    return f"You asked: {question}"


class OllamaServer:
    """Ollama's API on a free port of loopback, in threads; a context manager."""

    def __init__(
        self,
        *,
        port: int = 0,
        models: tuple[str, ...] = MODELS,
        answer: Answer = default_answer,
        token_delay_s: float = 0.0,
    ) -> None:
        self.models = models
        self.loaded = models[:1]
        self.answer = answer
        #: told by ``/api/show``; None: an Ollama that is too old to tell
        #: asked for with GET these are never answered
        self.silent_paths: set[str] = set()
        self.capabilities: Mapping[str, Sequence[str]] | None = CAPABILITIES
        self.families: Mapping[str, str] = FAMILIES
        #: of those that tell it, ``modified_at``
        self.changed_at: dict[str, str] = {}
        #: model -> host of Ollama's cloud, for ``remote_host``
        self.remote_hosts: dict[str, str] = {}
        #: paths that this Ollama is too old to know
        self.unknown_paths: frozenset[str] = frozenset()
        #: fields of the message before the text of an answer; ``tool_calls``, ``thinking``
        self.extra: dict[str, Any] = {}
        self.logprobs: list[Any] = []
        #: False: characters beyond ASCII stand in the answer as they are
        self.is_ascii = True
        #: an answer is written in pieces of so many bytes; 0: in whole lines
        self.write_bytes = 0
        self.token_delay_s = token_delay_s
        self.behaviour = "ok"
        self.probe_behaviour = "ok"
        #: each request as (path, headers in lower case, decoded body)
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        #: set when a caller closed its connection in the middle of an answer
        self.caller_left = threading.Event()
        #: set when an answer has begun
        self.has_begun = threading.Event()
        self.closing = threading.Event()
        self._http = _Http(("127.0.0.1", port), self)
        self.port = int(self._http.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    @property
    def chats(self) -> list[Any]:
        """The bodies of all chat requests."""
        return [body for path, _, body in self.requests if path == "/api/chat"]

    def __enter__(self) -> OllamaServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(10)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], owner: OllamaServer) -> None:
        self.owner = owner
        self._open: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Close what callers keep open for their next request, too."""
        super().server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: callers that leave are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http
    #: a connection without a request for so long is closed
    timeout = 30

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        owner = self._noted(None)
        if self.path in owner.unknown_paths:
            self._raw(b"404 page not found", status=404, content_type="text/plain")
        elif self.path in owner.silent_paths:
            owner.closing.wait(30)
        elif owner.probe_behaviour != "ok":
            self._misbehave(owner.probe_behaviour)
        elif self.path == "/api/tags":
            self._json({"models": [self._row(name) for name in owner.models]})
        elif self.path == "/api/ps":
            self._json({"models": [{"name": name, "model": name} for name in owner.loaded]})
        elif self.path == "/":
            self._raw(b"Ollama is running", content_type="text/plain")
        else:
            self._json({"error": "not found"}, status=404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))))
        owner = self._noted(body)
        if self.path in owner.unknown_paths:
            self._raw(b"404 page not found", status=404, content_type="text/plain")
        elif self.path == "/api/show":
            self._show(str(body.get("model")))
        elif owner.behaviour not in ("ok", "cut", "stall", "endless", "error_line"):
            self._misbehave(owner.behaviour)
        elif self.path == "/api/embed":
            self._embed(body)
        elif self.path not in ("/api/chat", "/api/generate"):
            self._json({"error": "not found"}, status=404)
        elif body.get("model") in CAPABILITIES:
            self._json({"error": f'"{body["model"]}" does not support chat'}, status=400)
        elif body.get("model") not in owner.models:
            self._json({"error": f"model '{body.get('model')}' not found"}, status=404)
        elif body.get("stream", True):
            self._stream(body)
        else:
            self._json(self._part(body, self._answer(body), is_last=True))

    # --- answers that are right

    def _noted(self, body: Any) -> OllamaServer:
        owner = self.server.owner
        headers = {name.lower(): value for name, value in self.headers.items()}
        owner.requests.append((self.path, headers, body))
        return owner

    def _row(self, name: str) -> dict[str, Any]:
        owner = self.server.owner
        family = owner.families.get(name, "llama")
        details = {"family": family, "families": [family], "format": "gguf"}
        row: dict[str, Any] = {
            "name": name,
            "model": name,
            "digest": f"{zlib.crc32(name.encode()):064x}",
        }
        if name in owner.changed_at:
            row["modified_at"] = owner.changed_at[name]
        remote = owner.remote_hosts.get(name)
        return row | {"details": details} | ({"remote_host": remote} if remote else {})

    def _show(self, name: str) -> None:
        owner = self.server.owner
        if name not in owner.models:
            self._json({"error": f"model '{name}' not found"}, status=404)
            return
        told: dict[str, Any] = {"details": self._row(name)["details"], "model_info": {}}
        if owner.capabilities is not None:
            is_default = owner.capabilities is CAPABILITIES
            other = ("completion", "tools", "vision") if is_default else ("completion",)
            told["capabilities"] = list(owner.capabilities.get(name, other))
        self._json(told)

    def _embed(self, body: Any) -> None:
        texts = body["input"]
        vectors = [[float(len(text)), float(len(text.split()))] for text in texts]
        count = sum(len(text.split()) for text in texts)
        self._json({"model": body["model"], "embeddings": vectors, "prompt_eval_count": count})

    def _answer(self, body: Any) -> str:
        messages = body.get("messages") or [{"role": "user", "content": body.get("prompt", "")}]
        return self.server.owner.answer(messages)

    def _part(self, body: Any, text: str, *, is_last: bool = False) -> dict[str, Any]:
        is_chat = self.path == "/api/chat"
        said = (
            {"message": {"role": "assistant", "content": text}} if is_chat else {"response": text}
        )
        part = {"model": body["model"], "created_at": "2025-01-01T00:00:00Z", "done": is_last}
        if is_last:
            part |= {"done_reason": "stop", "prompt_eval_count": 11, "eval_count": 7}
            part |= {"load_duration": 1_500_000_000, "total_duration": 2_000_000_000}
        return part | said

    def _stream(self, body: Any) -> None:
        owner = self.server.owner
        self._begin("application/x-ndjson")
        words = self._answer(body).split(" ")
        if owner.extra or owner.logprobs:
            part = self._part(body, "")
            if "message" in part:
                part["message"] |= owner.extra
            else:  # a prompt calls no tools
                part |= {name: it for name, it in owner.extra.items() if name != "tool_calls"}
            self._line(part | ({"logprobs": owner.logprobs} if owner.logprobs else {}))
        for i, word in enumerate(words):
            self._line(self._part(body, word if i == 0 else f" {word}"))
            if owner.token_delay_s and self._waits_in_vain(owner.token_delay_s):
                return
        if owner.behaviour == "error_line":
            self._line({"error": "the model runner has stopped"})
        elif owner.behaviour == "stall":
            self._waits_in_vain(60)
        elif owner.behaviour == "endless":
            # Never silent, yet slow: what ends it is not the bound on an answer's length.
            while not owner.closing.wait(0.001):
                self._line(self._part(body, "on and on " * 10))
        elif owner.behaviour != "cut":
            self._line(self._part(body, "", is_last=True))
        self._write(b"0\r\n\r\n")

    # --- answers that are wrong

    def _misbehave(self, behaviour: str) -> None:
        simple: dict[str, tuple[int, Any]] = {
            "busy": (503, {"error": "server busy, please try again"}),
            "error": (500, {"error": "the model runner has stopped"}),
            "missing": (404, {"error": "model not found"}),
            "wrong_shape": (200, ["no", {"object": None}]),
        }
        if behaviour in simple:
            status, answer = simple[behaviour]
            self._json(answer, status=status)
        elif behaviour == "redirect":
            self._raw(b"", status=302, extra={"Location": f"{self.server.owner.url}/elsewhere"})
        elif behaviour == "not_json":
            self._raw(b"<html><b>Sign in to the Wi-Fi</b></html>\n", content_type="text/html")
        elif behaviour == "compressed":
            packer = zlib.compressobj(wbits=31)
            packed = b"".join(packer.compress(bytes(2**20)) for _ in range(BOMB_BYTES // 2**20))
            self._raw(packed + packer.flush(), extra={"Content-Encoding": "gzip"})
        elif behaviour == "deep_json":
            self._raw(b'{"message":' * 20_000 + b"\n")
        elif behaviour in ("endless_line", "endless_error"):
            self._begin("application/json", status=500 if behaviour == "endless_error" else 200)
            while not self.server.owner.closing.is_set():
                self._chunk(b" " * 65_536)
        elif behaviour == "silent":
            self.server.owner.has_begun.set()
            self._waits_in_vain(60)
        elif behaviour == "drip":
            self._begin("application/json")
            while not self._waits_in_vain(0.1):
                self._chunk(b" ")

    # --- writing

    def _json(self, answer: object, *, status: int = 200) -> None:
        self._raw(json.dumps(answer).encode(), status=status)

    def _raw(
        self,
        body: bytes,
        *,
        status: int = 200,
        content_type: str = "application/json",
        extra: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        headers = {"Content-Type": content_type, "Content-Length": str(len(body))} | (extra or {})
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self._write(body)

    def _begin(self, content_type: str, *, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.server.owner.has_begun.set()

    def _line(self, part: object) -> None:
        owner = self.server.owner
        line = json.dumps(part, ensure_ascii=owner.is_ascii).encode() + b"\n"
        size = owner.write_bytes or len(line)
        for start in range(0, len(line), size):
            self._chunk(line[start : start + size])

    def _chunk(self, body: bytes) -> None:
        self._write(b"%x\r\n%s\r\n" % (len(body), body))

    def _write(self, body: bytes) -> None:
        try:
            self.wfile.write(body)
            self.wfile.flush()
        except OSError:
            self.server.owner.caller_left.set()
            raise

    def _waits_in_vain(self, seconds: float) -> bool:
        """Wait; return True if the caller left or the server closes before the time is over."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            ready, _, _ = select.select([self.connection], [], [], min(left, 0.05))
            if ready and not self._peeked():
                self.server.owner.caller_left.set()
                self.close_connection = True
                return True
            if self.server.owner.closing.is_set():
                self.close_connection = True
                return True
        return False

    def _peeked(self) -> bytes:
        with contextlib.suppress(OSError):
            return bytes(self.connection.recv(1, socket.MSG_PEEK))
        return b""


def _run() -> Iterator[str]:
    parser = argparse.ArgumentParser(description="Speak Ollama's API on loopback, for trying.")
    parser.add_argument("--port", type=int, default=7100)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--delay", type=float, default=0.02, help="seconds between tokens")
    parser.add_argument("--behaviour", choices=BEHAVIOURS, default="ok")
    options = parser.parse_args()
    models = tuple(options.models)
    with OllamaServer(port=options.port, models=models, token_delay_s=options.delay) as server:
        server.behaviour = options.behaviour
        yield f"speaking Ollama's API at {server.url}; Ctrl-C ends it"
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    for line in _run():
        print(line, flush=True)
