"""What the REST calls need of a client of the mesh, and how many of them may wait."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from d8mesh.core.protocol.messages import Group
from d8mesh.errors import BrokerUnavailableError
from d8mesh.nodes.client.listening import Outputs
from d8mesh.nodes.client.submissions import Sent

#: Requests that may wait at the same time; one more is answered with what is known.
MAX_WAITS: Final = 300
#: Open streams of partial output.
MAX_STREAMS: Final = 64
#: How long a question may take: the broker answers in milliseconds.
ASK_S: Final = 10.0
#: How long a submit may take: its commit waits for the disk.
SUBMIT_S: Final = 30.0
#: How long a request waits for a broker that has just gone: it is back within a second.
AWAY_S: Final = 3.0
_LOOK_S: Final = 0.02


class Mesh(Protocol):
    """A client of the mesh; `nodes.client.Client` is one. Thread: any."""

    @property
    def is_connected(self) -> bool:
        """True while the broker answers."""

    def ask(self, what: str, args: Mapping[str, object], *, timeout: float = ...) -> dict[str, Any]:
        """Ask the broker something; raises the error it answered."""

    def submit_groups(
        self,
        groups: Sequence[Group],
        *,
        key: str = ...,
        digest: bytes = ...,
        is_watched: bool = ...,
        is_listened: bool = ...,
        timeout_s: float = ...,
    ) -> Sent:
        """Submit all or nothing; return the ids, whether it is a repeat, and warnings."""

    def wait_finished(self, task_id: str, timeout_s: float) -> bool:
        """Wait for a task; return whether it is finished."""

    @property
    def outputs(self) -> Outputs:
        """The partial output of tasks: kept, and heard."""

    def next_id(self) -> tuple[str, int]:
        """Return a session and counter that make an unused task id."""


class Places:
    """A bounded number of something, taken without waiting.

    Thread: any.
    """

    def __init__(self, count: int) -> None:
        self._semaphore = threading.BoundedSemaphore(count)

    @contextlib.contextmanager
    def one(self) -> Iterator[bool]:
        """Hold a place for the `with`; False if there is none left."""
        is_held = self._semaphore.acquire(blocking=False)
        try:
            yield is_held
        finally:
            if is_held:
                self._semaphore.release()

    def take(self) -> bool:
        """Take a place until `give_back`; False if there is none left."""
        return self._semaphore.acquire(blocking=False)

    def give_back(self) -> None:
        """Give a place back that `take` took."""
        self._semaphore.release()


def require_broker(mesh: Mesh, waits: Places) -> None:
    """Wait a short time for a broker that is away.

    Raises:
        BrokerUnavailableError: it has not come back, or too many wait already.
        NodeClosedError: the client has ended.
    """
    if _is_connected(mesh):
        return
    with waits.one() as may_wait:
        until = time.monotonic() + (AWAY_S if may_wait else 0.0)
        while time.monotonic() < until:
            time.sleep(_LOOK_S)
            if _is_connected(mesh):
                return
    require_alive(mesh)
    raise BrokerUnavailableError("the broker does not answer: it is being started again")


def require_alive(mesh: Mesh) -> None:
    """Make sure that the client can still come back to a broker.

    Raises:
        NodeClosedError: it has ended.
    """
    with contextlib.suppress(BrokerUnavailableError):
        mesh.ask("health", {}, timeout=0.0)


def _is_connected(mesh: Mesh) -> bool:
    return mesh.is_connected
