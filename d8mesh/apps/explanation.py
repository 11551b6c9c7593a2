"""Why a task is where it is, as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from d8mesh.apps.tables import wrapped
from d8mesh.edge.terminal import width
from d8mesh.program import command_name
from d8mesh.words import escaped, tr, translated

#: Attempts of which all candidates are told: the last ones.
ATTEMPTS_TOLD: Final = 3


def explanation_lines(body: Mapping[str, Any]) -> Iterator[str]:
    """Yield an explanation as `GET /api/tasks/{id}/explain` gives it, line by line."""
    columns = width()
    yield tr("{id}: {what}", id=body["task_id"], what=tr(str(body["state"])))
    if body["summary"]:
        yield from _line(translated(body["summary"]), columns)
    for sentence in body["why"]:
        yield from _line(translated(sentence), columns)
    if body["candidates"]:
        yield from _line(tr("who could run it:"), columns)
        yield from _candidates(body["candidates"], columns)
    if body["remedies"]:
        yield from _line(tr("what would have it run:"), columns)
        for each in body["remedies"]:
            yield from _line(translated(each["text"]), columns, indent="    ")
            if each["command"]:  # in one line: it is to be copied
                yield f"      {command_name()} {escaped(each['command'])}"
    for attempt in body["attempts"][-ATTEMPTS_TOLD:]:
        yield from _attempt(attempt, columns)


def _line(text: str, columns: int | None, *, indent: str = "  ") -> list[str]:
    return wrapped(escaped(text), columns, indent=indent)


def _candidates(listed: Sequence[Mapping[str, Any]], columns: int | None) -> Iterator[str]:
    """Yield how each stands; services of one machine are told apart by their ids."""
    machines: dict[str, set[str]] = {}
    for each in listed:
        machines.setdefault(str(each["machine"]), set()).add(str(each.get("service")))
    for each in listed:
        who = str(each["machine"] or each.get("service"))
        if len(machines[str(each["machine"])]) > 1:
            who = f"{who} ({each.get('service')})"
        yield from _line(_candidate(each, who), columns, indent="    ")


def _candidate(each: Mapping[str, Any], who: str) -> str:
    if each.get("worker"):
        who = tr("worker {id}", id=each["worker"])
    elif each.get("model"):
        who = f"{who}, {each['model']}"
    told = tr("{id}: {what}", id=who, what=translated(each["text"]))
    if each.get("estimate_s") is not None:
        seconds = f"{each['estimate_s']:.1f}"
        told += " " + tr("(about {seconds} s there)", seconds=seconds)
    return told


def _attempt(attempt: Mapping[str, Any], columns: int | None) -> Iterator[str]:
    told = tr(
        "attempt {attempt} went to {machine} with {model}; how all stood then:",
        attempt=attempt["attempt"],
        machine=attempt["machine"] or attempt["service"],
        model=attempt["model"],
    )
    yield from _line(told, columns)
    yield from _candidates(attempt["candidates"], columns)
