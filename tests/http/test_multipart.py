"""Forms with files, in whatever parts they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from d8mesh.http.answers import Refusal
from d8mesh.http.multipart import FormField, boundary_of, form_of


def test_the_boundary_stands_in_the_media_type() -> None:
    assert boundary_of('multipart/form-data; boundary="a b"') == b"a b"


@pytest.mark.parametrize("text", ["", "application/json", "multipart/form-data"])
def test_another_media_type_is_refused(text: str) -> None:
    with pytest.raises(Refusal, match="expected multipart/form-data") as caught:
        boundary_of(text)
    assert caught.value.code == "http.media_type"


def read(body: bytes, part: int) -> list[FormField | bytes]:
    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(body), part):
            yield body[at : at + part]

    async def collect() -> list[FormField | bytes]:
        return [each async for each in form_of(parts(), b"x")]

    return asyncio.run(collect())


HEAD = b'Content-Disposition: form-data; name="a"'
FORM = (
    b"--x\r\n" + HEAD + b"\r\n\r\n1\r\n--x\r\n" + HEAD + b'; filename="f"\r\n\r\n2\n3\r\n--x--\r\n'
)


@pytest.mark.parametrize("part", [1, 3, 1000])
def test_fields_come_in_turn_with_their_content(part: int) -> None:
    found = read(FORM, part)
    fields = [each for each in found if isinstance(each, FormField)]
    assert fields == [FormField("a", None), FormField("a", "f")]
    assert b"".join(each for each in found if isinstance(each, bytes)) == b"12\n3"


@pytest.mark.parametrize("body", [b"", b"nothing", FORM[:-10], b"--x\r\n\r\n\r\n1\r\n--x--\r\n"])
def test_a_body_that_is_no_whole_form_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        read(body, 5)
    assert caught.value.code == "http.bad_request"
