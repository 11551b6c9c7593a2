"""All doors of an orchestrator without a mesh behind them, and what is said of their calls."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from d8mesh.config import Config
from d8mesh.doors.anthropic.door import anthropic_door
from d8mesh.doors.batches.door import batch_runner, batches_door
from d8mesh.doors.llm.catalogue import ModelCatalogue
from d8mesh.doors.llm.chats import Chats
from d8mesh.doors.ollama.routes import ollama_door
from d8mesh.doors.openai.described import OpenAiProblem
from d8mesh.doors.openai.errors import openai_problem
from d8mesh.doors.openai.routes import openai_door
from d8mesh.doors.rest.api import rest_door
from d8mesh.doors.rest.members import join_door
from d8mesh.doors.tunnel import tunnel_door
from d8mesh.doors.waiting import Places
from d8mesh.errors import BrokerUnavailableError
from d8mesh.http.answers import JSON
from d8mesh.http.described import LINES, AboutCall, HttpReply
from d8mesh.http.guard import Rejections
from d8mesh.http.origins import no_origin
from d8mesh.http.routes import Door, HttpRoute
from tests.standin.calls import Answered


class _Nobody:
    """Stands where a mesh would be asked."""

    loop: Any = None
    exchange: Any = None

    async def ask(self, *_: object) -> dict[str, Any]:
        raise BrokerUnavailableError


def every_door(folder: Path) -> list[Door]:
    """Return the doors, none of whose calls can be answered."""
    mesh: Any = _Nobody()
    exchange: Any = _Nobody()
    catalogue = ModelCatalogue(mesh)
    chats = Chats(mesh, catalogue)
    config = Config.from_env({"D8_DATA_DIR": str(folder)})
    return [
        rest_door(mesh, Places(1), Rejections()),
        join_door(mesh, Places(1)),
        tunnel_door(exchange),
        ollama_door(mesh, chats, catalogue, model_changes="pull"),
        openai_door(chats, catalogue, origins=no_origin),
        anthropic_door(chats, catalogue),
        batches_door(batch_runner(config, mesh, catalogue), openai_problem, OpenAiProblem),
    ]


class ToldAnswers:
    """Holds answers against what is said of them, and remembers which were seen."""

    def __init__(self, doors: Sequence[Door]) -> None:
        self._calls = [(door, route) for door in doors for route in door.routes]
        self.seen: Counter[tuple[str, str, int, str]] = Counter()

    def check(self, method: str, path: str, status: int, media: str, body: bytes) -> None:
        """See that an answer is exactly what is said: no field missing, none too many."""
        door, route = self._find(method, path)
        media = media.partition(";")[0]
        if status >= 400 and not any(each.status == status for each in _answers(route)):
            assert media == JSON
            problems: list[object] = [door.problem_kind, *described(route).problem_kinds]
            is_one_of(msgspec.json.decode(body), problems)
            self.seen[route.method, route.rule, 400, JSON] += 1
            return
        kinds = [
            each.kind for each in _answers(route) if (each.status, each.media) == (status, media)
        ]
        assert kinds, f"{method} {path} answers {status} {media}: nobody says so"
        if body and None not in kinds:
            for row in body.splitlines() if media == LINES else [body]:
                is_one_of(msgspec.json.decode(row), kinds)
        self.seen[route.method, route.rule, status, media] += 1

    def unseen(self, rules: str = "") -> list[tuple[str, str, int, str]]:
        """Return which kinds of answers that are said were not seen, of rules that begin so."""
        return [
            each
            for _, route in self._calls
            for each in _kinds(route)
            if route.rule.startswith(rules) and each not in self.seen
        ]

    def _find(self, method: str, path: str) -> tuple[Door, HttpRoute]:
        plain = path.partition("?")[0]
        for door, route in self._calls:
            pattern = re.sub(r"<path:\w+>", ".+", re.sub(r"<\w+>", "[^/]+", route.rule))
            if route.method == method and re.fullmatch(pattern, plain):
                return door, route
        raise AssertionError(f"{method} {path} is no call of any door")


def is_one_of(value: Any, kinds: Sequence[object]) -> None:
    """See that a value is of one of the types, and has nothing that it does not tell of."""
    found: list[object] = []
    for kind in kinds:
        try:
            told: object = msgspec.to_builtins(msgspec.convert(value, kind))
        except msgspec.ValidationError as error:
            told = error
        if told == value:
            return
        found.append(told)
    raise AssertionError(f"{value} is none of {kinds}: {found}")


def _answers(route: HttpRoute) -> Sequence[HttpReply]:
    return described(route).answers


def described(route: HttpRoute) -> AboutCall:
    """Return what is said of a call; something must be."""
    assert route.described is not None, f"nothing is said of {route.method} {route.rule}"
    return route.described


def _kinds(route: HttpRoute) -> Iterator[tuple[str, str, int, str]]:
    for each in _answers(route):
        yield route.method, route.rule, each.status, each.media


class Asking:
    """Asks, and holds each answer against what is said of it.

    Args:
        call: sends a method, a path, a body and headers.
    """

    def __init__(self, call: Callable[..., Answered], answers: ToldAnswers) -> None:
        self._call, self._answers = call, answers

    def __call__(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        """Return the object that came back; lines and events as they are."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        told = self._call(method, path, body, headers=named)
        media = told.headers.get("content-type", JSON)
        self._answers.check(method, path, told.status, media, told.body)
        is_object = media == JSON and told.body
        return json.loads(told.body) if is_object else told.body


class ReadFields(dict[str, Any]):
    """A body that remembers which of its fields somebody looked for."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__(given)
        self.read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.read.add(str(name))
        return super().__contains__(name)
