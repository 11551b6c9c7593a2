"""The command `tasks`: what became of tasks, and failed ones once more."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, Final, Protocol

from d8mesh.apps.explanation import explanation_lines
from d8mesh.apps.following import Followed
from d8mesh.apps.status import counts_text
from d8mesh.apps.tables import cut, lines_of, wrapped
from d8mesh.apps.work import connected
from d8mesh.config import Config
from d8mesh.edge.terminal import as_json, say, tell, visible, width
from d8mesh.errors import ConfigError, D8Error, InvalidTaskError
from d8mesh.words import escaped, tr, translated

#: Characters of a reason in a table; `tasks show` has all of it.
REASON_CHARS: Final = 60
#: Characters of who asked for it in a table.
ORIGIN_CHARS: Final = 40

#: Characters of an input or a result shown on one line; longer ones are cut, ``--json`` has all.
SHOWN_CHARS: Final = 2000

COLUMNS: Final = ("task", "type", "from", "state", "tries", "created", "why")

TaskBody = dict[str, Any]


class AsksAboutTasks(Protocol):
    """What this command needs of a client."""

    def ask(self, what: str, args: Mapping[str, object], /) -> TaskBody:
        """Ask the orchestrator something."""

    def tasks(
        self, *, state: str = "", type: str = "", door: str = "", newest_first: bool = False
    ) -> Iterator[TaskBody]:
        """Yield the status bodies of tasks, the oldest or the newest first."""

    def replay(self, task_id: str, /) -> Followed:
        """Submit a failed task anew."""


def run(config: Config, options: argparse.Namespace) -> int:
    """List, show, replay or cancel tasks; return the exit code: 1 if one of them could not be.

    Raises:
        ConfigError: the options do not fit together.
        D8Error: no orchestrator was found.
    """
    if options.action == "replay" and bool(options.ids) == options.all_failed:
        raise ConfigError("tasks replay: expected either ids or --all-failed")
    with connected(config, options.timeout_s) as (client, _):
        return run_with(client, options)


def run_with(client: AsksAboutTasks, options: argparse.Namespace) -> int:
    """Do what `run` does with a client that is there."""
    if options.action == "list":
        return _list(client, options)
    if options.action == "replay":
        ids = options.ids or _failed(client, options)
        replay = client.replay
        return _each(ids, lambda each: {"task_id": replay(each).id, "replay_of": each}, options)
    if options.action == "explain":
        return _each(options.ids, lambda each: client.ask("explain", {"id": each}), options)
    do = _show if options.action == "show" else _cancel
    return _each(options.ids, lambda task_id: do(client, task_id), options)


def _list(client: AsksAboutTasks, options: argparse.Namespace) -> int:
    listed = client.tasks(
        state=options.state, type=options.type, door=options.door, newest_first=True
    )
    bodies = islice(listed, options.limit)  # as many pages are asked for as are shown
    if options.json:
        for body in bodies:
            say(as_json(body))
        return 0
    rows = [
        (
            body["task_id"],
            body["type"],
            _origin(body),
            tr(body["state"]),
            str(body["attempts"]),
            _time(body["created_at"]),
            cut(translated(_why(body)), REASON_CHARS),
        )
        for body in bodies
    ]
    for line in lines_of([tr(name) for name in COLUMNS], rows, width=width()) if rows else ():
        say(line)
    if not rows:
        say(tr("no such tasks"))
    if len(rows) == options.limit:
        tell(tr("the newest {count}: --limit shows more", count=options.limit))
    if not (options.state or options.type or options.door):
        for line in wrapped(counts_text(client.ask("stats", {})), width()):
            tell(line)
    return 0


def _origin(body: TaskBody) -> str:
    """Return the door that a task came in by, and who called there; empty: it came in by none."""
    told = (body.get("door"), body.get("caller"))
    return cut(" ".join(escaped(str(each)) for each in told if each), ORIGIN_CHARS)


def _failed(client: AsksAboutTasks, options: argparse.Namespace) -> list[str]:
    """Return the failed tasks that have not been replayed: once is enough for each."""
    bodies = list(client.tasks(type=options.type))
    done = {body["replay_of"] for body in bodies if body["replay_of"]}
    failed = [body["task_id"] for body in bodies if body["state"] == "failed"]
    return [task_id for task_id in failed if task_id not in done]


def _each(ids: Sequence[str], do: Callable[[str], TaskBody], options: argparse.Namespace) -> int:
    """Do it for each id; one that cannot be is told and does not stop the others."""
    code = 0
    for task_id in ids:
        try:
            body = do(task_id)
        except D8Error as error:
            code = 1
            body = {"task_id": task_id, "error": str(error), "code": error.code}
        # Whoever reads may leave: what was asked for is done all the same.
        if options.json:
            say(as_json(body))
        else:
            (tell if "error" in body else say)(_words(body))
    if not ids and not options.json:
        say(tr("no failed tasks that were not replayed before"))
    return code


def _show(client: AsksAboutTasks, task_id: str) -> TaskBody:
    from d8mesh.nodes.client.results import readable

    return readable(client.ask("status", {"id": task_id, "full": True}))


def _cancel(client: AsksAboutTasks, task_id: str) -> TaskBody:
    """Cancel it; one that had ended otherwise could not be.

    Raises:
        InvalidTaskError: it had ended.
    """
    body = client.ask("cancel", {"id": task_id})
    if body["state"] != "cancelled":
        raise InvalidTaskError(f"it cannot be cancelled: it has ended already ({body['state']})")
    return body


def _words(body: TaskBody) -> str:
    if "error" in body:
        why = translated(str(body["error"]))
        return tr("{id}: {what}", id=body["task_id"], what=why)
    if "remedies" in body:
        return "\n".join(explanation_lines(body))
    if "type" not in body:
        origin = body.get("replay_of")
        return (
            tr("{origin} goes on as {id}", origin=origin, id=body["task_id"])
            if origin
            else _state(body)
        )
    return "\n".join(_full(body))


def _full(body: TaskBody) -> Iterator[str]:
    """Yield all that is known of a task, line by line."""
    yield _state(body)
    for key, name in (("type", "type"), ("priority", "priority"), ("attempts", "attempts")):
        yield _row(name, body.get(key))
    for key, name in (("created_at", "created"), ("completed_at", "ended")):
        if body.get(key):
            yield _row(name, _time(body[key]))
    if body.get("door"):
        yield _row("from", _origin(body))
    for key, name in (("assigned_to", "worker"), ("replay_of", "replay of")):
        if body.get(key):
            yield _row(name, str(body[key]))
    if _why(body):
        yield _row("why", translated(_why(body)))
    if body.get("erased"):
        yield f"  {tr('what it asked and answered was erased when it was delivered')}"
    if body.get("data") is not None:
        yield _row("input", _shown(body["data"]))
    result = body.get("result")
    trace = str(result.get("traceback") or "") if isinstance(result, dict) else ""
    yield from _history(body.get("history") or (), trace)
    if result is not None:
        rest = {k: v for k, v in result.items() if k != "traceback"} if trace else result
        yield _row("result", _shown(rest))
    yield from _traceback(trace, "  ")


def _history(past: Iterable[Mapping[str, Any]], last_trace: str) -> Iterator[str]:
    """Yield what went wrong, attempt by attempt; each traceback once, `last_trace` comes later."""
    told = {last_trace}
    for count, each in enumerate(past):
        if not count:
            yield f"  {tr('history')}:"
        yield f"    {_past(each)}"
        trace = str(each.get("traceback") or "")
        if trace not in told:
            told.add(trace)
            yield from _traceback(trace, "      ")


def _traceback(trace: str, indent: str) -> Iterator[str]:
    if trace:
        yield f"{indent}{tr('traceback')}:"
        yield from (f"{indent}  {line}" for line in visible(trace).split("\n"))


def _row(name: str, value: object) -> str:
    return f"  {tr(name)}: {escaped(str(value))}"


def _past(past: Mapping[str, Any]) -> str:
    """Return what happened to one attempt, in one line."""
    worker = past.get("worker_id") or past.get("worker") or "?"
    error = translated(str(past.get("error") or "?"))
    at, attempt = _time(past.get("at")), past.get("attempt", "?")
    if attempt == 0:
        told = tr("{at}  before any attempt: {error}", at=at, error=error)
    else:
        told = tr(
            "{at}  attempt {attempt} on {worker}: {error}",
            at=at, attempt=attempt, worker=worker, error=error,
        )  # fmt: skip
    if not past.get("is_counted", True):
        told += " " + tr("(not counted)")
    pause_s = past.get("pause_s")
    if isinstance(pause_s, (int, float)) and pause_s > 0:
        told += " " + tr("(tried again after {seconds} s)", seconds=f"{pause_s:.1f}")
    return told


def _shown(value: object) -> str:
    text = as_json(value)
    if len(text) <= SHOWN_CHARS:
        return text
    more = tr("({count} characters; --json has all)", count=len(text))
    return f"{text[:SHOWN_CHARS]}… {more}"


def _state(body: TaskBody) -> str:
    return tr("{id}: {what}", id=body["task_id"], what=tr(str(body["state"])))


def _why(body: TaskBody) -> str:
    result = body.get("result")
    error = result.get("error") if isinstance(result, dict) else None
    why = str(body.get("reason") or error or "")
    return "" if why == body["state"] else why


def _time(at: object) -> str:
    if not isinstance(at, (int, float)):
        return str(at or "")
    try:
        return datetime.fromtimestamp(at).isoformat(sep=" ", timespec="seconds")
    except (OverflowError, OSError, ValueError):  # no time of this world
        return str(at)
