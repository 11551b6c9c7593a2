"""Pins are kept for all of a data folder, and a file that cannot be trusted is refused."""

from __future__ import annotations

import json
import multiprocessing
import stat
import sys
from pathlib import Path

import pytest

from d8mesh.core.protocol.membership import fingerprint
from d8mesh.core.protocol.pinning import Pin
from d8mesh.edge import pins as kept
from d8mesh.edge.pins import PINS_NAME, PinFile
from d8mesh.errors import ConfigError

A, B = b"a" * 32, b"b" * 32


def pin(key: bytes, broker_id: str = "orch") -> Pin:
    return Pin(fingerprint(key), key, broker_id, 5.5)


def test_what_one_process_pins_another_sees_at_once(tmp_path: Path) -> None:
    one, other = PinFile(tmp_path), PinFile(tmp_path)
    assert one.of("m") == other.of("m") == ()
    one.add("m", pin(A))
    assert other.of("m") == (pin(A),)
    other.add("m", Pin(fingerprint(B)))
    other.add("elsewhere", pin(B))
    assert one.of("m") == (pin(A), Pin(fingerprint(B)))
    one.remove("m", fingerprint(A))
    one.remove("m", fingerprint(B))
    assert other.of("m") == ()
    assert other.of("elsewhere") == (pin(B),)


def test_reading_costs_nothing_while_the_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = PinFile(tmp_path)
    file.add("m", pin(A))
    file.of("m")
    monkeypatch.setattr(kept, "_read", lambda path: pytest.fail("read again"))
    assert file.of("m") == (pin(A),)


@pytest.mark.skipif(sys.platform == "win32", reason="no such modes")
def test_it_is_the_users_alone(tmp_path: Path) -> None:
    file = PinFile(tmp_path)
    file.add("m", pin(A))
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    file.path.chmod(0o644)
    assert file.of("m") == (pin(A),), "what it says is no secret"
    file.path.chmod(0o664)
    with pytest.raises(ConfigError, match="others on this machine can write it"):
        file.of("m")
    with pytest.raises(ConfigError, match=r"Run chmod 600 .*, then see with .* join pins"):
        PinFile(tmp_path).of("m")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "5",
        '{"m": 5}',
        '{"m": [{}]}',
        '{"m": [{"key": "00", "fingerprint": "", "broker_id": "", "since": 0}]}',
        '{"m": [{"key": null, "fingerprint": "x", "broker_id": "", "since": 0}]}',
        '{"m": [{"key": null, "fingerprint": "aaaa-bbbb-cccc-dddd", "broker_id": "a b"}]}',
        "[" * 100_000,
        "x" * (kept.MAX_PINS_BYTES + 1),
    ],
    ids=range(10),
)
def test_a_file_that_is_damaged_is_refused_and_left_as_it_is(tmp_path: Path, content: str) -> None:
    """To begin anew in silence would be to trust whoever comes first."""
    path = tmp_path / PINS_NAME
    path.write_text(content)
    path.chmod(0o600)
    file = PinFile(tmp_path)
    with pytest.raises(ConfigError, match="is no list of keys"):
        file.of("m")
    with pytest.raises(ConfigError):
        file.add("m", pin(A))
    assert path.read_text() == content


def _add(folder: str, n: int) -> None:
    file = PinFile(Path(folder))
    for key in range(n * 5, n * 5 + 5):
        file.add("m", pin(bytes([key]) * 32))


def test_processes_that_pin_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_add, args=(str(tmp_path), n)) for n in range(2)]
    for each in others:
        each.start()
    _add(str(tmp_path), 2)
    for each in others:
        each.join(60)
    assert {each.key for each in PinFile(tmp_path).of("m")} == {bytes([n]) * 32 for n in range(15)}


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        PinFile(tmp_path / "file" / "below").add("m", pin(A))
    with pytest.raises(ConfigError, match="cannot be read"):
        PinFile(tmp_path / "file").of("m")


def test_meshes_are_bounded_and_none_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "MAX_PINNED_MESHES", 1)
    file = PinFile(tmp_path)
    file.add("m", pin(A))
    with pytest.raises(ConfigError, match="and no more"):
        file.add("n", pin(A))
    assert file.of("m") == (pin(A),)
    assert list(json.loads(file.path.read_text())) == ["m"]
