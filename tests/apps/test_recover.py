"""`recover` as a person and as a program meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock
import pytest

from d8mesh.core.protocol.task import Spec, Submitted
from d8mesh.core.worker.effects import KeptResult
from d8mesh.edge.sqlite import Journal
from d8mesh.edge.sqlite.outbox import OUTBOX_NAME, Outbox

ROOT = Path(__file__).parents[2]
S = "0123456789abcdef"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "d8mesh", *arguments],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONUTF8": "1"},
        timeout=60,
    )


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A data folder: the data of the last of three batches is on a page that is noise now."""
    path = tmp_path / "orchestrator" / "journal.db"
    journal = Journal(path)
    journal.restore()
    spec = Spec("echo", 5, 3)
    journal.append([Submitted(S, n * 4, spec, [bytes([65 + n]) * 5000] * 4, 1.0) for n in range(3)])
    journal.close()
    assert not path.with_name("journal.db-wal").exists()  # a clean stop folds it back
    content = bytearray(path.read_bytes())
    at = content.index(b"C" * 4088) // 4096 * 4096
    content[at : at + 4096] = b"\xff" * 4096
    path.write_bytes(content)
    return tmp_path


def test_the_refusal_names_the_command_and_the_command_mends_it(damaged: Path) -> None:
    path = damaged / "orchestrator" / "journal.db"
    content = bytearray(path.read_bytes())
    content[4096 : 2 * 4096] = b"\xff" * 4096
    path.write_bytes(content)
    standard_input, launcher = os.pipe()
    refused = subprocess.run(
        [sys.executable, "-m", "d8mesh", "_broker"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        stdin=standard_input,
        env=os.environ | {"D8_DATA_DIR": str(damaged)},
        timeout=60,
    )
    os.close(standard_input)
    os.close(launcher)
    assert refused.returncode == 4
    assert f"d8mesh recover --data {damaged}" in refused.stderr
    done = command("recover", "--data", str(damaged))
    assert done.returncode == 0, done.stderr
    assert "was recovered" in done.stdout
    assert "reading batches" in done.stderr
    Journal(path).close()
    assert "is sound" in command("recover", "--data", str(damaged)).stdout


def test_what_is_saved_and_what_is_not_is_told_exactly(damaged: Path) -> None:
    done = command("recover", "--json", "--data", str(damaged))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    told: dict[str, Any] = json.loads(done.stdout)["journal"]
    assert told["outcome"] == "recovered"
    assert (told["queued"] + told["failed"], told["unknown_count"]) == (12, 0)
    assert told["lost_data"] == [f"{S}-{n}" for n in range(told["queued"], 12)]
    assert told["tables"]["batches"] == {"kept": 3, "damaged": 1, "unreadable": []}
    assert Path(told["moved_to"]).exists()


def test_outboxes_are_mended_too_but_not_those_in_use(tmp_path: Path) -> None:
    for number in ("1", "2", "3"):
        outbox = Outbox(tmp_path / "workers" / number)
        outbox.keep([KeptResult("b", f"{S}-1", number.encode() * 16, 1, b"\x80")])
        outbox.close()
    for number in ("1", "2"):
        path = tmp_path / "workers" / number / OUTBOX_NAME
        path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 4096)
    with filelock.FileLock(tmp_path / "workers" / "2" / "lock"):
        done = command("recover", "--json", "--data", str(tmp_path))
    assert done.returncode == 0, done.stderr
    outcomes = [each["outcome"] for each in json.loads(done.stdout)["outboxes"]]
    assert outcomes == ["recovered", "in use", "sound"]


def test_a_journal_in_use_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "orchestrator" / "journal.db")
    done = command("recover", "--data", str(tmp_path))
    journal.close()
    assert done.returncode == 3
    assert "in use" in done.stderr


def test_a_folder_without_anything_of_ours_is_told(tmp_path: Path) -> None:
    done = command("recover", "--data", str(tmp_path))
    assert done.returncode == 1
    assert "There is no journal" in done.stdout
