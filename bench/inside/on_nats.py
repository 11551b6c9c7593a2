"""NATS request/reply: workers are a queue group, replies come to one inbox."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import nats

from bench.inside import harness

SUBJECT = "d8.tasks"
#: Workers tell that they listen.
READY = "d8.ready"


class OnNats:
    """The client's side, driven from outside its event loop."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._loop = asyncio.new_event_loop()
        self._payload = harness.payload(told)
        self._done = 0
        self._wanted = 0
        self._under_way = 0
        self._room = asyncio.Event()
        self._finished = asyncio.Event()
        self._loop.run_until_complete(self._connect(told))

    async def _connect(self, told: dict[str, Any]) -> None:
        self._nc = await nats.connect(told["url"])
        self._inbox = self._nc.new_inbox()
        await self._nc.subscribe(self._inbox, cb=self._count)
        ready = await self._nc.subscribe(READY)
        await self._nc.flush()
        for _ in range(told["workers"]):
            harness.start(*harness.python("-m", __spec__.name, json.dumps(told), "worker"))
        for _ in range(told["workers"]):
            await ready.next_msg(timeout=20)

    def all_of(self, count: int) -> None:
        """Publish with the inbox as reply subject, a window of them under way."""
        self._loop.run_until_complete(self._all_of(count))

    def one(self) -> None:
        """One request."""
        self._loop.run_until_complete(self._nc.request(SUBJECT, self._payload, timeout=20))

    async def _all_of(self, count: int) -> None:
        self._done, self._wanted, self._under_way = 0, count, 0
        self._finished.clear()
        for _ in range(count):
            await self._nc.publish(SUBJECT, self._payload, reply=self._inbox)
            self._under_way += 1
            if self._under_way >= harness.WINDOW:
                self._room.clear()
                await self._room.wait()
        await self._finished.wait()

    async def _count(self, _: Any) -> None:
        self._done += 1
        self._under_way -= 1
        if self._under_way < harness.WINDOW // 2:
            self._room.set()
        if self._done >= self._wanted:
            self._finished.set()


async def work(told: dict[str, Any]) -> None:
    """Answer every request."""
    nc = await nats.connect(told["url"])

    async def answer(msg: Any) -> None:
        await nc.publish(msg.reply, msg.data)

    await nc.subscribe(SUBJECT, queue="workers", cb=answer)
    await nc.flush()
    await nc.publish(READY, b"")
    await asyncio.Event().wait()


if __name__ == "__main__":
    if sys.argv[2:] == ["worker"]:
        asyncio.run(work(harness.arguments()))
    else:
        harness.serve(harness.versions("nats-py"), OnNats(harness.arguments()))
