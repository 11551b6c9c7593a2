"""A door that says little about what is asked, and a mesh with machines behind it, for tests."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from d8mesh.backends import configured
from d8mesh.core.protocol.chat import Origin, Piece
from d8mesh.core.protocol.model_names import plain_name
from d8mesh.doors.llm.asked import LlmTask
from d8mesh.doors.llm.callers import caller_of
from d8mesh.doors.llm.chats import Chats
from d8mesh.errors import D8Error
from d8mesh.http.answers import Response, answer
from d8mesh.http.application import Application
from d8mesh.http.guard import Guard, Rejections
from d8mesh.http.routes import Door, HttpRoute, Request
from d8mesh.http.server import Server
from d8mesh.nodes.client.aio.node import AsyncNode
from d8mesh.nodes.worker import Worker
from d8mesh.processes.llm_services import LlmServices
from d8mesh.processes.services_console import ServicesConsole
from tests.http.calls import LoopThread
from tests.nodes.mesh import PATIENCE_S, Mesh, until
from tests.ollama_standin import OllamaStandin

MODEL: Final = "m:1b"


@dataclass(frozen=True)
class KnownNames:
    """Knows models by name; `None`: it takes any."""

    can: frozenset[str] = frozenset()
    names: frozenset[str] | None = None

    async def find(self, name: str) -> KnownNames | None:
        is_known = self.names is None or plain_name(name) in map(plain_name, self.names)
        return self if is_known else None

    async def known_names(self) -> list[str]:
        return sorted(self.names or ())


ANY_MODEL: Final = KnownNames()


class LineForm:
    """Writes a JSON line for each call: what was said, the end, or the error."""

    media_type = "application/x-ndjson"

    def __init__(self, comment: bytes = b"") -> None:
        self.comment = comment

    def begin(self, task_ids: list[str]) -> bytes:
        return _line(tasks=task_ids)

    def piece(self, index: int, piece: Piece, origin: Origin | None) -> bytes:
        more = {} if origin is None else {"machine": origin.machine}
        if piece.ending is not None:
            more["reason"] = str(piece.ending.finish_reason)
        if piece.thinking:
            more["thinking"] = piece.thinking
        return _line(index=index, text=piece.text, **more)

    def end(self) -> bytes:
        return _line(done=True)

    def broken(self, error: D8Error) -> bytes:
        return _line(error=str(error), code=error.code, task=error.task_id)


def _line(**told: object) -> bytes:
    return json.dumps(told).encode() + b"\n"


def tasks_of(body: Mapping[str, Any]) -> list[LlmTask]:
    data = {name: body[name] for name in ("messages", "options", "tools") if name in body}
    task = LlmTask(type="agent_action", data=data, model=body.get("model", MODEL))
    return [task] * body.get("n", 1)


def plain_door(chats: Chats) -> Door:
    """Return the door: ``POST /chat`` with messages, model, n, stream and comments."""

    async def chat(request: Request) -> Response:
        body = json.loads(request.body)
        caller, asked = caller_of(request, "plain"), tasks_of(body)
        if body.get("stream", True):
            return await chats.stream(caller, asked, LineForm(body.get("comment", "").encode()))
        answers = await chats.whole(caller, asked)
        texts = [each.completion.text for each in answers if each.completion is not None]
        response = answer({"texts": texts, "tasks": [each.task_id for each in answers]})
        response.headers |= chats.headers(answers)
        return response

    return Door(routes=(HttpRoute("/chat", chat, method="POST", ends_with_caller=True),))


class ChatMesh:
    """A broker, workers beside stand-ins, and a server with the plain door, in one process."""

    client: AsyncNode
    chats: Chats
    server: Server

    def __init__(self, folder: Path, stack: ExitStack, models: KnownNames = ANY_MODEL) -> None:
        self.mesh = Mesh(folder, stack)
        self._folder, self._stack, self._models = folder, stack, models
        self.standins: list[OllamaStandin] = []
        self.broker_port = self.mesh.broker()
        self.loop = LoopThread()
        stack.callback(self.loop.close)
        self.loop.run(self._begin())
        stack.callback(lambda: self.loop.run(self._end()))
        (self.port,) = self.server.ports

    async def _begin(self) -> None:
        endpoint = self.mesh.endpoint(self.broker_port)
        self.client = AsyncNode(self.mesh.config(), endpoint=endpoint, url=None)
        self.chats = Chats(self.client, self._models)
        rejections = Rejections()
        application = Application([plain_door(self.chats)], Guard(), rejections)
        bound = socket.create_server(("127.0.0.1", 0))
        self.server = Server(application, [bound], lambda peer: True, rejections)
        await self.server.start()

    async def _end(self) -> None:
        await self.server.close()
        await self.client.close(1.0)

    def machine(self, **settings: Any) -> OllamaStandin:
        """Start a stand-in, and a worker beside it; wait until the mesh knows its models."""
        told: dict[str, Any] = {
            "models": [MODEL], "loaded": [MODEL], "num_parallel": 4, "tokens_per_s": 0,
            "prompt_tokens_per_s": 0,
        }  # fmt: skip
        standin = self._stack.enter_context(OllamaStandin(**(told | settings)))
        self.standins.append(standin)
        self.worker_beside(standin)
        return standin

    def worker_beside(self, standin: OllamaStandin, **settings: Any) -> Worker:
        known = self._services()
        worker = self.mesh.worker(self.broker_port, name=f"w-{standin.port}")
        config = replace(self.mesh.config(), ollama_url=standin.url, ollama_model=MODEL, **settings)
        console = ServicesConsole(lambda text: None)
        services = LlmServices(worker, configured(config), config=config, console=console)
        stop = threading.Event()
        self._stack.callback(services.close)
        self._stack.callback(stop.set)
        self.mesh.run(worker)
        services.start(stop)
        until(lambda: self._services() > known)
        return worker

    def _services(self) -> int:
        told = self.loop.run(self.client.ask("models", {}, PATIENCE_S))["services"]
        return len([each for each in told if each["models"]])

    def tasks(self, state: str = "") -> list[dict[str, Any]]:
        args = {"state": state, "type": "", "limit": 1000, "cursor": "", "order": "oldest"}
        return list(self.loop.run(self.client.ask("tasks", args, PATIENCE_S))["tasks"])

    def status(self, task_id: str) -> dict[str, Any]:
        return self.loop.run(self.client.ask("status", {"id": task_id}, PATIENCE_S))

    def ask(
        self, words: int = 3, /, *, headers: Mapping[str, str] | None = None, **body: Any
    ) -> Asked:
        """Ask, and return as soon as the head of the answer is there."""
        return Asked(self.port, question(words) | body, headers or {})

    def lines(self, words: int = 3, /, **more: Any) -> list[dict[str, Any]]:
        """Ask, and return all that is streamed."""
        with self.ask(words, **more) as asked:
            assert asked.status == 200, asked.text()
            return list(asked)


def question(words: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"say {words} words"}]}


def said(lines: Sequence[Mapping[str, Any]], index: int = 0) -> str:
    """Return the text of an answer that was streamed."""
    return "".join(each["text"] for each in lines if each.get("index") == index)


class Asked:
    """One request under way on a socket of its own; leaving it hangs up."""

    def __init__(self, port: int, body: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        told = {"Content-Type": "application/json", **headers}
        self.connection.request("POST", "/chat", json.dumps(body), told)
        self._answer: http.client.HTTPResponse | None = None

    @property
    def answer(self) -> http.client.HTTPResponse:
        """The answer's head; waits for it."""
        if self._answer is None:
            self._answer = self.connection.getresponse()
        return self._answer

    @property
    def status(self) -> int:
        return self.answer.status

    def text(self) -> str:
        return self.answer.read().decode()

    def json(self) -> Any:
        return json.loads(self.answer.read())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self.answer:
            yield json.loads(line)

    def leave(self) -> None:
        """Hang up."""
        if self._answer is not None:
            self._answer.close()
        self.connection.close()

    def __enter__(self) -> Asked:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.leave()
