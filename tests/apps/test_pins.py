"""`join trust`, `join pins` and `join unpin`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from d8mesh.apps.join import run
from d8mesh.apps.pins import ACTIONS
from d8mesh.config import Config
from d8mesh.core.protocol.membership import fingerprint
from d8mesh.core.protocol.pinning import Pin
from d8mesh.edge.pins import PinFile
from d8mesh.errors import ConfigError, D8Error
from d8mesh.options import TRUST_ACTIONS
from d8mesh.options import join as add_arguments

A, B = b"a" * 32, b"b" * 32


def join(folder: Path, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(Config(mesh="m", data_dir=str(folder)), parser.parse_args(arguments))


def test_what_join_takes_is_what_this_does() -> None:
    assert TRUST_ACTIONS.keys() == ACTIONS


def test_what_is_trusted_is_listed_and_let_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert join(tmp_path, "pins") == 0
    assert "the first is trusted" in capsys.readouterr().out
    PinFile(tmp_path).add("m", Pin(fingerprint(A), A, "orch-1", 5.0))
    assert join(tmp_path, "trust", fingerprint(B)) == 0
    assert f"{fingerprint(B)} is trusted" in capsys.readouterr().out
    assert join(tmp_path, "pins") == 0
    head, one, other = capsys.readouterr().out.splitlines()
    assert head.split() == ["key", "orchestrator", "since"]
    assert one.split()[:2] == [fingerprint(A), "orch-1"]
    assert other.startswith(f"{fingerprint(B)}  not met yet")
    assert join(tmp_path, "unpin", fingerprint(A).upper()) == 0
    assert join(tmp_path, "pins", "--json") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["mesh"] == "m"
    (pin,) = told["pins"]
    assert pin["fingerprint"] == fingerprint(B)
    assert (pin["key"], pin["broker_id"]) == (None, None)
    assert join(tmp_path, "unpin", "all") == 0
    assert "no key of mesh m is known now" in capsys.readouterr().out
    assert PinFile(tmp_path).of("m") == ()


@pytest.mark.parametrize(
    ("action", "who", "told"),
    [
        ("trust", "nonsense", "is no fingerprint"),
        ("unpin", "nonsense", "is no fingerprint"),
        ("unpin", fingerprint(A), f"{fingerprint(A)} is not known here of mesh 'm'"),
    ],
)
def test_what_cannot_be_done_is_told(tmp_path: Path, action: str, who: str, told: str) -> None:
    with pytest.raises(D8Error, match=told):
        join(tmp_path, action, who)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "file"
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be"):
        join(folder / "below", "trust", fingerprint(A))
