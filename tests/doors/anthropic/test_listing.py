"""The models of the mesh in Anthropic's form."""

from __future__ import annotations

import asyncio
import json

import pytest

from d8mesh.doors.anthropic.listing import AnthropicModels, model_info, models_page
from d8mesh.doors.llm.catalogue import KnownModel
from d8mesh.errors import InvalidTaskError
from d8mesh.http.answers import Response
from d8mesh.http.routes import Request
from tests.http.calls import scope_of

NAMES = [f"m:{i}b" for i in range(5)]
NAMED = {name: KnownModel(name=name, names=(name,)) for name in NAMES}


def ids(**args: str) -> tuple[list[str], bool]:
    page = models_page(NAMED, args)
    found = [each["id"] for each in page["data"]]
    assert page["first_id"] == (found[0] if found else None)
    assert page["last_id"] == (found[-1] if found else None)
    return found, page["has_more"]


def test_all_models_stand_on_one_page() -> None:
    assert ids() == (NAMES, False)


def test_a_page_after_another_goes_on_where_that_ended() -> None:
    assert ids(limit="2") == (NAMES[:2], True)
    assert ids(limit="2", after_id=NAMES[1]) == (NAMES[2:4], True)
    assert ids(limit="2", after_id=NAMES[3]) == (NAMES[4:], False)


def test_a_page_before_another_ends_where_that_begins() -> None:
    assert ids(limit="2", before_id=NAMES[4]) == (NAMES[2:4], True)
    assert ids(limit="2", before_id=NAMES[2]) == (NAMES[:2], False)


def test_there_may_be_none() -> None:
    assert models_page({}, {}) == {
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }


def test_a_model_is_told_with_its_context_and_its_date() -> None:
    model = KnownModel(
        name="m", names=("m",), modified_at="2026-01-02T03:04:05Z", context_tokens=8192
    )
    told = model_info("m:latest", model)
    assert (told["id"], told["created_at"]) == ("m:latest", "2026-01-02T03:04:05Z")
    assert told["max_input_tokens"] == 8192
    assert model_info("m", NAMED["m:0b"])["created_at"].startswith("1970")


@pytest.mark.parametrize("args", [{"limit": "0"}, {"after_id": "x"}, {"before_id": "x"}])
def test_a_page_that_cannot_be_is_refused(args: dict[str, str]) -> None:
    with pytest.raises(InvalidTaskError, match=f"^{next(iter(args))}"):
        models_page(NAMED, args)


class Known:
    """A catalogue that never changes."""

    async def named(self) -> dict[str, KnownModel]:
        return NAMED


def answered(name: str | None = None, **headers: str) -> Response | None:
    request = Request(scope_of("GET", "/v1/models", headers=headers))
    return asyncio.run(AnthropicModels(Known()).answered(request, name))


def test_who_speaks_another_interface_is_left_to_it() -> None:
    assert answered() is None


def test_a_model_is_told_by_any_of_its_names() -> None:
    response = answered("library/M:2b", **{"anthropic-version": "2023-06-01"})
    assert response is not None
    assert isinstance(response.body, bytes)
    assert json.loads(response.body)["id"] == "m:2b"
    assert response.headers["request-id"]


def test_a_model_that_is_not_there_is_told_in_anthropics_form() -> None:
    response = answered("nobody", **{"anthropic-version": "2023-06-01"})
    assert response is not None
    assert response.status == 404
    assert isinstance(response.body, bytes)
    assert json.loads(response.body)["error"]["type"] == "not_found_error"
