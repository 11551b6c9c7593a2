"""Models as OpenAI lists them."""

from __future__ import annotations

import pytest
from openai.types import Model as OfficialModel

from d8mesh.doors.llm.catalogue import KnownModel
from d8mesh.doors.openai.listing import model_body


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("m:latest", "library"),
        ("acme/m:1b", "acme"),
        ("hf.co/acme/m-GGUF:Q4_K_M", "acme"),
    ],
)
def test_a_model_belongs_to_the_one_in_its_name(name: str, owner: str) -> None:
    body = model_body(name, KnownModel(name=name, names=(name,)))
    OfficialModel.model_validate(body, strict=True)
    assert body == {"id": name, "object": "model", "created": 0, "owned_by": owner}


@pytest.mark.parametrize(
    ("told", "created"),
    [
        ("2026-11-29T12:00:00Z", 1795953600),
        ("2026-11-29T13:00:00.123456789+01:00", 1795953600),
        ("", 0),
        ("yesterday", 0),
    ],
)
def test_when_it_changed_is_told_in_unix_seconds(told: str, created: int) -> None:
    model = KnownModel(name="m", names=("m",), modified_at=told)
    assert model_body("m", model)["created"] == created
