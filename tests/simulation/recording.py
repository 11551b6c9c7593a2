"""A brain whose calls are kept, and the proof that replaying them comes to the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from d8mesh.core.broker.dispatcher import Dispatcher
from d8mesh.core.broker.effects import Effect
from d8mesh.core.broker.members import Members
from d8mesh.core.broker.state import Policy
from d8mesh.core.broker.store import Restored
from tests.core.plain_state import dump


class Recording:
    """Calls a brain, and keeps what it was told and what it asked for.

    Args:
        start: the policy, what the store holds, and the clocks of the start.
        joining: what its `Members` are made of.
        payload_memory_bytes: what it may keep of payloads in memory.
    """

    def __init__(
        self,
        start: tuple[Policy, Restored, float, float],
        draw: Callable[[], float],
        payload_memory_bytes: int,
        joining: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._start = copy.deepcopy(start)
        self._payload_memory_bytes = payload_memory_bytes
        self._joining = copy.deepcopy(dict(joining))
        self._draws: list[float] = []
        self._calls: list[tuple[str, tuple[Any, ...], Sequence[Effect]]] = []

        def drawn() -> float:
            self._draws.append(draw())
            return self._draws[-1]

        self.brain = self._brain(start, drawn)

    def call(self, name: str, *args: Any) -> list[Effect]:
        """Call a method of the brain."""
        effects: list[Effect] = getattr(self.brain, name)(*args)
        self._calls.append((name, args, effects))
        return effects

    def prove(self) -> None:
        """Replay all calls on a fresh brain: the same effects, and in the end the same state."""
        fresh = self._brain(copy.deepcopy(self._start), iter(self._draws).__next__)
        for name, args, effects in self._calls:
            again = getattr(fresh, name)(*args)
            assert again == effects, (name, args, again, effects)
        pack = msgspec.msgpack.encode
        assert pack(dump(fresh)) == pack(dump(self.brain))

    def _brain(
        self, start: tuple[Policy, Restored, float, float], draw: Callable[[], float]
    ) -> Dispatcher:
        policy, restored, now, at = start
        members = Members(**copy.deepcopy(self._joining))
        brain = Dispatcher(policy, restored, draw, members=members, now=now, at=at)
        brain.state.task_table._payload_memory_bytes = self._payload_memory_bytes
        return brain
