"""Who may run a wish at all."""

from __future__ import annotations

import pytest

from d8mesh.core.broker import candidates
from d8mesh.core.broker.candidates import tiers, why_never
from d8mesh.core.broker.service_states import (
    ModelState,
)
from d8mesh.core.broker.services import ServiceTable
from d8mesh.core.protocol.messages import Measured
from tests.core.llm_services import model, service
from tests.core.service_tables import (
    NOW,
    at,
    ids,
    table_of,
    wish,
)


def test_models_are_known_by_name_and_by_what_is_in_them() -> None:
    table = table_of(
        service("a", [model("M:latest", digest="d1")]),
        service("b", [model("alias", digest="d1"), model("other", digest="d2")]),
        service("c", [model("m", digest=""), model("alias", digest="")]),
    )
    assert ids(tiers(table, wish("library/m"), is_expected=False)) == [
        ["a/M:latest", "c/m", "b/alias"]
    ]


def test_a_wish_that_nobody_has_counts_as_none_unless_it_is_a_must_or_expected() -> None:
    table = table_of(service("a", [model("m"), model("n", is_loaded=False)]))
    assert ids(tiers(table, wish("x"), is_expected=False)) == [["a/m"]]
    assert ids(tiers(table, wish("x"), is_expected=True)) == []
    assert ids(tiers(table, wish("x", is_strict=True), is_expected=False)) == []


def test_without_a_wish_the_default_will_do_and_what_is_loaded_to_chat_with() -> None:
    offered = [
        model("m", is_loaded=False),
        model("n", can=[]),
        model("e", can=["embedding"]),
        model("v", can=["vision", "completion"], is_loaded=False),
    ]
    table = table_of(service("a", offered), service("b", [], default=""))
    assert ids(tiers(table, wish(), is_expected=False)) == [["a/m", "a/n"]]
    vision = wish(needs=frozenset({"vision"}))
    assert ids(tiers(table, vision, is_expected=False)) == [["a/n"]]  # it does not tell
    assert ids(tiers(table, wish(needs=frozenset({"embedding"})), is_expected=False)) == [
        ["a/n", "a/e"]
    ]
    table = table_of(service("a", [offered[0], offered[3]]))
    assert ids(tiers(table, vision, is_expected=False)) == [["a/v"]]


def test_what_only_makes_embeddings_is_never_asked_to_chat() -> None:
    chats, embeds = model("m"), model("e", can=["embedding"])
    table = table_of(service("a", [embeds, chats], default="e"))
    assert ids(tiers(table, wish("e"), is_expected=False)) == [["a/m"]]
    assert ids(tiers(table, wish(), is_expected=False)) == [["a/m"]]
    assert ids(tiers(table, wish("e", is_strict=True), is_expected=False)) == []
    assert why_never(table, wish("e", is_strict=True)) == (
        "model: 'e' cannot do all that this needs: completion"
    )
    embedding = wish("e", needs=frozenset({"embedding"}))
    assert ids(tiers(table, embedding, is_expected=False)) == [["a/e"]]


def test_why_nobody_will_ever_run_a_task_is_told() -> None:
    table = table_of(service("a", [model("m"), model("n")]))
    assert why_never(table, wish("m")) == ""
    assert why_never(ServiceTable(), wish("x", is_strict=True)) == ""
    assert why_never(table, wish("x", is_strict=True)) == (
        "model_strict: the model 'x' is not installed here, and no worker of the mesh offers it; "
        "installed: m, n"
    )
    many = table_of(service("a", [model(f"m{n}") for n in range(22)]))
    assert why_never(many, wish("x", is_strict=True)).endswith("m19 and 2 more")
    needs = frozenset({"vision"})
    assert "'m' cannot do all that this needs: vision" in why_never(
        table, wish("m", is_strict=True, needs=needs)
    )
    assert "none of the models" in why_never(table, wish(needs=needs))
    assert why_never(table, wish(needs=needs, machine="elsewhere")) == ""
    two = table_of(service("a", [model("m")]), service("b", [model("n")]))
    told = why_never(two, wish("m", is_strict=True, machine="b"))
    assert "'m' is not installed here" in told
    assert told.endswith("installed: n")


def test_what_concerns_a_wish_is_remembered_until_something_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(candidates, "MAX_FOUND", 1)
    table = table_of(service("a", [model("m"), model("n")]))
    found = frozenset[ModelState]()
    for text in ("m", "n", "x", "m"):
        found = candidates.concerned(table, text)
        assert found == candidates.concerned(table, text)
    assert found == {at(table, "a")}
    assert len(table.concerned) <= 2
    assert len(table.tiers) <= 2
    table.measured(next(iter(at(table, "a").reach.values())), Measured("a", [model("x")]), NOW)
    assert candidates.concerned(table, "x") == {at(table, "a", "x")}
