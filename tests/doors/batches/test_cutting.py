"""Lines are cut into the same groups whenever they are, whatever of them is wanted."""

from __future__ import annotations

from collections.abc import Callable

from d8mesh.doors.batches.asking import AskedLine, LineGroup
from d8mesh.doors.batches.cutting import GROUP_LINES, GROUP_LINES_BYTES, GROUP_TASKS, groups_of
from d8mesh.doors.llm.asked import LlmTask

TASK = LlmTask(type="embed", data={}, model="m")


def cut(
    count: int, is_wanted: Callable[[int], bool] = lambda n: True, size: int = 1, tasks: int = 1
) -> list[LineGroup]:
    rows = ((number, b"x" * size) for number in range(1, count + 1))
    asked = lambda number, raw: AskedLine(number, str(number), [TASK] * tasks)  # noqa: E731
    return list(groups_of(rows, "run", is_wanted, asked))


def test_every_line_is_in_one_group_under_a_key_of_its_own() -> None:
    groups = cut(2 * GROUP_LINES + 1)
    assert [group.key for group in groups] == ["run/1", f"run/{GROUP_LINES + 1}", "run/201"]
    numbers = [line.number for group in groups for line in group.lines]
    assert numbers == list(range(1, 2 * GROUP_LINES + 2))


def test_a_group_with_one_wanted_line_has_all_its_lines_and_others_are_left_out() -> None:
    whole = cut(3 * GROUP_LINES)
    (group,) = cut(3 * GROUP_LINES, lambda number: number == GROUP_LINES + 5)
    assert group.wanted == {GROUP_LINES + 5}
    assert (group.key, group.lines) == (whole[1].key, whole[1].lines)


def test_large_lines_make_small_groups() -> None:
    assert [len(group.lines) for group in cut(5, size=GROUP_LINES_BYTES // 2)] == [2, 2, 1]


def test_lines_of_many_tasks_make_small_groups() -> None:
    groups = cut(5, tasks=GROUP_TASKS // 2)
    assert [(group.key, len(group.lines)) for group in groups] == [
        ("run/1", 2),
        ("run/3", 2),
        ("run/5", 1),
    ]
