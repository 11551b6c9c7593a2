"""Processes die at the point, and the time, that was named; others go on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from d8mesh.edge import failpoints

ROOT = Path(__file__).resolve().parents[2]
CODE = """
from d8mesh.edge.failpoints import passed
for number in range(1, 6):
    passed("broker.after_commit")
    print(number, flush=True)
    passed("broker.after_sends")
"""


def counted_until_death(wanted: str | None) -> list[str]:
    """Return what a process says that passes two points five times each."""
    env = {**os.environ} | ({} if wanted is None else {failpoints.FAILPOINT_VARIABLE: wanted})
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, env=env, capture_output=True, encoding="utf-8"
    )
    assert (done.returncode == 0) is (len(done.stdout.split()) == 5), done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (None, 5),
        ("", 5),
        ("broker.after_commit", 0),
        ("broker.after_sends", 1),
        ("broker.after_commit:3", 2),
        ("broker.after_sends:3", 3),
        ("broker.after_commit:1.0", 0),
        ("broker.after_commit:0.0", 5),
        ("worker.mid_run", 5),
    ],
)
def test_a_process_dies_where_it_was_asked_to(wanted: str | None, said: int) -> None:
    assert len(counted_until_death(wanted)) == said


def test_a_file_names_the_next_death_and_is_gone_with_it(tmp_path: Path) -> None:
    file = tmp_path / "failpoint"
    file.write_text("broker.after_sends:2", "ascii")
    assert len(counted_until_death(f"@{file}")) == 2
    assert not file.exists()
    assert len(counted_until_death(f"@{file}")) == 5


def test_every_name_is_a_point_of_the_code_and_the_other_way_round() -> None:
    code = "".join(path.read_text("utf-8") for path in (ROOT / "d8mesh" / "nodes").rglob("*.py"))
    for name in failpoints.FAILPOINTS:
        assert f'passed("{name}")' in code, name
    assert code.count('passed("') == len(failpoints.FAILPOINTS)
