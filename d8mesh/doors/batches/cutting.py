"""A file of lines cut into groups: always into the same ones, for their keys stand for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from d8mesh.doors.batches.asking import AskedLine, LineGroup

#: Lines of a group: one commit of the broker, and one question after a restart.
GROUP_LINES: Final = 100
#: Of a group's lines, beyond which the next begins: far less than a frame may have.
GROUP_LINES_BYTES: Final = 1024 * 1024
#: Tasks of a group: a line may ask for many.
GROUP_TASKS: Final = 1000


def groups_of(
    rows: Iterable[tuple[int, bytes]],
    key: str,
    is_wanted: Callable[[int], bool],
    asked: Callable[[int, bytes], AskedLine],
) -> Iterator[LineGroup]:
    """Yield the groups of which a line is wanted.

    Args:
        rows: number and content of each line.
        key: of the run; a group's is that, and the number of its first line.
        asked: what a line asks for; called only for lines of such groups.
    """
    held: list[tuple[int, bytes]] = []
    size = 0
    for number, raw in rows:
        if held and (len(held) == GROUP_LINES or size + len(raw) > GROUP_LINES_BYTES):
            yield from _made(held, key, is_wanted, asked)
            held, size = [], 0
        held.append((number, raw))
        size += len(raw)
    if held:
        yield from _made(held, key, is_wanted, asked)


def _made(
    held: Sequence[tuple[int, bytes]],
    key: str,
    is_wanted: Callable[[int], bool],
    asked: Callable[[int, bytes], AskedLine],
) -> Iterator[LineGroup]:
    wanted = frozenset(number for number, _ in held if is_wanted(number))
    if not wanted:
        return
    part: list[AskedLine] = []
    tasks = 0
    for number, raw in held:
        line = asked(number, raw)
        if part and tasks + len(line.tasks) > GROUP_TASKS:
            yield _group(part, key, wanted)
            part, tasks = [], 0
        part.append(line)
        tasks += len(line.tasks)
    yield _group(part, key, wanted)


def _group(lines: Sequence[AskedLine], key: str, wanted: frozenset[int]) -> LineGroup:
    own = frozenset(line.number for line in lines)
    return LineGroup(f"{key}/{lines[0].number}", tuple(lines), wanted & own)
