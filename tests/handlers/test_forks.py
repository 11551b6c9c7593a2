"""Copies of a worker that a handler forked: they end without a word of their own."""

from __future__ import annotations

import os

import pytest

from d8mesh.handlers.forks import FORKS, end_copy

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (SystemExit(), 0),
        (SystemExit(3), 3),
        (SystemExit("why"), 1),
        (KeyboardInterrupt(), 1),
    ],
)
def test_a_copy_knows_that_it_is_one_and_ends_as_a_script_would(
    error: BaseException | None, code: int
) -> None:
    before = len(FORKS)
    copy = os.fork()
    if copy == 0:
        if len(FORKS) != before + 1:
            os._exit(99)
        end_copy(error)
    assert os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]) == code
    assert len(FORKS) == before
