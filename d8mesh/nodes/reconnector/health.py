"""What the orchestrator at a URL tells of itself: where its broker is, and which key it has."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Final
from urllib.parse import urlsplit

from d8mesh.core.protocol.route import KnownBroker
from d8mesh.edge.transport.web_client import WrongSchemeError, get_json
from d8mesh.errors import BrokerUnavailableError
from d8mesh.setting_forms import NAME_PATTERN

#: How long it has to answer.
HEALTH_ANSWER_S: Final = 1.5
#: Largest answer of /health that is read.
MAX_HEALTH_BYTES: Final = 65_536
_HEX_64: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def broker_at(url: str, *, trusted: Collection[str] = ()) -> KnownBroker:
    """Return what the orchestrator whose REST is at `url` says of itself.

    A closed one tells everybody its broker's port and key, and the proof that it knows the mesh
    key. So nothing of ours is ever shown to whoever answers there.

    Args:
        url: ``http://HOST:PORT`` or ``https://HOST:PORT``.
        trusted: fingerprints of certificates that are good there.

    Raises:
        BrokerUnavailableError: nothing answers there, or not as an orchestrator does.
    """
    body = _health_of(url, trusted)
    port = body.get("broker_port")
    if type(port) is not int or not 0 < port < 65536:
        if body.get("code") == "access.token":
            raise BrokerUnavailableError(
                f"the orchestrator at {url} is closed, and does not tell yet where its broker is"
            )
        if body.get("code") == "http.plain":
            told = f"{url}: {body.get('error')!s:.200}"
            raise BrokerUnavailableError(told) from WrongSchemeError(told)
        raise BrokerUnavailableError(f"what answers at {url} is no orchestrator")
    broker_id = str(body.get("broker_id", ""))
    parts = urlsplit(url)
    return KnownBroker(
        broker_id=broker_id if re.fullmatch(NAME_PATTERN, broker_id, re.ASCII) else "",
        addresses=(parts.hostname or "",),
        port=port,
        web_port=parts.port or (443 if parts.scheme == "https" else 80),
        server_key=_bytes_of(body.get("server_key")) or None,
        proof=_bytes_of(body.get("proof")),
        tls=_bytes_of(body.get("tls")).hex(),
    )


def _health_of(url: str, trusted: Collection[str]) -> dict[str, Any]:
    try:
        body = get_json(
            url,
            "/health",
            trusted,
            timeout_s=HEALTH_ANSWER_S,
            max_bytes=MAX_HEALTH_BYTES,
        )
    except (OSError, ValueError) as error:
        raise BrokerUnavailableError(f"no orchestrator answers at {url}: {error}") from error
    return body if isinstance(body, dict) else {}


def _bytes_of(told: object) -> bytes:
    """Return the 32 bytes that 64 hex digits stand for; b"" if they are none."""
    return bytes.fromhex(told) if isinstance(told, str) and _HEX_64.fullmatch(told) else b""
