"""What a running mesh answers to what schemathesis makes of ``/openapi.json``."""

from __future__ import annotations

import pytest

from tests.doors.llm_mesh import machine
from tests.security.abuse import abused_mesh
from tests.security.schemathesis_run import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_every_call_of_every_door_answers_as_its_document_says() -> None:
    """The same requests each time: no server error, no answer that is not told of, no bad request
    that is taken; and nothing has failed or stands still after it.
    """
    with abused_mesh(machine()) as abused:
        done = run(abused, "--max-examples=5", "--generation-deterministic")
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        assert "Tested: " in done.stdout
