"""Who may ask at all: the peer's address, the Host, the Origin; and how much of a body.

Runs before routing, for every method: a page of some web site must reach nothing here,
whatever name it gave itself (DNS rebinding) and whatever it was allowed to send.
"""

from __future__ import annotations

import hmac
import threading
from collections import Counter
from typing import Final

from werkzeug.exceptions import ClientDisconnected
from werkzeug.wrappers import Request

from d8mesh.config import Config
from d8mesh.core.protocol.addresses import host_of, is_admissible, is_loopback
from d8mesh.http.answers import JSON, Refusal
from d8mesh.http.own_hosts import OwnHosts, may_lack_host

#: Largest body: a batch of frames as `edge.transport.tunnel` cuts them, and its envelope.
MAX_BODY_BYTES: Final = 41 * 1024 * 1024
_READ_BYTES: Final = 1_048_576
#: What is said of a body that ends before its length.
CUT_OFF: Final = "http.bad_request"
#: Names of the only charset of JSON, and of a part of it.
UTF_8: Final = frozenset({"utf-8", "utf8", "us-ascii"})


class Guard:
    """Refuses requests before anything reads them.

    Thread: any.
    """

    def __init__(self, config: Config) -> None:
        self._own_hosts = OwnHosts(config.allowed_hosts)
        self._key = config.mesh_key
        self._allows_public = config.allow_public and bool(config.mesh_key)

    def check(self, request: Request) -> None:
        """Let a request pass or not.

        Raises:
            Refusal: `http.peer`, `http.bad_request`, `http.host`, `http.origin` or
                `access.token`.
        """
        address = request.remote_addr or ""
        if not self.admits(address):
            raise Refusal("http.peer", "only private networks may ask here", closes=True)
        header = request.environ.get("HTTP_HOST", "")
        if not may_lack_host(request.environ):
            self._check_host(header)
        _check_origin(request, header)
        if self._key is not None and not is_loopback(address):
            self._check_token(request, self._key)

    def admits(self, address: str) -> bool:
        """Return whether a peer of this address may ask at all."""
        return self._allows_public or is_admissible(address)

    def _check_host(self, header: str) -> None:
        host = host_of(header)
        if host is None:
            raise Refusal("http.bad_request", "the Host header is missing or malformed")
        if host not in self._own_hosts:
            raise Refusal(
                "http.host",
                f"{host[:100]!r} is not a name of this machine: ask by its address, or add the "
                "name to D8_ALLOWED_HOSTS",
            )

    def _check_token(self, request: Request, key: str) -> None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        given = token.strip().encode("utf-8", "replace")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, key.encode("utf-8")):
            raise Refusal(
                "access.token",
                "this mesh has a key: send it as Authorization: Bearer",
                headers={"WWW-Authenticate": "Bearer"},
            )


class Rejections:
    """Counts what was refused, by reason; reasons are codes, so there are few of them.

    Thread: any.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, reason: str) -> None:
        """Count one more."""
        with self._lock:
            self._counts[reason] += 1

    def counts(self) -> dict[str, int]:
        """Return how many of each reason."""
        with self._lock:
            return dict(self._counts)


def body_of(request: Request, content_type: str = JSON) -> bytes:
    """Return the body, which may be empty.

    Raises:
        Refusal: `http.media_type` or `http.too_large`, or it was cut off.
    """
    length = request.content_length
    if length is not None and length > MAX_BODY_BYTES:
        raise _too_large()
    request.max_content_length = None  # counted here: Werkzeug cuts what is not declared
    parts: list[bytes] = []
    left = MAX_BODY_BYTES
    try:
        while left >= 0 and (part := request.stream.read(_READ_BYTES)):
            parts.append(part)
            left -= len(part)
    except ClientDisconnected as error:
        raise Refusal(CUT_OFF, "the body was cut off", closes=True) from error
    if left < 0:
        raise _too_large()
    body = b"".join(parts)
    if body:
        _check_type(request, content_type)
    return body


def _check_type(request: Request, wanted: str) -> None:
    kind, charset = request.mimetype[:60], request.mimetype_params.get("charset", "utf-8")
    coding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if kind != wanted:
        told = f"the body is {kind!r}" if kind else "the body has no Content-Type"
        told += f", expected {wanted}"
    elif charset.lower() not in UTF_8:
        told = f"the body's charset is {charset[:60]!r}, expected utf-8"
    elif coding != "identity":
        told = f"the body's Content-Encoding is {coding[:60]!r}, expected none"
    else:
        return
    raise Refusal("http.media_type", told, headers={"Accept": wanted})


def _too_large() -> Refusal:
    return Refusal("http.too_large", f"the body is larger than {MAX_BODY_BYTES} bytes", closes=True)


def _check_origin(request: Request, host: str) -> None:
    origin = request.headers.get("Origin")
    if origin is not None:
        scheme, found, place = origin.partition("://")
        if scheme not in ("http", "https") or not found or place.lower() != host.lower():
            raise Refusal("http.origin", "requests of web pages from elsewhere are refused")
    if request.headers.get("Sec-Fetch-Site", "").lower() == "cross-site":
        raise Refusal("http.origin", "requests of web pages from elsewhere are refused")
