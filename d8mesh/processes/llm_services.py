"""Joins a worker to the LLM services that it reaches: what it offers, what is said of it.

A service need not be there: the worker joins with what it can do, looks for each service again and
again, and offers its models as long as it answers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from d8mesh.backends.backend import Availability, Backend
from d8mesh.backends.services import PoolListener, RequestClocks, Service, ServicePool
from d8mesh.config import Config
from d8mesh.core.protocol.chat import JsonObject
from d8mesh.core.protocol.messages import OfferedModel, OfferedService
from d8mesh.edge.logs import event
from d8mesh.handlers.llm import embedding_handlers, is_worth_retrying, llm_handlers
from d8mesh.handlers.model_admin import admin_handlers
from d8mesh.nodes.worker import Worker
from d8mesh.processes.services_console import ServicesConsole

_log: Final = logging.getLogger("d8mesh.worker")


class LlmServices:
    """The LLM services of one worker.

    Args:
        worker: gets the handlers at once, and offers them while a service answers.
        backends: one for each service.
        console: says what people should know.
        warn: told by the handlers what people should know.
        on_seen: told of each service whose offer has changed; true: it mends what is missing.

    Thread: any.
    """

    def __init__(
        self,
        worker: Worker,
        backends: Iterable[Backend],
        *,
        config: Config,
        console: ServicesConsole,
        warn: Callable[[str], None] = lambda text: None,
        on_seen: Callable[[Service], bool] = lambda service: False,
    ) -> None:
        self._worker, self._console, self._on_seen = worker, console, on_seen
        told = PoolListener(
            offer=self._offer,
            measured=self._measured,
            described=self._described,
            seen=self._seen,
        )
        clocks = RequestClocks(first_token_s=config.first_token_s, token_gap_s=config.token_gap_s)
        self._others = worker.task_types
        self.pool = ServicePool(backends, told=told, clocks=clocks)
        self._chats = llm_handlers(self.pool, warn=warn)
        self._embeds = embedding_handlers(self.pool, warn=warn)
        self._changes = admin_handlers(self.pool)
        self._types: tuple[str, ...] = ()
        unseen = Availability(is_up=False, reason="not asked yet")
        worker.offer(self._others, backend=_body(self.pool.services, unseen))
        for name, handler in (self._chats | self._embeds).items():
            worker.register(name, handler, retry=is_worth_retrying)
        for name, handler in self._changes.items():
            worker.register(name, handler)
        worker.on_warm(self.pool.warm)

    def start(self, stop: threading.Event) -> None:
        """Keep all services in sight until `stop` is set; say what their tasks are."""
        self._console.begin(self.pool.services, types=(*self._chats, *self._embeds))
        self.pool.start(stop)

    def keep_in(self, folder: Path) -> None:
        """Let what belongs to an account be kept in the worker's own folder."""
        for service in self.pool.services:
            keep = getattr(service.backend, "keep_in", None)
            if keep is not None:
                keep(folder)

    def close(self) -> None:
        """End what services have running here."""
        for service in self.pool.services:
            close = getattr(service.backend, "close", None)
            if close is not None:
                close()

    def report(self) -> dict[str, object]:
        """Return the worker's status page, with its services."""
        body = self._worker.status()
        types = sorted({*self._worker.task_types, *self._types})
        return body | {"task_types": types, "services": self.pool.report()}

    # ------------------------------------------------------------------ what changes

    def _offer(self, services: Sequence[OfferedService]) -> None:
        seen = self.pool.together()
        is_managed = any(map(_can_be_changed, self.pool.services))
        changes = tuple(self._changes) if is_managed else ()
        types = (*(self._chats if seen.is_up else ()), *(self._embeds if seen.embedders else ()))
        self._types = types
        self._worker.offer(
            (*self._others, *changes),
            (*seen.models, *seen.embedders),
            backend=_body(self.pool.services, seen),
            trouble=seen.reason,
        )
        self._worker.offer_services(types, services)
        for service in services:
            self._heard(service.id, service.models)

    def _measured(self, service_id: str, models: Sequence[OfferedModel]) -> None:
        self._worker.measured(service_id, models)
        self._heard(service_id, models)

    def _described(self, service_id: str, model: str, told: JsonObject) -> None:
        self._worker.described(service_id, model, msgspec.msgpack.encode(told))

    def _seen(self, service: Service, before: Availability) -> None:
        seen = service.seen
        why = seen.reason or seen.warning
        level = logging.WARNING if why else logging.INFO
        event(
            _log,
            level,
            "backend",
            service=service.id,
            kind=service.backend.kind,
            up=seen.is_up,
            url=seen.url,
            models=len(seen.models),
            why=why,
        )
        is_being_mended = self._on_seen(service)
        self._console.changed(
            service,
            before,
            self.pool.services,
            types=tuple(self._chats),
            is_being_mended=is_being_mended,
        )

    def _heard(self, service_id: str, models: Sequence[OfferedModel]) -> None:
        service = self.pool.named(service_id)
        if service is None:
            return
        beside = [each for each in self.pool.services if each.machine == service.machine]
        where = service.machine if len(beside) == 1 else service.seen.url or service.id
        self._console.heard(service_id, where, models)


def _can_be_changed(service: Service) -> bool:
    """Return whether models can be pulled there now."""
    return service.managed is not None and bool(service.seen.url)


def _body(services: Sequence[Service], seen: Availability) -> dict[str, object]:
    # one without a model is up as well: it gets one when somebody wants it to
    is_up = any(each.is_useful or _can_be_changed(each) for each in services)
    body: dict[str, object] = {
        "name": "+".join(dict.fromkeys(each.backend.kind for each in services)),
        "url": seen.url or None,
        "is_up": is_up,
        "models": list(seen.models),
        "default_model": seen.default or None,
        "not_offered": dict(seen.unfit),
    }
    if seen.reason or seen.warning:
        body["reason"] = seen.reason or seen.warning
    return body
