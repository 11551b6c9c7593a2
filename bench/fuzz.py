"""Bad input by the million: frames, HTTP requests, TXT records. Nothing may crash, hang or grow.

Frames go through the codec in this process, and a tenth of them over ZeroMQ to a running broker;
requests to all doors of the same orchestrator. What it counts as refused must be what was refused
here, to the last one. The seed is the round's number: what fails fails again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final, get_args

from bench.findings import Findings, percentile
from bench.fuzz_requests import Answers, BadRequest, requests
from bench.llm import pool
from bench.mesh import Mesh
from bench.mutations import frames, txt_records
from bench.plan import Plan
from bench.processes import child_of
from bench.progress import say
from bench.report import tables_of
from bench.standins import Machine
from d8mesh.apps.orchestrators import ask
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.announcement import NodeKind, from_txt
from d8mesh.core.protocol.codec import decode_to_broker, decode_to_client, decode_to_worker
from d8mesh.edge.transport.keys import kept_pair
from d8mesh.edge.transport.sockets import DealerLink
from d8mesh.errors import D8Error, ProtocolError

FULL_FRAMES: Final = 20_000_000
#: Of them, those that go over the wire.
WIRE_PART: Final = 0.1
FULL_REQUESTS: Final = 200_000
FULL_RECORDS: Final = 200_000
#: Before memory is weighed: what is allocated once is there by then.
WARM_REQUESTS: Final = 3000
WARM_FRAMES: Final = 50_000
#: A clock costs as much as a frame.
TIMED_TOGETHER: Final = 512
#: What must hold.
HANG_S: Final = 1.0
MOST_GROWTH_MIB: Final = 50.0
#: Frames sent between two looks at what the broker answers.
SENT_AT_ONCE: Final = 64
#: The broker has counted them before more are sent: what waits in the connection for longer than
#: a heartbeat may take would be lost with it.
MOST_AHEAD: Final = 20_000
#: How long the broker may take no frame.
COUNTED_S: Final = 120.0
#: Nothing more is counted after so long without a change, and what is too much comes within this.
SETTLED_S: Final = 20.0
LATE_S: Final = 0.5
MODEL: Final = "m:1b"
MACHINES: Final = (Machine(models=(MODEL,), loaded=(MODEL,), speed=0, slots=16),)
SETTINGS: Final = {"TASK_QUEUE_SIZE": "2000", "D8_RETENTION_COUNT": "1000"}
#: A good record, of which the others are made.
RECORD: Final = {
    "id": "orch-0123456789", "boot": "0123456789abcdef", "mesh": "d8", "version": "0.1.0",
    "web": "7001", "key": "ab" * 32, "proof": "cd" * 32, "tls": "ef" * 32,
}  # fmt: skip
TO_BROKER: Final = tuple(get_args(m.ToBroker))
#: What no log says unless something has failed.
FAILURES: Final = ("Traceback", "broker.fault", "request failed")

SENT: Final = "Bad input: sent, refused, and how quick"
HELD: Final = "Bad input: what must hold"


def measure(plan: Plan) -> Findings:
    """Send everything once: a second round would tell nothing new."""
    found = Findings()
    found.note(
        "Structure-aware: good messages and requests are drawn from their types, one thing in them "
        "is spoiled, and most are changed byte by byte after that. One process makes them."
    )
    say("fuzz: TXT records")
    _records(found, plan.tasks(FULL_RECORDS))
    say("fuzz: frames, in this process")
    count = plan.tasks(FULL_FRAMES)
    _decoded(found, int(count * (1 - WIRE_PART)))
    with pool(MACHINES, settings=SETTINGS) as running:
        with _watched(found, running, plan):
            say("fuzz: frames, over the wire")
            _sent(found, running, int(count * WIRE_PART))
            say("fuzz: HTTP requests")
            _asked(found, running, plan.tasks(FULL_REQUESTS))
    _judge(found)
    return found


# ------------------------------------------------------------------------ without a mesh


def _records(found: Findings, count: int) -> None:
    def decode(record: bytes) -> object:
        return from_txt(NodeKind.ORCHESTRATOR, record, port=7010, addresses=("10.0.0.1",))

    _try_all(found, "TXT records", txt_records(1, count, RECORD), [decode])


def _decoded(found: Findings, count: int) -> None:
    decoders: list[Callable[[bytes], object]] = [
        decode_to_broker,
        decode_to_worker,
        decode_to_client,
    ]
    _try_all(found, "frames, decoded here", frames(2, count), decoders)


def _try_all(
    found: Findings, row: str, inputs: Iterator[bytes], decoders: list[Callable[[bytes], object]]
) -> None:
    """Try each with the decoders in turn; whatever is raised but a refusal ends it all."""
    sent = refused = 0
    turns, slowest_s = len(decoders), 0.0
    begun = time.perf_counter()
    while several := list(islice(inputs, TIMED_TOGETHER)):
        decode = decoders[sent // TIMED_TOGETHER % turns]
        begun_these = time.perf_counter()
        for each in several:
            try:
                decode(each)
            except ProtocolError:
                refused += 1
        slowest_s = max(slowest_s, time.perf_counter() - begun_these)
        sent += len(several)
    _note(found, row, sent, refused, time.perf_counter() - begun)
    found.table(HELD, "").add(row, f"longest {TIMED_TOGETHER:,} together, s", slowest_s)


# ------------------------------------------------------------------------ against a running one


@contextmanager
def _watched(found: Findings, running: Mesh, plan: Plan) -> Iterator[None]:
    """Weigh the processes before and after, and see that they are the same and have not failed."""
    _send(running, frames(3, plan.tasks(WARM_FRAMES), TO_BROKER))
    _ask_all(running, requests(3, plan.tasks(WARM_REQUESTS)))
    nodes = {
        name: child_of(running.orchestrator.process.pid, f"_{name}") for name in ("broker", "web")
    }
    before = {name: node.rss_bytes() for name, node in nodes.items()}
    yield
    table = found.table(HELD, "")
    for name, node in nodes.items():
        same = (
            child_of(running.orchestrator.process.pid, f"_{name}").process.pid == node.process.pid
        )
        table.add(name, "started anew", 0 if same else 1)
        table.add(name, "memory growth, MiB", (node.rss_bytes() - before[name]) / 2**20)
    failed = failures_in(running.folder)
    for line in failed[:5]:
        say(line)
    table.add("logs", "failures", len(failed))


def _sent(found: Findings, running: Mesh, count: int) -> None:
    begun = time.perf_counter()
    refused, counted = _send(running, frames(4, count, TO_BROKER))
    _note(found, "frames, to the broker", count, refused, time.perf_counter() - begun)
    table = found.table(HELD, "")
    table.add("frames, to the broker", "refused but not counted once", abs(counted - refused))


def _send(running: Mesh, inputs: Iterator[bytes]) -> tuple[int, int]:
    """Send frames with the key of the clients of this folder, which nobody bans.

    Returns:
        How many of them are no messages, and how many the broker has counted as such.
    """
    before = _rejected(running, "broker")
    key = bytes.fromhex(str(ask(running.url, "/health")["server_key"]))
    keys = kept_pair(running.folder / "client")
    link = DealerLink(f"tcp://127.0.0.1:{running.broker_port}", server_key=key, keys=keys)
    refused = sent = 0
    try:
        for frame in inputs:
            try:
                decode_to_broker(frame)
            except ProtocolError as error:  # of other versions the brain refuses some, too
                refused += error.code == ProtocolError.code
            until = time.monotonic() + COUNTED_S
            while not link.send(frame):
                link.receive(1000)
                if time.monotonic() > until:
                    raise D8Error("the broker takes no more frames")
                time.sleep(0.0005)
            sent += 1
            if not sent % SENT_AT_ONCE:
                link.receive(1000)
            if not sent % MOST_AHEAD:
                _counted(running, before, refused, link)
        _counted(running, before, refused, link)
        time.sleep(LATE_S)  # whether there are too many
        return refused, (_rejected(running, "broker") - before)["protocol.invalid"]
    finally:
        link.close()


def _counted(running: Mesh, before: Counter[str], expected: int, link: DealerLink) -> int:
    """Return how many frames the broker has counted as no messages, once nothing is missing."""
    counted, until = 0, time.monotonic() + SETTLED_S
    while counted < expected and time.monotonic() < until:
        link.receive(1000)
        now = (_rejected(running, "broker") - before)["protocol.invalid"]
        if now != counted:
            counted, until = now, time.monotonic() + SETTLED_S
        time.sleep(0.05)
    return counted


def _asked(found: Findings, running: Mesh, count: int) -> None:
    before, begun = _rejected(running, "rest"), time.perf_counter()
    statuses, quick_s, slow_s = _ask_all(running, requests(5, count))
    took_s = time.perf_counter() - begun
    counted = sum((_rejected(running, "rest") - before).values())
    refused = sum(n for status, n in statuses.items() if status >= 400)
    # Whoever hangs up before the answer may have been refused all the same.
    most = refused + statuses[0]
    wrong = max(0, refused - counted, counted - most)
    _note(found, "HTTP requests", count, refused, took_s)
    table = found.table(HELD, "")
    table.add("HTTP requests", "refused but not counted once", wrong)
    table.add("HTTP requests", "longest that asks no model, s", max(quick_s))
    table.add("HTTP requests", "server errors (500)", statuses[500])
    answered = found.table("Bad input: answers", "requests")
    for status, n in sorted(statuses.items()):
        answered.add(str(status) if status else "connection closed", "answers", n)
    found.table("Bad input: time to an answer", "ms").add(
        "all", "p50", 1e3 * percentile(quick_s + slow_s, 0.5)
    )
    found.table("Bad input: time to an answer", "ms").add(
        "all", "p99.9", 1e3 * percentile(quick_s + slow_s, 0.999)
    )


def _ask_all(
    running: Mesh, inputs: Iterator[BadRequest]
) -> tuple[Counter[int], list[float], list[float]]:
    """Ask one after the other; return the statuses, and the seconds of those that ask no model and
    of those that may.
    """
    port = int(running.url.rpartition(":")[2])
    statuses: Counter[int] = Counter()
    quick_s, slow_s = [0.0], [0.0]
    kept = Answers(port)
    for each in inputs:
        begun = time.perf_counter()
        if each.is_framed:
            if kept.is_over:
                kept.close()
                kept = Answers(port)
            kept.say(each.content)
            statuses[kept.next(has_body=each.has_body)] += 1
        else:
            alone = Answers(port)
            alone.say(each.content)
            told = alone.rest()
            statuses.update(told or [0])
            alone.close()
        if each.is_framed:  # of the others it is waited whether more comes
            (slow_s if each.waits else quick_s).append(time.perf_counter() - begun)
    kept.close()
    return statuses, quick_s, slow_s


def _rejected(running: Mesh, surface: str) -> Counter[str]:
    return Counter(ask(running.url, "/health")["rejected"][surface])


def failures_in(folder: Path) -> list[str]:
    """Return the lines of logs below a data folder that tell of what was not expected."""
    return [
        f"{log.name}: {line}"
        for log in sorted(folder.rglob("*.log*"))
        for line in log.read_text("utf-8", "replace").splitlines()
        if any(each in line for each in FAILURES)
    ]


# ------------------------------------------------------------------------ the table


def _note(found: Findings, row: str, sent: int, refused: int, took_s: float) -> None:
    table = found.table(SENT, "")
    table.add(row, "sent", sent)
    table.add(row, "refused", refused)
    table.add(row, "seconds", took_s)
    table.add(row, "per second", sent / took_s)


def _judge(found: Findings) -> None:
    """See that all holds that must.

    Raises:
        D8Error: something does not; the tables are printed before.
    """
    wrong: list[str] = []
    for (row, column), samples in found.table(HELD, "").cells.items():
        most = HANG_S if column.endswith(", s") else MOST_GROWTH_MIB if "MiB" in column else 0
        if samples[-1] > most:
            wrong.append(f"{row}: {column} {samples[-1]:g}, at most {most:g}")
    if wrong:
        print("\n".join(tables_of(found)), flush=True)
        raise D8Error("; ".join(wrong))
