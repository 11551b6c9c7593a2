"""The answers of `batch`: one line for each row, in the order wished, through any end."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from d8mesh.apps.batch_lines import is_failed
from d8mesh.apps.batch_output import AnswersOut, number_of, without_failures
from d8mesh.errors import ConfigError


def line(number: int, *, fails: bool = False) -> bytes:
    error = b'{"code":"c"}' if fails else b"null"
    return b'{"n":%d,"output":"%d","error":%b}' % (number, number, error)


def opened(path: Path | None, count: int, *, is_ordered: bool = True) -> AnswersOut:
    found = AnswersOut(path, count, is_ordered=is_ordered, is_failed=is_failed)
    found.open()
    return found


def numbers(path: Path) -> list[int]:
    return [number_of(each) for each in path.read_bytes().splitlines()]


def test_answers_of_any_order_stand_in_that_of_the_input(tmp_path: Path) -> None:
    path = tmp_path / "out"
    mixed = list(range(1, 201))
    random.Random(3).shuffle(mixed)
    found = opened(path, 200)
    for at in range(0, 200, 7):
        found.add([(number, line(number)) for number in mixed[at : at + 7]])
    assert found.is_complete
    found.close()
    assert numbers(path) == list(range(1, 201))
    assert list(tmp_path.iterdir()) == [path]


def test_an_end_at_any_point_loses_no_answer_and_doubles_none(tmp_path: Path) -> None:
    path = tmp_path / "out"
    mixed = list(range(1, 61))
    random.Random(5).shuffle(mixed)
    for at in range(0, 60, 5):
        found = opened(path, 60)
        assert sorted(n for n in range(1, 61) if found.has(n)) == sorted(mixed[:at])
        found.add([(number, line(number)) for number in mixed[: at + 5]])
        found.close()
    assert numbers(path) == list(range(1, 61))


@pytest.mark.parametrize("torn", ["out", "out.early"])
def test_a_torn_line_is_an_answer_that_has_not_come(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "out"
    found = opened(path, 5)
    found.add([(1, line(1)), (2, line(2)), (4, line(4)), (5, line(5))])
    found.close()
    content = (tmp_path / torn).read_bytes()
    (tmp_path / torn).write_bytes(content[:-4])
    again = opened(path, 5)
    again.add([(number, line(number)) for number in range(1, 6)])
    again.close()
    assert numbers(path) == [1, 2, 3, 4, 5]


def test_in_the_order_of_their_coming_answers_stand_as_they_came(tmp_path: Path) -> None:
    path = tmp_path / "out"
    found = opened(path, 3, is_ordered=False)
    found.add([(3, line(3)), (1, line(1))])
    found.close()
    again = opened(path, 3, is_ordered=False)
    again.add([(3, line(3)), (2, line(2))])
    again.close()
    assert numbers(path) == [3, 1, 2]


def test_failures_are_counted_and_taken_out_to_be_asked_again(tmp_path: Path) -> None:
    for is_ordered in (True, False):
        path = tmp_path / f"out-{is_ordered}"
        found = opened(path, 6, is_ordered=is_ordered)
        found.add([(n, line(n, fails=n in (2, 5))) for n in (1, 2, 3, 5, 6)])
        found.close()
        assert (found.failed, list(found.failed_numbers())) == (2, [2, 5])
        without_failures(path, is_failed, is_ordered=is_ordered)
        again = opened(path, 6, is_ordered=is_ordered)
        assert [n for n in range(1, 7) if again.has(n)] == [1, 3, 6]
        again.add([(n, line(n)) for n in (5, 4, 2)])
        again.close()
        assert sorted(numbers(path)) == [1, 2, 3, 4, 5, 6]
        assert not is_ordered or numbers(path) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("content", [b"notes\n", line(7) + b"\n", line(2) + b"\n"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "out").write_bytes(content)
    found = AnswersOut(tmp_path / "out", 3, is_ordered=True, is_failed=is_failed)
    with pytest.raises(ConfigError, match="none that this command wrote"):
        found.open()
    found.close()


def test_standard_output_has_them_in_order(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    found = opened(None, 3)
    found.add([(2, line(2))])
    found.add([(3, line(3)), (1, line(1))])
    found.close()
    out = capfdbinary.readouterr().out
    assert [number_of(each) for each in out.splitlines()] == [1, 2, 3]


def test_numbers_are_known_in_both_forms() -> None:
    assert number_of(line(12)) == 12
    assert number_of(b'{"id":"batch_req_0af_9","custom_id":"x"}') == 9
    assert number_of(b'{"id":"x"}') == 0
