"""LLM services in virtual time, and workers that reach them: residency, slots, loads, faults."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from d8mesh.core.broker.effects import Peer
from d8mesh.core.protocol import messages as m
from d8mesh.core.worker.model_meter import ModelMeter, RunEnd, Spent

if TYPE_CHECKING:
    from tests.core.simulated_pool import SimulatedPool

KIND: Final = "agent_action"
#: A worker tells what changed little by little at most so often.
TELL_S: Final = 1.0
#: What a probe takes that is answered, and what one may take.
PROBE_S: Final = 0.2
PROBE_WITHIN_S: Final = 10.0
#: How long a service takes to refuse.
REFUSE_S: Final = 0.001
MINUTE_S: Final = 60.0


@dataclass(slots=True, eq=False)
class Ask:
    """One request, on its way through a service."""

    model: str
    prompt_tokens: int
    output_tokens: int
    on_first: Callable[[], None]
    #: told how it ended; not called once `is_gone`
    on_end: Callable[[RunEnd, Spent], None]
    is_gone: bool = False
    began: float = 0.0
    load_s: float = 0.0
    has_slot: bool = False


@dataclass(slots=True)
class Memory:
    """A model in memory, or on its way there."""

    is_loading: bool
    running: int = 0
    waiting: deque[Ask] = field(default_factory=deque)
    used: float = 0.0


@dataclass(slots=True, kw_only=True)
class Traits:
    """How a service is; speeds may change meanwhile.

    `is_cloud`: all its models are always there. `minute_requests`: the account's; 0: no bound.
    `known_slots`: what its worker tells from the start; 0: what it measures.
    """

    speed: float = 1.0
    slots: int = 4
    max_loaded: int = 3
    tokens_per_s: float = 40.0
    prompt_tokens_per_s: float = 2000.0
    is_cloud: bool = False
    minute_requests: int = 0
    known_slots: int = 0


class SimulatedService:
    """An Ollama, or an account in the cloud.

    Args:
        models: name -> seconds of loading.
        loaded: models in memory at the start.
        traits: see `Traits`.
    """

    def __init__(
        self,
        pool: SimulatedPool,
        name: str,
        models: Mapping[str, float],
        *,
        loaded: Sequence[str] = (),
        **traits: Any,
    ) -> None:
        self.pool, self.name, self.models = pool, name, models
        self.traits = Traits(**traits)
        self.is_cloud, self.minute_requests = self.traits.is_cloud, self.traits.minute_requests
        kept = models if self.is_cloud else loaded
        self.memory = {each: Memory(is_loading=False) for each in kept}
        #: "" or what it does instead: ``silent`` (also in the middle), ``fail`` (at once)
        self.fault = ""
        #: when each request began, and those that were answered or not
        self.began: list[float] = []
        self.answered = 0
        self.loads: list[str] = []
        self.running_max = 0
        self.on_memory: list[Callable[[], None]] = []
        self._to_load: deque[tuple[str, list[Ask]]] = deque()

    def ask(self, ask: Ask) -> None:
        """Take in a request."""
        pool = self.pool
        ask.began = pool.now
        self.began.append(pool.now)
        if self.fault == "fail":
            pool.after(REFUSE_S, lambda: self._end(ask, RunEnd.FAILED))
        elif self.fault != "silent":
            self._admit(ask)

    def leave(self, ask: Ask) -> None:
        """Who asked has gone."""
        ask.is_gone = True
        if ask.has_slot:
            self._free(ask)

    def hang(self) -> None:
        """Answer nothing any more, those that run neither."""
        self.fault = "silent"

    def load(self, model: str) -> None:
        """Load a model that somebody will need."""
        if model not in self.memory and not any(name == model for name, _ in self._to_load):
            self._want(model, [])

    @property
    def most_in_a_minute(self) -> int:
        """The most requests of any 60 seconds."""
        most, first = 0, 0
        for n, at in enumerate(self.began):
            while self.began[first] <= at - MINUTE_S:
                first += 1
            most = max(most, n - first + 1)
        return most

    # ------------------------------------------------------------------ memory

    def _admit(self, ask: Ask) -> None:
        memory = self.memory.get(ask.model)
        if memory is not None and not memory.is_loading:
            self._enter(ask, memory)
            return
        for name, waiting in self._to_load:
            if name == ask.model:
                waiting.append(ask)
                return
        self._want(ask.model, [ask])

    def _want(self, model: str, waiting: list[Ask]) -> None:
        self._to_load.append((model, waiting))
        if len(self._to_load) == 1:
            self._load_next()

    def _load_next(self) -> None:
        while self._to_load:
            model, _ = self._to_load[0]
            if not self._make_room():
                self.pool.after(0.05, self._load_next)
                return
            self.memory[model] = Memory(is_loading=True)
            self.loads.append(model)
            self.pool.after(self.models[model], lambda model=model: self._loaded(model))  # type: ignore[misc]
            return

    def _make_room(self) -> bool:
        if len(self.memory) < self.traits.max_loaded:
            return True
        idle = [
            (each.used, name)
            for name, each in self.memory.items()
            if not each.running and not each.waiting and not each.is_loading
        ]
        if idle:
            del self.memory[min(idle)[1]]
            self._tell()
        return bool(idle)

    def _loaded(self, model: str) -> None:
        _, waiting = self._to_load.popleft()
        memory = self.memory[model]
        memory.is_loading, memory.used = False, self.pool.now
        self._tell()
        for ask in waiting:
            ask.load_s = self.pool.now - ask.began
            self._enter(ask, memory)
        self._load_next()

    def _tell(self) -> None:
        for each in self.on_memory:
            each()

    # ------------------------------------------------------------------ slots

    def _enter(self, ask: Ask, memory: Memory) -> None:
        if ask.is_gone:
            return
        if memory.running >= self.traits.slots:
            memory.waiting.append(ask)
            return
        memory.running += 1
        self.running_max = max(self.running_max, memory.running)
        memory.used = self.pool.now
        ask.has_slot = True
        prompt_s = ask.prompt_tokens / (self.traits.prompt_tokens_per_s * self.traits.speed)
        self.pool.after(prompt_s + self.token_s, lambda: self._first(ask, prompt_s))

    @property
    def token_s(self) -> float:
        """Seconds of one token."""
        return 1 / (self.traits.tokens_per_s * self.traits.speed)

    def _first(self, ask: Ask, prompt_s: float) -> None:
        if ask.is_gone or self.fault == "silent":
            return
        ask.on_first()
        output_s = self.token_s * ask.output_tokens
        spent = Spent(
            prompt_tokens=ask.prompt_tokens,
            output_tokens=ask.output_tokens,
            load_s=ask.load_s,
            prompt_s=prompt_s,
            output_s=output_s,
        )
        self.pool.after(output_s - self.token_s, lambda: self._whole(ask, spent))

    def _whole(self, ask: Ask, spent: Spent) -> None:
        if ask.is_gone or self.fault == "silent":
            return
        self.answered += 1
        self._free(ask)
        self._end(ask, RunEnd.ANSWERED, spent)

    def _free(self, ask: Ask) -> None:
        ask.has_slot = False
        memory = self.memory[ask.model]
        memory.running -= 1
        while memory.waiting and memory.running < self.traits.slots:
            self._enter(memory.waiting.popleft(), memory)

    def _end(self, ask: Ask, end: RunEnd, spent: Spent = Spent()) -> None:  # noqa: B008
        if not ask.is_gone:
            ask.is_gone = True
            ask.on_end(end, spent)


@dataclass(slots=True)
class Run:
    """A placed attempt at a worker."""

    id: str
    token: bytes
    placement: m.Placement
    number: int
    ask: Ask
    #: how far it was heard; the clock runs from here
    heard: float
    has_first: bool = False


class SimulatedWorker:
    """Reaches services: runs what is placed, measures, pauses what fails, probes it, tells."""

    def __init__(
        self,
        pool: SimulatedPool,
        name: str,
        services: Sequence[SimulatedService],
        *,
        first_token_s: float = 60.0,
        token_gap_s: float = 30.0,
    ) -> None:
        self.pool, self.name = pool, name
        self.services = {each.name: each for each in services}
        self.first_token_s, self.token_gap_s = first_token_s, token_gap_s
        self.peer = Peer(name.encode(), "10.0.0.1")
        self.meters = {
            (each.name, model): ModelMeter() for each in services for model in each.models
        }
        self.runs: dict[str, Run] = {}
        self._sent: dict[str, list[float]] = {}
        self._told: dict[tuple[str, str], m.OfferedModel] = {}
        self._told_at = 0.0
        self._seq = self._work_seq = 0
        self._placements: dict[str, m.Placement] = {}
        self._is_probing: set[tuple[str, str]] = set()
        for each in services:
            each.on_memory.append(self.tell)

    def join(self) -> None:
        """Say HELLO and what there is; go on saying that it lives."""
        hello = m.WorkerHello(
            1, "m", self.name, "b", "sim", self.name, self.name, 0, ["echo"], [], 1, 1, [], []
        )
        self._say(hello)
        offered = []
        for service in self.services.values():
            models = [self._offer(service, each) for each in service.models]
            self._told |= {(service.name, each.name): each for each in models}
            offered.append(
                m.OfferedService(
                    service.name,
                    "groq" if service.is_cloud else "ollama",
                    "" if service.is_cloud else service.name,
                    f"http://{service.name}",
                    service.is_cloud,
                    0,
                    next(iter(service.models)),
                    models,
                )
            )
        self._say(m.Services([KIND], offered, [], [], []))
        self._beat()

    def hear(self, message: m.Message) -> None:
        """Take in what the broker says."""
        if isinstance(message, m.Placed):
            self._placements |= dict(zip(message.ids, message.placements, strict=True))
        elif isinstance(message, m.Work):
            self._work_seq = message.seq
            for group in message.groups:
                for task_id, token, payload in zip(
                    group.ids, group.tokens, group.payloads, strict=True
                ):
                    self._begin(task_id, token, payload)
        elif isinstance(message, m.Warm):
            self.services[message.placement.service].load(message.placement.model)
        elif isinstance(message, m.Stop):
            for task_id in message.ids:
                run = self.runs.pop(task_id, None)
                if run is not None:
                    self._meter(run).ended(run.number, self.pool.now, RunEnd.OURS)
                    self.services[run.placement.service].leave(run.ask)

    # ------------------------------------------------------------------ requests

    def _begin(self, task_id: str, token: bytes, payload: bytes) -> None:
        placement = self._placements.pop(task_id)
        job = self.pool.job_of(payload)
        job.places.append(placement.service)
        job.began.append(self.pool.now)
        meter = self.meters[placement.service, placement.model]
        number = meter.began(self.pool.now, prompt_tokens=job.prompt_tokens)
        ask = Ask(
            placement.model,
            job.prompt_tokens,
            job.output_tokens,
            lambda: self._first(run),
            lambda end, spent: self._end(run, end, spent),
        )
        run = Run(task_id, token, placement, number, ask, self.pool.now)
        self.runs[task_id] = run
        self._sent.setdefault(placement.service, []).append(self.pool.now)
        self.services[placement.service].ask(ask)
        self.pool.after(self.first_token_s, lambda: self._look(run))
        self.tell()

    def _meter(self, run: Run) -> ModelMeter:
        return self.meters[run.placement.service, run.placement.model]

    def _first(self, run: Run) -> None:
        run.has_first, run.heard = True, self.pool.now
        self.pool.note_first(run.id)
        self._meter(run).first_token(run.number, self.pool.now)
        self.pool.after(self.token_gap_s + self._output_s(run), lambda: self._look(run))
        self.tell()

    def _output_s(self, run: Run) -> float:
        return run.ask.output_tokens * self.services[run.placement.service].token_s

    def _look(self, run: Run) -> None:
        """The clock of a request: it is silent if it is still there after its time."""
        if self.runs.get(run.id) is not run or run.ask.is_gone:
            return
        limit_s = self.first_token_s
        if run.has_first:  # its tokens came one by one until now
            limit_s = self.token_gap_s + self._output_s(run)
        if self.pool.now - run.heard >= limit_s - 1e-9:
            self.services[run.placement.service].leave(run.ask)
            self._end(run, RunEnd.FAILED, Spent())

    def _end(self, run: Run, end: RunEnd, spent: Spent) -> None:
        del self.runs[run.id]
        meter = self._meter(run)
        meter.ended(run.number, self.pool.now, end, spent=spent, why="it failed")
        self.tell()
        self._seq += 1
        if end is RunEnd.ANSWERED:
            result = self.pool.result
            self._say(
                m.Results(self._seq, 1, [run.id], [run.token], bytes([m.SUCCEEDED]), [result])
            )
        else:
            self._say(m.Release(1, [run.id], [run.token], "it failed"))
        self._plan_probe(run.placement.service, run.placement.model)

    # ------------------------------------------------------------------ probes

    def _plan_probe(self, service: str, model: str) -> None:
        meter = self.meters[service, model]
        due = meter.next_change(self.pool.now)
        if meter.paused and due is not None and (service, model) not in self._is_probing:
            self._is_probing.add((service, model))
            self.pool.after(max(0.0, due - self.pool.now), lambda: self._probe(service, model))

    def _probe(self, service: str, model: str) -> None:
        fault = self.services[service].fault
        takes_s = {"": PROBE_S, "fail": REFUSE_S}.get(fault, PROBE_WITHIN_S)
        self.pool.after(takes_s, lambda: self._probed(service, model, fault))

    def _probed(self, service: str, model: str, fault: str) -> None:
        self._is_probing.discard((service, model))
        self.meters[service, model].probed(self.pool.now, fault)
        self.tell()
        self._plan_probe(service, model)

    # ------------------------------------------------------------------ words

    def tell(self) -> None:
        """Tell what changed: at once what lets more or fewer in, the rest now and then."""
        is_due = self.pool.now >= self._told_at + TELL_S
        changed: dict[str, list[m.OfferedModel]] = {}
        for service in self.services.values():
            for model in service.models:
                now, before = self._offer(service, model), self._told.get((service.name, model))
                if before is None or now == before:
                    continue
                if is_due or _gist(now) != _gist(before):
                    self._told[service.name, model] = now
                    changed.setdefault(service.name, []).append(now)
        for name, models in changed.items():
            self._told_at = self.pool.now
            self._say(m.Measured(name, models))

    def _offer(self, service: SimulatedService, model: str) -> m.OfferedModel:
        meter = self.meters[service.name, model]
        memory = service.memory.get(model)
        return m.OfferedModel(
            model,
            digest=f"digest of {model}",
            can=["completion", "tools"],
            size_bytes=4_000_000_000,
            is_loaded=memory is not None and not memory.is_loading,
            slots=service.traits.known_slots or meter.slots(self.pool.now),
            load_s=meter.load_s,
            prompt_tokens_per_s=meter.prompt_tokens_per_s,
            output_tokens_per_s=meter.output_tokens_per_s,
            requests=meter.requests,
            prompt_tokens=meter.prompt_tokens,
            output_tokens=meter.output_tokens,
            paused=meter.paused,
            budget=self._budget(service),
        )

    def _budget(self, service: SimulatedService) -> m.Budget | None:
        if not service.minute_requests:
            return None
        sent = self._sent.get(service.name, [])
        recent = [(self.pool.now - at, 100) for at in sent if self.pool.now - at < MINUTE_S]
        return m.Budget(minute_requests=service.minute_requests, recent=recent)

    def _beat(self) -> None:
        self._say(m.Heartbeat(self._work_seq, 1, len(self.runs), 0, ["echo"], [], list(self.runs)))
        self.pool.after(self.pool.heartbeat_s, self._beat)

    def _say(self, message: m.Message) -> None:
        self.pool.to_broker(self.peer, message)


def _gist(model: m.OfferedModel) -> tuple[int, bool, str]:
    return model.slots, model.is_loaded, model.paused
