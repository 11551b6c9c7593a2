"""Who hangs up: the machine's connection closes within a tenth of a second, in every phase."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from d8mesh.apps.orchestrators import ask
from tests.doors.llm_mesh import LlmMesh, llm_mesh, machine
from tests.end_to_end.processes import until
from tests.end_to_end.test_open_chats import OPENAI_PATH, Chat, begun
from tests.ollama_standin import OllamaStandin

#: From the socket's close to what the machine sees.
CLOSED_S = 0.1
#: The quickest of some counts: what others do on this machine only makes it longer.
TRIES = 5
SLOW_PROMPT = {"prompt_tokens_per_s": 0.05}
SLOW_WORDS = {"tokens_per_s": 5.0, "prompt_tokens_per_s": 0.0}
#: None of these ends by itself.
ENDLESS = {"tokens_per_s": 0.1, "prompt_tokens_per_s": 0.0}


@pytest.fixture(scope="module")
def mesh() -> Iterator[LlmMesh]:
    with llm_mesh(machine(num_parallel=2)) as made:
        yield made


def seen_after(standin: OllamaStandin, chat: Chat) -> float:
    """Hang up; return how much later the machine has seen its connection closed."""
    standin.reset()
    left = time.monotonic()
    chat.connection.close()
    standin.wait_until(lambda: bool(standin.counters.cancelled), within_s=60.0)
    return standin.counters.cancelled[0].at - left


@pytest.mark.parametrize("number", [0, 1], ids=["streamed", "whole"])
@pytest.mark.parametrize("phase", ["prompt", "output"])
@pytest.mark.parametrize("path", ["/api/chat", OPENAI_PATH, "/v1/messages"])
def test_a_machine_is_let_go_within_a_tenth_of_a_second(
    mesh: LlmMesh, path: str, phase: str, number: int
) -> None:
    (standin,) = mesh.standins
    standin.change(settings=SLOW_PROMPT if phase == "prompt" else SLOW_WORDS)
    took = []
    for _ in range(TRIES):
        standin.reset()
        chat = begun(mesh, number, has_key=False, path=path)
        with chat.connection:
            standin.wait_until(lambda: standin.running == 1, within_s=60.0)
            if phase == "output":
                standin.wait_until(lambda: standin.counters.tokens > 0, within_s=60.0)
            took.append(seen_after(standin, chat))
        assert standin.counters.cancelled[0].phase == phase
        until(lambda: standin.running == 0, "a free slot")
    print(f"{path}, {phase}, {number}: {[round(1000 * each) for each in took]} ms")
    assert min(took) < CLOSED_S


def test_who_waits_in_line_and_leaves_is_in_line_no_longer_and_never_asked_for(
    mesh: LlmMesh,
) -> None:
    (standin,) = mesh.standins
    standin.change(settings=ENDLESS)
    standin.reset()
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(begun(mesh, 1, has_key=False).connection)
        until(lambda: unfinished(mesh) == 8 and waiting(mesh) >= 4, "a line")
        took = []
        for _ in range(TRIES):
            with begun(mesh, 1, has_key=False).connection:
                until(lambda: unfinished(mesh) == 9, "one more in line")
                left = time.monotonic()
            until(lambda: unfinished(mesh) == 8, "one fewer in line")
            took.append(time.monotonic() - left)
    until(lambda: unfinished(mesh) == 0 and standin.running == 0, "nobody")
    assert standin.counters.requests["/api/chat"] <= 8
    print(f"in line: {[round(1000 * each) for each in took]} ms")
    assert min(took) < CLOSED_S
    assert {each["state"] for each in mesh.tasks()} == {"cancelled"}


def waiting(mesh: LlmMesh) -> int:
    return int(ask(mesh.url, "/api/stats")["tasks"]["pending"])


def unfinished(mesh: LlmMesh) -> int:
    tasks = ask(mesh.url, "/api/stats")["tasks"]
    return int(tasks["pending"]) + int(tasks["assigned"])
