"""The stand-in's routes: what Ollama answers, at the speed of the machine that it plays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tests.standin import embeddings, generation
from tests.standin.asked import WrongRequestError, asked_of, body_of, full_name
from tests.standin.counters import Closed, Counters
from tests.standin.faults import Faults
from tests.standin.http import Exchange
from tests.standin.library import Library
from tests.standin.machine import Machine, Model, QueueFullError, Resident
from tests.standin.speech import Answer, default_answer

QUEUE_FULL: Final = "server busy, please try again.  maximum pending requests exceeded"
CHAT_MODEL: Final = Model(name="qwen2.5:3b")
THINKER: Final = Model(name="deepseek-r1:8b", can=("completion", "tools", "thinking"))
EMBEDDER: Final = Model(name="nomic-embed-text:latest", can=("embedding",), family="nomic-bert")
MODELS: Final = (CHAT_MODEL, THINKER, EMBEDDER)


@dataclass(slots=True, kw_only=True)
class Settings:
    """How the machine is. Speeds may be changed at any time; 0 tokens/s: all at once.

    Attributes:
        loaded: models in memory at the start.
        speed: by what the speeds are multiplied; loads take as long as they take.
        library: what can be pulled, as `Model` or as names of models for chats; None: all.
        pull_s, pull_bytes_per_s: what each line of a pull takes, and how quick its bytes come;
            0 bytes/s: at once.
    """

    models: Sequence[Model] = MODELS
    loaded: Sequence[str] = ()
    speed: float = 1.0
    tokens_per_s: float = 0.0
    prompt_tokens_per_s: float = 0.0
    load_s: float = 0.0
    num_parallel: int = 1
    max_loaded: int = 3
    max_queue: int = 512
    keep_alive_s: float = 300.0
    answer: Answer = default_answer
    version: str = "0.33.0"
    tells_capabilities: bool = True
    library: Sequence[Model | str] | None = None
    pull_s: float = 0.05
    pull_bytes_per_s: float = 0.0


class Ollama:
    """One stand-in; lives in one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.library = Library(settings.models)
        self.faults = Faults()
        self.counters = Counters()
        #: a runner hangs: texts and vectors are not answered any more, all else is
        self.is_stuck = False
        #: while it is True clients leave because the stand-in ends
        self.is_closing = False
        self.machine = Machine(
            load_s=settings.load_s,
            num_parallel=settings.num_parallel,
            max_loaded=settings.max_loaded,
            max_queue=settings.max_queue,
        )
        for name in settings.loaded:
            found = self.library.find(name)
            self.machine.put(found, full_name(name), keep_alive_s=settings.keep_alive_s)
        self._routes = self._table()

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request."""
        self.counters.requests[exchange.path] += 1
        if self.faults.is_frozen and not exchange.path.startswith("/_standin"):
            await asyncio.Event().wait()
        methods = self._routes.get(exchange.path)
        if methods is None:
            exchange.whole(b"404 page not found", status=404, content_type="text/plain")
            return
        route = methods.get(exchange.method)
        if route is None:
            exchange.whole(b"405 method not allowed", status=405, content_type="text/plain")
            return
        try:
            await route(exchange)
        except WrongRequestError as error:
            self.counters.failed[exchange.path] += 1
            exchange.json({"error": error.text}, status=error.status)
        except QueueFullError:
            self.counters.failed[exchange.path] += 1
            exchange.json({"error": QUEUE_FULL}, status=503)

    def closed(self, connection: Closed) -> None:
        """Remember a connection that has ended."""
        if not self.is_closing:
            self.counters.closed.append(connection)

    def _table(self) -> dict[str, dict[str, Any]]:
        reads = {
            "/": self._root,
            "/api/version": self._version,
            "/api/tags": self._tags,
            "/api/ps": self._ps,
            "/_standin": self._told,
        }
        posts: dict[str, Any] = {
            "/api/show": self._show,
            "/api/chat": lambda exchange: self._text(exchange, is_chat=True),
            "/api/generate": lambda exchange: self._text(exchange, is_chat=False),
            "/api/embed": lambda exchange: self._vectors(exchange, is_old=False),
            "/api/embeddings": lambda exchange: self._vectors(exchange, is_old=True),
            "/api/pull": self._pull,
            "/api/copy": self._copy,
            "/_standin": self._change,
        }
        table: dict[str, dict[str, Any]] = {path: {"POST": way} for path, way in posts.items()}
        for path, way in reads.items():
            table.setdefault(path, {}).update({"GET": way})
            if path != "/api/ps":
                table[path]["HEAD"] = way
        return table | {"/api/delete": {"DELETE": self._delete}}

    def body(self, exchange: Exchange) -> dict[str, Any]:
        """Return a request's body, and remember it."""
        found = body_of(exchange.body)
        self.counters.bodies.append((exchange.path, exchange.headers, found))
        return found

    def now_text(self) -> str:
        """Return the time as answers tell it."""
        return datetime.now(UTC).isoformat().replace("+00:00", "Z")

    # --- what is there

    async def _root(self, exchange: Exchange) -> None:
        exchange.whole(b"Ollama is running", content_type="text/plain; charset=utf-8")

    async def _version(self, exchange: Exchange) -> None:
        exchange.json({"version": self.settings.version})

    async def _tags(self, exchange: Exchange) -> None:
        is_told = self.settings.tells_capabilities
        exchange.json({"models": self.library.tags(tells_capabilities=is_told)})

    async def _ps(self, exchange: Exchange) -> None:
        residents = sorted(self.machine.residents, key=lambda each: -each.left_s)
        exchange.json({"models": [self._resident_row(each) for each in residents]})

    def _resident_row(self, resident: Resident) -> dict[str, Any]:
        model = resident.model
        row = self.library.row(resident.name, model)
        del row["modified_at"]
        expires = datetime.now(UTC) + timedelta(seconds=resident.left_s)
        return row | {
            "expires_at": expires.isoformat().replace("+00:00", "Z"),
            "size_vram": model.size if model.size_vram is None else model.size_vram,
            "context_length": resident.context_length,
        }

    async def _show(self, exchange: Exchange) -> None:
        body = self.body(exchange)
        name = body.get("model") or body.get("name")
        if not name:
            raise WrongRequestError(400, "model is required")
        is_verbose, is_told = bool(body.get("verbose")), self.settings.tells_capabilities
        told = self.library.shown(str(name), is_verbose=is_verbose, tells_capabilities=is_told)
        exchange.json(told)

    # --- texts and vectors

    async def _text(self, exchange: Exchange, *, is_chat: bool) -> None:
        asked = asked_of(self.body(exchange), is_chat=is_chat)
        await self._counted(exchange, lambda: generation.generate(self, exchange, asked))

    async def _vectors(self, exchange: Exchange, *, is_old: bool) -> None:
        body = self.body(exchange)
        await self._counted(exchange, lambda: embeddings.embed(self, exchange, body, is_old=is_old))

    async def _counted(self, exchange: Exchange, answer: Callable[[], Any]) -> None:
        counters = self.counters
        counters.open += 1
        counters.open_max = max(counters.open_max, counters.open)
        try:
            await answer()
        finally:
            counters.open -= 1

    # --- models come and go

    async def _pull(self, exchange: Exchange) -> None:
        body = self.body(exchange)
        name = full_name(str(body.get("model") or body.get("name") or ""))
        fault = self.faults.take(name)
        settings = self.settings
        lines = self.library.pulled(name, settings.library, settings.pull_bytes_per_s)
        is_streamed = bool(body.get("stream", True))
        if is_streamed:
            exchange.begin()
        line: dict[str, Any] = {}
        for n, (bytes_s, line) in enumerate(lines):
            if fault is not None and n >= fault.after:
                await generation.break_off(exchange, fault, is_streamed=is_streamed)
                return
            await asyncio.sleep(settings.pull_s + bytes_s)
            if is_streamed:
                exchange.line(line)
        if is_streamed:
            exchange.end()
        else:
            exchange.json(line, status=500 if "error" in line else 200)

    async def _copy(self, exchange: Exchange) -> None:
        body = self.body(exchange)
        self.library.copy(str(body.get("source", "")), str(body.get("destination", "")))
        exchange.whole(b"")

    async def _delete(self, exchange: Exchange) -> None:
        body = self.body(exchange)
        name = str(body.get("model") or body.get("name") or "")
        model = self.library.find(name)
        self.library.delete(name)
        if not self.library.has(model):
            self.machine.unload(model)
        exchange.whole(b"")

    # --- the stand-in itself

    async def _told(self, exchange: Exchange) -> None:
        exchange.json(self.told())

    def told(self) -> dict[str, Any]:
        """Return all counters as JSON."""
        counters, machine = self.counters, self.machine
        return {
            "requests": counters.requests,
            "answered": counters.answered,
            "failed": counters.failed,
            "open": counters.open,
            "open_max": counters.open_max,
            "tokens": counters.tokens,
            "cancelled": [asdict(each) for each in counters.cancelled],
            "closed": [asdict(each) for each in counters.closed],
            "prompts": list(counters.prompts),
            "loads": machine.loads,
            "reloads": machine.reloads,
            "evictions": machine.evictions,
            "running_max": machine.running_max,
            "pending": machine.pending,
            "is_stuck": self.is_stuck,
            "now": time.monotonic(),
        }

    async def _change(self, exchange: Exchange) -> None:
        try:
            self.change(body_of(exchange.body))
        except (TypeError, ValueError) as error:
            raise WrongRequestError(400, str(error)) from error
        exchange.json({})

    def change(self, told: Mapping[str, Any]) -> None:
        """Change settings (`speed`, …), set a `fault`, `mend` all, or `reset` the counters."""
        if told.get("reset"):
            self.counters = Counters(open=self.counters.open)
            for counted in (self.machine.loads, self.machine.reloads, self.machine.evictions):
                counted.clear()
            self.machine.running_max.clear()
        if told.get("mend"):
            self.mend()
        if fault := told.get("fault"):
            self.faults.put(**fault)
        for name, value in told.get("settings", {}).items():
            if name not in ("speed", "tokens_per_s", "prompt_tokens_per_s", "load_s", "pull_s"):
                raise ValueError(f"{name} cannot be changed")
            setattr(self.settings, name, float(value))
            if name == "load_s":
                self.machine.load_s = float(value)

    def mend(self) -> None:
        """Be a machine without any fault again."""
        self.faults.clear()
        self.is_stuck = False
