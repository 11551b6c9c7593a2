"""Who a worker is: the same at every start, and never twice at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from d8mesh.core.protocol.route import KnownBroker
from d8mesh.edge import identity as identity_module
from d8mesh.edge.identity import BROKERS_NAME, Identity
from d8mesh.errors import WorkerError


def test_the_id_is_the_same_at_every_start(tmp_path: Path) -> None:
    first = Identity(tmp_path)
    first.close()
    second = Identity(tmp_path)
    assert second.worker_id == first.worker_id
    second.close()


def test_two_at_once_have_folders_and_ids_of_their_own(tmp_path: Path) -> None:
    first, second = Identity(tmp_path), Identity(tmp_path)
    assert first.folder != second.folder
    assert first.worker_id != second.worker_id
    first.close()
    second.close()


def test_a_second_process_of_the_same_name_gets_a_suffix(tmp_path: Path) -> None:
    first, second = Identity(tmp_path, "pi"), Identity(tmp_path, "pi")
    assert (first.worker_id, second.worker_id) == ("pi", "pi-2")
    first.close()
    second.close()
    again = Identity(tmp_path, "pi")
    assert again.worker_id == "pi"
    again.close()


def test_another_id_is_kept_but_a_name_that_was_given_stays(tmp_path: Path) -> None:
    mine = Identity(tmp_path / "mine")
    before = mine.worker_id
    assert mine.called_before == ""
    mine.rename("other-1")
    assert (mine.worker_id, mine.called_before) == ("other-1", before)
    mine.close()
    again = Identity(tmp_path / "mine")
    assert again.worker_id == "other-1"
    again.close()
    named = Identity(tmp_path / "named", "pi")
    named.rename("pi-1")
    named.close()
    again = Identity(tmp_path / "named", "pi")
    assert again.worker_id == "pi"
    again.close()


def test_the_last_good_addresses_are_remembered_newest_first(tmp_path: Path) -> None:
    identity = Identity(tmp_path)
    assert identity.brokers == []
    one = KnownBroker("a", ("192.168.0.1",), 7010, 7001, b"k" * 32)
    two = KnownBroker("b", ("192.168.0.2",), 7010, None)
    moved = KnownBroker("a", ("192.168.0.9",), 7010, 7001, b"k" * 32, b"p" * 32, "f" * 64)
    for each in (one, two, moved):
        identity.remember(each)
    assert identity.brokers == [moved, two]
    assert json.loads((identity.folder / BROKERS_NAME).read_bytes())[0] == {
        "broker_id": "a", "address": "192.168.0.9", "port": 7010, "web_port": 7001,
        "server_key": "6b" * 32, "proof": "70" * 32, "tls": "f" * 64,
    }  # fmt: skip
    for text in ("garbage", "[" * 60_000):
        (identity.folder / BROKERS_NAME).write_text(text, "utf-8")
        assert identity.brokers == []
    identity.close()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(WorkerError, match="D8_DATA_DIR"):
        Identity(tmp_path / "file")


def test_more_workers_than_there_are_folders_for_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity_module, "MAX_WORKERS", 1)
    first = Identity(tmp_path)
    with pytest.raises(WorkerError, match=r"1 workers run on .* already"):
        Identity(tmp_path)
    first.close()
    Identity(tmp_path).close()


def test_a_folder_whose_name_is_no_utf_8_is_said(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="its name is no UTF-8"):
        Identity(tmp_path / "caf\udce9")
    assert list(tmp_path.iterdir()) == []
    Identity(tmp_path / "café").close()
