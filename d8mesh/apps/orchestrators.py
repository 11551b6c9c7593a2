"""The orchestrators of the mesh that answer: by mDNS, by URL, on this machine; what each tells."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from d8mesh.config import Config
from d8mesh.core.protocol.addresses import LOOPBACK, endpoint
from d8mesh.edge import address_file
from d8mesh.edge.discovery import Discovery, NodeKind, Sighting
from d8mesh.edge.network import reachable_host, usable_addresses
from d8mesh.edge.network.probe import told as meaning_of
from d8mesh.edge.transport.web_client import WrongSchemeError, get_json
from d8mesh.errors import BrokerUnavailableError, D8Error, OrchestratorKeyError
from d8mesh.nodes.credentials import secret_of
from d8mesh.nodes.reconnector.trust import OrchestratorTrust
from d8mesh.words import escaped, tr, translated

#: How long to listen for orchestrators on the network.
LISTEN_S: Final = 1.5
#: How long one REST answer may take.
ANSWER_S: Final = 5.0
#: Largest answer read: the list of a thousand workers fits.
MAX_LIST_BYTES: Final = 4_000_000
#: Of what somebody gives as the reason of a refusal, so much is shown.
MAX_REFUSAL_CHARS: Final = 200


@dataclass(slots=True)
class Orchestrator:
    """One orchestrator and what it says."""

    url: str
    health: dict[str, Any]
    stats: dict[str, Any] = field(default_factory=dict)
    workers: list[dict[str, Any]] = field(default_factory=list)
    #: its language models and the services that have them; {}: it does not tell
    models: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


class PassedOver(NamedTuple):
    """Somebody who answers and tells nothing of this mesh: why, in words and as a code."""

    why: str
    code: str


def reasons_of(passed_over: Sequence[PassedOver]) -> list[str]:
    """Return why some were passed over, each reason once, though two roads may lead to it."""
    told = list(dict.fromkeys(each.why for each in passed_over))
    return [why for why in told if not any(each != why and each.endswith(why) for each in told)]


def look(
    config: Config,
    on_stranger: Callable[[PassedOver], None] = lambda each: None,
    *,
    answer_s: float = ANSWER_S,
) -> list[Orchestrator]:
    """Return the orchestrators of the mesh that answer: by mDNS, by URL, on this machine.

    Args:
        on_stranger: told of an orchestrator of another mesh, or one that is not trusted or closed.
    """
    found: dict[str, Orchestrator] = {}
    for url, trusted in _places(config, on_stranger):
        asking = partial(ask, url, answer_s=answer_s, trusted=trusted)
        health = _health(url, asking, config, on_stranger)
        if health is None:
            continue
        if health.get("code") == "access.token":
            is_ours = health.get("mesh", config.mesh) == config.mesh
            shown = as_shown_at(url, trusted, config)
            closed = _through_broker(url, shown, on_stranger, answer_s) if is_ours else None
            if closed is not None:
                found[str(closed.health.get("broker_id"))] = closed
            continue
        if health.get("mesh") != config.mesh:
            if health.get("service") == "d8-orchestrator":
                on_stranger(_of_another_mesh(url, health, config.mesh))
            continue
        each = Orchestrator(url, health)
        if str(health.get("broker_id")) in found:
            continue
        try:
            each.stats = asking("/api/stats")
            each.workers = asking("/api/workers/list")["workers"]
            models = asking("/api/models")
            each.models = models if "services" in models else {}
        except (OSError, ValueError, KeyError) as error:
            each.problem = str(error)
        found[str(health.get("broker_id"))] = each
    return list(found.values())


def _health(
    url: str,
    asking: Callable[[str], Any],
    config: Config,
    on_stranger: Callable[[PassedOver], None],
) -> dict[str, Any] | None:
    """Return what somebody there tells of itself; None: nobody does, and who asks is told why."""
    try:
        health = asking("/health")
    except ssl.SSLCertVerificationError as error:
        on_stranger(PassedOver(translated(str(error.strerror)), "tls.untrusted"))
    except WrongSchemeError as error:
        on_stranger(PassedOver(translated(str(error)), "tls.none"))
    except OSError as error:
        if url == config.orchestrator_url:
            why = translated(meaning_of(error))
            told = tr("{url} (ORCHESTRATOR_URL): {why}", url=url, why=why)
            on_stranger(PassedOver(told, BrokerUnavailableError.code))
    else:
        if not isinstance(health, dict):
            return None
        if health.get("code") != "http.plain":
            return health
        said = escaped(translated(str(health.get("error"))[:MAX_REFUSAL_CHARS]))
        on_stranger(PassedOver(f"{url}: {said}", "http.plain"))
    return None


def as_shown_at(url: str, trusted: Collection[str], config: Config) -> Config:
    """Return the settings with which a closed orchestrator is asked there.

    Its certificate is known by what was told of it; a token is for the place that a person named.

    Args:
        trusted: fingerprints of certificates that are good there.
    """
    token = config.token if url == config.orchestrator_url else None
    return replace(config, tls_trust=tuple(sorted(trusted)), token=token)


def _through_broker(
    url: str, config: Config, on_stranger: Callable[[PassedOver], None], answer_s: float
) -> Orchestrator | None:
    """Return an orchestrator whose REST is closed: asked in an encrypted session, as members do."""
    from d8mesh.nodes.client import Client  # slow to import, and seldom needed

    try:
        with Client(url, config=config) as client:
            if not client.wait_connected(answer_s):
                on_stranger(_closed(url, client.trouble, "access.token"))
                return None
            health = client.ask("health", {}, timeout=answer_s)
            is_well = health.get("reason") is None
            each = Orchestrator(url, {"status": "healthy" if is_well else "unhealthy", **health})
            each.stats = client.ask("stats", {}, timeout=answer_s)
            each.workers = client.ask("workers", {}, timeout=answer_s)["workers"]
            each.models = client.ask("models", {}, timeout=answer_s)
            return each
    except D8Error as error:
        on_stranger(_closed(url, str(error), error.code))
        return None


def ask(url: str, path: str, *, answer_s: float = ANSWER_S, trusted: Collection[str] = ()) -> Any:
    """Return the JSON answer of a GET.

    Args:
        trusted: fingerprints of certificates that are good there.

    Raises:
        SSLCertVerificationError: the certificate is not trusted; it says what to set.
        OSError: nothing answered within `answer_s`, or an error status without JSON.
    """
    try:
        return get_json(url, path, trusted, timeout_s=answer_s, max_bytes=MAX_LIST_BYTES)
    except ssl.SSLCertVerificationError:  # which is a ValueError, too
        raise
    except ValueError as error:
        raise OSError(str(error)) from error


def _closed(url: str, why: str, code: str) -> PassedOver:
    told_why = tr("{url} is closed to this machine: {why}", url=url, why=translated(why))
    return PassedOver(told_why, code)


def _of_another_mesh(url: str, health: Mapping[str, Any], mesh: str) -> PassedOver:
    theirs, ours = repr(str(health.get("mesh"))[:40]), repr(mesh)
    why = tr("{url} is of mesh {theirs}, not {ours} (D8_MESH)", url=url, theirs=theirs, ours=ours)
    return PassedOver(why, "access.mesh")


def _places(
    config: Config, on_stranger: Callable[[PassedOver], None]
) -> Iterator[tuple[str, Collection[str]]]:
    """Yield where orchestrators may be, and the fingerprints of certificates that are good there.

    By URL, on this machine, and as they are heard by mDNS.
    """
    own = address_file.read(Path(config.data_dir), config.mesh)
    port, own_tls = config.web_port, "" if own is None else own.tls
    if own is not None and own.web_port is not None:
        port = own.web_port
    is_secure = bool(own_tls or config.tls)
    trusted = {*config.tls_trust, *filter(None, [own_tls])}
    here = endpoint(LOOPBACK, port, "https" if is_secure else "http")
    for url in dict.fromkeys(filter(None, [config.orchestrator_url, here])):
        yield url, trusted
    for sighting in _heard(config, on_stranger):
        web_port, tls = sighting.web_port or 0, sighting.broker.tls
        host = reachable_host(sighting.addresses, web_port, deadline_s=1.0)
        if host is not None:
            url = endpoint(host, web_port, "https" if tls else "http")
            yield url, {*config.tls_trust, *filter(None, [tls])}


def _heard(config: Config, on_stranger: Callable[[PassedOver], None]) -> list[Sighting]:
    """Return the trusted orchestrators that are heard by mDNS within a short time."""
    heard: dict[tuple[str, bytes | None], Sighting] = {}
    discovery = Discovery(
        mesh=config.mesh,
        addresses=lambda: [a.address for a in usable_addresses(config.interfaces)],
        on_sighting=lambda each: heard.update({(each.node_id, each.server_key): each}),
        browse=(NodeKind.ORCHESTRATOR,),
    )
    discovery.start()
    time.sleep(LISTEN_S)
    discovery.close()
    trust = OrchestratorTrust(config, secret_of(config))
    found = [
        each
        for each in heard.values()
        if each.web_port is not None and trust.is_trusted(each.broker)
    ]
    for text in trust.strangers:
        on_stranger(PassedOver(translated(text), OrchestratorKeyError.code))
    return found
