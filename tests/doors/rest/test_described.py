"""What is said of the calls of the documented REST is what they read."""

from __future__ import annotations

import pytest

from d8mesh.doors.rest import schemas
from d8mesh.doors.rest.described import REST_CALLS

READ = {
    "POST /api/tasks/submit": schemas.SubmitOne,
    "POST /api/tasks/submit_batch": schemas.SubmitBatch,
    "POST /api/tasks/<task_id>/result": schemas.Report,
    "POST /api/workers/results": schemas.NamedReport,
    "POST /api/workers/register": schemas.Register,
    "POST /api/workers/unregister": schemas.WorkerId,
    "POST /api/workers/<worker_id>/heartbeat": schemas.Beating,
}


@pytest.mark.parametrize("call", READ)
def test_the_body_that_is_said_is_the_type_that_reads_it(call: str) -> None:
    assert REST_CALLS[call].body is READ[call]
