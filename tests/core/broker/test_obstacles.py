"""Why a task waits for a service, in words; what would have it run."""

from __future__ import annotations

from typing import Any

import pytest

from d8mesh import words
from d8mesh.core.broker.obstacles import (
    MAX_PLACES_NAMED,
    NEEDS_SOMEBODY,
    Remedy,
    duration,
    named,
    reason,
    remedies,
    state_of,
)
from d8mesh.core.broker.standings import Obstacle, Standing
from d8mesh.core.protocol.wish import NO_WISH, Wish
from d8mesh.words import translated

QWEN = Wish(models=("qwen2.5:3b",), is_strict=True)


def standing(obstacle: Obstacle | None, machine: str = "pi5", **more: Any) -> Standing:
    given: dict[str, Any] = {
        "service": f"{machine}:7100",
        "machine": machine,
        "kind": "ollama",
        "is_cloud": False,
        "model": "" if obstacle is Obstacle.NOT_INSTALLED else "qwen2.5:3b",
        "obstacle": obstacle,
        "in_flight": 2,
        "slots": 2,
    }
    return Standing(**given | more)


@pytest.mark.parametrize(
    ("obstacle", "more", "text"),
    [
        (None, {}, "free, it could have the task now"),
        (Obstacle.FULL, {}, "busy with 2 of 2 slots"),
        (Obstacle.FULL, {"slots": 1}, "busy with 2 tasks"),
        (Obstacle.FULL, {"until_s": 3.0}, "busy with 2 of 2 slots, one is free in about 3.0 s"),
        (Obstacle.LOADING, {}, "it is loading the model"),
        (Obstacle.LOADING, {"until_s": 12.0}, "it is loading the model, done in about 12 s"),
        (
            Obstacle.PAUSED,
            {"why": "out of memory", "until_s": 90.0},
            "paused: out of memory; tried again in 90 s",
        ),
        (
            Obstacle.PAUSED,
            {},
            "paused, it is not known why; it is not known when it is tried again",
        ),
        (
            Obstacle.BUDGET_USED,
            {"why": "30 requests a minute", "until_s": 21.0},
            "what its account allows is used up: 30 requests a minute; for 21 s more",
        ),
        (
            Obstacle.BUDGET_USED,
            {},
            "what its account allows is used up; it is not known for how long",
        ),
        (Obstacle.NOT_INSTALLED, {}, "the model is not installed there"),
        (Obstacle.LACKS, {"lacks": ("completion",)}, "the model there cannot chat"),
        (Obstacle.LACKS, {"lacks": ("tools", "vision")}, "the model there lacks tools, vision"),
        (Obstacle.DOES_NOT_FIT, {"why": "48 GB"}, "the model does not fit there: 48 GB"),
        (Obstacle.DOES_NOT_FIT, {}, "the model does not fit there"),
        (Obstacle.CLOUD_FORBIDDEN, {}, "in the cloud, where this task may not go"),
        (Obstacle.AWAY, {}, "away, no worker that reaches it is there"),
        (Obstacle.DOWN, {"why": "refused"}, "it offers nothing now: refused"),
        (Obstacle.DOWN, {}, "it has no models"),
    ],
)
def test_each_state_has_its_sentence(
    obstacle: Obstacle | None, more: dict[str, Any], text: str
) -> None:
    assert state_of(standing(obstacle, **more)) == text


@pytest.mark.parametrize("obstacle", [None, *Obstacle])
@pytest.mark.parametrize(
    "more", [{}, {"why": "(mine)", "until_s": 200.0, "lacks": ("tools",)}, {"until_s": 9000.0}]
)
def test_each_state_is_said_in_spanish(obstacle: Obstacle | None, more: dict[str, Any]) -> None:
    told = state_of(standing(obstacle, **more))
    words.use("es")
    try:
        spanish = translated(told)
    finally:
        words.use("en")
    left = {"the", "it", "is", "not", "busy", "paused", "free", "now", "more", "why"}
    assert not left & set(spanish.replace(",", " ").replace(":", " ").replace(";", " ").split())


@pytest.mark.parametrize(
    ("wish", "standings", "text"),
    [
        (QWEN, [standing(None), standing(Obstacle.FULL)], ""),
        (QWEN, [], "no worker reaches a service with the model 'qwen2.5:3b'"),
        (NO_WISH, [], "no worker reaches a service"),
        (
            QWEN,
            [standing(Obstacle.NOT_INSTALLED), standing(Obstacle.NOT_INSTALLED, "nas")],
            "no worker reaches a service with the model 'qwen2.5:3b'",
        ),
        (QWEN, [standing(Obstacle.FULL)], "the one service with the model 'qwen2.5:3b' is busy"),
        (
            QWEN,
            [standing(Obstacle.FULL), standing(Obstacle.FULL, "nas")],
            "all 2 services with the model 'qwen2.5:3b' are busy",
        ),
        (
            QWEN,
            [standing(Obstacle.FULL), standing(Obstacle.HELD_BACK, "nas")],
            (
                "the quicker services with the model 'qwen2.5:3b' are busy, "
                "and will still be done with it sooner than one that is free"
            ),
        ),
        (
            NO_WISH,
            [standing(Obstacle.FULL), standing(Obstacle.RESERVED, "nas")],
            "the last free slots are kept for urgent tasks",
        ),
        (
            QWEN,
            [standing(Obstacle.AWAY), standing(Obstacle.NOT_INSTALLED, "nas")],
            "no worker is there that reaches the service on pi5 with the model 'qwen2.5:3b'",
        ),
        (
            QWEN,
            [standing(Obstacle.PAUSED, why="it crashed", until_s=8.0)],
            "pi5 with the model 'qwen2.5:3b': paused: it crashed; tried again in 8.0 s",
        ),
        (
            NO_WISH,
            [standing(Obstacle.PAUSED, why="a", until_s=8.0), standing(Obstacle.FULL, "nas")],
            (
                "none of 2 services can take it now: "
                "pi5: paused: a; tried again in 8.0 s; nas: busy with 2 of 2 slots"
            ),
        ),
        (
            QWEN,
            [standing(Obstacle.CLOUD_FORBIDDEN, "groq", is_cloud=True)],
            (
                "no service with the model 'qwen2.5:3b' may have it: "
                "groq: in the cloud, where this task may not go"
            ),
        ),
        (
            Wish(machine="nas"),
            [standing(Obstacle.ELSEWHERE)],
            "no worker reaches a service on 'nas'",
        ),
    ],
)
def test_why_a_task_waits_is_one_sentence(wish: Wish, standings: list[Standing], text: str) -> None:
    assert reason(wish, standings) == text


def test_of_many_services_a_few_are_told() -> None:
    many = [standing(Obstacle.PAUSED, f"m{n}", why="x", until_s=5.0) for n in range(9)]
    assert reason(NO_WISH, many).endswith("; and 5 more")
    assert named(f"m{n}" for n in range(9)) == "m0, m1, m2, m3, … (9)"


def test_what_would_run_it_is_named_with_its_command() -> None:
    told = remedies(
        QWEN,
        [
            standing(Obstacle.AWAY),
            standing(Obstacle.DOWN, "attic", why="refused"),
            standing(Obstacle.NOT_INSTALLED, "nas"),
            standing(Obstacle.CLOUD_FORBIDDEN, "groq", kind="groq", is_cloud=True),
        ],
    )
    assert told == [
        Remedy("start a worker on pi5", "worker"),
        Remedy("start the service on attic"),
        Remedy("install qwen2.5:3b on nas", "models pull qwen2.5:3b --on nas"),
        Remedy(
            'allow the cloud (groq): submit it with "cloud": "overflow", '
            "or set D8_CLOUD=overflow at the orchestrator"
        ),
    ]


def test_a_model_that_nobody_has_is_installed_where_it_fits() -> None:
    told = remedies(QWEN, [standing(Obstacle.NOT_INSTALLED, f"m{n}") for n in range(2)])
    assert told == [
        Remedy("install qwen2.5:3b on one of m0, m1", "models pull qwen2.5:3b --fit"),
        Remedy("let another model answer: leave out model_strict, or name others"),
    ]


def test_what_cannot_be_pulled_is_not_proposed() -> None:
    told = remedies(QWEN, [standing(Obstacle.NOT_INSTALLED, kind="openai")])
    assert [each.command for each in told] == [""]


def test_who_may_run_needs_no_remedy() -> None:
    assert remedies(QWEN, [standing(None), standing(Obstacle.AWAY)]) == []
    assert remedies(NO_WISH, []) == [
        Remedy("start a worker on a machine with a language model", "worker")
    ]


def test_lasting_obstacles_do_not_go_by_waiting() -> None:
    assert Obstacle.FULL not in NEEDS_SOMEBODY
    assert Obstacle.PAUSED not in NEEDS_SOMEBODY
    assert Obstacle.NOT_INSTALLED in NEEDS_SOMEBODY
    assert MAX_PLACES_NAMED > 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.1 s"), (3.14, "3.1 s"), (59.6, "60 s"), (240, "4 min"), (9000, "2.5 h")],
)
def test_a_duration_is_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
