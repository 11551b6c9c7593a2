"""Connections to an orchestrator's REST port, over TLS where its address says so.

A certificate is good if its fingerprint is one that is trusted, whatever date and names stand in
it, or if an authority that this machine knows has signed it for that name. Nothing is said before
that is known.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import json
import re
import socket
import ssl
import time
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from d8mesh.edge.transport.http_answer import HttpAnswer

#: What a proxy answers for a server that is away.
_OF_PROXIES: Final = frozenset({502, 503, 504})


class WrongSchemeError(ConnectionError):
    """What answers speaks HTTP where HTTPS is asked for, or the reverse."""


@dataclass(frozen=True, slots=True)
class WebAccess:
    """With what this machine comes to an orchestrator's REST port.

    trusted: fingerprints of certificates that are good.
    secret: of the mesh key (`membership.mesh_secret`); None: there is none.
    token: an access token, for where a person sent us; None: there is none.
    """

    trusted: frozenset[str] = frozenset()
    secret: bytes | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)


def connect_to(url: str, trusted: Collection[str], *, timeout_s: float) -> socket.socket:
    """Return a connection to where a URL leads; one to ``https://`` is verified and encrypted.

    Args:
        trusted: fingerprints of certificates: SHA-256, 64 hex digits.
        timeout_s: for each step; it stays the connection's.

    Raises:
        OSError: there is none; of a certificate that is not trusted (SSLCertVerificationError) it
            says the fingerprint and what to do.
    """
    parts = urlsplit(url)
    host, is_secure = parts.hostname or "", parts.scheme == "https"
    place = (host, parts.port or (443 if is_secure else 80))
    plain = _connected(place, timeout_s)
    if not is_secure:
        return plain
    seen = ""
    if any(trusted):
        secure = _shaken(_whatever_it_shows(), plain, host, url)
        seen = _fingerprint_of(secure)
        if seen in trusted:
            return secure
        secure.close()
        plain = _connected(place, timeout_s)
    try:
        return _shaken(_by_authorities(), plain, host, url)
    except ssl.SSLCertVerificationError as error:
        if not seen:
            again = _connected(place, timeout_s)
            with _shaken(_whatever_it_shows(), again, host, url) as secure:
                seen = _fingerprint_of(secure)
        told = _untrusted(url, seen, error.verify_message, is_other=any(trusted))
        raise ssl.SSLCertVerificationError(1, told) from error


def asked_host(url: str) -> str:
    """Return what the Host header of a request to this URL says.

    The zone of an IPv6 address (``%eth0``) is this machine's, and means nothing there (RFC 6874).
    """
    return re.sub(r"%[^]]*", "", urlsplit(url).netloc)


def get_json(
    url: str,
    path: str,
    trusted: Collection[str],
    *,
    timeout_s: float,
    max_bytes: int,
) -> Any:
    """Return the JSON of a GET, whatever its status; one connection for each.

    No proxy of the environment is used: an address of the LAN is behind none.

    Args:
        timeout_s: for each step of the way there, and for the answer as a whole.

    Raises:
        OSError: nothing answers within the time, or a proxy says so.
        ValueError: what answers is no JSON of `max_bytes` at most, or the URL is none.
    """
    lines = (
        *(f"GET {path} HTTP/1.1", f"Host: {asked_host(url)}"),
        *("Accept: application/json", "Connection: close", "", ""),
    )
    head = "\r\n".join(lines).encode("ascii")
    with closing(connect_to(url, trusted, timeout_s=timeout_s)) as connection:
        status = 0
        try:
            connection.sendall(head)
            answer = HttpAnswer(_Patient(connection, time.monotonic() + timeout_s))
            status = answer.status
            return json.loads(answer.read(max_bytes))
        except (http.client.HTTPException, ValueError, RecursionError) as error:
            if status in _OF_PROXIES:
                raise ConnectionError(
                    f"{url} is a proxy, and the orchestrator behind it does not answer ({status})"
                ) from error
            raise ValueError(f"{url}{path} did not answer with JSON") from error


class _Patient:
    """Receives from a connection until a time, however little comes at once."""

    def __init__(self, connection: socket.socket, until: float) -> None:
        self._connection, self._until = connection, until

    def recv(self, size: int, /) -> bytes:
        """Return what has come.

        Raises:
            OSError: nothing has, and it is late; or the connection broke.
        """
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        self._connection.settimeout(left_s)
        return self._connection.recv(size)


def _connected(place: tuple[str, int], timeout_s: float) -> socket.socket:
    connection = socket.create_connection(place, timeout=timeout_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _shaken(context: ssl.SSLContext, plain: socket.socket, host: str, url: str) -> ssl.SSLSocket:
    """Return a connection after its handshake; it is closed if that fails."""
    try:
        return context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError:
        plain.close()
        raise
    except ssl.SSLError as error:
        plain.close()
        if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
            plainly = f"http{url.removeprefix('https')}"
            raise WrongSchemeError(f"{url} speaks no HTTPS: is it {plainly}?") from error
        raise
    except BaseException:
        plain.close()
        raise


@functools.cache
def _by_authorities() -> ssl.SSLContext:
    return ssl.create_default_context()


@functools.cache
def _whatever_it_shows() -> ssl.SSLContext:
    """Return what takes any certificate: its fingerprint is looked at afterwards."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _fingerprint_of(secure: ssl.SSLSocket) -> str:
    return hashlib.sha256(secure.getpeercert(binary_form=True) or b"").hexdigest()


def _untrusted(url: str, seen: str, why: str, *, is_other: bool) -> str:
    which = "another certificate than the one that is trusted" if is_other else "a certificate"
    return (
        f"{url} shows {which}, which no authority known here has signed for it ({why}); its "
        f"fingerprint is {seen}. If the orchestrator printed the same at its start, set "
        f"D8_TLS_TRUST={seen}"
    )
