"""The command `submit`: tasks from the command line, and what becomes of them.

Results go to standard output, words to standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from d8mesh.apps.following import (
    Followed,
    Following,
    Silence,
    TaskListener,
    accept,
    tell_it_goes_on,
    tell_silence,
    tell_warnings,
    wait,
)
from d8mesh.apps.work import connected, outcomes
from d8mesh.config import Config
from d8mesh.edge.terminal import as_json, say, tell
from d8mesh.errors import ConfigError, D8Error, TaskError, WaitTimeoutError
from d8mesh.program import command_name
from d8mesh.words import tr, translated

if TYPE_CHECKING:
    from d8mesh.nodes.client.groups import SubmitOptions

OK: Final = 0
FAILED: Final = 1
#: Ids named when many tasks go on.
IDS_NAMED: Final = 3
#: Of a wrong text so much is repeated.
SHOWN_TEXT_CHARS: Final = 60

#: Where the data is that stands on the command line itself.
_ARGUMENT: Final = "the data"

TaskData = dict[str, Any]


def run(config: Config, options: argparse.Namespace) -> int:
    """Submit what the options say; return the exit code: 1 if a result was waited for and failed.

    Raises:
        ConfigError: the data is no JSON object.
        D8Error: no orchestrator was found, the task was refused or not finished in time.
    """
    datas = read(options.data, is_lines=options.lines)
    if options.follow and options.lines:
        raise ConfigError("--follow is for one task: leave out --lines, or take --wait")
    with connected(config, options.timeout_s) as (client, until):
        return run_with(client, datas, options, until)


def run_with(
    client: Any, datas: Sequence[TaskData], options: argparse.Namespace, until: float | None
) -> int:
    """Do what `run` does with a client that is there."""
    left_s = None if until is None else max(0.1, until - time.monotonic())
    given: SubmitOptions = {"priority": options.priority, "timeout": left_s}
    if options.deadline_s is not None:
        given["deadline_s"] = options.deadline_s
    if options.attempts is not None:
        given["max_attempts"] = options.attempts
    if options.lines:
        return _many(client, datas, options, until, given)
    try:
        if options.follow:
            following = Following(client, options.type, datas[0], **given)
            return _followed(following, options, until)
        return _one(client.submit(options.type, datas[0], **given), options, until)
    except WaitTimeoutError as error:
        raise _late(error, options) from error


def read(argument: str, *, is_lines: bool = False) -> list[TaskData]:
    """Return the data that the command line names: itself, ``-`` or ``@FILE``.

    Raises:
        ConfigError: it cannot be read, or is no JSON object (or none on some line).
    """
    text, place = argument, _ARGUMENT
    if argument == "-":
        text, place = _decoded(sys.stdin.buffer.read(), "standard input"), "standard input"
    elif argument.startswith("@"):
        place = argument[1:]
        try:
            text = _decoded(Path(place).read_bytes(), place)
        except OSError as error:
            why = error.strerror or str(error)
            raise ConfigError(f"{place} cannot be read ({why})") from error
    if not is_lines:
        return [_object(text, place)]
    rows = [(n, row) for n, row in enumerate(text.split("\n"), 1) if row.strip()]
    if not rows:
        raise ConfigError(f"{place}: expected a JSON object on each line, there is none")
    return [_object(row, f"{place}, line {n}") for n, row in rows]


def _decoded(content: bytes, place: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{place}: expected UTF-8 (byte {error.start + 1} is not)") from error


def _object(text: str, place: str) -> TaskData:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ConfigError(f"{place}: nested too deep") from error
    except ValueError as error:
        shown = repr(text.strip()[:SHOWN_TEXT_CHARS])
        if place != _ARGUMENT:
            raise ConfigError(f"{place}: expected JSON, saw {shown} ({error})") from error
        raise ConfigError(
            f"{place}: expected a JSON object, saw {shown} ({error}). Where a shell takes quotes "
            "away, put the data into a file: @FILE"
        ) from error
    if not isinstance(value, dict):
        shown = repr(text.strip()[:SHOWN_TEXT_CHARS])
        raise ConfigError(f'{place}: expected a JSON object such as {{"key": 1}}, saw {shown}')
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# --- one task -------------------------------------------------------------------------


def _one(task: Followed, options: argparse.Namespace, until: float | None) -> int:
    silence = Silence(task, until, tell_silence)
    try:
        accept(task, silence)
        if not options.wait:
            _say_id(task, options)
            return OK
        _tell_submitted(task)
        result = wait(task, silence)
    except (KeyboardInterrupt, WaitTimeoutError):
        tell_it_goes_on(task)
        raise
    except TaskError as error:
        return _failed(task.id, error, options)
    _say_result(task.id, result, options)
    return OK


def _followed(following: Following, options: argparse.Namespace, until: float | None) -> int:
    task, output = following.task, _FollowedOutput(is_json=options.json)
    try:
        result = following.result(until, output)
    except (KeyboardInterrupt, WaitTimeoutError):
        output.end_line()
        tell_it_goes_on(task)
        raise
    except TaskError as error:
        output.end_line()
        return _failed(task.id, error, options)
    output.end_line()
    _say_result(task.id, result, options)
    return OK


def _tell_submitted(task: Followed) -> None:
    tell(tr("task {id} submitted", id=task.id))


def _say_id(task: Followed, options: argparse.Namespace) -> None:
    body = {"task_id": task.id, "warnings": list(task.warnings)}
    say(as_json(body) if options.json else task.id)


class _FollowedOutput(TaskListener):
    """Prints partial output: texts as they are, other values as a line of JSON each."""

    def __init__(self, *, is_json: bool) -> None:
        self._is_json = is_json

    def accepted(self, task: Followed) -> None:
        _tell_submitted(task)

    def piece(self, piece: object) -> None:
        if self._is_json:
            say(as_json({"output": piece}))
        elif isinstance(piece, str):
            self.print(piece)
        else:
            self.end_line()
            say(as_json(piece))

    def restarted(self) -> None:
        if self._is_json:
            say(as_json({"restarted": True}))
        super().restarted()

    def missed(self, count: int | None) -> None:
        if self._is_json:
            say(as_json({"missed": count}))
        super().missed(count)


def _say_result(task_id: str, result: Mapping[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        say(as_json({"task_id": task_id, "state": "completed", "result": dict(result)}))
    else:
        say(as_json(dict(result), indent=2 if sys.stdout.isatty() else None))


def _failed(task_id: str, error: TaskError, options: argparse.Namespace) -> int:
    """Say that a task did not succeed, and where more is to be known."""
    result = dict(getattr(error, "result", {}))
    if options.json:
        state = "cancelled" if error.code == "task.cancelled" else "failed"
        body = {"task_id": task_id, "state": state, "error": str(error), "code": error.code}
        say(as_json(body | ({"result": result} if result else {})))
    if result.get("traceback"):
        tell(
            tr("`{program} tasks show {id}` has the traceback", program=command_name(), id=task_id)
        )
    tell(tr("error: task {id}: {why}", id=task_id, why=translated(str(error))))
    return FAILED


def _late(error: WaitTimeoutError, options: argparse.Namespace) -> D8Error:
    if options.timeout_s is None:
        return error
    return WaitTimeoutError(f"it was not finished within {options.timeout_s:g} s (--timeout)")


# --- many tasks -----------------------------------------------------------------------


def _many(
    client: Any,
    datas: Sequence[TaskData],
    options: argparse.Namespace,
    until: float | None,
    given: SubmitOptions,
) -> int:
    """Submit one task for each of `datas`; print their ids, or their results as they come."""
    tasks = client.submit_many(options.type, datas, **given)
    ids = [task.id for task in tasks]
    tell_warnings(warning for task in tasks for warning in task.warnings)
    if not options.wait:
        for task in tasks:
            _say_id(task, options)
        return OK
    tell(tr("{count} tasks submitted", count=len(ids)))
    code, done, left = OK, 0, dict.fromkeys(ids)
    try:
        for outcome in outcomes(tasks, until=until, on_silence=tell_silence):
            task_id = ids[outcome.index]
            left.pop(task_id, None)
            body: TaskData = {"task_id": task_id, "line": outcome.index + 1}
            if outcome.result is None:
                code = FAILED
                body |= {"state": "failed", "error": outcome.error}
            else:
                done += 1
                body |= {"state": "completed", "result": dict(outcome.result)}
            say(as_json(body))
    except (KeyboardInterrupt, WaitTimeoutError) as error:
        tell(tr("{count} tasks go on without you: {ids}", count=len(left), ids=_some(left)))
        tell("  " + tr("`{program} tasks list` looks at them", program=command_name()))
        if isinstance(error, WaitTimeoutError):
            raise _late(error, options) from error
        raise
    tell(tr("{done} tasks completed, {count} did not", done=done, count=len(ids) - done))
    if code:
        tell(tr("error: not all tasks succeeded"))
    return code


def _some(ids: Mapping[str, None]) -> str:
    return ", ".join([*list(ids)[:IDS_NAMED], *(["…"] if len(ids) > IDS_NAMED else [])])
