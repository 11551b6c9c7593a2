"""Whoever runs the orchestrators of the simulation: approves, revokes and forgets keys meanwhile.

It has dice of its own, so that what else happens in a history does not depend on it.
"""

from __future__ import annotations

import hashlib
import random
from functools import partial
from typing import TYPE_CHECKING, Final

from d8mesh.core.broker.members_view import Membership
from d8mesh.core.protocol.messages import MemberChange

if TYPE_CHECKING:
    from tests.simulation.orchestrator import Orchestrator
    from tests.simulation.world import World

#: The longest that somebody who was shown out stays out.
OUT_S: Final = 20.0
#: How soon somebody who waits is seen, per step.
SEEN: Final = 0.2


def key_of(node: str) -> bytes:
    """Return the public key of a node, the same in all its lives."""
    return hashlib.blake2b(node.encode(), digest_size=32).digest()


#: The key of the person, in the data folder of each orchestrator.
PERSON: Final = key_of("person")


class People:
    """Looks after who may join."""

    def __init__(self, world: World, seed: int, *, is_calm: bool) -> None:
        self._world = world
        self._dice = random.Random(f"people {seed}")
        self._chance = 0.0 if is_calm else self._dice.choice((0.0, 0.01, 0.05))

    def needs_approval(self) -> bool:
        """Draw whether an orchestrator lets nobody in by itself."""
        return bool(self._chance) and self._dice.random() < 0.4

    def trouble(self) -> None:
        """Maybe show a worker out, for a while, or have it forgotten."""
        if self._dice.random() >= self._chance:
            return
        orchestrator = self._dice.choice(self._world.orchestrators)
        worker = self._dice.choice(self._world.workers).name
        action: MemberChange = self._dice.choice(("revoke", "revoke", "forget"))
        if orchestrator.change(action, key_of(worker)):
            self._world.counts.faults[f"{action} of a key"] += 1
            back = partial(self._let_in, orchestrator, key_of(worker))
            self._world.after(self._dice.random() * OUT_S, back)

    def look(self) -> None:
        """Let in who waits, seldom at once; in a kind world all, and at once."""
        is_kind = self._world.is_kind
        for orchestrator in self._world.orchestrators:
            if is_kind or self._dice.random() < SEEN:
                members = orchestrator.dispatcher.state.members
                out = [m.key for m in members.all() if m.standing is not Membership.ADMITTED]
                waiting = [key for key in out if is_kind or key in members.waiting]
                for key in waiting:
                    self._let_in(orchestrator, key)

    def _let_in(self, orchestrator: Orchestrator, key: bytes) -> None:
        if orchestrator.change("approve", key):
            self._world.counts.faults["approval of a key"] += 1
