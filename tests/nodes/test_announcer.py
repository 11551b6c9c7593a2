"""Where a broker is is told to the machine itself and to who hears mDNS, and taken back."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest

from d8mesh import __version__
from d8mesh.config import Config
from d8mesh.core.protocol.route import KnownBroker
from d8mesh.edge import address_file
from d8mesh.edge.discovery import Announcement, Discovery, NodeKind, Sighting
from d8mesh.edge.network import usable_addresses
from d8mesh.nodes.announcer import Announcer, announced_addresses, listens_on

PATIENCE_S = 20.0
SERVER_KEY, WORKER_KEY = b"s" * 32, b"w" * 32


def test_this_machine_and_who_hears_mdns_are_told_and_workers_are_heard(tmp_path: Path) -> None:
    config = Config(mesh=f"announcer-{tmp_path.name}"[:60], interfaces=("127.0.0.1",))
    workers: queue.Queue[tuple[bytes, str]] = queue.Queue()
    known = KnownBroker("orch-1", (), 7123, 7124, SERVER_KEY, b"p" * 32, "ab" * 32)
    (tmp_path / "orchestrator").mkdir()
    announcer = Announcer(
        config, tmp_path / "orchestrator", known, lambda key, name: workers.put((key, name))
    )
    heard: queue.Queue[Sighting] = queue.Queue()
    worker = Discovery(
        mesh=config.mesh,
        addresses=lambda: ["127.0.0.1"],
        on_sighting=heard.put,
        browse=(NodeKind.ORCHESTRATOR,),
    )
    worker.announce(
        Announcement(
            kind=NodeKind.WORKER,
            node_id="pi",
            boot_id="b1",
            mesh=config.mesh,
            port=7200,
            web_port=None,
            version=__version__,
            server_key=WORKER_KEY,
        )
    )
    announcer.begin()
    worker.start()
    try:
        told = heard.get(timeout=PATIENCE_S).broker
        assert (told.broker_id, told.port, told.web_port) == ("orch-1", 7123, 7124)
        assert (told.server_key, told.proof, told.tls) == (SERVER_KEY, b"p" * 32, "ab" * 32)
        assert workers.get(timeout=PATIENCE_S) == (WORKER_KEY, "pi")
        written = address_file.read(tmp_path, config.mesh)
        assert written is not None
        assert (written.port, written.server_key) == (7123, SERVER_KEY)
        assert "127.0.0.1" in written.addresses
    finally:
        announcer.end()
        worker.close()
    assert address_file.read(tmp_path, config.mesh) is None


@pytest.mark.parametrize(
    ("host", "listened", "announced"),
    [
        ("0.0.0.0", ["*"], None),
        ("::", ["*"], None),
        ("localhost", ["127.0.0.1"], ["127.0.0.1"]),
        ("127.0.0.1", ["127.0.0.1"], ["127.0.0.1"]),
        ("::1", ["::1", "127.0.0.1"], ["127.0.0.1"]),
        ("192.168.7.7", ["192.168.7.7", "127.0.0.1"], ["192.168.7.7"]),
    ],
)
def test_what_is_announced_is_what_is_listened_on(
    host: str, listened: list[str], announced: list[str] | None
) -> None:
    usable = [each.address for each in usable_addresses()]
    assert listens_on(host) == listened
    assert announced_addresses(Config(web_host=host)) == (announced or usable)
    assert announced_addresses(Config(web_host=host, interfaces=("no-such-card",))) == []
