"""What runs in the mesh now: every orchestrator that answers, its workers, its queue."""

from __future__ import annotations

import argparse
import ssl
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from d8mesh.apps.capabilities import ListedWorker, models_of, reasons_of, why_lines
from d8mesh.apps.models import loaded_lines
from d8mesh.apps.tables import cut, lines_of, wrapped
from d8mesh.config import Config
from d8mesh.core.protocol.addresses import LOOPBACK, endpoint
from d8mesh.edge import address_file
from d8mesh.edge.discovery import Discovery, NodeKind, Sighting
from d8mesh.edge.network import reachable_host, usable_addresses
from d8mesh.edge.network.probe import told as meaning_of
from d8mesh.edge.terminal import as_json, say, width
from d8mesh.edge.transport.web_client import WrongSchemeError, get_json
from d8mesh.errors import BrokerUnavailableError, D8Error, OrchestratorKeyError
from d8mesh.nodes.credentials import secret_of
from d8mesh.nodes.reconnector.trust import OrchestratorTrust
from d8mesh.program import command_name
from d8mesh.words import escaped, tr, translated

#: How long to listen for orchestrators on the network.
LISTEN_S: Final = 1.5
#: How long one REST answer may take.
ANSWER_S: Final = 5.0
#: Largest answer read: the list of a thousand workers fits.
MAX_LIST_BYTES: Final = 4_000_000
#: A worker that ended is listed for so long: enough to see which one it was.
ENDED_SHOWN_S: Final = 600.0
#: Of what somebody gives as the reason of a refusal, so much is shown.
MAX_REFUSAL_CHARS: Final = 200
#: Models and task types named of one worker; `workers` has all.
NAMED: Final = 4


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


def run(config: Config, options: argparse.Namespace) -> int:
    """Print the state of the mesh; exit code 1 when no healthy orchestrator answers."""
    strangers: list[PassedOver] = []
    answer_s = options.timeout_s or ANSWER_S
    found = look(config, strangers.append, answer_s=answer_s)
    is_healthy = any(each.health.get("status") == "healthy" for each in found)
    if options.json:
        told = {"mesh": config.mesh, "orchestrators": [asdict(each) for each in found]}
        say(as_json(told if found else told | failure(config, strangers)))
        return 0 if is_healthy else 1
    if not found:
        say_nobody(config, is_any_there=bool(strangers))
    for each in found:
        for line in lines(each, time.time(), is_all=options.all):
            say(line)
    for stranger in strangers:
        say(stranger.why)
    return 0 if is_healthy else 1


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
            closed = _through_broker(url, config, on_stranger, answer_s) if is_ours else None
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
        raise OSError(f"{url}{path} did not answer with JSON") from error


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


# --- for people -----------------------------------------------------------------------


def failure(config: Config, strangers: Sequence[PassedOver]) -> dict[str, object]:
    """Return what the JSON says where no orchestrator of the mesh could be asked.

    The code is that of the first who is there after all.
    """
    nobody = BrokerUnavailableError.code
    text = tr("No orchestrator of mesh {mesh} answers.", mesh=config.mesh)
    code = next((each.code for each in strangers if each.code != nobody), nobody)
    return {
        "error": "; ".join(dict.fromkeys(each.why for each in strangers)) or text,
        "code": code,
    }


def say_nobody(config: Config, *, is_any_there: bool = False) -> None:
    """Say that no orchestrator answers, and what to do.

    Args:
        is_any_there: some do, and why they cannot be asked is said next.
    """
    if is_any_there:
        say(tr("No orchestrator of mesh {mesh} can be asked:", mesh=config.mesh))
        return
    say(tr("No orchestrator of mesh {mesh} answers.", mesh=config.mesh))
    program = command_name()
    say(tr("Start one with `{program} orchestrator`, or set ORCHESTRATOR_URL.", program=program))


def lines(each: Orchestrator, now: float, *, is_all: bool = False) -> Iterator[str]:
    """Yield what there is to say of one orchestrator at `now`, in Unix seconds."""
    health = each.health
    state = tr(str(health.get("status")))
    why = f" ({escaped(translated(str(health['reason'])))})" if health.get("reason") else ""
    at = {"id": health.get("broker_id", "?"), "url": each.url, "state": state}
    columns = width()
    yield from wrapped(tr("{id} at {url}: {state}", **at) + why, columns)
    yield from wrapped(counts_text(each.stats), columns, indent="  ")
    if health.get("keys_waiting"):
        told = tr(
            "{count} wait to be let in: run `{program} join list` on the orchestrator's machine",
            count=health["keys_waiting"],
            program=command_name(),
        )
        yield from wrapped(told, columns, indent="  ")
    if each.problem:
        yield "  " + tr("error: {why}", why=translated(each.problem))
    shown, hidden = parted(each.workers, now, is_all=is_all)
    for line in lines_of(*workers_table(shown), width=columns, indent="  ") if shown else ():
        yield line if columns is None else cut(line, columns)
    reasons = reasons_of(shown)
    is_told = set(reasons.values())
    for line in loaded_lines(each.models, columns, indent="  ", is_told=is_told):
        yield line if columns is None else cut(line, columns)
    if not shown and not hidden:
        yield "  " + tr("no workers: start one with `{program} worker`", program=command_name())
    if hidden:
        yield "  " + tr("and {count} that ended longer ago (--all shows them)", count=hidden)
    yield from why_lines(reasons, columns, indent="  ")


def counts(stats: Mapping[str, Any]) -> dict[str, int]:
    """Return pending, assigned, completed, failed and cancelled, each task counted once."""
    tasks = stats.get("tasks") or {}
    known = {
        key: int(tasks.get(key) or 0) for key in ("pending", "assigned", "completed", "cancelled")
    }
    # An orchestrator may count cancelled tasks among the failed ones: the total tells.
    total = int(tasks.get("total") or 0)
    failed = int(tasks.get("failed") or 0)
    rest = total - sum(known.values())
    known["failed"] = rest if known["cancelled"] and 0 <= rest <= failed else failed
    return {key: known[key] for key in ("pending", "assigned", "completed", "failed", "cancelled")}


def counts_text(stats: Mapping[str, Any]) -> str:
    """Return the counts of tasks in words."""
    if not stats.get("tasks"):
        return tr("tasks: unknown")
    return tr(
        "tasks: {pending} pending, {assigned} assigned, {completed} completed, "
        "{failed} failed, {cancelled} cancelled",
        **counts(stats),
    )


def parted(
    workers: Sequence[dict[str, Any]], now: float, *, is_all: bool = False
) -> tuple[list[dict[str, Any]], int]:
    """Return the workers to list, by id, and how many ended too long before `now` for that."""
    shown = [worker for worker in workers if is_all or not _is_long_gone(worker, now)]
    return sorted(shown, key=lambda each: str(each["worker_id"])), len(workers) - len(shown)


def _is_long_gone(worker: ListedWorker, now: float) -> bool:
    at = worker.get("last_heartbeat")
    if worker.get("status") != "offline" or not isinstance(at, (int, float)):
        return False
    return now - at > ENDED_SHOWN_S


def workers_table(workers: Sequence[ListedWorker]) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns, and a row for each worker."""
    names = ("worker", "type", "state", "slots", "requests", "done", "failures", "models")
    rows = [
        [
            str(worker["worker_id"]),
            str(worker.get("worker_type", "")),
            tr(state_of(worker)),
            f"{worker.get('running', '?')}/{worker.get('slots', '?')}",
            requests_of(worker),
            str(worker.get("tasks_completed", "")),
            str(worker.get("tasks_failed", "")),
            ", ".join(models_of(worker)[:NAMED]) or "-",
        ]
        for worker in workers
    ]
    return [tr(name) for name in names], rows


def requests_of(worker: ListedWorker) -> str:
    """Return how many requests the worker's LLM services answer now, beside its slots."""
    return str(worker.get("placed") or "-")


def state_of(worker: ListedWorker) -> str:
    """Return online, busy or offline."""
    return str(worker.get("status", "?"))
