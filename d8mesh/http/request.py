"""A request as the calls of a door see it: Werkzeug's, without input of its own."""

from __future__ import annotations

from typing import Any

from werkzeug.datastructures import Headers
from werkzeug.sansio.request import Request as SansIoRequest

from d8mesh.http.asgi import Scope, fields_of


class Request(SansIoRequest):
    """One request; `args`, `headers`, `mimetype` and the like are Werkzeug's.

    body: what came with it, whole and within the route's limit.
    value: what the route's schema made of it.
    """

    body: bytes = b""
    value: Any = None

    def __init__(self, scope: Scope) -> None:
        self.http_version: str = scope["http_version"]
        #: by lower-case name
        self.fields = fields_of(scope)
        client = scope.get("client")
        super().__init__(
            method=scope["method"],
            scheme="http",
            server=None,
            root_path="",
            path=scope["path"],
            query_string=scope["query_string"],
            headers=Headers(list(self.fields.items())),
            remote_addr=client[0] if client else "",
        )
