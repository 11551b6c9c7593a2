"""`models pull` and `models remove`: a task for each machine, followed to its end."""

from __future__ import annotations

import argparse
import contextlib
import queue
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
PULL, REMOVE, FIT = "model_pull", "model_remove", "model_fit"
#: A worker says at once whether a model fits; an old one never does.
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
        ConfigError: there is no such machine, or it is not said which of several is meant.
        BackendUnavailableError: it fits nowhere, or nobody has it.
        WaitTimeoutError: `until` has come; what was begun goes on.
    """
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
    tasks = [client.submit(kind, data, listen=True) for data in datas]
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
    types = client.ask("workers", {})["workers"]
    can_ask = any(FIT in (worker["capabilities"].get("task_types") or ()) for worker in types)
    room_of = partial(_room_of, client, name, overview.size_of(name)) if can_ask else _unknown_room
    if options.fit:
        targets, left_out = model_places.fitting(overview, name, room_of)
        for line in left_out:
            tell(translated(line))
        if not targets:
            raise BackendUnavailableError(
                f"no machine is known to have room for {name}: `models pull {name} --on MACHINE`"
            )
        return targets
    found = model_places.best(overview, name, room_of)
    if found is None:
        raise BackendUnavailableError(f"{name} fits on no machine that is there")
    target, why = found
    tell(tr("on {machine}: {why}", machine=target["machine"], why=why))
    return [target]


def _unknown_room(service: Facts) -> Room:
    return Room()


def _room_of(client: Manages, name: str, size_bytes: int, service: Facts) -> Room:
    """Ask a service whether a model fits; if it does not say so soon, that is not known."""
    data = {"model": name, "machine": service["id"], "size_bytes": size_bytes}
    task = client.submit(FIT, data, deadline_s=2 * FIT_S)
    try:
        told = task.result(FIT_S)["output"]
    except D8Error:
        with contextlib.suppress(D8Error):
            task.cancel()
        return Room()
    return Room(
        fits=told.get("fits"),
        why=str(told.get("why") or ""),
        disk_free_bytes=told.get("disk_free_bytes"),
        memory_bytes=told.get("memory_bytes"),
    )


def _to_remove(overview: Overview, options: argparse.Namespace) -> list[Facts]:
    name = options.name
    having = [each for each in overview.managed if overview.place_of(each, name) is not None]
    if options.on:
        return model_places.named(overview, options.on)
    if not having:
        raise BackendUnavailableError(f"no machine has {name}, or none whose models can be changed")
    if len(having) > 1 and not options.all:
        machines = ", ".join(sorted(str(each["machine"]) for each in having))
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
                if isinstance(piece, Mapping):
                    display.step(change.label, piece)
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
    output = result.get("output")
    display.done(change.label, _done(options, output if isinstance(output, Mapping) else {}))
    return True


def _done(options: argparse.Namespace, output: Mapping[str, Any]) -> str:
    if options.action == "remove":
        return tr("{model} is removed", model=options.name)
    plain = options.name
    sizes = [
        int(each.get("size_bytes") or 0)
        for each in output.get("installed") or ()
        if isinstance(each, Mapping) and each.get("name") == plain
    ]
    if sizes and sizes[0]:
        return tr("{model} is installed ({size})", model=plain, size=size_text(sizes[0]))
    return tr("{model} is installed", model=plain)
