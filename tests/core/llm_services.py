"""Mesh workers that reach LLM services, as the broker's brain hears of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from d8mesh.core.broker.effects import Peer
from d8mesh.core.protocol import messages as m
from tests.core.wired_broker import WiredBroker

KINDS = ("agent_action", "code_generation")


def model(name: str = "m", **given: Any) -> m.OfferedModel:
    """Return a model that is loaded and has answered before."""
    defaults: dict[str, Any] = {
        "digest": f"sha-{name}", "can": ["completion"], "is_loaded": True, "requests": 10,
        "prompt_tokens": 1000, "output_tokens": 1000,
        "prompt_tokens_per_s": 1000.0, "output_tokens_per_s": 100.0,
    }  # fmt: skip
    return m.OfferedModel(name, **(defaults | given))


def service(
    name: str = "s", models: Sequence[m.OfferedModel] | None = None, **given: Any
) -> m.OfferedService:
    """Return a service on the LAN with one model."""
    offered = [model()] if models is None else list(models)
    defaults: dict[str, Any] = {
        "kind": "ollama", "machine": f"machine-{name}", "url": "", "is_cloud": False, "slots": 0,
        "default": offered[0].name if offered else "",
    }  # fmt: skip
    return m.OfferedService(name, models=offered, **(defaults | given))


def offer(
    broker: WiredBroker,
    peer: Peer,
    services: Sequence[m.OfferedService],
    *,
    held: Sequence[tuple[str, str, str]] = (),
    kinds: Sequence[str] = KINDS,
) -> None:
    """Let a worker tell of all that it reaches."""
    ids, where, names = ([row[column] for row in held] for column in range(3))
    broker.say(peer, m.Services(list(kinds), list(services), ids, where, names))


def host(
    broker: WiredBroker, name: str, services: Sequence[m.OfferedService], **given: Any
) -> Peer:
    """Let a worker join that reaches services."""
    peer = broker.worker(name, types=("echo",), **given)
    offer(broker, peer, services)
    return peer


def placed(broker: WiredBroker, peer: Peer) -> dict[str, tuple[str, str]]:
    """Return task id -> service and model that a worker was told since the last call."""
    return {
        task_id: (where.service, where.model)
        for message in broker.got(peer, m.Placed)
        for task_id, where in zip(message.ids, message.placements, strict=True)
    }
