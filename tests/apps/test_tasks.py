"""The tasks command on a real mesh: listing, showing, replaying, cancelling."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from bench.mesh import Mesh, mesh
from d8mesh.apps.tasks import run, run_with
from d8mesh.cli import main
from d8mesh.config import Config
from d8mesh.errors import (
    BrokerUnavailableError,
    D8Error,
    TaskCancelledError,
    TaskFailedError,
    UnknownTaskError,
)
from d8mesh.nodes.client import Client
from d8mesh.options import tasks as add_arguments


def told(
    running: Mesh, capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0
) -> list[dict[str, Any]]:
    """Return the JSON lines that `tasks ARGUMENTS --json` prints."""
    capsys.readouterr()
    assert run(settings(running), options_of(*arguments, "--json")) == code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def options_of(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


def settings(running: Mesh) -> Config:
    return dataclasses.replace(running.config, orchestrator_url=running.url)


def test_failed_tasks_are_listed_shown_and_replayed_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with mesh(workers=1) as running, running.client() as client:
        late = [client.submit("nobody", {"n": n}, deadline_s=0.01) for n in range(2)]
        stopped = client.submit("nobody", {"n": 2})
        done = client.submit("echo", {"n": 3})
        for task in late:
            with pytest.raises(TaskFailedError):
                task.result(30)
        done.result(30)
        (body,) = told(running, capsys, "cancel", stopped.id)
        assert body == {"task_id": stopped.id, "state": "cancelled"}
        with pytest.raises(TaskCancelledError):
            stopped.result(30)

        listed = told(running, capsys, "list", "--state", "failed")
        assert [body["task_id"] for body in listed] == [task.id for task in reversed(late)]
        assert run(settings(running), options_of("list", "--state", "cancelled")) == 0
        (_, row) = capsys.readouterr().out.splitlines()
        assert row.count("cancelled") == 1, "the state says it"
        assert listed[0]["result"]["error"] == "deadline exceeded"
        newest = [body["task_id"] for body in told(running, capsys, "list", "--limit", "2")]
        assert newest == [done.id, stopped.id]
        assert len(told(running, capsys, "list", "--limit", "3")) == 3
        assert [b["task_id"] for b in told(running, capsys, "list", "--type", "echo")] == [done.id]
        (shown,) = told(running, capsys, "show", late[0].id)
        assert shown["state"] == "failed"
        assert shown["history"]

        (again,) = told(running, capsys, "replay", late[0].id)
        assert again["replay_of"] == late[0].id
        assert client.task(again["task_id"]).status()["replay_of"] == late[0].id
        (rest,) = told(running, capsys, "replay", "--all-failed")
        assert rest["replay_of"] == late[1].id, "each is replayed once"
        assert told(running, capsys, "replay", "--all-failed") == []

        refused, unknown = told(running, capsys, "replay", done.id, f"{'v' * 16}-7", code=1)
        assert (refused["code"], unknown["code"]) == ("task.invalid", "task.unknown")


def test_all_are_replayed_even_if_nobody_reads_on(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with mesh(workers=0) as running, running.client() as client:
        late = [client.submit("nobody", {"n": n}, deadline_s=0.01) for n in range(5)]
        for task in late:
            with pytest.raises(TaskFailedError):
                task.result(30)
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "w", buffering=1) as nobody, contextlib.redirect_stdout(nobody):
            options = options_of("replay", "--all-failed", "--json")
            assert run(settings(running), options) == 0
        listed = client.tasks(state="queued", type="nobody")
        assert len([body for body in listed if body["replay_of"]]) == 5
    assert capfd.readouterr().err == ""


def test_people_get_a_table_and_words(capsys: pytest.CaptureFixture[str]) -> None:
    with mesh(workers=0) as running, running.client() as client:
        task = client.submit("nobody", {}, deadline_s=0.01)
        with pytest.raises(TaskFailedError):
            task.result(30)
        for arguments, expected in (
            (("list",), task.id),
            (("list",), "why"),
            (("list", "--state", "running"), "no such tasks"),
            (("show", task.id), "deadline exceeded"),
            (("replay", "--all-failed"), f"{task.id} goes on as "),
            (("replay", "--all-failed"), "no failed tasks"),
        ):
            capsys.readouterr()
            run(settings(running), options_of(*arguments))
            assert expected in " ".join(capsys.readouterr().out.split())


def test_replay_wants_either_ids_or_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(D8Error, match="--all-failed"):
        run(Config(), options_of("replay"))
    assert main(["tasks", "replay", "x", "--all-failed"]) == 2
    assert main(["tasks", "list", "--state", "lost"]) == 2
    assert "invalid choice: 'lost'" in capsys.readouterr().err


class Many:
    """A client that knows many tasks."""

    def tasks(
        self, *, state: str = "", type: str = "", door: str = "", newest_first: bool = False
    ) -> Iterator[dict[str, Any]]:
        for n in reversed(range(4)) if newest_first else range(4):
            body: dict[str, Any] = {"task_id": f"s-{n}", "state": "queued"}
            body["type"] = "a\x1b[31m" * n
            body |= {"door": door or None, "caller": "10.0.0.9 curl\x1b/8.5" if door else None}
            yield {**body, "attempts": n, "created_at": 0.0, "reason": f"why {n}"}

    def ask(self, what: str, args: object, /) -> dict[str, Any]:
        if what == "status":
            return dict(KNOWN)
        assert what == "stats"
        counts = {"pending": 3, "assigned": 0, "completed": 4, "failed": 2, "cancelled": 5}
        return {"tasks": {**counts, "total": 14}}

    def replay(self, task_id: str, /) -> Any:
        raise AssertionError(task_id)


def test_a_table_is_as_wide_as_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_with(Many(), options_of("list", "--limit", "3")) == 0
    told = capsys.readouterr()
    head, *rows = told.out.splitlines()
    more, counts = told.err.splitlines()
    assert more == "the newest 3: --limit shows more"
    assert counts == "tasks: 3 pending, 0 assigned, 4 completed, 2 failed, 5 cancelled"
    for row, n in zip(rows, (3, 2, 1), strict=True):
        assert row.index("queued") == head.index("state")
        assert row.endswith(f"why {n}")
        assert "\x1b" not in row


def test_who_asked_for_a_task_of_a_door_is_told_and_that_it_was_erased(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Erased(Many):
        def ask(self, what: str, args: object, /) -> dict[str, Any]:
            return KNOWN | {"door": "ollama", "caller": "10.0.0.9 curl/8.5", "erased": True}

    assert run_with(Many(), options_of("list", "--door", "ollama")) == 0
    assert r"ollama 10.0.0.9 curl\x1b/8.5" in capsys.readouterr().out.splitlines()[1]
    assert run_with(Erased(), options_of("show", "s-1")) == 0
    rows = capsys.readouterr().out.splitlines()
    assert "  from: ollama 10.0.0.9 curl/8.5" in rows
    assert "  what it asked and answered was erased when it was delivered" in rows


#: What a newer orchestrator says of a task that failed.
KNOWN = {
    "task_id": "s-1", "type": "paint", "state": "failed", "priority": 5, "attempts": 2,
    "created_at": 0.0, "completed_at": 1e99, "assigned_to": "w\x1b[31m", "reason": "no\x9b paint",
    "data": {"colour": "red\x1b]0;title\x07"},
    "history": [
        {"at": 0.5, "attempt": 0, "worker_id": None, "error": "nobody is there",
         "is_counted": True, "pause_s": 0.0, "traceback": None},
        {"at": 1.0, "attempt": 1, "worker_id": "w", "error": "Oh\x1bno\nline", "is_counted": True,
         "pause_s": 0.25, "traceback": "Traceback:\n  first\x1b[2J"},
        {"at": 2.0, "attempt": 2, "worker_id": "v", "error": "given back", "is_counted": False,
         "pause_s": 0.0, "traceback": None},
        {"at": 3.0, "attempt": 3, "worker_id": "w", "error": "no paint", "is_counted": True,
         "pause_s": 0.0, "traceback": "Traceback:\n  line\x1b[2J"},
    ],
    "result": {"success": False, "error": "no paint", "traceback": "Traceback:\n  line\x1b[2J"},
}  # fmt: skip


def test_what_is_known_of_a_task_is_shown_whole_and_harmless(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_with(Many(), options_of("show", "s-1")) == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    rows = out.splitlines()
    assert rows[0] == "s-1: failed"
    assert r"  worker: w\x1b[31m" in rows
    assert r'  input: {"colour": "red\u001b]0;title\u0007"}' in rows
    history = rows[rows.index("  history:") + 1 :][:7]
    assert [row[23:] if row.startswith("    19") else row for row in history] == [
        "  before any attempt: nobody is there",
        r"  attempt 1 on w: Oh\x1bno\nline (tried again after 0.2 s)",
        "      traceback:", "        Traceback:", r"          first\x1b[2J",
        "  attempt 2 on v: given back (not counted)",
        "  attempt 3 on w: no paint",
    ]  # fmt: skip
    assert rows[-3:] == ["  traceback:", "    Traceback:", r"      line\x1b[2J"]
    assert run_with(Many(), options_of("show", "s-1", "--json")) == 0
    line = capsys.readouterr().out
    assert line.rstrip("\n").isprintable()
    assert json.loads(line) == KNOWN


def test_a_task_that_cannot_be_is_said_on_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Nobody(Many):
        def ask(self, what: str, args: object, /) -> dict[str, Any]:
            raise UnknownTaskError

    assert run_with(Nobody(), options_of("show", "s-9")) == 1
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "s-9: Task not found\n")


def test_what_has_ended_is_not_cancelled_and_that_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Ended(Many):
        def ask(self, what: str, args: object, /) -> dict[str, Any]:
            assert (what, args) == ("cancel", {"id": "s-9"})
            return {"task_id": "s-9", "state": "completed"}

    assert run_with(Ended(), options_of("cancel", "s-9")) == 1
    told = capsys.readouterr()
    assert (told.out, told.err) == (
        "",
        "s-9: it cannot be cancelled: it has ended already (completed)\n",
    )


def test_nobody_is_looked_for_longer_than_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float | None] = []

    def wait_connected(self: Client, timeout: float | None = None) -> bool:
        waited.append(timeout)
        return False

    monkeypatch.setattr(Client, "wait_connected", wait_connected)
    with pytest.raises(BrokerUnavailableError, match="within 6 s"):
        run(Config(interfaces=("127.0.0.1",)), options_of("list"))
    assert sum(each or 0 for each in waited) <= 6
