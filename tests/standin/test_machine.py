"""How the stand-in loads, evicts, queues and keeps its pace; who leaves is seen."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.ollama_standin import OllamaStandin
from tests.standin.calls import Answered, ask, asking, get, post
from tests.standin.faults import Kind
from tests.standin.machine import Model

MODEL = "m:1b"


def many(standin: OllamaStandin, count: int, text: str, **more: object) -> list[Future[Answered]]:
    threads = ThreadPoolExecutor(count)
    asked = [threads.submit(ask, standin.url, MODEL, text, **more) for _ in range(count)]
    threads.shutdown(wait=False)
    return asked


def raw_ask(standin: OllamaStandin, text: str) -> socket.socket:
    """Ask without waiting for an answer."""
    content = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": text}]}).encode()
    connection = socket.create_connection(("127.0.0.1", standin.port), 20)
    head = f"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def test_a_cold_model_is_loaded_once_for_all_who_wait() -> None:
    with OllamaStandin(models=[MODEL], load_s=0.3, num_parallel=4) as standin:
        asked = many(standin, 4, "hi")
        standin.wait_until(lambda: standin.ollama.machine.pending == 4)
        assert [row["name"] for row in get(standin.url, "/api/ps").json["models"]] == [MODEL]
        lasts = [each.result().lines[-1] for each in asked]
        assert all(last["load_duration"] > 0.2e9 for last in lasts)
        assert ask(standin.url, MODEL, "hi").lines[-1]["load_duration"] < 0.1e9
        assert standin.ollama.machine.loads == {MODEL: 1}


def test_as_many_answer_at_once_as_there_are_slots() -> None:
    with OllamaStandin(models=[MODEL], loaded=[MODEL], num_parallel=2, tokens_per_s=50) as standin:
        begun = time.monotonic()
        for each in many(standin, 4, "say 10 words"):
            each.result()
        assert time.monotonic() - begun >= 0.4
        assert standin.ollama.machine.running_max == {MODEL: 2}
        assert standin.counters.open_max == 4


def test_tokens_come_at_their_pace_and_the_prompt_before_them() -> None:
    with OllamaStandin(
        models=[MODEL], loaded=[MODEL], tokens_per_s=100, prompt_tokens_per_s=10, speed=0.5
    ) as standin:
        last = ask(standin.url, MODEL, "say 10 words").lines[-1]
        assert last["prompt_eval_duration"] >= 0.6e9
        assert last["eval_duration"] >= 0.2e9
        standin.set_speed(50)
        assert ask(standin.url, MODEL, "say 10 words").lines[-1]["eval_duration"] < 0.2e9


def test_other_load_options_load_again_and_their_absence_does_not() -> None:
    with OllamaStandin(models=[MODEL]) as standin:
        for options in ({}, {"num_ctx": 8192}, {}, {"num_ctx": 8192}, {"temperature": 1}):
            ask(standin.url, MODEL, "hi", options=options)
        assert standin.reloads == 1
        (row,) = get(standin.url, "/api/ps").json["models"]
        assert row["context_length"] == 8192
        ask(standin.url, MODEL, "hi", options={"num_batch": 256})
        ask(standin.url, MODEL, "hi")
        assert standin.reloads == 3


def test_the_idle_model_with_the_least_time_left_makes_room() -> None:
    models = ["a:1b", "b:1b", "c:1b"]
    with OllamaStandin(models=models, max_loaded=2) as standin:
        ask(standin.url, "a:1b", "hi", keep_alive="1h")
        ask(standin.url, "b:1b", "hi", keep_alive=60)
        ask(standin.url, "c:1b", "hi")
        assert standin.loaded == ["a:1b", "c:1b"]
        assert standin.ollama.machine.evictions == {"b:1b": 1}


def test_a_model_leaves_when_its_time_is_over_or_it_is_told_to() -> None:
    with OllamaStandin(models=[MODEL]) as standin:
        ask(standin.url, MODEL, "hi", keep_alive=0.05)
        standin.wait_until(lambda: standin.loaded == [])
        ask(standin.url, MODEL, "hi", keep_alive=-1)
        post(standin.url, "/api/generate", {"model": MODEL, "keep_alive": 0})
        assert standin.loaded == []


def test_only_those_who_wait_for_a_load_are_too_many() -> None:
    with OllamaStandin(models=[MODEL], load_s=0.5, max_queue=2, num_parallel=8) as standin:
        waiting = many(standin, 2, "hi")
        standin.wait_until(lambda: standin.ollama.machine.pending == 2)
        refused = ask(standin.url, MODEL, "hi")
        assert refused.status == 503
        assert refused.json["error"].startswith("server busy, please try again.  maximum")
        assert all(each.result().status == 200 for each in waiting)
        assert all(each.result().status == 200 for each in many(standin, 8, "hi"))


def test_an_embedder_has_one_slot() -> None:
    embedder = Model(name=MODEL, can=("embedding",))
    with OllamaStandin(models=[embedder], num_parallel=4, prompt_tokens_per_s=20) as standin:
        with ThreadPoolExecutor(3) as threads:
            body = {"model": MODEL, "input": "x"}
            list(threads.map(lambda _: post(standin.url, "/api/embed", body), range(3)))
        assert standin.ollama.machine.running_max == {MODEL: 1}


def test_who_leaves_is_seen_in_each_phase_and_the_slot_is_free() -> None:
    with OllamaStandin(models=[MODEL], loaded=[MODEL], tokens_per_s=20) as standin:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "say 1000 words"}]}
        with asking(standin.url, "POST", "/api/chat", body) as response:
            response.readline()
            left = time.monotonic()
        standin.wait_until(lambda: len(standin.counters.cancelled) == 1)
        (seen,) = standin.counters.cancelled
        assert (seen.model, seen.phase) == (MODEL, "output")
        assert seen.pieces >= 1
        assert -0.1 < seen.at - left < 1
        standin.wait_until(lambda: standin.running == 0)
        standin.change(settings={"prompt_tokens_per_s": 0.1})
        with closing(raw_ask(standin, "hi")):
            standin.wait_until(lambda: standin.running == 1)
        standin.wait_until(lambda: len(standin.counters.cancelled) == 2)
        assert standin.counters.cancelled[-1].phase == "prompt"
        assert standin.running == 0


def test_a_machine_that_is_switched_off_comes_back_with_an_empty_memory() -> None:
    with OllamaStandin(models=[MODEL]) as standin:
        url = standin.url
        ask(url, MODEL, "hi")
        standin.stop()
        try:
            get(url, "/")
        except OSError:
            pass
        else:
            raise AssertionError("it still answers")
        standin.start()
        assert standin.url == url
        assert get(url, "/").status == 200
        assert standin.loaded == []


def test_a_thousand_streams_run_at_once_and_each_end_is_seen() -> None:
    with OllamaStandin(
        models=[MODEL], loaded=[MODEL], num_parallel=1000, tokens_per_s=1
    ) as standin:
        standin.fault(Kind.ENDLESS)
        sockets = [raw_ask(standin, "hi") for _ in range(1000)]
        standin.wait_until(lambda: standin.running == 1000, within_s=60)
        standin.wait_until(lambda: standin.counters.tokens > 1000, within_s=60)
        for each in sockets:
            each.close()
        standin.wait_until(lambda: len(standin.counters.cancelled) == 1000, within_s=60)
        assert standin.running == 0


@pytest.mark.parametrize("turns", range(6))
def test_who_is_accepted_while_it_is_switched_off_is_left_by_it_too(turns: int) -> None:
    async def switched_off(standin: OllamaStandin) -> None:
        callers = [socket.create_connection(("127.0.0.1", standin.port)) for _ in range(5)]
        for _ in range(turns):  # not accepted, accepted, known
            await asyncio.sleep(0)
        await standin._stop()
        for caller in callers:
            caller.close()

    with warnings.catch_warnings(record=True) as left_open:
        warnings.simplefilter("always", ResourceWarning)
        with OllamaStandin(models=[MODEL]) as standin:
            standin._call(switched_off(standin))
        gc.collect()
    assert left_open == []
