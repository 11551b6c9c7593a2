"""Logs: one line for each record, escaped and bounded, in a file of the process's own."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d8mesh.edge import logs

LOGGER = logging.getLogger("d8mesh.test_logs")


@pytest.fixture(autouse=True)
def _root_logger_as_before() -> Iterator[None]:
    root = logging.getLogger()
    kept, level, raises = root.handlers[:], root.level, logging.raiseExceptions
    root.handlers[:] = []
    yield
    logs.setup("test", level="WARNING", folder=None, to_stderr=False)  # lets files and locks go
    root.handlers[:] = kept
    root.setLevel(level)
    logging.raiseExceptions = raises


def test_an_event_becomes_one_line_with_its_fields(tmp_path: Path) -> None:
    logs.setup("worker", level="INFO", folder=tmp_path, to_stderr=False)

    logs.event(LOGGER, logging.INFO, "worker.join", worker="w 1", wait_s=0.25)

    text = (tmp_path / "worker.log").read_text("utf-8")
    stamp = r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}Z"
    rest = r'worker\.join worker="w 1" wait_s=0\.25'
    assert re.fullmatch(rf"{stamp} INFO worker\[\d+\] {rest}\n", text)


def test_what_a_peer_sends_cannot_forge_a_line_or_drive_a_terminal(tmp_path: Path) -> None:
    logs.setup("worker", level="INFO", folder=tmp_path, to_stderr=False)

    LOGGER.info("name=%s", "a\n2025 ERROR all lost\x1b[2J\u2028\u202e")

    text = (tmp_path / "worker.log").read_text("utf-8")
    assert text.count("\n") == 1
    assert r"a\n2025 ERROR all lost\x1b[2J\u2028\u202e" in text


@given(st.text(max_size=3000))
def test_every_value_is_printable_and_bounded(text: str) -> None:
    rendered = logs.line("event", value=text)
    assert rendered.isprintable()
    # every quote may be escaped, beside the two around and the name
    assert len(rendered) <= 2 * logs.MAX_VALUE_CHARS + len("event value=") + 2


def test_a_repeated_warning_is_said_once_and_then_counts_as_debug(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.setup("worker", level="INFO", folder=tmp_path, to_stderr=True)

    for _ in range(3):
        LOGGER.warning("disk.low free_mb=%d", 7)
    LOGGER.warning("disk.low free_mb=%d", 6)

    text = (tmp_path / "worker.log").read_text("utf-8")
    assert text.count("free_mb=7") == 1
    assert text.count("free_mb=6") == 1
    assert capsys.readouterr().err == text


def test_at_debug_a_repeated_warning_stands_as_debug(tmp_path: Path) -> None:
    logs.setup("worker", level="DEBUG", folder=tmp_path, to_stderr=False)

    for _ in range(2):
        LOGGER.warning("disk.low")

    text = (tmp_path / "worker.log").read_text("utf-8")
    assert [row.split()[1] for row in text.splitlines()] == ["WARNING", "DEBUG"]


def test_remembered_warnings_are_bounded() -> None:
    once = logs.Once()
    for number in range(logs.MAX_REMEMBERED + 10):
        once.filter(logging.LogRecord("d8mesh", logging.WARNING, "", 0, str(number), (), None))
    assert len(once._said) == logs.MAX_REMEMBERED


def test_a_traceback_follows_indented_and_escaped(tmp_path: Path) -> None:
    logs.setup("worker", level="INFO", folder=tmp_path, to_stderr=False)

    try:
        raise ValueError("bad\x1b")
    except ValueError:
        LOGGER.exception("handler.failed")

    rows = (tmp_path / "worker.log").read_text("utf-8").splitlines()
    assert rows[0].endswith("handler.failed")
    assert all(row.startswith("    | ") for row in rows[1:])
    assert rows[-1] == r"    | ValueError: bad\x1b"


def test_a_traceback_that_is_text_already_follows_its_event_in_the_same_way(
    tmp_path: Path,
) -> None:
    logs.setup("worker", level="INFO", folder=tmp_path, to_stderr=False)
    traceback = "Traceback (most recent call last):\nValueError: bad\x1b"
    logs.traced(LOGGER, logging.WARNING, "task.failed", traceback, task="id")
    logs.traced(LOGGER, logging.WARNING, "task.failed", "", task="id-2")
    logs.traced(LOGGER, logging.DEBUG, "task.failed", traceback, task="id-3")
    rows = (tmp_path / "worker.log").read_text("utf-8").splitlines()
    assert rows[0].endswith("task.failed task=id")
    assert rows[1:3] == [
        "    | Traceback (most recent call last):",
        r"    | ValueError: bad\x1b",
    ]
    assert rows[3].endswith("task.failed task=id-2")
    assert len(rows) == 4


def test_arguments_that_do_not_fit_their_message_are_no_error(tmp_path: Path) -> None:
    logs.setup("worker", level="INFO", folder=tmp_path, to_stderr=False)
    LOGGER.warning("count=%d", "many")
    assert "count=%d" in (tmp_path / "worker.log").read_text("utf-8")


def test_a_second_process_of_one_role_gets_a_file_of_its_own(tmp_path: Path) -> None:
    logs.setup("worker", level="INFO", folder=tmp_path, to_stderr=False)
    code = (
        "import logging, pathlib, sys; from d8mesh.edge import logs\n"
        "logs.setup('worker', level='INFO', folder=pathlib.Path(sys.argv[1]), to_stderr=False)\n"
        "logging.getLogger('d8mesh').info('hello')"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=root, timeout=60)

    assert "hello" in (tmp_path / "worker-2.log").read_text("utf-8")


def test_files_rotate_and_their_number_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MAX_FILE_BYTES", 1000)
    logs.setup("worker", level="INFO", folder=tmp_path, to_stderr=False)
    for number in range(200):
        LOGGER.info("number=%d", number)

    files = sorted(path.name for path in tmp_path.glob("worker.log*"))
    assert files == ["worker.log", "worker.log.1", "worker.log.2", "worker.log.3"]
    assert all((tmp_path / name).stat().st_size <= 1000 for name in files)


def test_a_folder_that_cannot_be_written_is_said_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    logs.setup("worker", level="INFO", folder=tmp_path / "file", to_stderr=False)
    LOGGER.info("still.here")
    err = capsys.readouterr().err
    assert "logs.no_file" in err
    assert "still.here" in err


def test_a_role_with_too_many_processes_logs_to_no_file_and_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs, "MAX_FILES_PER_ROLE", 0)
    logs.setup("worker", level="INFO", folder=tmp_path, to_stderr=False)
    LOGGER.info("still.here")
    err = capsys.readouterr().err
    assert "0 processes log as worker already" in err
    assert "still.here" in err


def test_libraries_speak_from_warning_up(tmp_path: Path) -> None:
    logs.setup("worker", level="DEBUG", folder=tmp_path, to_stderr=False)
    logging.getLogger("zeroconf_like").info("chatter")
    logging.getLogger("zeroconf_like").warning("trouble")
    text = (tmp_path / "worker.log").read_text("utf-8")
    assert "chatter" not in text
    assert "trouble" in text
