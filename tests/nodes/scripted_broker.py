"""A broker that says what a test has it say: a real ROUTER on loopback, and no brain."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from itertools import count
from typing import TypeVar

import msgspec

from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.codec import decode_to_broker, encode
from tests.keyed import endpoint_of, router_at
from tests.nodes.mesh import PATIENCE_S

S = "0123456789abcdef"
#: Heartbeats of a test's worker: more often than in earnest.
HEARTBEAT_S = 0.3
_M = TypeVar("_M", bound=m.Message)


class ScriptedBroker:
    """Welcomes one worker, answers its heartbeats, and keeps what else it says."""

    def __init__(self, port: int, broker_id: str = "scripted") -> None:
        self.port, self.broker_id = port, broker_id
        self.endpoint = endpoint_of(port)
        self.heard: list[m.ToBroker] = []
        self.epoch = 1
        self._numbers = count(1)
        self._seq = 0
        self._peer = b""
        self._bind()

    def _bind(self) -> None:
        self._socket = router_at(self.port)

    def close(self) -> None:
        self._socket.close()

    def restart(self) -> None:
        """End, and start again: the sessions are gone and the epoch is another."""
        self.close()
        self.epoch += 1
        self._seq, self.heard = 0, []
        self._bind()

    def send(self, *messages: m.ToWorker) -> None:
        for message in messages:
            assert self._socket.send(self._peer, encode(message))

    def until(self, kind: type[_M], *, skip: int = 0) -> _M:
        """Return the message of a kind that comes next (after `skip` of them), and forget it."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = [each for each in self.heard if isinstance(each, kind)]
            if len(found) > skip:
                self.heard.remove(found[skip])
                return found[skip]
            assert time.monotonic() < deadline, f"no {kind.__name__} came"
            self._take()
            time.sleep(0.002)

    def pauses(self) -> list[str]:
        """Return why models are paused, of all that was heard and not forgotten."""
        models: list[m.OfferedModel] = []
        for each in self.heard:
            if isinstance(each, m.Measured):
                models += each.models
            if isinstance(each, m.Services):
                models += [model for service in each.services for model in service.models]
        return [model.paused for model in models]

    def result(self) -> dict[str, object]:
        """Return the next result, and thank for it; it must be a single one."""
        results = self.until(m.Results)
        self.send(m.Received(results.seq))
        (payload,) = results.payloads
        found: dict[str, object] = msgspec.msgpack.decode(payload)
        return found

    def hand_out(
        self,
        kind: str,
        data: object = None,
        *,
        placement: m.Placement | None = None,
        timeout_s: float = 60.0,
        is_listened: bool = False,
    ) -> str:
        """Hand out one task; return its id."""
        task = self.work(kind, [data or {}], timeout_s=timeout_s, is_listened=is_listened)
        ids = task.groups[0].ids
        if placement is not None:
            self.send(m.Placed(ids, [placement]))
        self.send(task)
        return ids[0]

    def work(
        self,
        kind: str,
        datas: Sequence[object],
        *,
        timeout_s: float = 60.0,
        is_listened: bool = False,
    ) -> m.Work:
        """Return work that brings new tasks, to be sent."""
        self._seq += 1
        ids = [f"{S}-{next(self._numbers)}" for _ in datas]
        tokens = [secrets.token_bytes(4) + b"\0\1" + secrets.token_bytes(10) for _ in ids]
        payloads = [msgspec.msgpack.encode(data) for data in datas]
        group = m.WorkGroup(kind, timeout_s, is_listened, ids, tokens, payloads)
        return m.Work(self._seq, [group])

    def _take(self) -> None:
        for (peer, *_), frame in self._socket.receive(64):
            assert frame is not None
            message = decode_to_broker(frame)
            if isinstance(message, m.WorkerHello):
                self._peer = peer
                self.send(m.Welcome(1, self.epoch, self.broker_id, HEARTBEAT_S, 10.0, []))
            elif peer != self._peer:
                self._socket.send(peer, encode(m.Rehello("who is it?")))
            elif isinstance(message, m.Heartbeat):
                self._socket.send(peer, encode(m.Beat(self.epoch)))
            self.heard.append(message)
