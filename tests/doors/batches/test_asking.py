"""Lines asked of a real mesh: each ends once, and the same ones are the same tasks again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from d8mesh.core.protocol.messages import CANCELLED_STATE, COMPLETED_STATE
from d8mesh.doors.batches import asking as asking_module
from d8mesh.doors.batches.asking import Asking, EndedLine, LineGroup, LinesAtOnce
from d8mesh.errors import InvalidTaskError, PayloadTooLargeError
from d8mesh.nodes.client.aio.node import AsyncNode
from tests.doors.batches.asked_lines import SaidMesh, cut, each, said_mesh
from tests.nodes.loops import run, until


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[SaidMesh]:
    with said_mesh(tmp_path) as found:
        yield found


class Took:
    """Takes lines that have ended."""

    def __init__(self) -> None:
        self.lines: list[EndedLine] = []

    async def take(self, lines: Sequence[EndedLine]) -> None:
        self.lines += lines

    def ids(self) -> dict[int, list[str]]:
        return {line.number: [end.task_id for end in line.ends] for line in self.lines}

    def numbers(self) -> list[int]:
        return sorted(line.number for line in self.lines)


def asking(node: AsyncNode, took: Took, window: int = 10_000) -> Asking:
    return Asking(node, LinesAtOnce(window, 10**9), took.take, priority=3, source="")


def rows(count: int, raw: bytes = b"") -> list[tuple[int, bytes]]:
    return [(number, raw) for number in range(1, count + 1)]


async def asked_all(mesh: SaidMesh, groups: Iterator[LineGroup], window: int = 10_000) -> Took:
    took, node = Took(), mesh.node()
    await asking(node, took, window).run(each(groups))
    await node.close(5.0)
    return took


def test_every_line_ends_once(mesh: SaidMesh) -> None:
    took = run(asked_all(mesh, cut(rows(250)), window=100))
    assert took.numbers() == list(range(1, 251))
    states = {end.outcome.state for line in took.lines for end in line.ends}
    assert (states, sorted(mesh.handler.asked)) == ({COMPLETED_STATE}, list(range(1, 251)))


def test_the_same_groups_are_the_same_tasks(mesh: SaidMesh) -> None:
    first = run(asked_all(mesh, cut(rows(120))))
    again = run(asked_all(mesh, cut(rows(120), wanted=[7, 8])))
    assert again.ids() == {7: first.ids()[7], 8: first.ids()[8]}
    assert len(mesh.handler.asked) == 120


def test_a_line_of_several_tasks_ends_with_all_of_them(mesh: SaidMesh) -> None:
    took = run(asked_all(mesh, cut(rows(3, b'{"tasks": 4}'))))
    assert [len(set(ids)) for ids in took.ids().values()] == [4, 4, 4]


def test_a_line_that_cannot_be_asked_ends_with_its_error(mesh: SaidMesh) -> None:
    given = [(1, b'{"refused": true}'), (2, b"{}"), (3, b'{"n": "\\ud800"}')]
    took = run(asked_all(mesh, cut(given)))
    errors = {line.number: type(line.error) for line in took.lines}
    assert errors == {1: InvalidTaskError, 2: type(None), 3: InvalidTaskError}


def test_a_key_of_other_data_does_not_stop_a_group(mesh: SaidMesh) -> None:
    run(asked_all(mesh, cut(rows(2))))
    took = run(asked_all(mesh, cut(rows(2, b'{"tasks": 2}'))))
    assert [len(ids) for ids in took.ids().values()] == [2, 2]


def test_lines_that_ask_for_more_than_fits_at_once_are_submitted_in_parts(
    mesh: SaidMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking_module, "GROUP_PART_BYTES", 100)
    took = run(asked_all(mesh, cut(rows(20, b'{"pad": "%b"}' % (b"x" * 30)))))
    again = run(asked_all(mesh, cut(rows(20, b'{"pad": "%b"}' % (b"x" * 30)))))
    assert (took.numbers(), again.ids()) == (list(range(1, 21)), took.ids())
    (large,) = run(asked_all(mesh, cut(rows(1, b'{"tasks": 3, "pad": "%b"}' % (b"y" * 60))))).lines
    assert isinstance(large.error, PayloadTooLargeError)


def test_no_more_is_under_way_than_the_window_has(mesh: SaidMesh) -> None:
    mesh.handler.go.clear()

    async def program() -> None:
        node, took, given = mesh.node(), Took(), []

        def noted() -> Iterator[LineGroup]:
            for group in cut(rows(1000)):
                given.append(group)
                yield group

        running = asyncio.create_task(asking(node, took, window=300).run(each(noted())))
        await until(lambda: len(given) == 3)
        await until(lambda: _count(node, 300))
        mesh.handler.go.set()
        await running
        assert took.numbers() == list(range(1, 1001))
        await node.close(5.0)

    run(program())


async def _count(node: AsyncNode, count: int) -> bool:
    tasks = (await node.ask("stats", {}, 5.0))["tasks"]
    return bool(tasks["total"] == count)


async def _cancelled(node: AsyncNode, count: int) -> bool:
    return bool((await node.ask("stats", {}, 5.0))["tasks"]["cancelled"] > count)


def test_who_stops_cancels_what_is_under_way_and_is_told_of_all_of_it(mesh: SaidMesh) -> None:
    mesh.handler.go.clear()

    async def program() -> Took:
        node, took = mesh.node(), Took()
        asks = asking(node, took)
        running = asyncio.create_task(asks.run(each(cut(rows(150)))))
        await until(lambda: _count(node, 150))
        await asks.stop()
        await until(lambda: _cancelled(node, 130))
        mesh.handler.go.set()
        await running
        await node.close(5.0)
        return took

    took = run(program())
    assert took.numbers() == list(range(1, 151))
    states = [line.ends[0].outcome.state for line in took.lines]
    assert states.count(CANCELLED_STATE) > 130


def test_who_goes_on_with_what_was_stopped_cancels_what_an_earlier_one_left(
    mesh: SaidMesh,
) -> None:
    mesh.handler.go.clear()

    async def program() -> Took:
        node, took = mesh.node(), Took()
        left = asyncio.create_task(asking(node, Took()).run(each(cut(rows(50)))))
        await until(lambda: _count(node, 50))
        left.cancel()
        asks = asking(node, took)
        await asks.stop()
        await asks.run(each(cut(rows(50))))
        mesh.handler.go.set()
        await node.close(5.0)
        return took

    assert {line.ends[0].outcome.state for line in run(program()).lines} == {CANCELLED_STATE}
