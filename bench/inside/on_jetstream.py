"""NATS JetStream: a work queue on disk, pushed to a queue group, each message acknowledged.

Pushed, not pulled: nats-py makes an asyncio task for each message that it pulls, which is slower.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Final

import nats
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StorageType, StreamConfig

from bench.inside import harness

STREAM: Final = "d8"
SUBJECT: Final = "d8.tasks"
DURABLE: Final = "workers"
#: Workers tell that they listen.
READY: Final = "d8.ready"
#: Messages that all the workers may hold, unacknowledged.
PENDING: Final = 5000


class OnJetStream:
    """The client's side: publishes are acknowledged by the stream, results come to an inbox."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._loop = asyncio.new_event_loop()
        self._payload = harness.payload(told)
        self._done = 0
        self._wanted = 0
        self._moved = asyncio.Event()
        self._loop.run_until_complete(self._connect(told))

    async def _connect(self, told: dict[str, Any]) -> None:
        self._nc = await nats.connect(told["url"])
        self._js = self._nc.jetstream(publish_async_max_pending=harness.WINDOW)
        await self._js.add_stream(
            StreamConfig(
                name=STREAM,
                subjects=[SUBJECT],
                retention=RetentionPolicy.WORK_QUEUE,
                storage=StorageType.FILE,
            )
        )
        inbox = self._nc.new_inbox()
        await self._nc.subscribe(inbox, cb=self._count)
        ready = await self._nc.subscribe(READY)
        await self._nc.flush()
        told = {**told, "inbox": inbox}
        for _ in range(told["workers"]):
            harness.start(*harness.python("-m", __spec__.name, json.dumps(told), "worker"))
            await ready.next_msg(timeout=20)

    def all_of(self, count: int) -> None:
        """Publish without waiting for each acknowledgement, and wait for all the results."""
        self._loop.run_until_complete(self._all_of(count))

    def one(self) -> None:
        """Publish one task, wait until it is acknowledged and its result is there."""
        self._loop.run_until_complete(self._one())

    async def _one(self) -> None:
        self._done, self._wanted = 0, 1
        await self._js.publish(SUBJECT, self._payload)
        await self._until(1)

    async def _all_of(self, count: int) -> None:
        self._done, self._wanted = 0, count
        acknowledged = []
        for number in range(count):
            acknowledged.append(await self._js.publish_async(SUBJECT, self._payload))
            if number - self._done >= harness.WINDOW:
                await self._until(number - harness.WINDOW // 2)
        await asyncio.gather(*acknowledged)
        await self._until(count)

    async def _until(self, done: int) -> None:
        while self._done < done:
            self._moved.clear()
            await self._moved.wait()

    async def _count(self, _: Any) -> None:
        self._done += 1
        self._moved.set()


async def work(told: dict[str, Any]) -> None:
    """Send each result and acknowledge each task."""
    nc = await nats.connect(told["url"])

    async def answer(msg: Any) -> None:
        await nc.publish(told["inbox"], msg.data)
        await msg.ack()

    await nc.jetstream().subscribe(
        SUBJECT,
        queue=DURABLE,
        durable=DURABLE,
        stream=STREAM,
        cb=answer,
        manual_ack=True,
        config=ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, max_ack_pending=PENDING),
    )
    await nc.flush()
    await nc.publish(READY, b"")
    await asyncio.Event().wait()


if __name__ == "__main__":
    if sys.argv[2:] == ["worker"]:
        asyncio.run(work(harness.arguments()))
    else:
        harness.serve(harness.versions("nats-py"), OnJetStream(harness.arguments()))
