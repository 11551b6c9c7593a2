"""How many requests may wait, and for what: a place each, and a broker that is away.

All of it in the thread of the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Final

from d8mesh.errors import BrokerUnavailableError
from d8mesh.nodes.client.aio.node import AsyncNode

#: Requests that may wait at the same time; one more is answered with what is known. One costs
#: some kilobytes; polls and waits of a thousand clients fit.
MAX_WAITS: Final = 2000
#: How long a request waits for a broker that has just gone: it is back within a second.
AWAY_S: Final = 3.0


class Places:
    """A bounded number of something, taken without waiting."""

    def __init__(self, count: int) -> None:
        self._free = count

    @property
    def is_full(self) -> bool:
        """True if there is none left."""
        return self._free <= 0

    @contextlib.contextmanager
    def one(self) -> Iterator[bool]:
        """Hold a place for the `with`; False if there is none left."""
        is_held = not self.is_full
        self._free -= is_held
        try:
            yield is_held
        finally:
            self._free += is_held


class Doorbell:
    """Wakes one who waits."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._rung: asyncio.Future[bool] = loop.create_future()

    def ring(self, is_rung: bool = True) -> None:
        """Wake him, if he waits."""
        if not self._rung.done():
            self._rung.set_result(is_rung)

    async def is_rung(self, within_s: float) -> bool:
        """Wait to be woken; False: nobody did in time."""
        self._rung = self._loop.create_future()
        timer = self._loop.call_later(within_s, self.ring, False)
        try:
            return await self._rung
        finally:
            timer.cancel()


async def require_broker(mesh: AsyncNode, waits: Places) -> None:
    """Wait a short time for a broker that is away, unless too many do; raise if it stays so."""
    if mesh.is_connected:
        return
    with waits.one() as may_wait:
        if not await mesh.wait_connected(AWAY_S if may_wait else 0.0):
            raise BrokerUnavailableError("the broker does not answer: it is being started again")
