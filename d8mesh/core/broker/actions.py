"""What the parts of the brain can do: let facts happen, send, ask; and what they do it with.

Each is an effect that the present call of the brain returns; between two calls there is none.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Final

from d8mesh.core.broker.effects import Effect, Fault, Load, Peer, Record, Send
from d8mesh.core.broker.state import BrokerState, Continuation
from d8mesh.core.broker.store import Question
from d8mesh.core.broker.worker_registry import WorkerState
from d8mesh.core.protocol.messages import Answer, Message
from d8mesh.core.protocol.task import Fact
from d8mesh.core.protocol.tokens import TokenSigner
from d8mesh.errors import D8Error, FloodError

#: Questions of clients to the store that may be under way, and those of one client: more than
#: the REST process has threads.
MAX_LOADS: Final = 10_000
MAX_LOADS_OF_CLIENT: Final = 1000


class Actions:
    """Gathers what is to be done.

    Args:
        draw: returns a random number in [0, 1).
    """

    def __init__(self, state: BrokerState, signer: TokenSigner, draw: Callable[[], float]) -> None:
        self.signer = signer
        self.draw = draw
        self._state = state
        self._effects: list[Effect] = []

    def record(self, fact: Fact) -> None:
        """Let `fact` happen: in the task table now, on disk with this batch.

        Raises:
            IllegalTransitionError, UnknownTaskError: it cannot; nothing has happened.
        """
        self._state.task_table.apply(fact)
        self._effects.append(Record(fact))

    def send(self, peer: Peer, message: Message, *, waits: bool = False) -> None:
        """Send `message`; `waits`: it promises something, so only after the commit."""
        self._effects.append(Send(peer, message, waits))

    def tell(self, worker: WorkerState, message: Message) -> None:
        """Send a worker something that promises nothing; its `Welcome` goes before it."""
        not_durable_since = min(self._state.now, self._state.unconfirmed_since)
        self.send(worker.peer, message, waits=worker.welcomed >= not_durable_since)

    def answer(
        self, peer: Peer, request: int, body: dict[str, object], *, waits: bool = False
    ) -> None:
        """Answer a `Query`."""
        self.send(peer, Answer(request, "", body), waits=waits)

    def refuse(self, peer: Peer, request: int, error: D8Error, **more: object) -> None:
        """Answer a `Query` with an error."""
        self.send(peer, Answer(request, error.code, {"error": str(error), **more}))

    def ask(self, question: Question, then: Continuation, session: str = "") -> None:
        """Ask the store, and go on with `then` when it has answered.

        Args:
            session: of the client for whom it is asked.
        """
        state = self._state
        number, state.next_load = state.next_load, state.next_load + 1
        state.loads[number] = (then, session)
        self._effects.append(Load(number, question))

    def ask_for(self, peer: Peer, question: Question, then: Continuation) -> None:
        """Ask the store for a client, which `peer` is: a part of what is under way at most.

        Raises:
            FloodError: the client, or all together, have asked too much at the same time.
        """
        client = self._state.clients_by_routing_id.get(peer.routing_id)
        if client is None:
            return  # it left before the question led to this one
        if client.loads >= MAX_LOADS_OF_CLIENT or len(self._state.loads) >= MAX_LOADS:
            raise FloodError
        client.loads += 1
        self.ask(question, then, client.session)

    def tell_fault(self, where: str, error: Exception) -> None:
        """Have a fault of ours told in the log."""
        self._effects.append(Fault(where, "".join(traceback.format_exception(error))))

    def take(self) -> list[Effect]:
        """Return what is to be done; the call of the brain ends with that."""
        effects, self._effects = self._effects, []
        return effects
