"""The command `logs`: files of several processes, cut, rotated, followed."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from d8mesh.apps.logs import Tail, newest, run
from d8mesh.config import Config
from d8mesh.errors import D8Error
from d8mesh.options import logs as add_arguments

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60


def options_of(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


def line(second: int, text: str) -> str:
    return f"2026-01-01T00:00:{second:02}.000Z INFO {text}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    logs = tmp_path / "logs"
    logs.mkdir()
    trace = "    | Traceback\n    | ValueError\n"
    (logs / "broker.log").write_text(line(1, "b1") + line(4, "b4") + trace, "utf-8")
    (logs / "worker.log").write_text(line(2, "w2\x1b[31m\x9b") + line(3, "w3"), "utf-8")
    (logs / "worker-2.log").write_text(line(5, "v5"), "utf-8")
    return tmp_path


def told(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert run(Config(data_dir=str(folder)), options_of(*arguments)) == 0
    return [row.rpartition("INFO ")[2] for row in capsys.readouterr().out.splitlines()]


def test_lines_of_all_come_in_the_order_of_their_times(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    all_of_it = ["b1", "w2\\x1b[31m\\x9b", "w3", "b4", "    | Traceback", "    | ValueError", "v5"]
    assert told(folder, capsys) == all_of_it
    assert told(folder, capsys, "--lines", "2") == all_of_it[3:], "a traceback stays with its line"
    assert told(folder, capsys, "worker") == ["w2\\x1b[31m\\x9b", "w3", "v5"]
    assert told(folder, capsys, "worker-2") == ["v5"]


def test_where_they_are_is_said_beside(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(Config(data_dir=str(folder)), options_of("broker"))
    assert capsys.readouterr().err == f"logs in {folder / 'logs'}: broker.log\n"


def test_a_name_that_is_not_there_is_answered_with_those_that_are(folder: Path) -> None:
    with pytest.raises(D8Error, match="there are: broker, worker, worker-2"):
        run(Config(data_dir=str(folder)), options_of("wroker"))
    with pytest.raises(D8Error, match="nothing has run here yet"):
        run(Config(data_dir=str(folder / "elsewhere")), options_of())


def test_lines_of_the_file_before_the_last_rotation_are_found(folder: Path) -> None:
    file = folder / "logs" / "web.log"
    file.with_name("web.log.1").write_text(line(7, "old"), "utf-8")
    file.write_text(line(8, "new"), "utf-8")
    assert [row[-4:] for row in newest([Tail(file).read(2)], 2)] == [" old", " new"]


def test_of_a_large_file_only_its_end_is_read(folder: Path) -> None:
    file = folder / "logs" / "web.log"
    file.write_text("".join(line(n % 60, f"n{n:06}") for n in range(60_000)), "utf-8")
    rows = Tail(file).read(1000)
    assert rows[-1].lines == [line(59, "n059999").rstrip()]
    assert 1000 <= len(rows) < 10_000


def test_what_is_written_later_is_followed_through_a_rotation(folder: Path) -> None:
    file = folder / "logs" / "web.log"
    file.write_text(line(1, "one") + "2026-01-01T00:00:02.000Z INFO tw", "utf-8")
    tail = Tail(file)
    assert [row.lines[0][-3:] for row in tail.read(9)] == ["one"], "half a line waits"
    with file.open("a", encoding="utf-8") as opened:
        opened.write("o\n")
    assert [row.lines[0][-3:] for row in tail.more()] == ["two"]
    assert tail.more() == []
    file.replace(file.with_name("web.log.1"))
    assert tail.more() == []
    file.write_text(line(3, "new"), "utf-8")
    assert [row.lines[0][-3:] for row in tail.more()] == ["new"]


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is another thing there")
def test_following_ends_with_ctrl_c(folder: Path) -> None:
    command = [sys.executable, "-m", "d8mesh", "logs", "web", "--follow"]
    file = folder / "logs" / "web.log"
    file.write_text(line(1, "one"), "utf-8")
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"D8_DATA_DIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline().endswith("one\n")
        with file.open("a", encoding="utf-8") as opened:
            opened.write(line(2, "two"))
        assert child.stdout.readline().endswith("two\n")
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=PATIENCE_S)
        assert child.returncode == 130
        assert "Traceback" not in err
