"""Which keys are those of a data folder, also when one is made later."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from d8mesh.edge.transport import own_keys
from d8mesh.edge.transport.keys import KEY_FILE, kept_pair
from d8mesh.edge.transport.own_keys import OwnKeys


def test_the_keys_of_clients_and_workers_of_the_folder_are_own(tmp_path: Path) -> None:
    client = kept_pair(tmp_path / "client")
    workers = [kept_pair(tmp_path / "workers" / str(n)) for n in (1, 2)]
    kept_pair(tmp_path / "orchestrator")
    kept_pair(tmp_path / "elsewhere")
    assert OwnKeys(tmp_path).all(is_fresh=True) == {
        client.public,
        *(each.public for each in workers),
    }


def test_a_folder_without_keys_has_none(tmp_path: Path) -> None:
    assert OwnKeys(tmp_path / "nowhere").all(is_fresh=True) == frozenset()


def test_a_key_file_that_others_can_read_or_that_is_none_counts_for_nothing(tmp_path: Path) -> None:
    kept_pair(tmp_path / "client")
    (tmp_path / "client" / KEY_FILE).chmod(0o644)
    (tmp_path / "workers" / "1").mkdir(parents=True)
    (tmp_path / "workers" / "1" / KEY_FILE).write_text("nonsense")
    assert OwnKeys(tmp_path).all(is_fresh=True) == frozenset()


def test_it_is_looked_again_but_strangers_cannot_make_it_look_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [10.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    own = OwnKeys(tmp_path)
    assert own.all(is_fresh=False) == frozenset()
    made = kept_pair(tmp_path / "client")
    assert own.all(is_fresh=False) == frozenset()
    now[0] += own_keys.LOOK_AGAIN_S
    assert own.all(is_fresh=False) == {made.public}
    later = kept_pair(tmp_path / "workers" / "1")
    assert own.all(is_fresh=True) == {made.public, later.public}
