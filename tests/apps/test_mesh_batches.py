"""A batch is given to the mesh at once, and nothing of it is left behind."""

from __future__ import annotations

import time

import pytest

from d8mesh.apps.mesh_batches import MeshBatches
from d8mesh.errors import WaitTimeoutError
from d8mesh.handlers.echo import echo
from tests.in_process import InProcess


def test_all_tasks_of_a_batch_end_and_are_counted() -> None:
    with InProcess({"echo": echo}) as mesh:
        batches = MeshBatches(mesh)
        ended = list(batches.ends("echo", [{"n": n} for n in range(5)]))
        assert sorted(each.index for each in ended) == [0, 1, 2, 3, 4]
        assert (batches.tasks, batches.failed_tasks) == (5, 0)
        assert list(batches.ends("echo", [])) == []


def test_leaving_a_batch_early_cancels_the_rest() -> None:
    with InProcess({}) as mesh:
        batches = MeshBatches(mesh, until=time.monotonic() + 0.2)
        with pytest.raises(WaitTimeoutError):
            list(batches.ends("echo", [{}, {}]))
        assert all(task._future.cancelled() for task in mesh.tasks)


def test_time_that_is_over_is_told() -> None:
    with InProcess({}) as mesh:
        MeshBatches(mesh).raise_if_late(1, 2)
        with pytest.raises(WaitTimeoutError, match="1 of 2 genomes"):
            MeshBatches(mesh, until=time.monotonic() - 1).raise_if_late(1, 2)
