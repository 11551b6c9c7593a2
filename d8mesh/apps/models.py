"""The command `models`: every language model of the mesh, and the services that have them."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from d8mesh.apps.tables import lines_of, size_text, wrapped
from d8mesh.apps.work import connected
from d8mesh.config import Config
from d8mesh.edge.terminal import as_json, say, width
from d8mesh.program import command_name
from d8mesh.words import tr, translated

OK: Final = 0


#: Capabilities that most models have: a table says the others.
TAKEN_FOR_GRANTED: Final = frozenset({"completion"})

Facts = Mapping[str, Any]


class AsksAboutModels(Protocol):
    """What this command needs of a client."""

    def ask(self, what: str, args: Mapping[str, object], /) -> dict[str, Any]:
        """Ask the orchestrator something."""


def run(config: Config, options: argparse.Namespace) -> int:
    """List the models, or pull or remove one; return the exit code.

    Raises:
        ConfigError: there is no such machine.
        D8Error: no orchestrator was found.
    """
    with connected(config, options.timeout_s) as (client, until):
        if options.action in ("pull", "remove"):
            from d8mesh.apps import model_changes  # slow to import: it draws

            return model_changes.run_with(client, options, until)
        return run_with(client, options)


def run_with(client: AsksAboutModels, options: argparse.Namespace) -> int:
    """List the models with a client that is there."""
    body = client.ask("models", {})
    if options.json:
        say(as_json(body))
        return OK
    for line in lines(body, width()):
        say(line)
    return OK


def lines(body: Facts, columns: int | None) -> Iterator[str]:
    """Yield what is to be said of all models and services, in lines of so many columns."""
    models, services = body["models"], body["services"]
    if not services:
        program = command_name()
        yield tr("no worker of the mesh reaches a service with language models")
        yield tr("start a worker where Ollama is: `{program} worker`", program=program)
        return
    if models:
        yield from lines_of(*_models_table(models), width=columns)
        yield from _notes(models, body["waiting_for_any"], columns)
        yield ""
    else:
        yield tr("no model is installed: `{program} models pull NAME`", program=command_name())
    yield from service_lines(services, columns)
    yield from _budgets(models, columns)


def service_lines(
    services: Sequence[Facts], columns: int | None, *, indent: str = ""
) -> Iterator[str]:
    """Yield a table of services, and why those that offer nothing do not."""
    yield from lines_of(*_services_table(services), width=columns, indent=indent)
    for service in services:
        if service["reason"]:
            yield from wrapped(_why(service), columns, indent=indent)
        elif service["is_managed"] and service["state"] == "online" and not service["models"]:
            hint = tr(
                "{id} has no model yet: `{program} models pull NAME --on {machine}`",
                id=_place(service),
                program=command_name(),
                machine=service["machine"],
            )
            yield from wrapped(hint, columns, indent=indent)


def loaded_lines(
    body: Facts, columns: int | None, *, indent: str = "", is_told: Collection[str] = ()
) -> Iterator[str]:
    """Yield the services in short: how each is, what it runs, what it has loaded, why it is down.

    Args:
        is_told: reasons that are said elsewhere.
    """
    loaded: dict[str, list[str]] = {}
    for model in body.get("models") or ():
        for place in model["places"]:
            if place["is_loaded"] and not place["is_cloud"]:
                loaded.setdefault(place["service"], []).append(place["name"])
    services = body.get("services") or ()
    names = ("machine", "service", "state", "requests", "loaded")
    rows = [
        [
            str(service["machine"]),
            _kind(service),
            tr(service["state"]),
            _running(service),
            ", ".join(loaded.get(service["id"], ())) or "-",
        ]
        for service in services
    ]
    if rows:
        yield from lines_of([tr(name) for name in names], rows, width=columns, indent=indent)
    for service in services:
        if service["reason"] and service["reason"] not in is_told:
            yield from wrapped(_why(service), columns, indent=indent)


# --- models ---------------------------------------------------------------------------


def _models_table(models: Sequence[Facts]) -> tuple[list[str], list[list[str]]]:
    names = ("model", "size", "loaded", "installed", "can", "tokens/s", "requests", "waiting")
    rows = [
        [
            model["name"],
            size_text(model["size_bytes"]),
            ", ".join(dict.fromkeys(_loaded_on(model))) or "-",
            ", ".join(dict.fromkeys(_marked(each) for each in model["places"])) or "-",
            " ".join(each for each in model["can"] if each not in TAKEN_FOR_GRANTED) or "-",
            _speed(model["places"]),
            f"{model['in_flight']}/{model['slots']}",
            str(model["waiting"]),
        ]
        for model in models
    ]
    return [tr(name) for name in names], rows


def _loaded_on(model: Facts) -> Iterator[str]:
    """Yield the machines that have a model in memory; in the cloud nothing is loaded for us."""
    for place in model["places"]:
        if place["is_loaded"] and not place["is_cloud"]:
            yield str(place["machine"])


def _marked(place: Facts) -> str:
    marks = [
        tr(mark)
        for mark, is_so in (
            ("cloud", place["is_cloud"]),
            ("loading", place["is_loading"]),
            ("paused", place["paused"]),
            (place["state"], place["state"] != "online"),
        )
        if is_so
    ]
    return f"{place['machine']} ({', '.join(marks)})" if marks else str(place["machine"])


def _speed(places: Iterable[Facts]) -> str:
    """Return how many tokens a second the places give, the slowest and the quickest."""
    known = sorted(p["output_tokens_per_s"] for p in places if p["output_tokens_per_s"])
    if not known:
        return "-"
    low, high = f"{known[0]:.3g}", f"{known[-1]:.3g}"
    return low if low == high else f"{low}-{high}"


def _notes(models: Sequence[Facts], for_any: int, columns: int | None) -> Iterator[str]:
    """Yield what is worth saying of single models, and who waits for whichever."""
    for model in models:
        if len(model["names"]) > 1:
            others = ", ".join(model["names"][1:])
            told = tr("{model} is the same as {names}", model=model["name"], names=others)
            yield from wrapped(told, columns)
        for place in model["places"]:
            if place["paused"]:
                yield from wrapped(_paused(model, place), columns)
    if for_any:
        yield tr("tasks that wait and ask for no model: {count}", count=for_any)


def _paused(model: Facts, place: Facts) -> str:
    told = {"model": model["name"], "machine": place["machine"], "why": translated(place["paused"])}
    if place["probed_in_s"] is None:
        return tr("{model} on {machine} is paused: {why}", **told)
    seconds = f"{place['probed_in_s']:.0f}"
    return tr(
        "{model} on {machine} is paused, tried again in {seconds} s: {why}", seconds=seconds, **told
    )


# --- services -------------------------------------------------------------------------


def _services_table(services: Sequence[Facts]) -> tuple[list[str], list[list[str]]]:
    names = ("machine", "service", "state", "requests", "models", "default", "address")
    rows = [
        [
            str(service["machine"]),
            _kind(service),
            tr(service["state"]),
            _running(service),
            str(len(service["models"])),
            service["default"] or "-",
            service["url"],
        ]
        for service in services
    ]
    return [tr(name) for name in names], rows


def _kind(service: Facts) -> str:
    return f"{service['kind']} ({tr('cloud')})" if service["is_cloud"] else str(service["kind"])


def _place(service: Facts) -> str:
    return f"{service['machine']} ({service['kind']})"


def _why(service: Facts) -> str:
    return tr("{id}: {what}", id=_place(service), what=translated(service["reason"]))


def _running(service: Facts) -> str:
    bound = f"/{service['slots']}" if service["slots"] else ""
    return f"{service['in_flight']}{bound}"


def _budgets(models: Sequence[Facts], columns: int | None) -> Iterator[str]:
    """Yield what accounts in the cloud still allow."""
    for model in models:
        for place in model["places"]:
            left = place["budget"]
            if left:
                what = "; ".join(_left(left)) or tr("no bound is known")
                told = tr(
                    "{model} at {machine} has left: {what}",
                    model=model["name"],
                    machine=place["machine"],
                    what=what,
                )
                yield from wrapped(told, columns)


def _left(left: Facts) -> Iterator[str]:
    if left["blocked_s"]:
        why, seconds = translated(left["blocked_why"]), f"{left['blocked_s']:.0f}"
        yield tr("nothing for {seconds} s: {why}", seconds=seconds, why=why)
    if left["minute_requests"] is not None:
        yield tr("{count} requests this minute", count=left["minute_requests"])
    if left["minute_tokens"] is not None:
        yield tr("{count} tokens this minute", count=left["minute_tokens"])
    if left["day_requests"] is not None:
        yield tr("{count} requests today", count=left["day_requests"])
    if left["day_tokens"] is not None:
        yield tr("{count} tokens today", count=left["day_tokens"])
