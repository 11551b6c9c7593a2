"""What tasks asked and answered is erased once it has reached who asked, now or when it is due.

The brain decides when; how it is made unreadable is the store's. Of tasks that came in by no door,
or are forgotten already, the store has nothing to erase.
"""

from __future__ import annotations

from typing import Final

import msgspec

from d8mesh.core.broker.state import BrokerState, ClientState, EraseDue
from d8mesh.core.broker.streaming import Streaming
from d8mesh.core.protocol.messages import Delivered, Received
from d8mesh.core.protocol.task import Erased, ErasureSet, parse_id
from d8mesh.errors import UnknownTaskError

#: How often it is looked whether a task has finished that was delivered before: one whose cancel
#: was overtaken. Nobody waits for it.
UNFINISHED_S: Final = 1.0


class Erasures:
    """Takes in what was delivered, and lets it be erased.

    Args:
        due: task id -> when it is to be erased (Unix seconds), as the store has it at a start.
    """

    def __init__(self, state: BrokerState, streaming: Streaming, due: dict[str, float]) -> None:
        self._state, self._streaming = state, streaming
        self._due: list[str] = []
        state.task_table.erasures = due
        for task_id, due_at in due.items():
            state.after(max(0.0, due_at - state.at), EraseDue(task_id))

    def deliver(self, client: ClientState, message: Delivered) -> None:
        """Erase what these tasks asked and answered, or note when; then acknowledge it."""
        state, table = self._state, self._state.task_table
        now: dict[str, bytes] = {}
        later: dict[str, bytes] = {}
        for task_id, payload in zip(message.ids, message.payloads, strict=True):
            if not self._is_askers(client, task_id):
                state.metrics.reject("access.forbidden")
                continue
            if task_id in table.erasures or not self._was_accepted(task_id):
                continue
            is_now = not message.keep_s and table.state_of(task_id) is None
            (now if is_now else later)[task_id] = rest_of(payload)
        if now:
            self._erase(list(now), list(now.values()))
        if later:
            due_at = state.at + message.keep_s
            state.record(ErasureSet(list(later), list(later.values()), due_at))
            for task_id in later:
                state.after(message.keep_s or UNFINISHED_S, EraseDue(task_id))
        state.send(client.peer, Received(message.seq), waits=True)

    def come_due(self, task_id: str) -> None:
        """Erase a task at the end of this tick; one that is not finished later."""
        table = self._state.task_table
        if task_id not in table.erasures:
            return  # it was pruned
        if table.state_of(task_id) is None:
            self._due.append(task_id)
        else:
            self._state.after(UNFINISHED_S, EraseDue(task_id))

    def settle(self) -> None:
        """Erase what has come due, all at once."""
        if self._due:
            ids, self._due = self._due, []
            self._erase(ids, [b""] * len(ids))

    def _erase(self, ids: list[str], payloads: list[bytes]) -> None:
        self._state.record(Erased(ids, payloads))
        self._streaming.forget(ids)

    def _is_askers(self, client: ClientState, task_id: str) -> bool:
        """Return whether a client may say that a task was delivered: its own, and doors of any.

        A door that was started anew has another session than its tasks.
        """
        is_door = client.peer.key in self._state.members.own
        return is_door or task_id.startswith(f"{client.session}-")

    def _was_accepted(self, task_id: str) -> bool:
        try:
            key = parse_id(task_id)
        except UnknownTaskError:
            return False
        accepted = self._state.task_table.accepted.get(key.session)
        return accepted is not None and bool(accepted.overlap(key.n, 1))


def rest_of(payload: bytes) -> bytes:
    """Return what is kept of a result, as its client wishes, with a mark that it was erased."""
    try:
        kept = msgspec.msgpack.decode(payload, type=dict[str, msgspec.Raw]) if payload else {}
    except (msgspec.DecodeError, RecursionError):
        kept = {}
    return msgspec.msgpack.encode(kept | {"erased": True})
