"""Histories in which services answer half of the tasks: the same promises hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from d8mesh.core.protocol import messages as m
from tests.simulation.world import World

TYPES = ("llm",)
#: What tasks wish for: nothing, a model, one that must be, the first of two that can.
WISHES = ("", "m", "=m", "=n|m;cloud=never")


def reaches_services(world: World) -> None:
    """Have every worker reach a service of its own, and one that all reach."""
    shared = _service("shared", "m", slots=2)
    for number, worker in enumerate(world.workers):
        worker.offer(
            TYPES, [_service(f"own-{number}", "m" if number % 2 else "n", slots=1), shared]
        )
    for client in world.clients:
        client.kinds = (("echo", ""), *((TYPES[0], wish) for wish in WISHES))


def _service(name: str, model: str, *, slots: int) -> m.OfferedService:
    offered = m.OfferedModel(model, is_loaded=True, slots=slots)
    return m.OfferedService(name, "ollama", name, "", False, 0, model, [offered])


@pytest.mark.parametrize("seed", range(25))
def test_no_history_breaks_a_promise_where_services_answer(tmp_path: Path, seed: int) -> None:
    assert World(seed, tmp_path, plant=reaches_services).run().tasks > 0


@pytest.mark.parametrize("seed", range(3))
def test_in_a_calm_world_every_placed_task_runs_once(tmp_path: Path, seed: int) -> None:
    world = World(seed, tmp_path, is_calm=True, plant=reaches_services)
    counts = world.run()
    assert not counts.faults
    unrun = sum(state != 1 for state, _ in world.safety.outcomes.values())  # deadlines
    assert counts.executions <= counts.tasks <= counts.executions + unrun
