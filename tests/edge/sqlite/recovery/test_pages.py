"""Rows read from bytes are those that SQLite reads."""

from __future__ import annotations

import random
from pathlib import Path

import apsw
import pytest

from d8mesh.edge.sqlite.recovery.pages import Found, Pages, Trees


def database(tmp_path: Path, page_bytes: int) -> tuple[bytes, dict[str, int], list[list[object]]]:
    dice = random.Random(page_bytes)
    path = tmp_path / "x.db"
    db = apsw.Connection(str(path))
    db.execute(f"PRAGMA page_size = {page_bytes}")
    db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, a, b); CREATE INDEX i ON t(a)")
    rows: list[list[object]] = []
    for n in range(400):
        number: object = dice.choice([0, 1, -5, 2**14, -(2**40), 2**62, 1.5, None, "žluťoučký"])
        rows.append([n * n * 7919, number, dice.randbytes(dice.choice([0, 5, 300, 20_000]))])
        db.execute("INSERT INTO t VALUES (?, ?, ?)", rows[-1])
    found = db.execute("SELECT name, rootpage FROM sqlite_master").fetchall()
    roots = {str(name): int(str(page)) for name, page in found}
    db.close()
    return path.read_bytes(), roots, rows


@pytest.mark.parametrize("page_bytes", [512, 4096, 65536])
def test_every_row_is_read_with_every_kind_of_value(tmp_path: Path, page_bytes: int) -> None:
    content, roots, rows = database(tmp_path, page_bytes)
    trees = Trees(Pages(memoryview(content), memoryview(b"")))
    found = Found()
    assert [[r.rowid, *r.values[1:]] for r in trees.rows(roots["t"], found)] == rows
    entries = list(trees.entries(roots["i"], found))
    assert sorted(e.values[-1] for e in entries) == [row[0] for row in rows]  # type: ignore[type-var]
    assert found.is_whole


def test_bytes_of_any_kind_never_break_the_reader(tmp_path: Path) -> None:
    content, roots, _ = database(tmp_path, 512)
    dice = random.Random(5)
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(dice.randint(1, 400)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        pages = Pages(memoryview(damaged), memoryview(dice.randbytes(5000)))
        trees, found = Trees(pages), Found()
        for root in (1, roots["t"]):
            for row in trees.rows(root, found):
                assert len(row.values) < 1000
        list(trees.entries(roots["i"], found))
        list(trees.strays("table"))
        list(trees.strays("index"))


def test_no_bytes_at_all_have_no_rows() -> None:
    trees, found = Trees(Pages(memoryview(b""), memoryview(b""))), Found()
    assert list(trees.rows(1, found)) == []
    assert found.damaged_pages == [1]
