"""The keys of a data folder's clients, and what is made of the mesh key."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from d8mesh.config import Config
from d8mesh.core.protocol.membership import mesh_secret
from d8mesh.edge.transport.keys import CLIENT_FOLDER, KEY_FILE
from d8mesh.errors import KeyFileError
from d8mesh.nodes.credentials import (
    client_keys,
    credentials_of,
    secret_of,
    web_access,
)
from tests.keyed import PEER

MESH_KEY = "a-key-of-the-tests-4711"


def test_all_clients_of_a_data_folder_have_one_key(tmp_path: Path) -> None:
    one, other = (Config(data_dir=str(tmp_path / name)) for name in ("one", "other"))
    assert client_keys(one) == client_keys(one) != client_keys(other)
    assert (tmp_path / "one" / CLIENT_FOLDER / KEY_FILE).exists()


def test_a_client_whose_folder_cannot_be_written_has_a_key_for_this_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    config = Config(data_dir=str(tmp_path / "file"))
    assert client_keys(config) != client_keys(config)
    assert "key.unkept" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="no modes there")
def test_a_key_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    config = Config(data_dir=str(tmp_path))
    client_keys(config)
    (tmp_path / CLIENT_FOLDER / KEY_FILE).chmod(0o644)
    with pytest.raises(KeyFileError, match="others on this machine can read it"):
        client_keys(config)


def test_the_mesh_secret_is_made_once_and_only_of_a_mesh_key() -> None:
    assert secret_of(Config(mesh="m")) is None
    assert credentials_of(Config(mesh="m"), PEER).shown_to(b"s" * 32) == b""
    config = Config(mesh="m", mesh_key=MESH_KEY)
    assert secret_of(config) == mesh_secret(MESH_KEY, "m") != secret_of(Config(mesh_key=MESH_KEY))
    begun = time.process_time()
    for _ in range(1000):
        credentials_of(config, PEER)
    assert time.process_time() - begun < 1.0, "tens of milliseconds each"
    assert MESH_KEY not in repr(credentials_of(config, PEER))


def test_a_rest_port_is_come_to_with_what_is_set_here() -> None:
    access = web_access(Config(token="d8_mine", tls_trust=("f" * 64,), mesh_key=MESH_KEY))
    assert (access.token, access.trusted) == ("d8_mine", frozenset({"f" * 64}))
    assert access.secret == mesh_secret(MESH_KEY, "d8")
    assert "d8_mine" not in repr(access)
