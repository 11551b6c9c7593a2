"""A worker's orchestrators: what others announce takes nobody's place."""

from __future__ import annotations

from pathlib import Path

from d8mesh.config import Config
from d8mesh.core.protocol.membership import fingerprint
from d8mesh.core.protocol.pinning import Pin
from d8mesh.core.protocol.route import KnownBroker
from d8mesh.edge.pins import PinFile
from d8mesh.edge.transport.keys import new_pair
from d8mesh.nodes.reconnector.known_brokers import MAX_BROKERS
from d8mesh.nodes.worker.orchestrators import Orchestrators
from tests.http.certified import certified
from tests.http.served import served
from tests.nodes.mesh import free_port, until

KEY = b"a" * 32


def test_a_worker_looks_for_the_real_one_however_many_names_were_announced_first(
    tmp_path: Path,
) -> None:
    PinFile(tmp_path).add("m", Pin(fingerprint(KEY), KEY))
    port, config = free_port(), Config(mesh="m", data_dir=str(tmp_path))
    looked_for = Orchestrators(config, keys=new_pair(), wake=lambda: None)
    try:
        for n in range(MAX_BROKERS + 10):
            looked_for.told(KnownBroker(f"false{n}", ("127.0.0.1",), port, None, KEY))
        looked_for.told(KnownBroker("real", ("127.0.0.1",), port, None, KEY))
        assert "real" in looked_for._reconnectors
        assert len(looked_for._reconnectors) <= MAX_BROKERS + 1
    finally:
        looked_for.close()


def test_what_a_worker_is_shown_at_its_url_in_place_of_a_trusted_certificate_is_told(
    tmp_path: Path,
) -> None:
    config = Config(mesh="m", data_dir=str(tmp_path))
    with served(tls=certified()) as here:
        url = f"https://127.0.0.1:{here.port}"
        looked_for = Orchestrators(config, url=url, keys=new_pair(), wake=lambda: None)
        try:
            until(lambda: looked_for.trust.strangers)
            (told,) = looked_for.trust.strangers
            assert told.startswith(f"{url} shows a certificate")
            assert f"set D8_TLS_TRUST={certified().fingerprint}" in told
        finally:
            looked_for.close()
