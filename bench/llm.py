"""The machines of a LAN as one pool: how near the routing comes to the best possible schedule.

Stand-ins with paced tokens take the place of Ollama: what is measured is who gets which request,
not a model. Orchestrator and workers are real and start anew for each figure, so that nothing is
learnt before.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from bench import dispatchers
from bench.dispatchers import RULES, question_of
from bench.findings import Findings, percentile, ratios, rotated
from bench.mesh import Mesh, mesh
from bench.plan import Plan
from bench.progress import say
from bench.standins import Machine, best_s, standins
from d8mesh.apps.orchestrators import ask
from d8mesh.errors import D8Error
from d8mesh.nodes.client import Client

#: A run takes minutes, and its figures hardly move.
MOST_ROUNDS: Final = 3
LOAD_S: Final = 8.0
#: Requests of the first scene, and the tokens of each answer: half a second at speed 1.
REQUESTS: Final = 300
TOKENS: Final = 20
#: What the rules of others have under way at once: twice the slots of the three machines.
IN_FLIGHT: Final = 24
MODEL: Final = "m:1b"
#: The second scene: four models, two of them loaded on each of five machines.
MODELS: Final = ("a:1b", "b:1b", "c:1b", "d:1b")
SPEEDS: Final = (1.0, 1.0, 0.5, 0.5, 0.25)
BATCH_OF_EACH: Final = 300
#: From a slot to the first token, at speed 1: as of a question of some length.
PROMPT_S: Final = 0.2
#: Of each model, before anything is measured: each worker has answered something then.
WARM_UP: Final = 10
TALKS: Final = 60
TALK_EVERY_S: Final = 0.5
BATCH_FIRST_S: Final = 3.0
INTERACTIVE: Final = 9
BATCH: Final = 3
#: The third: one request after another, and 64 at once, of one token each.
ONE_BY_ONE: Final = 200
AT_ONCE: Final = 64
ONE_TOKEN_CHATS: Final = 3000
RESULT_S: Final = 600.0
KNOWN_S: Final = 60.0

MAKESPANS: Final = "Makespan of 300 requests on speeds 1, 1 and 1/4"
OVER_BEST: Final = "Makespan over the best possible schedule"
COLD, WARM = "cold: loaded on one, 8 s to load", "warm: loaded on all"
OURS: Final = "d8mesh, first run"
BEST: Final = "best possible"
FIRST_TOKENS: Final = "Five machines, four models: interactive first tokens"
BATCHES: Final = "Five machines, four models: the batch"
ALONE, BESIDE = "alone", "beside the other"
MIXED: Final = "Interactive and batch, beside each other over alone"
P95, LOSS = "p95 of interactive first tokens", "makespan of the batch"
SINGLE: Final = "One request at a time: time to its first token"
ADDED: Final = "added by the mesh"
DIRECT, THROUGH = "straight to the machine", "through the mesh"
CHATS: Final = "64 one-token chats at once"


NONE: Final[Mapping[str, str]] = MappingProxyType({})


def measure(plan: Plan) -> Findings:
    """Measure all three scenes, round by round."""
    found = Findings()
    found.note(
        "Stand-ins of Ollama: four slots, 40 tokens/s times the speed, answers of 20 tokens. The "
        f"best possible schedule knows all this; the others have {IN_FLIGHT} requests under way "
        "at once and bind each when it is sent. d8mesh has all of them at once, with an "
        "orchestrator and workers that have just started and know no speed, slots or load time."
    )
    found.note(
        "Interactive and batch: the first token comes 0.2 s after a slot at speed 1. Two of the "
        "four models are loaded on each of the five machines, three fit. A talk every half second, "
        "beside a batch for all four models; before that each model has answered ten requests."
    )
    for turn in range(min(plan.rounds, MOST_ROUNDS)):
        for column, is_warm in rotated([(COLD, False), (WARM, True)], turn):
            say(f"llm: makespan, {column}, round {turn + 1}")
            makespans(found, plan, column, is_warm=is_warm)
        say(f"llm: interactive and batch, round {turn + 1}")
        mix(found, plan)
        say(f"llm: one by one, and {AT_ONCE} at once, round {turn + 1}")
        single(found, plan)
    return found


# ------------------------------------------------------------------------ scene one


def makespans(found: Findings, plan: Plan, column: str, *, is_warm: bool) -> None:
    """Measure the makespan of d8mesh and of each rule, all on fresh machines."""
    count = plan.tasks(REQUESTS, least=24)
    machines = three_machines(plan, is_warm=is_warm)
    table, over = found.table(MAKESPANS, "s"), found.table(OVER_BEST, "×")
    best = best_s(machines, MODEL, count, TOKENS)
    table.add(BEST, column, best)
    with pool(machines) as running, running.client() as client:
        table.add(OURS, column, _run_many(client, MODEL, count))
    question = question_of(MODEL, TOKENS)
    for name, rule in RULES.items():
        with standins(machines) as urls:
            took_s = dispatchers.makespan_s(urls, rule, question, count=count, most=IN_FLIGHT)
            table.add(name, column, took_s)
    for row in (OURS, *RULES):
        over.cells[row, column] = ratios(table.samples(row, column), table.samples(BEST, column))


def three_machines(plan: Plan, *, is_warm: bool) -> list[Machine]:
    """Return the machines of the first scene."""
    load_s = plan.seconds(LOAD_S)
    return [
        Machine(models=(MODEL,), loaded=(MODEL,), speed=1.0, load_s=load_s),
        *(
            Machine(models=(MODEL,), loaded=(MODEL,) * is_warm, speed=speed, load_s=load_s)
            for speed in (1.0, 0.25)
        ),
    ]


@contextlib.contextmanager
def pool(machines: Sequence[Machine], settings: Mapping[str, str] = NONE) -> Iterator[Mesh]:
    """Run a mesh with a worker beside each machine; wait until it knows them all.

    Args:
        settings: of all its processes, over those that are needed here.
    """
    with standins(machines) as urls, mesh(workers=0, settings=settings) as running:
        for url in urls:
            running.add_worker({"DEEPSEEK_BASE_URL": url})
        running.await_workers(len(urls))
        until = time.monotonic() + KNOWN_S
        while len(ask(running.url, "/api/models")["services"]) < len(urls):
            if time.monotonic() > until:
                raise D8Error(f"llm: the machines were not known within {KNOWN_S:.0f} s")
            time.sleep(0.01)
        yield running


def _data(model: str, words: int) -> dict[str, Any]:
    message = {"role": "user", "content": f"say {words} words"}
    return {"model": model, "messages": [message], "max_tokens": 1000}


def _run_many(client: Client, model: str, count: int) -> float:
    begun = time.perf_counter()
    tasks = client.submit_many("agent_action", [_data(model, TOKENS)] * count)
    for task in tasks:
        task.result(RESULT_S)
    return time.perf_counter() - begun


# ------------------------------------------------------------------------ scene two


def mix(found: Findings, plan: Plan) -> None:
    """Measure talks alone, a batch alone, and both beside each other."""
    talks, each = plan.tasks(TALKS, least=4), plan.tasks(BATCH_OF_EACH, least=5)
    first, batches = found.table(FIRST_TOKENS, "s"), found.table(BATCHES, "s")
    for row, has_talks, has_batch in ((ALONE, True, False), (ALONE, False, True)):
        _mixed_run(found, plan, row, talks * has_talks, each * has_batch)
    _mixed_run(found, plan, BESIDE, talks, each)
    ratio = found.table(MIXED, "×")
    ratio.cells[P95, "×"] = ratios(first.samples(BESIDE, "p95"), first.samples(ALONE, "p95"))
    ratio.cells[LOSS, "×"] = ratios(batches.samples(BESIDE, "s"), batches.samples(ALONE, "s"))


def five_machines(plan: Plan) -> list[Machine]:
    """Return the machines of the second scene."""
    return [
        Machine(
            models=MODELS,
            loaded=(MODELS[n % len(MODELS)], MODELS[(n + 1) % len(MODELS)]),
            speed=speed,
            load_s=plan.seconds(LOAD_S),
            prompt_s=PROMPT_S,
        )
        for n, speed in enumerate(SPEEDS)
    ]


def _mixed_run(found: Findings, plan: Plan, row: str, talks: int, batch_of_each: int) -> None:
    with pool(five_machines(plan)) as running, running.client() as client:
        for model in MODELS:
            _run_many(client, model, plan.tasks(WARM_UP, least=1))
        took: list[float] = []
        asking = threading.Thread(target=lambda: took.extend(_talk(client, talks)))
        begun = time.perf_counter()
        tasks = [
            task
            for model in MODELS
            for task in client.submit_many(
                "agent_action", [_data(model, TOKENS)] * batch_of_each, priority=BATCH
            )
        ]
        if talks and tasks:
            time.sleep(plan.seconds(BATCH_FIRST_S))
        asking.start()
        for task in tasks:
            task.result(RESULT_S)
        if tasks:
            found.table(BATCHES, "s").add(row, "s", time.perf_counter() - begun)
        asking.join()
    if talks:
        for column, share in (("p50", 0.5), ("p95", 0.95)):
            found.table(FIRST_TOKENS, "s").add(row, column, percentile(took, share))


def _talk(client: Client, count: int) -> list[float]:
    """Ask again and again, one question not waiting for another; return what first tokens took."""
    took: list[float] = []
    asking = [
        threading.Thread(target=lambda n=n: took.append(_first_s(client, MODELS[n % 2])))
        for n in range(count)
    ]
    for each in asking:
        each.start()
        time.sleep(TALK_EVERY_S)
    for each in asking:
        each.join()
    return took


def _first_s(client: Client, model: str, words: int = TOKENS) -> float:
    begun = time.perf_counter()
    data = _data(model, words)
    task = client.submit("agent_action", data, priority=INTERACTIVE, listen=True)
    first_s = 0.0
    for _ in task.stream(RESULT_S):
        first_s = first_s or time.perf_counter() - begun
    task.result(RESULT_S)
    return first_s


# ---------------------------------------------------------------------- scene three


def single(found: Findings, plan: Plan) -> None:
    """Measure what the mesh adds to one request, and how many short ones a second it takes."""
    machine = Machine(models=(MODEL,), loaded=(MODEL,), speed=0, slots=AT_ONCE)
    count = plan.tasks(ONE_BY_ONE, least=10)
    with pool([machine]) as running, running.client() as client, standins([machine]) as (url,):
        question = question_of(MODEL, 1)
        _first_s(client, MODEL, 1)
        straight = asyncio.run(_one_by_one(url, question, count))
        through = [_first_s(client, MODEL, 1) for _ in range(count)]
        table = found.table(SINGLE, "ms")
        for column, share in (("p50", 0.5), ("p99", 0.99)):
            before = 1000 * percentile(straight, share)
            after = 1000 * percentile(through, share)
            table.add(DIRECT, column, before)
            table.add(THROUGH, column, after)
            table.add(ADDED, column, max(0.0, after - before))
        chats = plan.tasks(ONE_TOKEN_CHATS, least=AT_ONCE)
        took_s = dispatchers.makespan_s(
            [url], dispatchers.round_robin, question, count=chats, most=AT_ONCE
        )
        rates = found.table(CHATS, "chats/s")
        rates.add(DIRECT, "chats/s", chats / took_s)
        begun = time.perf_counter()
        datas = [_data(MODEL, 1)] * chats
        done = client.map("agent_action", datas, in_flight=AT_ONCE, timeout=RESULT_S)
        assert sum(1 for _ in done) == chats
        rates.add(THROUGH, "chats/s", chats / (time.perf_counter() - begun))


async def _one_by_one(url: str, question: bytes, count: int) -> list[float]:
    return [await dispatchers.chat(url, question) for _ in range(count)]
