"""What of a batch is answered is known from its files alone."""

from __future__ import annotations

from pathlib import Path

from d8mesh.doors.batches.answer_lines import AnswerLine, answered
from d8mesh.doors.batches.record import AnswerRecord


def line(number: int, status: int = 200) -> AnswerLine:
    body = {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    return answered("0a", number, f"c{number}", status=status, task_id="", body=body)


def record(folder: Path) -> AnswerRecord:
    found = AnswerRecord(folder / "out", folder / "err", 9)
    found.open()
    return found


def test_a_new_record_knows_what_an_earlier_one_wrote(tmp_path: Path) -> None:
    first = record(tmp_path)
    first.append([line(3), line(4, 500), line(1)])
    first.close()
    again = record(tmp_path)
    again.close()
    assert [n for n in range(10) if again.has(n)] == [1, 3, 4]
    assert (again.completed, again.failed) == (2, 1)
    assert again.tokens.told() == first.tokens.told()
    assert again.tokens.output == 4


def test_a_line_is_written_once_however_often_it_comes(tmp_path: Path) -> None:
    found = record(tmp_path)
    found.append([line(3)])
    found.append([line(3), line(3, 500)])
    found.close()
    assert (tmp_path / "out").read_bytes().count(b"\n") == 1
    assert (tmp_path / "err").read_bytes() == b""


def test_a_torn_answer_was_never_given(tmp_path: Path) -> None:
    found = record(tmp_path)
    found.append([line(3), line(4)])
    found.close()
    content = (tmp_path / "out").read_bytes()
    (tmp_path / "out").write_bytes(content[:-5])
    again = record(tmp_path)
    again.append([line(4)])
    again.close()
    assert (tmp_path / "out").read_bytes() == content
