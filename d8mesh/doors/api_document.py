"""``GET /openapi.json``: what all doors take and answer, made of their routes when first asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from d8mesh import __version__
from d8mesh.core.protocol.access_tokens import ALL_SCOPES
from d8mesh.http.answers import Response
from d8mesh.http.described import AboutCall, HttpReply
from d8mesh.http.off_loop import OFF_LOOP_BYTES, off_loop
from d8mesh.http.openapi import document
from d8mesh.http.routes import Door, HttpRoute, Request

DOCUMENT_PATH: Final = "/openapi.json"
_TITLE: Final = "d8mesh"


def document_door(others: Sequence[Door]) -> Door:
    """Return the door that tells of the others and of itself."""
    calls = DocumentCall()
    route = HttpRoute(
        DOCUMENT_PATH,
        calls.answer,
        described=AboutCall(what="This document.", answers=(HttpReply(200, dict[str, Any]),)),
    )
    door = Door(routes=(route,), scopes=ALL_SCOPES)
    calls.doors = (*others, door)
    return door


class DocumentCall:
    """Answers with the document."""

    def __init__(self) -> None:
        self.doors: Sequence[Door] = ()
        self._written = b""

    async def answer(self, request: Request) -> Response:
        """``GET /openapi.json``"""
        if not self._written:
            self._written = await off_loop(OFF_LOOP_BYTES + 1, _written, self.doors)
        return Response(self._written)


def _written(doors: Sequence[Door]) -> bytes:
    return msgspec.json.encode(document(doors, title=_TITLE, version=__version__))
