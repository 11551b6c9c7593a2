"""Client, broker and worker in one process, their real code driven stage by stage.

The same brains, codec, journal and outbox as in the nodes, joined by hand: each frame really
crosses a TCP connection of ZeroMQ, and a clock runs for one stage at a time.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import zmq

from d8mesh.core.broker.dispatcher import Dispatcher
from d8mesh.core.broker.effects import Effect, Load, Peer, Record, Send
from d8mesh.core.broker.state import Policy
from d8mesh.core.client.effects import Output, Transmit
from d8mesh.core.client.session import ClientSession
from d8mesh.core.client.submission import Submission
from d8mesh.core.protocol.codec import decode_to_broker, decode_to_client, decode_to_worker, encode
from d8mesh.core.protocol.messages import Message
from d8mesh.core.worker.broker_session import Profile
from d8mesh.core.worker.effects import Attempt, Ended, Forget, Keep, KeptResult, Start, WorkerEffect
from d8mesh.core.worker.effects import SendOn as WorkerSend
from d8mesh.core.worker.session import WorkerSession
from d8mesh.edge.sqlite import Journal
from d8mesh.edge.sqlite.outbox import Outbox
from d8mesh.handlers.echo import echo
from d8mesh.handlers.results import of_value
from d8mesh.nodes.client.groups import Template

MESH: Final = "bench"
SESSION: Final = "0" * 16
LINK: Final = "link"
_CLIENT: Final = Peer(b"client", "127.0.0.1")
_WORKER: Final = Peer(b"worker", "127.0.0.1")
_decode: Final = msgspec.msgpack.decode
_T = TypeVar("_T")

#: Stages in the order of a task's way; the outbox has a row of its own.
CLIENT_SUBMIT: Final = "client: check, encode, cut, submit"
WIRE: Final = "wire: six frames over TCP"
DECODE: Final = "broker: decode"
CORE: Final = "broker: core (accept, place, hand out, complete)"
JOURNAL: Final = "broker: journal, fsync included"
SEND: Final = "broker: encode what is sent"
WORKER: Final = "worker: decode, session, encode"
HANDLER: Final = "worker: handler (decode, echo, check, encode)"
OUTBOX: Final = "worker: outbox"
CLIENT_RESULT: Final = "client: decode, results"
STAGES: Final = (
    *(CLIENT_SUBMIT, WIRE, DECODE, CORE, JOURNAL, SEND, WORKER, HANDLER, OUTBOX, CLIENT_RESULT),
)


class Rig:
    """One task's whole way, batch by batch.

    Args:
        folder: where journal and outbox lie.
    """

    def __init__(self, folder: Path) -> None:
        self.spent_s: dict[str, float] = defaultdict(float)
        self._journal = Journal(folder / "journal.db")
        policy = Policy(broker_id="rig", mesh=MESH, queue_size=100_000_000)
        self._broker = Dispatcher(
            policy, self._journal.restore(), lambda: 0.5, now=time.monotonic(), at=time.time()
        )
        self._outbox = Outbox(folder / "outbox")
        self._client = ClientSession(SESSION, MESH, "rig")
        profile = Profile(
            mesh=MESH,
            worker_id="w",
            boot_id="b",
            worker_type="rig",
            machine_id="rig",
            host="rig",
            status_port=0,
            slots=1,
            task_types=("echo",),
        )
        self._worker = WorkerSession(profile)
        self._wire = _Wire()
        self._next_n = 0
        self._to_broker: list[tuple[Peer, bytes]] = []
        self._attempts: list[Attempt] = []
        self._submissions: list[Submission] = []
        self._from_client(self._client.link_up(time.monotonic()))
        self._from_worker(self._worker.link_up(LINK, time.monotonic()))
        self._turn()

    def run(self, count: int) -> int:
        """Submit `count` no-op tasks and bring their results; return how many came."""
        datas = [{"x": "x" * 59}] * count
        self._submissions = self._time(CLIENT_SUBMIT, lambda: self._make(datas))
        now = time.monotonic()
        for submission in self._submissions:
            out = self._time(CLIENT_SUBMIT, lambda p=submission: self._client.submit(p, now))  # type: ignore[misc]
            self._from_client(out)
        while any(submission.missing for submission in self._submissions):
            self._turn()
        return self._time(CLIENT_RESULT, self._read)

    def outbox_only(self, count: int) -> float:
        """Return the seconds that keeping and forgetting `count` results on disk takes."""
        rows = [
            KeptResult("rig", f"{SESSION}-{n}", n.to_bytes(16), 1, b"x" * 64) for n in range(count)
        ]
        begun = time.perf_counter()
        self._outbox.keep(rows)
        self._outbox.forget([row.token for row in rows])
        return time.perf_counter() - begun

    def close(self) -> None:
        """Let files and sockets go."""
        self._wire.close()
        self._outbox.close()
        self._journal.close()

    # ---------------------------------------------------------------------- the client

    def _make(self, datas: list[dict[str, str]]) -> list[Submission]:
        made = []
        for group in Template("echo", {}).cut(datas):
            submission = Submission(SESSION, self._next_n, [group])
            self._next_n += submission.count
            made.append(submission)
        return made

    def _read(self) -> int:
        results: list[Any] = []
        for submission in self._submissions:
            results += [_decode(payload or b"") for payload in submission.payloads]
        assert all(result["success"] for result in results)
        return len(results)

    def _from_client(self, out: list[Output]) -> None:
        for each in out:
            if isinstance(each, Transmit):
                frame = self._time(CLIENT_SUBMIT, lambda m=each.message: encode(m))  # type: ignore[misc]
                self._to_broker.append((_CLIENT, self._cross(frame)))

    # ---------------------------------------------------------------------- the broker

    def _turn(self) -> None:
        """One wake-up of the broker, then whatever the worker has to run."""
        now, effects = time.monotonic(), list[Effect]()
        frames, self._to_broker = self._to_broker, []
        for peer, frame in frames:
            message = self._time(DECODE, lambda f=frame: decode_to_broker(f))  # type: ignore[misc]
            effects += self._time(
                CORE,
                lambda m=message, p=peer: self._broker.receive(m, p, now),  # type: ignore[misc]
            )
        effects += self._time(CORE, lambda: self._broker.tick(now, time.time()))
        facts = [effect.fact for effect in effects if type(effect) is Record]
        sends = [effect for effect in effects if type(effect) is Send]
        assert not any(type(effect) is Load for effect in effects)  # all of it is in memory
        for send in sends:
            if not send.waits:
                self._deliver(send)
        if facts:
            self._time(JOURNAL, lambda: self._journal.append(facts))
        for send in sends:
            if send.waits:
                self._deliver(send)
        self._work()

    def _deliver(self, send: Send) -> None:
        frame = self._cross(self._time(SEND, lambda: encode(send.message)))
        now = time.monotonic()
        if send.peer == _CLIENT:
            message = self._time(CLIENT_RESULT, lambda: decode_to_client(frame))
            out = self._time(CLIENT_RESULT, lambda: self._client.receive(message, now))
            self._from_client(out)
            return
        word = self._time(WORKER, lambda: decode_to_worker(frame))
        self._from_worker(self._time(WORKER, lambda: self._worker.receive(word, LINK, now)))

    # ---------------------------------------------------------------------- the worker

    def _from_worker(self, effects: list[WorkerEffect]) -> None:
        for effect in effects:
            if isinstance(effect, WorkerSend):
                frame = self._time(WORKER, lambda m=effect.message: _encoded(m))  # type: ignore[misc]
                self._to_broker.append((_WORKER, self._cross(frame)))
            elif isinstance(effect, Start):
                self._attempts += effect.attempts
            elif isinstance(effect, Keep):
                self._time(OUTBOX, lambda e=effect: self._outbox.keep(e.results))  # type: ignore[misc]
            elif isinstance(effect, Forget):
                self._time(OUTBOX, lambda e=effect: self._outbox.forget(e.tokens))  # type: ignore[misc]

    def _work(self) -> None:
        attempts, self._attempts = self._attempts, []
        if attempts:
            ended = self._time(HANDLER, lambda: [_ended(attempt) for attempt in attempts])
            now = time.monotonic()
            self._from_worker(self._time(WORKER, lambda: self._worker.finished(ended, now)))

    # ----------------------------------------------------------------------- measuring

    def _time(self, stage: str, work: Callable[[], _T]) -> _T:
        begun = time.perf_counter()
        done = work()
        self.spent_s[stage] += time.perf_counter() - begun
        return done

    def _cross(self, frame: bytes) -> bytes:
        return self._time(WIRE, lambda: self._wire.cross(frame))


def _encoded(message: Message) -> bytes:
    return encode(message)


def _ended(attempt: Attempt) -> Ended:
    """What a slot does with an attempt (`Slots._serve`), without its thread."""
    started = time.monotonic()
    data = _decode(attempt.payload)
    value = echo(data, None)  # type: ignore[arg-type]  # it does not look at its context
    kind, result = of_value(value, "w", round(time.monotonic() - started, 6))
    took_s = time.monotonic() - started
    return attempt.link, attempt.id, attempt.token, kind, result, took_s


class _Wire:
    """A DEALER and a ROUTER on loopback, encrypted; a frame goes in and comes out."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        public, self._router.curve_secretkey = zmq.curve_keypair()
        self._router.curve_server = True
        port = self._router.bind_to_random_port("tcp://127.0.0.1")
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.curve_publickey, self._dealer.curve_secretkey = zmq.curve_keypair()
        self._dealer.curve_serverkey = public
        self._dealer.connect(f"tcp://127.0.0.1:{port}")

    def cross(self, frame: bytes) -> bytes:
        """Send the frame and receive it."""
        self._dealer.send(frame)
        received: bytes = self._router.recv_multipart()[1]
        return received

    def close(self) -> None:
        """Close both ends."""
        self._context.destroy(linger=0)
