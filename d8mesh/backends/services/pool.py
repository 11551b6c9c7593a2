"""All LLM services of one worker: looked after side by side, told of, and asked.

Each service has a thread of its own that probes it, so that one that hangs delays no other. A
request goes where its placement says; without one (somebody asks this worker directly, or an
orchestrator that knows no services) the pool chooses.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Final

from msgspec import structs

from d8mesh.backends.backend import Availability, Backend, ChatRun
from d8mesh.backends.services.service import RequestClocks, Service
from d8mesh.core.protocol.chat import (
    ChatRequest,
    Completion,
    EmbeddingRequest,
    Embeddings,
    JsonObject,
)
from d8mesh.core.protocol.messages import (
    MAX_SERVICES,
    Budget,
    OfferedModel,
    OfferedService,
    Placement,
)
from d8mesh.edge.logs import event
from d8mesh.errors import BackendUnavailableError

_log: Final = logging.getLogger("d8mesh.worker")
#: How often a service is asked what it offers.
PROBE_EVERY_S: Final = 10.0
#: Looks at one service are at least so far apart, whatever happens.
PROBE_APART_S: Final = 0.2
#: A figure that has changed by less is not told again.
WORTH_TELLING: Final = 0.05
#: That a model stays in memory for so much longer or shorter is told: each answer lengthens it.
EXPIRY_TOLD_S: Final = 10.0
#: What a model of this kind answers is a makeshift: it gets no request that others can have.
MAKESHIFT: Final = "embedded"
#: What `OfferedModel` says in figures; of all else each change is told.
_FIGURES: Final = (
    "load_s",
    "prompt_tokens_per_s",
    "output_tokens_per_s",
    "requests",
    "prompt_tokens",
    "output_tokens",
)
_figures: Final = attrgetter(*_FIGURES)
_told_at_once: Final = attrgetter(
    *(
        name
        for name in OfferedModel.__struct_fields__
        if name not in (*_FIGURES, "budget", "expires_s")
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolListener:
    """Who is told what changes. Called from any thread; must not wait."""

    #: the services, or what they are: all of them
    offer: Callable[[Sequence[OfferedService]], None] = lambda services: None
    #: models of one service, as they are now
    measured: Callable[[str, Sequence[OfferedModel]], None] = lambda service, models: None
    #: what a service tells of a model at length, once for each content
    described: Callable[[str, str, JsonObject], None] = lambda service, model, told: None
    #: people should know: a service, and what it offered before
    seen: Callable[[Service, Availability], None] = lambda service, before: None


@dataclass(slots=True)
class _Said:
    """What was told of a service."""

    service: Service
    outline: tuple[object, ...]
    models: dict[str, OfferedModel]
    #: by model, when it was told (monotonic seconds)
    at: dict[str, float]


class ServicePool:
    """The services of one worker.

    Args:
        backends: one for each; more can come and go later.

    Thread: any.
    """

    def __init__(
        self,
        backends: Iterable[Backend],
        *,
        told: PoolListener | None = None,
        clocks: RequestClocks | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._told, self._clocks, self._clock = told or PoolListener(), clocks, clock
        self._lock = threading.Lock()
        self._said: dict[str, _Said] = {}
        self._stop: threading.Event | None = None
        self.services: tuple[Service, ...] = ()
        for backend in backends:
            self.add(backend)

    # ------------------------------------------------------------------ who is there

    def add(self, backend: Backend) -> Service | None:
        """Look after one more service; None: there are too many."""
        service = Service(
            backend,
            clocks=self._clocks,
            on_change=self._tell,
            on_described=self._told.described,
            beside=_on_a_thread,
            clock=self._clock,
        )
        with self._lock:
            if len(self.services) >= MAX_SERVICES:
                return None
            self.services = (*self.services, service)
            stop = self._stop
        if stop is not None:
            self._start(service, stop)
        return service

    def drop(self, service: Service) -> None:
        """Forget a service: it is reached from here no longer."""
        with self._lock:
            self.services = tuple(each for each in self.services if each is not service)
        service.needs_look.set()
        self._tell(service)

    def named(self, service_id: str) -> Service | None:
        """Return the service of this id; None: it is not reached from here."""
        return next((each for each in self.services if each.id == service_id), None)

    # ------------------------------------------------------------------ kept in sight

    def start(self, stop: threading.Event) -> None:
        """Keep all of them in sight until `stop` is set, each by a thread of its own."""
        with self._lock:
            self._stop, services = stop, self.services
        for service in services:
            self._start(service, stop)

    def wake(self) -> None:
        """Have all of them looked at now."""
        for service in self.services:
            service.needs_look.set()

    def look(self) -> None:
        """Look at each of them once, side by side; takes as long as the slowest."""
        threads = [
            threading.Thread(target=self._look, args=(each,), name="probe", daemon=True)
            for each in self.services
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _start(self, service: Service, stop: threading.Event) -> None:
        threading.Thread(target=self._keep, args=(service, stop), name="probe", daemon=True).start()

    def _keep(self, service: Service, stop: threading.Event) -> None:
        while not stop.is_set() and service in self.services:
            try:
                self._look(service)
            except Exception as error:  # nobody else would look at it
                event(_log, logging.ERROR, "probe.failed", service=service.id, error=repr(error))
            if stop.wait(PROBE_APART_S):
                return
            service.needs_look.wait(service.next_look_s(PROBE_EVERY_S))

    def _look(self, service: Service) -> None:
        before = service.seen
        if service.look():
            self._told.seen(service, before)

    # ------------------------------------------------------------------ told

    def _tell(self, service: Service, model: str | None = None) -> None:
        """Tell what has changed of a service, or of one of its models, if that is worth it."""
        with self._lock:
            said = self._said.get(service.id)
            if said is not None and said.service is service and model is not None:
                now = service.offered_model(model)
                self._tell_models(said, [] if now is None else [now])
            elif said is not None and said.service not in self.services:
                self._tell_all()
            elif self.named(service.id) not in (service, None):
                pass  # not asked yet, or another way to a service that is there
            elif said is None:
                self._tell_all()
            else:
                offer = service.offered()
                if _outline(offer) == said.outline:
                    self._tell_models(said, offer.models)
                else:
                    self._tell_all()

    def _tell_models(self, said: _Said, models: Sequence[OfferedModel]) -> None:
        now = self._clock()
        news = [
            model
            for model in models
            if (before := said.models.get(model.name))
            and is_worth_telling(before, model, now - said.at[model.name])
        ]
        if news:
            said.models |= {model.name: model for model in news}
            said.at |= {model.name: now for model in news}
            self._told.measured(said.service.id, news)

    def _tell_all(self) -> None:
        self._said, offers = {}, []
        for service in self.services:
            if service.id and service.id not in self._said:
                offer = service.offered()
                models = {model.name: model for model in offer.models}
                at = dict.fromkeys(models, self._clock())
                self._said[service.id] = _Said(service, _outline(offer), models, at)
                offers.append(offer)
        self._told.offer(tuple(offers))

    # ------------------------------------------------------------------ asked

    def chat(self, request: ChatRequest, run: ChatRun) -> Completion:
        """Return the answer of the service that `run` names, or of one that suits.

        Raises:
            BackendUnavailableError: that service is not reached from here, or none answers now.
            D8Error: see `LlmService.chat`.
        """
        service = self._placed(run.placement) or self._suiting(request.models)
        return service.chat(request, run)

    def embed(self, request: EmbeddingRequest, run: ChatRun) -> Embeddings:
        """Return the vectors of the service that `run` names, or of one that suits."""
        service = self._placed(run.placement) or self._suiting([request.model])
        return service.embed(request, run)

    def warm(self, placement: Placement) -> None:
        """Load a model at the service that `placement` names.

        Raises:
            BackendError: it does not come into memory, or the service is not reached from here.
        """
        service = self._placed(placement)
        assert service is not None
        service.warm(placement)

    def _placed(self, placement: Placement | None) -> Service | None:
        if placement is None:
            return None
        service = self.named(placement.service)
        if service is None:
            known = ", ".join(each.id for each in self.services) or "none"
            raise BackendUnavailableError(
                f"the service {placement.service} is not reached from here; those that are: {known}"
            )
        return service

    def _suiting(self, names: Sequence[str]) -> Service:
        """Return the freest service of those that have the first of `names` that is there."""
        if not any(each.is_asked for each in self.services):
            self.look()
        up = [each for each in self.services if each.is_useful and not each.backend.is_cloud]
        wished = next((name for name in names if any(each.has(name) for each in up)), "")
        having = [each for each in up if wished and each.has(wished)]
        able = having or _without_makeshift(up)
        free = [each for each in able if not each.paused(_model_of(each, wished))]
        if able and not free:
            whys = "; ".join(dict.fromkeys(each.paused(_model_of(each, wished)) for each in able))
            raise BackendUnavailableError(f"paused until a probe succeeds: {whys}")
        if not free:
            whys = "; ".join(each.seen.reason for each in self.services if each.seen.reason)
            raise BackendUnavailableError(whys or "no LLM service is configured here")
        return min(free, key=lambda each: each.load_of(_model_of(each, wished)))

    def together(self) -> Availability:
        """Return what all of them offer as one, each model once."""
        return together(self.services)

    def report(self) -> list[dict[str, object]]:
        """Return all of them for the status page."""
        return [each.report() for each in self.services]


def _on_a_thread(do: Callable[[], None]) -> None:
    """Do something beside all else; at once if the system has no more threads."""
    try:
        threading.Thread(target=do, name="check", daemon=True).start()
    except RuntimeError:
        do()


def together(services: Sequence[Service]) -> Availability:
    """Return what several services offer as one: each model once, in order of the services.

    Those that are down are no reason while another is up, but a warning.
    """
    up = [each.seen for each in services if each.seen.is_up]
    useful = [each.seen for each in services if each.is_useful]
    several = len(services) > 1
    reasons = [_told_of(each, several) for each in services if each.seen.reason]
    warnings = [each.warning for each in up if each.warning]
    first = up[0] if up else Availability(is_up=False)
    models = tuple(dict.fromkeys(name for each in up for name in each.models))
    return replace(
        first,
        is_up=bool(up),
        url=", ".join(each.url for each in useful if each.url),
        models=models,
        embedders=tuple(dict.fromkeys(name for each in useful for name in each.embedders)),
        default=next((each.default for each in up if each.default), ""),
        loaded=tuple(dict.fromkeys(name for each in useful for name in each.loaded)),
        unfit={
            name: why
            for each in services
            for name, why in each.seen.unfit.items()
            if name not in models
        },
        reason="" if up else "; ".join(reasons) or "no LLM service is configured here",
        warning="; ".join([*warnings, *reasons]) if up else "",
    )


def _told_of(service: Service, is_named: bool) -> str:
    kind, reason = service.backend.kind, service.seen.reason
    return f"{kind}: {reason}" if is_named else reason


def _model_of(service: Service, wished: str) -> str:
    return service.has(wished) or service.seen.default


def _without_makeshift(services: Sequence[Service]) -> Sequence[Service]:
    """Return those that run what wishes for no model: the makeshift only where it is all."""
    up = [each for each in services if each.seen.is_up]
    return [each for each in up if each.backend.kind != MAKESHIFT] or up


def _outline(service: OfferedService) -> tuple[object, ...]:
    """Return what `Measured` cannot say."""
    models = tuple((m.name, m.digest, tuple(m.can), m.size_bytes) for m in service.models)
    place = (service.kind, service.machine, service.url, service.is_cloud)
    return (*place, service.default, service.why, models)


def is_worth_telling(before: OfferedModel, now: OfferedModel, elapsed_s: float = 0.0) -> bool:
    """Tell whether a model has changed so much in this time that the mesh should know."""
    if (min(before.expires_s, 0), not before.expires_s) != (
        min(now.expires_s, 0),
        not now.expires_s,
    ):
        return True
    if now.expires_s > 0 and abs(before.expires_s - elapsed_s - now.expires_s) > EXPIRY_TOLD_S:
        return True
    if _told_at_once(before) != _told_at_once(now):
        return True
    if _lasting(before) != _lasting(now):
        return True
    figures = zip(_figures(before), _figures(now), strict=True)
    return any(abs(new - old) > WORTH_TELLING * old for old, new in figures)


def _is_kept_otherwise(before_s: float, now_s: float, elapsed_s: float) -> bool:
    """Tell whether it stays in memory for another time than was told."""
    if min(before_s, now_s) <= 0:  # for ever, or not told
        return before_s != now_s
    return abs(before_s - elapsed_s - now_s) > EXPIRY_TOLD_S


def _lasting(model: OfferedModel) -> Budget | None:
    """Return of a budget what does not change by the passing of time alone.

    Each request of the last minute is one of the day's too.
    """
    if model.budget is None:
        return None
    return structs.replace(model.budget, recent=[], day_left_s=0.0, blocked_s=0.0)
