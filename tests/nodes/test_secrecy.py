"""What passes between machines tells nobody what is worked on, nor who works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from d8mesh.nodes.client import Client
from tests.keyed import endpoint_of
from tests.nodes.mesh import PATIENCE_S, Mesh, mesh_in, until
from tests.nodes.relay import Relay

QUESTION = "what-is-asked-is-nobodys-business"
ANSWER = "what-is-answered-neither"


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with mesh_in(tmp_path) as mesh:
        yield mesh


def test_who_records_the_connections_reads_no_payload_id_name_or_result(mesh: Mesh) -> None:
    port = mesh.broker()
    with closing(Relay(port)) as relay:
        place = endpoint_of(relay.port, mesh.key(port))
        worker = mesh.worker(place, name="worker-of-somebody")
        worker.register("a-task-type", lambda data: ANSWER * 100)
        mesh.run(worker)
        with Client(endpoint=place, config=mesh.config()) as client:
            task = client.submit("a-task-type", {"text": QUESTION * 100})
            assert task.result(PATIENCE_S)["output"] == ANSWER * 100
            assert client.call("a-task-type", {"text": QUESTION}, timeout=PATIENCE_S)
            until(lambda: client.ask("workers", {}, timeout=PATIENCE_S))
        seen = relay.everything
    session, _, _ = task.id.partition("-")
    assert len(seen) > len(QUESTION) * 100 + len(ANSWER) * 200
    assert seen.count(b"CURVE") >= 3, "worker, client, and its direct call"
    for secret in (QUESTION, ANSWER, "a-task-type", "worker-of-somebody", session, mesh.mesh):
        assert secret.encode() not in seen, secret
    assert b"NULL" not in seen
