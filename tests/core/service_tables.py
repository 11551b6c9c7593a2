"""Tables of services to route by, and short ways of asking them."""

from __future__ import annotations

from typing import Any, Final

from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.routing import Ask, RoutingChoice, choose
from d8mesh.core.broker.service_states import (
    Flight,
    ModelState,
)
from d8mesh.core.broker.services import ServiceTable
from d8mesh.core.broker.standings import Obstacle
from d8mesh.core.broker.worker_registry import Dialect, WorkerState
from d8mesh.core.protocol.messages import OfferedService, Services
from d8mesh.core.protocol.wish import Cloud, Wish
from tests.core.llm_services import KINDS, model, service

NOW: Final = 100.0


def table_of(*offered: OfferedService) -> ServiceTable:
    """Return a table of services, each with a worker of its own, named like it."""
    table = ServiceTable()
    for each in offered:
        worker = WorkerState(f"w-{each.id}", Dialect.MESH, host=f"host-{each.id}")
        table.tell(worker, Services(list(KINDS), [each], [], [], []), 0.0)
    return table


def worker(name: str, address: str = "") -> WorkerState:
    return WorkerState(name, Dialect.MESH, Peer(b"", address))


def tell(table: ServiceTable, who: WorkerState, *offered: OfferedService, now: float = 0.0) -> None:
    table.tell(who, Services(list(KINDS), list(offered), [], [], []), now)


def only(table: ServiceTable, service_id: str = "s", name: str = "m") -> ModelState:
    found = table.model(service_id, name)
    assert found is not None
    return found


def fly(table: ServiceTable, task_id: str, who: WorkerState, now: float = 0.0, **more: Any) -> None:
    table.begin(task_id, Flight(who, "s", "m", now, **more))


def at(table: ServiceTable, name: str, of: str = "m") -> ModelState:
    found = table.model(name, of)
    assert found is not None
    return found


def fill(table: ServiceTable, name: str, count: int = 1, of: str = "m", **flight: Any) -> None:
    """Let requests run at a service."""
    worker = at(table, name, of).worker()
    assert worker is not None
    begun = len(table.flights)
    for number in range(count):
        since = flight.get("since", NOW)
        expected_s = flight.get("expected_s", 0.0)
        table.begin(f"{name}-{begun + number}", Flight(worker, name, of, since, expected_s))


def wish(*models: str, **more: Any) -> Wish:
    return Wish(models=models, **more)


def asked(table: ServiceTable, what: Wish, now: float = NOW, **more: Any) -> RoutingChoice:
    cloud = more.pop("cloud", Cloud.NEVER)
    return choose(table, Ask(what, more.pop("priority", 5), **more), cloud, now)


def taken(table: ServiceTable, what: Wish, now: float = NOW, **more: Any) -> str | None:
    found = asked(table, what, now, **more).taken
    return None if found is None else f"{found.model.service.id}/{found.model.name}"


def obstacles(choice: RoutingChoice) -> dict[str, Obstacle | None]:
    return {each.model.service.id: each.obstacle for each in choice.weighed}


def ids(found: list[list[ModelState]]) -> list[list[str]]:
    return [[f"{model.service.id}/{model.name}" for model in tier] for tier in found]


def speedy(name: str, tokens_per_s: float, **given: Any) -> OfferedService:
    """Return a service that answers a hundred tokens in 100 / tokens_per_s seconds."""
    defaults: dict[str, Any] = {"prompt_tokens_per_s": 1e9, "output_tokens": 1000, "requests": 10}
    return service(name, [model(output_tokens_per_s=tokens_per_s, **(defaults | given))])
