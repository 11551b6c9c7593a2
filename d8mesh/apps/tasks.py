"""The command `tasks`: what became of tasks, and failed ones once more."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, Final, Protocol

from d8mesh.apps.work import connect
from d8mesh.config import Config
from d8mesh.edge.logs import escape
from d8mesh.edge.terminal import say
from d8mesh.errors import D8Error

#: Characters of a reason in a table; `tasks show` has all of it.
REASON_CHARS: Final = 60

COLUMNS: Final = ("task", "type", "state", "tries", "created", "why")
#: A mesh that is there is found sooner; whoever asks what there is should not wait for nothing.
FIND_S: Final = 6.0

Body = dict[str, Any]


class Replayed(Protocol):
    """A task that was submitted anew."""

    @property
    def id(self) -> str:
        """Its id."""


class Asks(Protocol):
    """What this command needs of a client."""

    def ask(self, what: str, args: Mapping[str, object], /) -> Body:
        """Ask the orchestrator something."""

    def tasks(self, *, state: str = "", type: str = "") -> Iterator[Body]:
        """Yield the status bodies of tasks."""

    def replay(self, task_id: str, /) -> Replayed:
        """Submit a failed task anew."""


def run(config: Config, options: argparse.Namespace) -> int:
    """List, show, replay or cancel tasks; return the exit code: 1 if one of them could not be.

    Raises:
        D8Error: no orchestrator was found, or the options do not fit together.
    """
    from d8mesh.nodes.client import Client

    if options.action == "replay" and bool(options.ids) == options.all_failed:
        raise D8Error("tasks replay: expected either ids or --all-failed")
    with Client(config=config) as client:
        connect(client, timeout_s=FIND_S, on_wait=lambda line: print(line, file=sys.stderr))
        return run_with(client, options)


def run_with(client: Asks, options: argparse.Namespace) -> int:
    """Do what `run` does with a client that is there."""
    if options.action == "list":
        return _list(client, options)
    if options.action == "replay":
        ids = options.ids or _failed(client, options)
        return _each(ids, lambda task_id: _replay(client, task_id), options)
    do = _show if options.action == "show" else _cancel
    return _each(options.ids, lambda task_id: do(client, task_id), options)


def _list(client: Asks, options: argparse.Namespace) -> int:
    bodies = islice(client.tasks(state=options.state, type=options.type), max(0, options.limit))
    if options.json:
        for body in bodies:
            print(json.dumps(body, ensure_ascii=False))
        return 0
    rows = [
        (
            body["task_id"],
            body["type"],
            body["state"],
            str(body["attempts"]),
            _time(body["created_at"]),
            _why(body)[:REASON_CHARS],
        )
        for body in bodies
    ]
    print("\n".join(_table(rows)) if rows else "no such tasks")
    if len(rows) == options.limit:
        print(f"the first {options.limit}: --limit shows more")
    return 0


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table; no wider than what it says, however wide the terminal is.

    Made by hand: a library that measures and wraps every cell takes a second for 1,000 rows.
    """
    lines = [COLUMNS, *([escape(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _failed(client: Asks, options: argparse.Namespace) -> list[str]:
    """Return the failed tasks that have not been replayed: once is enough for each."""
    bodies = list(client.tasks(type=options.type))
    done = {body["replay_of"] for body in bodies if body["replay_of"]}
    failed = [body["task_id"] for body in bodies if body["state"] == "failed"]
    return [task_id for task_id in failed if task_id not in done]


def _each(ids: Sequence[str], do: Callable[[str], Body], options: argparse.Namespace) -> int:
    """Do it for each id; one that cannot be is told and does not stop the others."""
    code = 0
    for task_id in ids:
        try:
            body = do(task_id)
        except D8Error as error:
            code = 1
            body = {"task_id": task_id, "error": str(error), "code": error.code}
        # Whoever reads may leave: what was asked for is done all the same.
        say(json.dumps(body, ensure_ascii=False) if options.json else _words(body))
    if not ids and not options.json:
        print("no failed tasks that were not replayed before")
    return code


def _show(client: Asks, task_id: str) -> Body:
    from d8mesh.nodes.client.handle import readable

    return readable(client.ask("status", {"id": task_id}))


def _replay(client: Asks, task_id: str) -> Body:
    return {"task_id": client.replay(task_id).id, "replay_of": task_id}


def _cancel(client: Asks, task_id: str) -> Body:
    return client.ask("cancel", {"id": task_id})


def _words(body: Body) -> str:
    """Return one body for people."""
    if "error" in body:
        return f"{body['task_id']}: {body['error']}"
    if "type" not in body:
        origin = body.get("replay_of")
        return f"{origin} goes on as {body['task_id']}" if origin else _state(body)
    lines = [_state(body)]
    lines += [f"  {key}: {body[key]}" for key in ("type", "priority", "attempts")]
    for key in ("created_at", "completed_at"):
        if body.get(key):
            lines.append(f"  {key}: {_time(body[key])}")
    for key, name in (("assigned_to", "worker"), ("replay_of", "replay of"), ("reason", "why")):
        if body.get(key):
            lines.append(f"  {name}: {body[key]}")
    for past in body.get("history") or ():
        told = ", ".join(f"{key} {value}" for key, value in past.items() if key != "at")
        lines.append(f"  {_time(past.get('at'))}  {told}")
    if body.get("result") is not None:
        lines.append(f"  result: {json.dumps(body['result'], ensure_ascii=False)}")
    return "\n".join(lines)


def _state(body: Body) -> str:
    return f"{body['task_id']}: {body['state']}"


def _why(body: Body) -> str:
    result = body.get("result")
    error = result.get("error") if isinstance(result, dict) else None
    return str(body.get("reason") or error or "")


def _time(at: object) -> str:
    if not isinstance(at, (int, float)):
        return str(at or "")
    return datetime.fromtimestamp(at).isoformat(sep=" ", timespec="seconds")
