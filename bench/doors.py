"""What a request costs that comes in by a door, beside the routers nearest to d8mesh.

All stand before the same kind of machines: stand-ins of Ollama, three of them. Each chat of d8mesh
is a durable task; those of the others are in memory. With ``--peers`` everything runs where there
is no network but loopback, for Ollama Herd announces itself.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, Final

from bench.chat_load import ChatJob, ChatsSeen, chats
from bench.findings import Findings, Table, percentile, rotated
from bench.llm import pool
from bench.mesh import Mesh
from bench.peers.environment import environment
from bench.plan import Plan
from bench.processes import child_of
from bench.progress import say
from bench.routers import REQUIRES, Door, alone, herd, litellm
from bench.standins import Machine, standins
from d8mesh.apps.orchestrators import ask
from d8mesh.errors import D8Error

MODEL: Final = "llama3.2:3b"
OLLAMA_DOOR, OPENAI_DOOR, DIRECT = "d8mesh, Ollama's door", "d8mesh, OpenAI's door", "direct"
#: One after another; and all at once, as in `design/llm-peers`.
IN_TURN: Final = 200
AT_ONCE: Final = 64
SHORT_CHATS: Final = 3000
#: Of the slower ones fewer, so that a turn takes seconds.
SHORT_CHATS_OF_PEERS: Final = 640
FAST_WORDS: Final = 3000
STREAMS: Final = 200
STREAM_S: Final = 5.0
#: Of those that have few at a time, so that a turn takes a minute.
STREAM_S_OF_PEERS: Final = 1.0
STREAM_RATE: Final = 50.0
WAITING: Final = 2000
#: Their answers: they come in faster than they are served.
CROWD_WORDS: Final = 20
#: Chats before a figure is taken: slots are found, connections are open.
WARM_UP: Final = 400
#: Of those that wait, as many may be served before they are looked at; and how long they may take
#: to come in.
CROWD_SERVED: Final = 100
CROWD_S: Final = 60.0
ENOUGH_S: Final = 3600.0

FIRST: Final = "Time to first token, one chat after another"
ADDED: Final = "Added to the time to first token"
SHORT: Final = "64 one-token chats at once"
FAST: Final = "One stream of 1,000 tokens/s"
MANY: Final = "200 streams of 50 tokens/s on one model"
CROWD: Final = "2,000 requests waiting at once"

#: Makes a door before machines.
Makes = Callable[[Sequence[Machine]], "contextlib.AbstractContextManager[Sequence[Door]]"]


def measure(plan: Plan) -> Findings:
    """Measure all scenes, round by round; with others beside, in a place of their own."""
    if not plan.with_peers:
        return _measured(plan)
    for requires in REQUIRES.values():
        environment(requires)
    told = json.loads(
        alone(["bench.doors", json.dumps(asdict(plan))], timeout_s=ENOUGH_S).splitlines()[-1]
    )
    found = Findings(notes=told["notes"], series=told["series"])
    for table in told["tables"]:
        cells = {(each["row"], each["column"]): each["samples"] for each in table["cells"]}
        found.tables.append(Table(table["title"], table["unit"], cells))
    return found


def _measured(plan: Plan) -> Findings:
    found = Findings()
    found.note(
        "Three stand-ins of Ollama; the load is one process over raw sockets, on the same machine "
        "as everything else. Chats of d8mesh are durable tasks; the others keep theirs in memory. "
        "What is said is compared word by word."
    )
    contestants = [_straight, _ours] + ([_herd, _litellm] if plan.with_peers else [])
    for turn in range(plan.rounds):
        for makes in rotated(contestants, turn):
            say(f"doors: {makes.__name__.strip('_')}, round {turn + 1}")
            at_once(found, plan, makes)
            one_fast_stream(found, plan, makes)
            many_streams(found, plan, makes)
        say(f"doors: {WAITING:,} waiting, round {turn + 1}")
        crowd(found, plan)
    _add_added(found)
    return found


# ------------------------------------------------------------------------- contestants


@contextlib.contextmanager
def _straight(machines: Sequence[Machine]) -> Iterator[list[Door]]:
    with standins(machines) as urls:
        yield [Door(DIRECT, " ".join(urls), "/api/chat")]


@contextlib.contextmanager
def _ours(machines: Sequence[Machine]) -> Iterator[list[Door]]:
    with pool(machines) as running:
        yield _doors(running)


def _doors(running: Mesh) -> list[Door]:
    return [
        Door(OLLAMA_DOOR, running.url, "/api/chat"),
        Door(OPENAI_DOOR, running.url, "/v1/chat/completions"),
    ]


@contextlib.contextmanager
def _herd(machines: Sequence[Machine]) -> Iterator[list[Door]]:
    with standins(machines) as urls, herd(urls, MODEL) as door:
        yield [door]


@contextlib.contextmanager
def _litellm(machines: Sequence[Machine]) -> Iterator[list[Door]]:
    with standins(machines) as urls, litellm(urls, MODEL) as door:
        yield [door]


def _job(door: Door, **more: Any) -> ChatJob:
    return ChatJob(urls=door.url.split(), path=door.path, model=MODEL, key=door.key, **more)


def _good(seen: ChatsSeen, door: Door, count: int) -> ChatsSeen:
    """Pass on what was seen if all of it was as it must be, else say what was not."""
    if seen.good < count and door.name not in REQUIRES:
        raise D8Error(f"{door.name}: {seen.errors} of {count} failed: {seen.first_error[-300:]}")
    return seen


# ------------------------------------------------------------------------------ scenes


def at_once(found: Findings, plan: Plan, makes: Makes) -> None:
    """Measure one chat after another, and 64 at once, of one token each."""
    machine = Machine(models=(MODEL,), loaded=(MODEL,), speed=0, slots=AT_ONCE)
    with makes([machine] * 3) as doors:
        for door in doors:
            is_peer = door.name in REQUIRES
            chats(_job(door, words=1, count=plan.tasks(WARM_UP, least=AT_ONCE), at_once=AT_ONCE))
            count = plan.tasks(IN_TURN, least=10)
            seen = _good(chats(_job(door, words=1, count=count, at_once=1)), door, count)
            for column, share in (("p50", 0.5), ("p99", 0.99)):
                found.table(FIRST, "ms").add(door.name, column, percentile(seen.first_ms, share))
            count = plan.tasks(SHORT_CHATS_OF_PEERS if is_peer else SHORT_CHATS, least=AT_ONCE)
            job = _job(door, words=1, count=count, at_once=AT_ONCE, is_streamed=False)
            seen = _good(chats(job), door, count)
            table = found.table(SHORT, "")
            table.add(door.name, "chats/s", seen.good / seen.wall_s)
            table.add(door.name, "failed", seen.errors)


def one_fast_stream(found: Findings, plan: Plan, makes: Makes) -> None:
    """Measure one stream of a fast machine."""
    machine = Machine(models=(MODEL,), loaded=(MODEL,), speed=25)
    words = plan.tasks(FAST_WORDS)
    with makes([machine]) as doors:
        for door in doors:
            seen = _good(chats(_job(door, words=words, count=1, at_once=1)), door, 1)
            table = found.table(FAST, "")
            table.add(door.name, "tokens/s", seen.tokens / seen.wall_s)
            table.add(door.name, "lost", words - seen.tokens)


def many_streams(found: Findings, plan: Plan, makes: Makes) -> None:
    """Measure 200 streams that all have a slot."""
    machine = Machine(models=(MODEL,), loaded=(MODEL,), speed=STREAM_RATE / 40, slots=100)
    with makes([machine] * 3) as doors:
        for door in doors:
            is_peer = door.name in REQUIRES
            stream_s = plan.seconds(STREAM_S_OF_PEERS if is_peer else STREAM_S)
            words = round(stream_s * STREAM_RATE)
            for _ in range(1 if is_peer else 2):
                chats(_job(door, words=20, count=STREAMS, at_once=STREAMS))
            seen = chats(_job(door, words=words, count=STREAMS, at_once=STREAMS))
            _good(seen, door, STREAMS)
            table = found.table(MANY, "")
            table.add(door.name, "wall over ideal, ×", seen.wall_s / stream_s)
            table.add(door.name, "gap p99, ms", percentile(seen.gap_ms, 0.99))
            table.add(door.name, "gap max, ms", max(seen.gap_ms, default=0.0))
            table.add(door.name, "failed", seen.errors)


def crowd(found: Findings, plan: Plan) -> None:
    """Have 2,000 requests wait at once: what they cost, and what they are told."""
    machine = Machine(models=(MODEL,), loaded=(MODEL,), speed=5)
    count = plan.tasks(WAITING, least=400)
    with pool([machine]) as running:
        launcher = running.orchestrator.process.pid
        nodes = {"broker": running.broker(), "web": child_of(launcher, "_web")}
        before = {name: node.rss_bytes() for name, node in nodes.items()}
        door = _doors(running)[1]
        job = _job(door, words=CROWD_WORDS, count=count, at_once=count, is_streamed=False)
        seen: list[ChatsSeen] = []
        load = threading.Thread(target=lambda: seen.append(chats(job)))
        load.start()
        pending = _await_pending(running.url, count - CROWD_SERVED)
        table = found.table(CROWD, "")
        for name, node in nodes.items():
            table.add(f"memory of the {name} process, MB", "before", before[name] / 1e6)
            table.add(f"memory of the {name} process, MB", "waiting", node.rss_bytes() / 1e6)
        table.add("tasks", "waiting", pending)
        table.add("explain of the last", "waiting", _explained_ms(running.url))
        load.join()
        table.add("tasks", "served", _good(seen[0], door, count).good)


def _await_pending(url: str, count: int) -> int:
    """Return how many tasks wait once that are so many."""
    until = time.monotonic() + CROWD_S
    while (pending := int(ask(url, "/health")["tasks_pending"])) < count:
        if time.monotonic() > until:
            raise D8Error(f"{pending} requests wait after {CROWD_S:.0f} s, expected {count}")
        time.sleep(0.05)
    return pending


def _explained_ms(url: str) -> float:
    """Return how long the question takes where the newest task stands; it must be told."""
    (task,) = ask(url, "/api/tasks?limit=1&order=newest")["tasks"]
    begun = time.perf_counter()
    with urllib.request.urlopen(f"{url}/api/tasks/{task['task_id']}/explain", timeout=30) as told:
        body = json.load(told)
    took_ms = 1000 * (time.perf_counter() - begun)
    if body.get("ahead") is None:
        raise D8Error(f"explain tells no place in line: {body}")
    return took_ms


def _add_added(found: Findings) -> None:
    """Add what each adds to the figure of the machine itself, in the same round."""
    first, added = found.table(FIRST, "ms"), found.table(ADDED, "ms")
    for row in first.rows:
        for column in first.columns:
            if row != DIRECT:
                added.cells[row, column] = [
                    with_it - without
                    for with_it, without in zip(
                        first.samples(row, column), first.samples(DIRECT, column), strict=True
                    )
                ]


if __name__ == "__main__":
    print(json.dumps(_measured(Plan(**json.loads(sys.argv[1]))).as_json()))
