"""The command `join` on a real mesh whose orchestrator has to approve, and what it says."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bench.mesh import Mesh, mesh
from d8mesh.apps import status
from d8mesh.apps.join import listing_lines, mode_text, run, run_with
from d8mesh.apps.orchestrators import ask
from d8mesh.config import Config
from d8mesh.errors import (
    AmbiguousMemberError,
    BrokerUnavailableError,
    D8Error,
    ForbiddenError,
    UnknownMemberError,
)
from d8mesh.options import join as add_arguments
from d8mesh.program import command_name

PATIENCE_S = 60.0
NOW = 1_800_000_000.0
OURS = "abcd-efgh-ijkl-mnop"


def options_of(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


def settings(running: Mesh) -> Config:
    return dataclasses.replace(running.config, data_dir=str(running.folder))


def told(running: Mesh, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Return the JSON that `join ARGUMENTS --json` prints."""
    capsys.readouterr()
    assert run(settings(running), options_of(*arguments, "--json")) == 0
    body: dict[str, Any] = json.loads(capsys.readouterr().out)
    return body


def command(running: Mesh, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `join ARGUMENTS` as a person types it."""
    argv = [sys.executable, "-m", "d8mesh", "join", *arguments, "--data", str(running.folder)]
    env = {**os.environ, "D8_NO_ENV_FILE": "1", "D8_MESH": running.config.mesh}
    return subprocess.run(
        argv, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def test_a_machine_waits_is_let_in_and_shown_out_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    home = tmp_path / "guest"
    with mesh(workers=1, settings={"D8_JOIN": "approve"}) as running:  # its own worker is let in
        guest = {"D8_DATA_DIR": str(home), "WORKER_ID": "guest", "ORCHESTRATOR_URL": running.url}
        running.add_worker(guest)

        def waiting() -> list[dict[str, Any]]:
            members = told(running, capsys, "list")["members"]
            return [each for each in members if each["standing"] == "waiting"]

        until(waiting)
        key = waiting()[0]["fingerprint"]
        said = running.orchestrator.lines
        until(lambda: any(f"join approve {key}" in line for line in said))
        until(lambda: waiting()[0]["name"] == "guest")
        config = dataclasses.replace(running.config, orchestrator_url=running.url)
        assert status.run(config, argparse.Namespace(json=False, all=False, timeout_s=None)) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert f"1 wait to be let in: run `{command_name()} join list`" in shown
        listed = command(running, "list")
        assert listed.returncode == 0, listed.stderr
        assert f"join approve {key}" in " ".join(listed.stdout.split())
        approved = command(running, "approve", key)
        assert f"{key} (guest at 127.0.0.1) may join" in approved.stdout, approved.stderr
        running.await_workers(2)
        (member,) = [m for m in told(running, capsys, "list")["members"] if m["name"] == "guest"]
        assert (member["standing"], member["worker_ids"]) == ("admitted", ["guest"])
        assert member["is_connected"]
        again = command(running, "approve", key)
        assert "may join, and is there" in again.stdout

        assert told(running, capsys, "revoke", "guest")["standing"] == "revoked"
        until(lambda: ask(running.url, "/health")["workers_online"] == 1)
        forgotten = command(running, "forget", "guest", "--json")
        assert json.loads(forgotten.stdout)["worker_ids"] == ["guest"], forgotten.stderr
        unknown = command(running, "revoke", "nobody")
        assert unknown.returncode == 1
        assert "d8mesh join list` has all" in unknown.stderr, "as it was called"
        assert "Traceback" not in unknown.stderr
        elsewhere = dataclasses.replace(settings(running), data_dir=str(home))
        with pytest.raises(BrokerUnavailableError, match="D8_DATA_DIR"):
            run(elsewhere, options_of("list"))


def test_what_this_machine_trusts_is_asked_of_no_orchestrator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(mesh="m", data_dir=str(tmp_path))
    assert run(config, options_of("trust", "k3fq-2mzd-7xwa-pq4e")) == 0
    assert run(config, options_of("pins")) == 0
    assert "k3fq-2mzd-7xwa-pq4e" in capsys.readouterr().out
    assert run(config, options_of("unpin", "all")) == 0


class Answers:
    """A client that is answered as it is told."""

    def __init__(self, answer: dict[str, Any] | D8Error) -> None:
        self._answer = answer
        self.asked: list[tuple[str, Mapping[str, object]]] = []

    def ask(self, what: str, args: Mapping[str, object], /) -> dict[str, Any]:
        self.asked.append((what, args))
        if isinstance(self._answer, D8Error):
            raise self._answer
        return self._answer


def member(**given: Any) -> dict[str, Any]:
    return {
        "fingerprint": "k3fq-2mzd-7xwa-pq4e",
        "standing": "admitted",
        "kind": "worker",
        "name": "pi",
        "address": "10.0.0.7",
        "worker_ids": ["pi", "pi-2"],
        "last_seen": NOW - 7200.0,
        "is_own": False,
        "is_connected": True,
        "banned_s": None,
        **given,
    }


def test_who_is_let_in_and_away_tries_again_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    client = Answers(member(is_connected=False))
    assert run_with(client, options_of("approve", "pi")) == 0
    assert "may join; it tries again by itself" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("action", "standing", "words"),
    [
        ("approve", "admitted", "may join, and is there"),
        ("revoke", "revoked", "is out: its tasks go on elsewhere"),
        ("forget", "unknown", "is forgotten; free again: pi, pi-2"),
        ("forget", "revoked", "stays revoked; free again: pi, pi-2"),
    ],
)
def test_what_was_done_is_said_with_whom(
    action: str, standing: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client = Answers(member(standing=standing))
    assert run_with(client, options_of(action, "pi")) == 0
    assert client.asked == [(f"members.{action}", {"who": "pi"})]
    assert capsys.readouterr().out == f"k3fq-2mzd-7xwa-pq4e (pi at 10.0.0.7) {words}\n"


@pytest.mark.parametrize("error", [UnknownMemberError(), AmbiguousMemberError(), ForbiddenError()])
def test_what_the_orchestrator_refuses_is_the_end(error: D8Error) -> None:
    with pytest.raises(type(error)):
        run_with(Answers(error), options_of("approve", "pi"))


def test_names_that_would_do_something_to_a_terminal_are_shown_as_they_are_spelled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_with(Answers(member(name="\x1b[2Jpi")), options_of("approve", "x"))
    body = {"mode": ["lan"], "orchestrator": OURS, "members": [member(name="\x1b[2J")]}
    lines = list(listing_lines(body, NOW, None))
    assert "\x1b" not in capsys.readouterr().out + "".join(lines)


def test_the_list_says_how_each_stands() -> None:
    members = [
        member(standing="waiting", name="", kind="", last_seen=None, is_connected=False),
        member(banned_s=20.0, is_connected=False),
        member(is_own=True, last_seen=NOW - 3.0, is_connected=False),
        member(),
    ]
    lines = list(
        listing_lines({"mode": ["approve"], "orchestrator": OURS, "members": members}, NOW, None)
    )
    mode, ours, _, waiting, banned, own, there, hint = lines
    assert ours == f"the key of this orchestrator: {OURS}"
    assert mode == "who joins has to be approved here (D8_JOIN=approve)"
    assert waiting.split()[:3] == ["waiting", "?", "?"]
    assert banned.startswith("banned for a while")
    assert own.split()[0] == "own"
    assert "2 h" in banned
    assert "3 s" in own
    assert there.split()[-2:] == ["now", "yes"]
    assert hint.endswith("join approve k3fq-2mzd-7xwa-pq4e")
    nobody = {"mode": ["lan"], "orchestrator": OURS, "members": []}
    assert list(listing_lines(nobody, NOW, None))[2:] == ["nobody has joined yet"]


def test_each_way_to_come_in_has_its_words() -> None:
    texts = {mode_text(modes) for modes in (["lan"], ["approve"], ["key"], ["approve", "key"])}
    assert len(texts) == 4
