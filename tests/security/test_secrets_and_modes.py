"""No secret is ever told, and no file of a data folder is open to others, after a whole run."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.end_to_end.processes import children_of
from tests.security.abuse import Abused, abused_mesh

MESH_KEY: Final = "MarkMeshKey-7f3a9c1e5b2d8046"
SECRETS: Final = {
    "D8_MESH_KEY": MESH_KEY,
    "GROQ_API_KEY": "gsk_MarkGroq8d1f6b3a",
    "GEMINI_API_KEY": "MarkGemini5c2e9a7d",
    "D8_OPENAI_KEY": "sk-MarkOpenAI4b8f1e6c",
    "D8_TOKEN": "d8_MarkToken2a7c5e9f",
}
SETTINGS: Final = {**SECRETS, "LOG_LEVEL": "DEBUG", "D8_ENCRYPT": "1"}


@pytest.fixture(scope="module")
def run() -> Iterator[Abused]:
    before = os.umask(0)  # what a careless shell may have set
    try:
        with abused_mesh(settings=SETTINGS) as made:
            yield made
    finally:
        os.umask(before)


def _secrets_of(folder: Path) -> dict[str, str]:
    """Return what must not be told: the settings, and what the key files hold."""
    told = dict(SECRETS)
    for path in folder.rglob("*.key"):
        if path.parent.name != "tls":
            told[str(path.relative_to(folder))] = path.read_text("ascii").split()[-1]
    return told


def _told_in(text: str, folder: Path) -> list[str]:
    return [name for name, secret in _secrets_of(folder).items() if secret in text]


def test_no_key_is_in_a_log_even_at_debug(run: Abused) -> None:
    run.http.ask("GET", "/api/status?key=wrong", b"", "Authorization: Bearer wrong")
    run.goes_on()
    logs = list((run.mesh.folder / "logs").glob("*.log"))
    assert len(logs) >= 3
    for log in logs:
        assert _told_in(log.read_text("utf-8"), run.mesh.folder) == [], log.name


def test_no_key_is_said_on_a_console(run: Abused) -> None:
    for child in (run.mesh.orchestrator, *run.llm.workers, *run.mesh.workers):
        assert child.lines
        assert _told_in("\n".join(child.lines), run.mesh.folder) == [], child.name


@pytest.mark.skipif(sys.platform != "linux", reason="command lines are read from /proc")
def test_no_key_is_on_a_command_line(run: Abused) -> None:
    seen = 0
    for process in (run.mesh.orchestrator, *run.llm.workers, *run.mesh.workers):
        family = {process.process.pid, *children_of(process.process.pid)}
        for pid in list(family):
            family |= set(children_of(pid))
        for pid in family:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
            assert _told_in(line, run.mesh.folder) == [], line
            seen += 1
    assert seen >= 4, "launcher, broker, web process, worker"


@pytest.mark.parametrize(
    "path", ["/health", "/openapi.json", "/api/status", "/api/workers/list", "/metrics", "/nothing"]
)
def test_no_answer_tells_a_key(run: Abused, path: str) -> None:
    for lines in ((), ("Authorization: Bearer wrong",)):
        answer = run.http.ask("GET", path, b"", *lines)
        assert _told_in(answer.body.decode("utf-8", "replace"), run.mesh.folder) == []


def test_the_payloads_of_such_a_run_are_encrypted(run: Abused) -> None:
    run.goes_on()
    for folder in (run.mesh.folder / "orchestrator", *run.mesh.folder.glob("workers/*")):
        assert (folder / "payload.key").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="modes mean nothing there")
def test_every_folder_is_0700_and_every_file_0600(run: Abused) -> None:
    folder = run.mesh.folder
    wide = [
        f"{path.relative_to(folder)} {stat.S_IMODE(mode):04o}"
        for path in folder.rglob("*")
        if not stat.S_ISLNK(mode := path.lstat().st_mode) and mode & 0o077
    ]
    assert wide == []
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
