"""What a stand-in has in memory: models that are loaded, evicted, reloaded, and their slots.

As Ollama does it: one load at a time, idle models leave first, a loaded model's own line has
no bound, and who waits for a load is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Final

DEFAULT_CONTEXT: Final = 4096
#: Options whose change loads a model again, and what holds where none is given.
LOAD_OPTIONS: Final[Mapping[str, object]] = {
    "num_ctx": DEFAULT_CONTEXT,
    "num_batch": 512,
    "num_gpu": -1,
    "main_gpu": 0,
    "use_mmap": None,
    "num_thread": 0,
    "draft_num_predict": 0,
}
#: Of these no value means: as it is loaded.
KEPT_OPTIONS: Final = ("num_ctx", "num_gpu")
#: What stands for "for ever" in `Resident.keep_alive_s`.
FOR_EVER_S: Final = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that is installed, under one name or several.

    Attributes:
        load_s: how long it takes to load; None: as long as the machine says.
        context_length: tokens that the model was made for, as ``/api/show`` tells.
        embedding_length: numbers of its vectors inside, as ``/api/show`` tells.
        size_vram: of it in the memory of a graphics card; None: all.
    """

    name: str
    size: int = 2_000_000_000
    can: tuple[str, ...] = ("completion", "tools")
    family: str = "llama"
    context_length: int = 131_072
    embedding_length: int = 2048
    size_vram: int | None = None
    load_s: float | None = None
    aliases: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """The same text for the same model under each of its names."""
        return hashlib.sha256(self.name.encode()).hexdigest()

    @property
    def is_embedder(self) -> bool:
        """Whether it makes vectors and no text."""
        return "completion" not in self.can


@dataclass(slots=True, eq=False)
class Resident:
    """A model in memory, or on its way there."""

    model: Model
    name: str
    options: dict[str, object]
    keep_alive_s: float
    is_loading: bool = True
    #: who uses it or waits for a slot of it
    users: int = 0
    running: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    idle_since: float = field(default_factory=time.monotonic)
    expiry: asyncio.TimerHandle | None = None

    def fits(self, options: Mapping[str, object]) -> bool:
        """Tell whether a request with these load options runs without another load."""
        return all(
            options.get(name, default) == self.options.get(name, default)
            for name, default in LOAD_OPTIONS.items()
            if name in options or name not in KEPT_OPTIONS
        )

    @property
    def kept(self) -> dict[str, object]:
        """The options that hold on where another load names none."""
        return {name: self.options[name] for name in KEPT_OPTIONS if name in self.options}

    @property
    def context_length(self) -> int:
        """Tokens of the context it was loaded with."""
        told = self.options.get("num_ctx", DEFAULT_CONTEXT)
        return told if isinstance(told, int) and told else DEFAULT_CONTEXT

    @property
    def left_s(self) -> float:
        """How long it stays if nobody uses it; may be negative while it is used."""
        return self.idle_since + self.keep_alive_s - time.monotonic()


class QueueFullError(Exception):
    """Too many requests wait for a load."""


class Machine:
    """The memory and the slots of one Ollama.

    Args:
        load_s: how long a model takes to load that does not say it itself.
        num_parallel: slots of each model; those that make vectors have one.
        max_loaded: models in memory at once.
        max_queue: requests that may wait for a load.
    """

    def __init__(
        self, *, load_s: float, num_parallel: int, max_loaded: int, max_queue: int
    ) -> None:
        self.load_s, self.num_parallel = load_s, num_parallel
        self.max_loaded, self.max_queue = max_loaded, max_queue
        self.residents: list[Resident] = []
        #: by model: loads, reloads for the sake of other options, and models thrown out for others
        self.loads: Counter[str] = Counter()
        self.reloads: Counter[str] = Counter()
        self.evictions: Counter[str] = Counter()
        self.running_max: Counter[str] = Counter()
        self.pending = 0
        self._one_load = asyncio.Lock()
        self._changed = asyncio.Event()

    def resident(self, model: Model) -> Resident | None:
        """Return the model in memory."""
        return next((each for each in self.residents if each.model is model), None)

    def put(self, model: Model, name: str, *, keep_alive_s: float) -> None:
        """Have a model in memory from the start, without a load."""
        found = Resident(model, name, {}, keep_alive_s, is_loading=False)
        self.residents.append(found)
        self._idle(found)

    @contextlib.asynccontextmanager
    async def using(
        self, model: Model, name: str, options: Mapping[str, object], keep_alive_s: float
    ) -> AsyncIterator[Resident]:
        """Have the model in memory with these options; load it if it is not.

        Raises:
            QueueFullError: too many wait for a load.
        """
        found = self.resident(model)
        if found is not None and not found.is_loading and found.fits(options):
            found.users += 1
        else:
            found = await self._load(model, name, options, keep_alive_s)
        found.keep_alive_s = keep_alive_s
        if found.expiry is not None:
            found.expiry.cancel()
        try:
            yield found
        finally:
            self._release(found)

    @contextlib.asynccontextmanager
    async def slot(self, resident: Resident) -> AsyncIterator[None]:
        """Have one of the model's slots; its line has no bound."""
        await self._enter(resident)
        name = resident.model.name
        self.running_max[name] = max(self.running_max[name], resident.running)
        try:
            yield
        finally:
            self._exit(resident)

    def unload(self, model: Model) -> None:
        """Let go of a model as soon as nobody uses it."""
        found = self.resident(model)
        if found is not None:
            found.keep_alive_s = 0.0
            if not found.users and not found.is_loading:
                self._remove(found)

    def _slots(self, resident: Resident) -> int:
        return 1 if resident.model.is_embedder else self.num_parallel

    async def _enter(self, resident: Resident) -> None:
        if resident.running < self._slots(resident) and not resident.waiting:
            resident.running += 1
            return
        turn = asyncio.get_running_loop().create_future()
        resident.waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._exit(resident)
            elif turn in resident.waiting:
                resident.waiting.remove(turn)
            raise

    def _exit(self, resident: Resident) -> None:
        while resident.waiting:
            turn = resident.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        resident.running -= 1

    async def _load(
        self, model: Model, name: str, options: Mapping[str, object], keep_alive_s: float
    ) -> Resident:
        if self.pending >= self.max_queue:
            raise QueueFullError
        self.pending += 1
        wanted = Resident(model, name, dict(options), keep_alive_s)
        task = asyncio.ensure_future(self._loaded(wanted))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:  # who asked has left: it is loaded all the same
            task.add_done_callback(lambda done: self._release(done.result()))
            raise

    async def _loaded(self, wanted: Resident) -> Resident:
        try:
            async with self._one_load:
                found = self.resident(wanted.model)
                if found is not None and found.fits(wanted.options):
                    found.users += 1
                    return found
                if found is not None:
                    self.reloads[wanted.model.name] += 1
                    await self._until_idle(found)
                    if found in self.residents:
                        wanted.options = found.kept | wanted.options
                        self._remove(found)
                await self._make_room()
                self.loads[wanted.model.name] += 1
                self.residents.append(wanted)
                load_s = wanted.model.load_s
                await asyncio.sleep(self.load_s if load_s is None else load_s)
                wanted.is_loading = False
                wanted.users += 1
                return wanted
        finally:
            self.pending -= 1

    async def _until_idle(self, resident: Resident) -> None:
        while resident in self.residents and resident.users:
            self._changed.clear()
            await self._changed.wait()

    async def _make_room(self) -> None:
        while len(self.residents) >= self.max_loaded:
            idle = [each for each in self.residents if not each.users]
            if idle:
                first = min(idle, key=lambda each: each.left_s)
                self.evictions[first.model.name] += 1
                self._remove(first)
            else:
                self._changed.clear()
                await self._changed.wait()

    def _release(self, resident: Resident) -> None:
        resident.users -= 1
        if not resident.users:
            self._idle(resident)
        self._changed.set()

    def _idle(self, resident: Resident) -> None:
        resident.idle_since = time.monotonic()
        if resident.expiry is not None:
            resident.expiry.cancel()
        if resident.keep_alive_s <= 0:
            self._remove(resident)
        elif resident.keep_alive_s < FOR_EVER_S:
            loop = asyncio.get_running_loop()
            resident.expiry = loop.call_later(resident.keep_alive_s, self._expire, resident)

    def _expire(self, resident: Resident) -> None:
        if not resident.users:
            self._remove(resident)

    def _remove(self, resident: Resident) -> None:
        if resident.expiry is not None:
            resident.expiry.cancel()
        if resident in self.residents:
            self.residents.remove(resident)
        self._changed.set()
