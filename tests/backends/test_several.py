"""Several services of one worker look like one, and each request goes to whom it suits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from d8mesh.backends.backend import Availability, ChatRun, ModelInfo
from d8mesh.backends.several import Several
from d8mesh.core.protocol.chat import (
    ChatRequest,
    Completion,
    EmbeddingRequest,
    Embeddings,
    JsonObject,
    Piece,
)


class Constant:
    """A service that always gives the same answer."""

    def __init__(self, name: str, seen: Availability) -> None:
        self.name, self.seen = name, seen
        self.kind, self.is_cloud, self.url = name, False, seen.url

    def probe(self) -> Availability:
        return self.seen

    def chat(self, request: ChatRequest, run: ChatRun) -> Completion:
        run.on_piece(Piece(self.name))
        return Completion(text=self.name, model=request.model or self.seen.default)

    def embed(self, request: EmbeddingRequest, run: ChatRun) -> Embeddings:
        return Embeddings(vectors=((1.0,),) * len(request.texts), model=self.name)

    def check(self, model: ModelInfo, *, within_s: float) -> None:
        """Do nothing."""

    def load(self, model: str, options: JsonObject, *, within_s: float) -> None:
        """Do nothing."""


def up(*models: str, embedders: tuple[str, ...] = ()) -> Availability:
    return Availability(is_up=True, models=models, default=models[0], embedders=embedders)


RUN = ChatRun(is_cancelled=lambda: False, deadline_s=1.0)
DOWN = Availability(is_up=False, reason="it is off")


def asked(several: Several, model: str | None) -> str:
    pieces: list[Piece] = []
    done = several.chat(
        ChatRequest(messages=(), model=model),
        replace(RUN, on_piece=pieces.append),
    )
    assert [piece.text for piece in pieces] == [done.text]
    return done.text


@pytest.mark.parametrize(
    ("model", "service"),
    [("b", "two"), ("B:latest", "two"), ("a", "one"), (None, "one"), ("c", "one")],
)
def test_a_request_goes_to_the_first_that_has_its_model(model: str | None, service: str) -> None:
    assert (
        asked(Several([Constant("one", up("a")), Constant("two", up("a", "b"))]), model) == service
    )


def test_who_is_down_is_passed_over_and_warned_of() -> None:
    several = Several([Constant("one", DOWN), Constant("two", up("b"))])
    seen = several.probe()
    assert (seen.is_up, seen.default, seen.warning) == (True, "b", "one: it is off")
    assert asked(several, None) == "two"


def test_together_they_offer_each_model_once() -> None:
    several = Several([Constant("one", up("a", "b")), Constant("two", up("b", "c"))])
    assert (several.kind, several.probe().models) == ("one+two", ("a", "b", "c"))


def test_all_down_is_down_with_every_reason() -> None:
    seen = Several([Constant("one", DOWN), Constant("two", DOWN)]).probe()
    assert (seen.is_up, seen.reason) == (False, "one: it is off; two: it is off")


def test_embeddings_come_from_who_has_the_model() -> None:
    several = Several([Constant("one", up("a")), Constant("two", up("b", embedders=("e",)))])
    assert several.embed(EmbeddingRequest(texts=("x",), model="e"), RUN).model == "two"
