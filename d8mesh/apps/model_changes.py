"""`models pull` and `models remove`: a task for each machine, followed to its end."""

from __future__ import annotations

import argparse
import contextlib
import queue
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from d8mesh.apps import model_places
from d8mesh.apps.change_display import ChangeDisplay, display_for
from d8mesh.apps.following import Followed, Silence, Submits, accept, tell_it_goes_on, wait
from d8mesh.apps.model_places import Facts, Overview, Room
from d8mesh.apps.tables import size_text
from d8mesh.apps.work import OLDEST_WAIT_S, cancel_all
from d8mesh.edge.terminal import tell
from d8mesh.errors import (
    BackendUnavailableError,
    ConfigError,
    D8Error,
    TaskError,
    WaitTimeoutError,
)
from d8mesh.words import tr, translated

OK: Final = 0
FAILED: Final = 1
PULL, REMOVE = "model_pull", "model_remove"
#: A pull that breaks off goes on at the next attempt with what is there.
ATTEMPTS: Final = 20
#: A worker says at once whether a model fits.
FIT_S: Final = 5.0
YES: Final = frozenset({"y", "yes", "s", "si", "sí"})


class Manages(Submits, Protocol):
    """What this command needs of a client."""

    def ask(self, what: str, args: Mapping[str, object], /) -> dict[str, Any]:
        """Ask the orchestrator something."""


@dataclass(slots=True)
class _Change:
    """What is under way at one service."""

    label: str
    task: Followed
    silence: Silence


def run_with(client: Manages, options: argparse.Namespace, until: float | None) -> int:
    """Pull or remove a model; return 1 if that failed somewhere.

    Raises:
        ConfigError: the name is none, there is no such machine, or it is not said which is meant.
        BackendUnavailableError: it fits nowhere, or nobody has it.
        WaitTimeoutError: `until` has come; what was begun goes on.
    """
    model_places.check_name(options.name)
    body = client.ask("models", {})
    overview = Overview(models=body["models"], services=body["services"])
    if options.action == "pull":
        targets = _to_pull(client, overview, options)
    else:
        targets = _to_remove(overview, options)
        if not _is_sure(targets, options):
            tell(tr("nothing was removed"))
            return FAILED
    kind = PULL if options.action == "pull" else REMOVE
    display = display_for(options.name, is_json=options.json)
    datas = [{"model": options.name, "machine": target["id"]} for target in targets]
    tasks = [client.submit(kind, d, listen=True, max_attempts=ATTEMPTS) for d in datas]
    changes = [
        _change(task, label, until, display)
        for task, label in zip(tasks, _labels(targets), strict=True)
    ]
    with display:
        return _follow(changes, options, display)


# --- where ----------------------------------------------------------------------------


def _to_pull(client: Manages, overview: Overview, options: argparse.Namespace) -> list[Facts]:
    name = options.name
    if options.on:
        return model_places.named(overview, options.on)
    if options.all:
        return model_places.online(overview)
    rooms = _rooms(client, name, overview)
    if options.fit:
        targets, left_out = model_places.fitting(overview, name, rooms)
        for line in left_out:
            tell(translated(line))
        if not targets:
            raise BackendUnavailableError(
                f"no machine is known to have room for {name}: `models pull {name} --on MACHINE`"
            )
        return targets
    found = model_places.best(overview, name, rooms)
    if found is None:
        raise BackendUnavailableError(f"{name} fits on no machine that is there")
    target, why = found
    if having := [each for each in overview.services if overview.place_of(each, name) is not None]:
        machines = ", ".join(dict.fromkeys(str(each["machine"]) for each in having))
        there = tr(
            "{model} is already on {machines}; --on says where else, --all everywhere",
            model=name,
            machines=machines,
        )
        tell(there)
    tell(tr("on {machine}: {why}", machine=target["machine"], why=why))
    return [target]


def _rooms(client: Manages, name: str, overview: Overview) -> dict[str, Room]:
    """Ask all services whether a model fits; of those that do not say so soon nobody knows."""
    size_bytes = overview.size_of(name)
    asked = {"model": name, "check": True, "size_bytes": size_bytes}
    tasks = {
        str(service["id"]): client.submit(
            PULL, {**asked, "machine": service["id"]}, deadline_s=2 * FIT_S
        )
        for service in model_places.online(overview)
    }
    until = time.monotonic() + FIT_S
    return {where: _room_in(task, until, size_bytes) for where, task in tasks.items()}


def _room_in(task: Followed, until: float, size_bytes: int) -> Room:
    try:
        told = task.result(max(0.0, until - time.monotonic()))
    except D8Error:
        with contextlib.suppress(D8Error):
            task.cancel()
        return Room()
    free, memory = told.get("disk_free_bytes"), told.get("memory_bytes")
    is_known = bool(size_bytes) and (free is not None or memory is not None)
    fits = told.get("fits") if is_known else None
    return Room(
        fits=fits, why=str(told.get("why") or ""), disk_free_bytes=free, memory_bytes=memory
    )


def _to_remove(overview: Overview, options: argparse.Namespace) -> list[Facts]:
    name = options.name
    having = [each for each in overview.managed if overview.place_of(each, name) is not None]
    if options.on:
        return model_places.named(overview, options.on)
    there = [each for each in having if each["state"] == "online"]
    if having and not there:
        machines = ", ".join(sorted(_labels(having)))
        raise BackendUnavailableError(
            f"{name} is on {machines}, which cannot be reached now: start the service there first"
        )
    having = there
    if not having:
        raise BackendUnavailableError(f"no machine has {name}, or none whose models can be changed")
    if len(having) > 1 and not options.all:
        machines = ", ".join(sorted(_labels(having)))
        raise ConfigError(f"{name} is on {machines}: say which with --on, or --all")
    return having


def _is_sure(targets: Sequence[Facts], options: argparse.Namespace) -> bool:
    """Return whether a person at a terminal means to remove a model everywhere."""
    if not options.all or options.yes or not sys.stdin.isatty():
        return True
    machines = ", ".join(str(each["machine"]) for each in targets)
    question = tr("remove {model} from {machines}? [y/N]", model=options.name, machines=machines)
    tell(question)
    return input().strip().lower() in YES


def _labels(targets: Sequence[Facts]) -> list[str]:
    """Return what each service is called: its machine, and its id where that has several."""
    machines = [str(each["machine"]) for each in targets]
    return [
        machine if machines.count(machine) == 1 else f"{machine} ({each['id']})"
        for machine, each in zip(machines, targets, strict=True)
    ]


# --- what becomes of it ---------------------------------------------------------------


def _change(task: Followed, label: str, until: float | None, display: ChangeDisplay) -> _Change:
    def silent(reason: str) -> None:
        display.say(label, tr("still waiting: {why}", why=translated(reason)))

    return _Change(label, task, Silence(task, until, silent))


def _follow(changes: Sequence[_Change], options: argparse.Namespace, display: ChangeDisplay) -> int:
    """Show how far they are until all have ended; Ctrl-C cancels them."""
    events: queue.SimpleQueue[tuple[_Change, object]] = queue.SimpleQueue()
    code, left = OK, list(changes)
    try:
        for change in changes:
            accept(change.task, change.silence)
            display.begin(change.label, change.task.id)
            threading.Thread(target=_listen, args=(change, events), daemon=True).start()
        while left:
            change, piece = _next(events, left)
            if piece is not None:
                change.silence.heard()
                _show(change, piece, display)
                continue
            left.remove(change)
            if not _ended(change, options, display):
                code = FAILED
    except KeyboardInterrupt:
        cancel_all([change.task for change in left])
        display.say("", tr("cancelled on {ids}", ids=", ".join(each.label for each in left)))
        raise
    except WaitTimeoutError:
        for change in left:
            tell_it_goes_on(change.task)
        raise
    return code


def _show(change: _Change, piece: object, display: ChangeDisplay) -> None:
    from d8mesh.nodes.client import RESTARTED  # slow to import; it is there by now

    if isinstance(piece, Mapping):
        display.step(change.label, piece)
    elif piece is RESTARTED:
        display.say(change.label, tr("another attempt begins, with what is there already"))


def _listen(change: _Change, events: queue.SimpleQueue[tuple[_Change, object]]) -> None:
    with contextlib.suppress(D8Error):  # the client was closed: nobody wants the rest
        for piece in change.task.stream():
            events.put((change, piece))
    events.put((change, None))


def _next(
    events: queue.SimpleQueue[tuple[_Change, object]], left: Iterable[_Change]
) -> tuple[_Change, object]:
    while True:
        try:
            return events.get(timeout=OLDEST_WAIT_S)
        except queue.Empty:
            for change in left:
                change.silence.look()


def _ended(change: _Change, options: argparse.Namespace, display: ChangeDisplay) -> bool:
    """Show how one ended; return whether it succeeded."""
    try:
        result = wait(change.task, change.silence)
    except TaskError as error:
        display.failed(change.label, str(error), error.code)
        return False
    display.done(change.label, _done(options, result))
    return True


def _done(options: argparse.Namespace, result: Mapping[str, Any]) -> str:
    model = str(result.get("model") or options.name)
    if options.action == "remove":
        was_there = result.get("was_there") is not False
        return (
            tr("{model} is removed", model=model)
            if was_there
            else tr("it had no {model}", model=model)
        )
    if result.get("was_there") is True:
        return tr("{model} is installed already", model=model)
    size = result.get("size_bytes")
    if isinstance(size, int) and size:
        return tr("{model} is installed ({size})", model=model, size=size_text(size))
    return tr("{model} is installed", model=model)
