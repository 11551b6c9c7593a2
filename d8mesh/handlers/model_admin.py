"""Tasks that change which models a service has installed, and which it has in memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Final

from d8mesh.backends.backend import PullProgress
from d8mesh.backends.services import Service, ServicePool
from d8mesh.backends.services.changes import (
    RESERVE_BYTES,
    disk_of,
    gigabytes,
    pull_model,
    remove_model,
)
from d8mesh.config import is_model_name
from d8mesh.core.protocol.messages import Placement
from d8mesh.core.protocol.model_names import matching
from d8mesh.edge.room import memory_bytes
from d8mesh.errors import BackendUnavailableError, InvalidTaskError
from d8mesh.handlers import Data, Handler, TaskContext
from d8mesh.handlers.field_values import keep_alive_of
from d8mesh.handlers.retrying import Reject

#: What these tasks are called.
PULL: Final = "model_pull"
REMOVE: Final = "model_remove"
LOAD: Final = "model_load"
UNLOAD: Final = "model_unload"
#: Progress is emitted at most this often.
EMIT_APART_S: Final = 0.25
#: A model takes about so much memory for each byte of its files: its cache comes beside.
MEMORY_PER_BYTE: Final = 1.2
#: How long a removed or new model may take to be seen by the pool.
SEEN_S: Final = 5.0


def admin_handlers(pool: ServicePool) -> dict[str, Handler]:
    """Return the handlers of the task types that change models.

    ``data`` holds ``model``, and where: ``machine`` (a service's id or a machine's name), unless
    the broker says it; a pull with ``check`` says whether the model would fit, and pulls nothing;
    a load with ``keep_alive`` says how long the model stays in memory.
    """

    def model_pull(data: Data, context: TaskContext) -> object:
        name, service = _model_in(data), _target(pool, data, context)
        if data.get("check") is True:
            return _fit(service, _size_in(data))
        with _refusals():
            return _pulled(service, name, context)

    def model_remove(data: Data, context: TaskContext) -> object:
        name, service = _model_in(data), _target(pool, data, context)
        own = service.has(name) or matching(name, service.seen.unfit)  # also what is not offered
        info = service.installed.get(own or "")
        freed = 0 if info is None else info.size_bytes
        if own is not None:
            with _refusals():
                remove_model(service, own, _emitter(context), lambda: context.is_cancelled)
            _await(lambda: service.has(name) is None)
        told = {"freed_bytes": freed, "was_there": own is not None}
        return _result("removed", own or name, service) | told

    def model_load(data: Data, context: TaskContext) -> object:
        name, service = _model_in(data), _target(pool, data, context)
        own, began = _installed(service, name), time.monotonic()
        with _refusals():
            keep_alive = keep_alive_of(data)
            options = {} if context.placement is None else context.placement.options
            service.warm(Placement(service.id, own, options=options), keep_alive=keep_alive)
        took = {"load_s": round(time.monotonic() - began, 3)}
        return _result("loaded", own, service) | took

    def model_unload(data: Data, context: TaskContext) -> object:
        name, service = _model_in(data), _target(pool, data, context)
        own = _installed(service, name)
        with _refusals():
            service.unload(own)
        _await(lambda: not service.is_loaded(own))
        return _result("unloaded", own, service)

    return {PULL: model_pull, REMOVE: model_remove, LOAD: model_load, UNLOAD: model_unload}


def _installed(service: Service, name: str) -> str:
    """Return what the service itself calls the model."""
    own = service.has(name)
    if own is None:
        known = ", ".join(service.installed) or "none"
        raise Reject(f"model: {name!r} is not at {service.machine} ({service.id}), but {known}")
    return own


def _pulled(service: Service, name: str, context: TaskContext) -> dict[str, object]:
    was_there = service.has(name) is not None
    pull_model(service, name, _emitter(context), lambda: context.is_cancelled)
    _await(lambda: service.has(name) is not None)
    own = service.has(name) or name
    info = service.installed.get(own)
    told = {"size_bytes": 0 if info is None else info.size_bytes, "was_there": was_there}
    return _result("pulled", own, service) | told


def _emitter(context: TaskContext) -> Callable[[PullProgress], None]:
    """Return what emits progress, not too often."""
    said = float("-inf")

    def emit(progress: PullProgress) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= EMIT_APART_S or progress.status == "success":
            said = now
            completed, total = progress.completed_bytes, progress.total_bytes
            context.emit({"status": progress.status, "completed": completed, "total": total})

    return emit


def _result(output: str, model: str, service: Service) -> dict[str, object]:
    return {
        "success": True,
        "output": output,
        "model": model,
        "service": service.id,
        "machine": service.machine,
        "backend": service.backend.kind,
    }


def _fit(service: Service, size_bytes: int) -> dict[str, object]:
    """Say whether a model of this size would fit there; null where nobody knows."""
    free = disk_of(service)()
    memory = memory_bytes() if service.is_local else None
    why = ""
    if free is not None and size_bytes + RESERVE_BYTES > free:
        why = f"its files take {gigabytes(size_bytes)}, {gigabytes(free)} of disk are free"
    elif memory is not None and size_bytes * MEMORY_PER_BYTE > memory:
        needed = gigabytes(int(size_bytes * MEMORY_PER_BYTE))
        why = f"it needs about {needed} of memory, the machine has {gigabytes(memory)}"
    return {
        "success": True,
        "fits": not why,
        "why": why,
        "disk_free_bytes": free,
        "memory_bytes": memory,
        "size_bytes": size_bytes,
        "service": service.id,
        "machine": service.machine,
    }


def _target(pool: ServicePool, data: Data, context: TaskContext) -> Service:
    """Return the service that is to change: the placement's, the one named, or the only one."""
    placement = context.placement
    where = placement.service if placement is not None else str(data.get("machine") or "")
    able = [each for each in pool.services if each.managed is not None]
    named = [each for each in able if where.lower() in (each.id.lower(), each.machine.lower())] or (
        [each for each in able if each.is_local] if not where else []
    )
    up = [each for each in named if each.seen.url]
    if up:
        return up[0]
    if named:
        raise BackendUnavailableError(named[0].seen.reason)
    known = ", ".join(f"{each.machine} ({each.id})" for each in able) or "none"
    raise Reject(f"no service {where or 'of this machine'} to change models of; there are: {known}")


def _model_in(data: Data) -> str:
    name = data.get("model")
    if not (isinstance(name, str) and is_model_name(name)):
        raise Reject("model: expected the name of a model, such as qwen2.5:3b")
    return name


def _size_in(data: Data) -> int:
    size = data.get("size_bytes")
    return size if isinstance(size, int) and size > 0 else 0


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Make a refusal of what can never be done: it is not tried again."""
    try:
        yield
    except InvalidTaskError as error:
        raise Reject(str(error)) from error


def _await(is_so: Callable[[], bool]) -> None:
    """Wait a little until the pool has seen the change."""
    until = time.monotonic() + SEEN_S
    while not is_so() and time.monotonic() < until:
        time.sleep(0.05)
