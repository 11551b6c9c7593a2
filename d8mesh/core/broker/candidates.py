"""Which models of which services may run a wish, whatever stands against them just now."""

from __future__ import annotations

from typing import Final

from d8mesh.core.broker.service_states import (
    ModelState,
    ServiceState,
)
from d8mesh.core.broker.services import ServiceTable
from d8mesh.core.protocol.model_names import plain_name
from d8mesh.core.protocol.wish import Wish, parse_wish

#: The kind of service whose small model answers only what wishes for none and nobody else can.
LAST_RESORT_KIND: Final = "embedded"
#: Wishes whose candidates are remembered until something changes.
MAX_FOUND: Final = 10_000
#: What a wish needs that names nothing.
CHATS: Final = frozenset({"completion"})
#: Models that a refusal names.
MAX_NAMED_MODELS: Final = 20


def tiers(table: ServiceTable, wish: Wish, *, is_expected: bool) -> list[list[ModelState]]:
    """Return the models that may run a wish: those of a later tier only if no earlier one can.

    Args:
        is_expected: a wish that is no must waits for its model too.
    """
    key = (wish.models, wish.is_strict, wish.needs, wish.machine, is_expected)
    found = table.tiers.get(key)
    if found is None:
        found = [_named(table, name, wish) for name in wish.models]
        if not wish.models or (not wish.is_strict and not is_expected and not any(found)):
            none = Wish(needs=wish.needs, machine=wish.machine)
            found += tiers(table, none, is_expected=False) if wish.models else defaults(table, wish)
        found = [tier for tier in found if tier]
        if len(table.tiers) > MAX_FOUND:
            table.tiers.clear()
        table.tiers[key] = found
    return found


def _named(table: ServiceTable, name: str, wish: Wish) -> list[ModelState]:
    """Return all models of a name, and those of other names with the same content."""
    named = table.by_name.get(plain_name(name), [])
    digests = {model.info.digest for model in named if model.info.digest}
    alike = [model for digest in sorted(digests) for model in table.by_digest[digest]]
    by_service: dict[str, ModelState] = {}
    for model in (*named, *alike):
        if _suits(model, wish):
            by_service.setdefault(model.service.id, model)
    return list(by_service.values())


def defaults(table: ServiceTable, wish: Wish) -> list[list[ModelState]]:
    """Return what runs without a wish: defaults, and what is loaded; else what can do it."""
    found: list[ModelState] = []
    for service in table.services.values():
        able = [model for model in service.models.values() if _suits(model, wish)]
        ready = [model for model in able if model.name == service.default or model.info.is_loaded]
        found += ready or ([model for model in able if _is_sure(model, wish)] if wish.needs else [])
    last = [model for model in found if model.service.kind == LAST_RESORT_KIND]
    return [[model for model in found if model not in last], last]


def _suits(model: ModelState, wish: Wish) -> bool:
    can = model.info.can
    if can and not needs_of(wish) <= set(can):
        return False
    return not wish.machine or is_at(model.service, wish.machine)


def needs_of(wish: Wish) -> frozenset[str]:
    """Return what a model must be capable of: what says nothing of it is to be chatted with."""
    return wish.needs or CHATS


def _is_sure(model: ModelState, wish: Wish) -> bool:
    return wish.needs <= set(model.info.can)


def is_at(service: ServiceState, machine: str) -> bool:
    """Return whether a service is at the machine, worker or service of that name."""
    wanted = machine.lower()
    names = {service.id.lower(), service.machine.lower()}
    for worker, told in service.told.values():
        names |= {told.id.lower(), worker.worker_id.lower(), worker.host.lower()}
    return wanted in names


def why_never(table: ServiceTable, wish: Wish) -> str:
    """Return why no service will ever run a wish as things are, for people; empty: one may."""
    if tiers(table, wish, is_expected=False):
        return ""
    models = [
        model
        for service in table.services.values()
        for model in service.models.values()
        if not wish.machine or is_at(service, wish.machine)
    ]
    if not models:
        return ""  # it may come
    names = {plain_name(name) for name in wish.models}
    named = [model for model in models if model.plain in names]
    if wish.is_strict and not named:
        listed = list(dict.fromkeys(model.name for model in models))
        more = f" and {len(listed) - MAX_NAMED_MODELS} more"
        told = ", ".join(listed[:MAX_NAMED_MODELS])
        told += more if len(listed) > MAX_NAMED_MODELS else ""
        return (
            f"model_strict: the model {wish.models[0]!r} is not installed here, and no "
            f"worker of the mesh offers it; installed: {told}"
        )
    needs = ", ".join(sorted(needs_of(wish)))
    if named:
        return f"model: {named[0].name!r} cannot do all that this needs: {needs}"
    return f"none of the models of the mesh can do all that this needs: {needs}"


def concerned(table: ServiceTable, text: str) -> frozenset[ModelState]:
    """Return the models that may run a wish, whatever stands against them now."""
    found = table.concerned.get(text)
    if found is None:
        wish = parse_wish(text)
        named = tiers(table, wish, is_expected=False)
        found = frozenset(model for tier in named for model in tier)
        found = table.alike.setdefault(found, found)  # equal ones are the same one
        if len(table.concerned) > MAX_FOUND:
            table.concerned.clear()
            table.alike.clear()
        table.concerned[text] = found
    return found
