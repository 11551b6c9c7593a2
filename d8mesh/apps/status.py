"""What runs in the mesh now: every orchestrator that answers, its workers, its queue."""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final
from urllib.request import ProxyHandler, build_opener

from rich.console import Console
from rich.table import Table

from d8mesh.config import Config
from d8mesh.edge.discovery import Discovery, Kind, Sighting
from d8mesh.edge.network import find_way, usable_addresses

#: How long to listen for orchestrators on the network.
LISTEN_S: Final = 1.5
#: How long one REST answer may take.
ASK_S: Final = 5.0
#: Largest answer read: the list of a thousand workers fits.
MAX_ANSWER_BYTES: Final = 4_000_000


@dataclass(slots=True)
class Orchestrator:
    """One orchestrator and what it says."""

    url: str
    health: dict[str, Any]
    stats: dict[str, Any] = field(default_factory=dict)
    workers: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""


def run(config: Config, options: argparse.Namespace) -> int:
    """Print the state of the mesh; exit code 1 when no healthy orchestrator answers."""
    strangers: list[str] = []
    found = look(config, strangers.append)
    is_healthy = any(each.health.get("status") == "healthy" for each in found)
    if options.json:
        told = {"mesh": config.mesh, "orchestrators": [asdict(each) for each in found]}
        print(json.dumps(told, ensure_ascii=False))
    else:
        _print(config, found)
        for stranger in strangers:
            print(stranger)
    return 0 if is_healthy else 1


def look(
    config: Config, on_stranger: Callable[[str], None] = lambda text: None
) -> list[Orchestrator]:
    """Return the orchestrators of the mesh that answer: by mDNS, by URL, on this machine.

    Args:
        on_stranger: told in words of an orchestrator of another mesh.
    """
    urls = dict.fromkeys([config.orchestrator_url or "", f"http://127.0.0.1:{config.web_port}"])
    found: dict[str, Orchestrator] = {}
    for url in [*filter(None, urls), *_heard(config)]:
        try:
            health = ask(url, "/health")
        except OSError:
            continue
        if not isinstance(health, dict):
            continue
        if health.get("mesh") != config.mesh:
            if health.get("service") == "d8-orchestrator":
                theirs = str(health.get("mesh"))[:40]
                on_stranger(f"{url} is of mesh {theirs!r}, not {config.mesh!r} (D8_MESH)")
            continue
        each = Orchestrator(url, health)
        if str(health.get("broker_id")) in found:
            continue
        try:
            each.stats = ask(url, "/api/stats")
            each.workers = ask(url, "/api/workers/list")["workers"]
        except (OSError, ValueError, KeyError) as error:
            each.problem = str(error)
        found[str(health.get("broker_id"))] = each
    return list(found.values())


def ask(url: str, path: str) -> Any:
    """Return the JSON answer of a GET.

    Raises:
        OSError: nothing answered, or an error status without JSON.
    """
    opener = build_opener(ProxyHandler({}))  # a LAN address is never behind a proxy
    try:
        with opener.open(url + path, timeout=ASK_S) as answer:
            return json.loads(answer.read(MAX_ANSWER_BYTES))
    except OSError as error:
        body = getattr(error, "read", lambda: b"")()
        try:
            return json.loads(body)
        except ValueError:
            raise error from None
    except ValueError as error:
        raise OSError(f"{url}{path} did not answer with JSON") from error


def _heard(config: Config) -> list[str]:
    """Return the REST addresses of orchestrators heard by mDNS within a short time."""
    heard: dict[str, Sighting] = {}
    lock = threading.Lock()

    def sighted(sighting: Sighting) -> None:
        with lock:
            heard[sighting.node_id] = sighting

    discovery = Discovery(
        mesh=config.mesh,
        addresses=lambda: [a.address for a in usable_addresses(config.interfaces)],
        on_sighting=sighted,
        browse=(Kind.ORCHESTRATOR,),
    )
    discovery.start()
    threading.Event().wait(LISTEN_S)
    discovery.close()
    urls: list[str] = []
    for sighting in heard.values():
        if sighting.web_port is not None:
            way = find_way(sighting.addresses, sighting.web_port, None, deadline_s=1.0)
            if way is not None:
                urls.append(way.endpoint.replace("tcp://", "http://", 1))
    return urls


def _print(config: Config, found: list[Orchestrator]) -> None:
    console = Console()
    if not found:
        console.print(
            f"No orchestrator of mesh [b]{config.mesh}[/b] answers. Start one with "
            "`python3 start_d8.py orchestrator`, or set ORCHESTRATOR_URL.",
            highlight=False,
        )
        return
    for each in found:
        health = each.health
        console.print(
            f"[b]{health.get('broker_id', '?')}[/b] at {each.url}: {health.get('status')}"
            + (f" ({health['reason']})" if health.get("reason") else ""),
            highlight=False,
        )
        tasks = each.stats.get("tasks", {})
        counts = ("pending", "assigned", "completed", "failed")
        console.print("  tasks: " + ", ".join(f"{tasks.get(k, '?')} {k}" for k in counts))
        if each.problem:
            console.print(f"  [red]{each.problem}[/red]")
        if each.workers:
            console.print(workers_table(each.workers))
        else:
            console.print("  no workers: start one with `python3 start_d8.py worker`")


def workers_table(workers: list[dict[str, Any]]) -> Table:
    """Return the workers as a table for the terminal."""
    table = Table("worker", "type", "status", "done", "failed", "slots", "models")
    for worker in sorted(workers, key=lambda each: str(each["worker_id"])):
        models = (worker.get("capabilities") or {}).get("models") or []
        table.add_row(
            *(
                str(worker.get(key, ""))
                for key in ("worker_id", "worker_type", "status", "tasks_completed")
            ),
            str(worker.get("tasks_failed", "")),
            str(worker.get("slots", "")),
            ", ".join(map(str, models[:4])),
        )
    return table
