"""A service is asked at length about each content once, and not for ever if it says nothing."""

from __future__ import annotations

from d8mesh.backends.backend import ModelInfo
from d8mesh.backends.services.descriptions import MAX_DESCRIBE_TRIES, Descriptions
from d8mesh.core.protocol.chat import JsonObject
from d8mesh.errors import BackendError

A, B = ModelInfo(name="a", digest="1"), ModelInfo(name="b", digest="2")


class Telling:
    """Tells of each model but those that it keeps silent about."""

    def __init__(self, *silent: str) -> None:
        self.silent, self.asked = silent, list[str]()

    def describe(self, model: str) -> JsonObject:
        self.asked.append(model)
        if model in self.silent:
            raise BackendError("not now")
        return {"template": model}


class Heard:
    """What was told, and who tells it."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, JsonObject]] = []
        self.descriptions = Descriptions(lambda *told: self.told.append(told))

    def look(self, backend: Telling, *models: ModelInfo) -> None:
        if news := self.descriptions.news(models):
            self.descriptions.tell(backend, "s", news)


def test_each_content_is_asked_about_once() -> None:
    heard, backend = Heard(), Telling()
    heard.look(backend, A, B)
    heard.look(backend, A, B)
    assert heard.told == [("s", "a", {"template": "a"}), ("s", "b", {"template": "b"})]
    heard.look(backend, ModelInfo(name="a", digest="3"), B)
    assert backend.asked == ["a", "b", "a"]


def test_what_was_removed_and_came_back_is_asked_about_again() -> None:
    heard, backend = Heard(), Telling()
    heard.look(backend, A)
    heard.look(backend, B)
    heard.look(backend, A)
    assert backend.asked == ["a", "b", "a"]


def test_a_model_that_is_not_described_is_left_alone_after_some_tries() -> None:
    heard, backend = Heard(), Telling("a")
    for _ in range(MAX_DESCRIBE_TRIES + 2):
        heard.look(backend, A, B)
    assert backend.asked == ["a"] * MAX_DESCRIBE_TRIES + ["b"]
    assert [model for _, model, _ in heard.told] == ["b"]
