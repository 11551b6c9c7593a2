"""The network between the nodes: connections whose frames are late, lost, repeated or reordered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.simulation.people import key_of

if TYPE_CHECKING:
    from tests.simulation.orchestrator import Orchestrator
    from tests.simulation.world import World


@dataclass(slots=True)
class Weather:
    """How unkind the network of one history is; chances per frame."""

    is_ordered: bool = False
    drop: float = 0.0
    delay: float = 0.0
    repeat: float = 0.0
    longest_delay_s: float = 8.0


class Wire:
    """One connection of a node to an orchestrator; useless after the node closed it.

    An orchestrator that was started again is reached over the same connection, as with TCP
    that connects anew by itself, but knows nobody there.
    """

    def __init__(
        self, world: World, node: str, orchestrator: Orchestrator, heard: Callable[[bytes], None]
    ) -> None:
        self._world, self._node, self._orchestrator = world, node, orchestrator
        self._heard = heard
        self._life = orchestrator.life
        self._routing_id = world.rng.randbytes(5)
        self._is_open = True
        self._arrivals = [0.0, 0.0]
        self._join(orchestrator)

    def send(self, frame: bytes) -> None:
        """Send to the orchestrator."""
        target = self._orchestrator
        if target.life != self._life:
            self._life = target.life
            self._join(target)
        life, routing_id = self._life, self._routing_id
        self._carry(0, lambda: target.hear(routing_id, frame, life))

    def _join(self, orchestrator: Orchestrator) -> None:
        orchestrator.keys[self._routing_id] = key_of(self._node)
        orchestrator.routes[self._routing_id] = self._to_node

    def close(self) -> None:
        """Let go; what is under way to the node is lost."""
        self._is_open = False
        self._orchestrator.routes.pop(self._routing_id, None)

    def _to_node(self, frame: bytes) -> None:
        self._carry(1, lambda: self._heard(frame) if self._is_open else None)

    def _carry(self, direction: int, deliver: Callable[[], None]) -> None:
        world, weather = self._world, self._world.weather
        rng, faults = world.rng, world.counts.faults
        if (self._node, self._orchestrator.name, direction) in world.cut:
            faults["cut off"] += 1
            return
        if weather.drop and rng.random() < weather.drop:
            faults["dropped"] += 1
            return
        arrival = world.now + rng.random() * 0.02
        if weather.delay and rng.random() < weather.delay:
            faults["delayed"] += 1
            arrival += rng.random() * weather.longest_delay_s
        if weather.is_ordered:
            arrival = self._arrivals[direction] = max(arrival, self._arrivals[direction])
        elif weather.repeat and rng.random() < weather.repeat:
            faults["repeated"] += 1
            world.after(arrival - world.now + rng.random() * 3, deliver)
        world.after(arrival - world.now, deliver)
