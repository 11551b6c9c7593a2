"""What is set wrongly ends a start with exit code 2, in words, and shows no secret: 38 to 40."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from d8mesh.apps.demo import free_ports
from d8mesh.config import Config
from d8mesh.errors import ConfigError

#: Long enough for a start that is refused, on a machine that is busy.
START_S = 120.0
SECRET = "MarkShort"


def _start(folder: Path, *command: str, **settings: str) -> tuple[int, str]:
    """Return the exit code of a start that is to be refused, and what it said."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("D8_")}
    env |= {"D8_DATA_DIR": str(folder), "D8_MESH": f"bad-{os.getpid()}", **settings}
    env |= {"D8_INTERFACES": "127.0.0.1", "D8_LANG": "en"}
    done = subprocess.run(
        [sys.executable, "-m", "d8mesh", *(command or ("orchestrator",))],
        env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=START_S,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("command", ["orchestrator", "worker"])
@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("FLASK_PORT", "99999", "1 to 65535"),
        ("D8_MESH", "a b", "A-Z a-z 0-9"),
        ("D8_JOIN", "everybody", "lan or approve"),
        ("D8_ENCRYPT", "maybe", "1 or 0"),
        ("TASK_TIMEOUT", "nan", "seconds"),
        ("LOG_LEVEL", "\x1b[31mLOUD", "DEBUG"),
        ("D8_ORIGINS", "\x1b[31m", "origins"),
        ("D8_LOAD_OPTIONS", "[" * 2000, "JSON"),
    ],
    ids=lambda each: repr(each)[:20],
)
def test_38_a_bad_variable_ends_the_start_with_its_name_value_and_range(
    tmp_path: Path, name: str, value: str, allowed: str, command: str
) -> None:
    code, said = _start(tmp_path, command, **{name: value})
    assert code == 2, said
    (line,) = [each for each in said.splitlines() if name in each]
    assert allowed in line
    assert value[:50].replace("\x1b", "\\x1b") in line
    assert "\x1b[31m" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize("name", ["D8_MESH_KEY", "GROQ_API_KEY", "D8_OPENAI_KEY"])
def test_38_a_bad_secret_is_named_and_not_shown(tmp_path: Path, name: str) -> None:
    code, said = _start(tmp_path, **{name: f"{SECRET} x"})
    assert code == 2
    assert name in said
    assert SECRET not in said


@pytest.mark.skipif(sys.platform == "win32", reason="modes mean nothing there")
@pytest.mark.parametrize(
    ("command", "key", "mode", "more"),
    [
        ("orchestrator", "orchestrator/curve.key", 0o644, {}),
        ("orchestrator", "orchestrator/curve.key", 0o640, {}),
        ("orchestrator", "orchestrator/curve.key", 0o604, {}),
        ("orchestrator", "orchestrator/payload.key", 0o644, {"D8_ENCRYPT": "1"}),
        ("worker", "workers/1/curve.key", 0o666, {}),
    ],
)
def test_39_a_key_file_that_others_can_read_is_refused(
    tmp_path: Path, command: str, key: str, mode: int, more: dict[str, str]
) -> None:
    path = tmp_path / key
    path.parent.mkdir(parents=True)
    secret = "ab" * 32
    path.write_text(f"{'payload' if 'payload' in key else 'secret'} {secret}\n", "ascii")
    path.chmod(mode)
    ports = [str(each) for each in free_ports(3)]
    names = ("D8_BROKER_PORT", "FLASK_PORT", "WORKER_STATUS_PORT")
    code, said = _start(tmp_path, command, **dict(zip(names, ports, strict=True)), **more)
    assert code == 2, said
    assert f"chmod 600 {path}" in said
    assert secret not in said
    assert "Traceback" not in said
    assert path.read_text("ascii").strip().endswith(secret)


@pytest.mark.parametrize(
    "key",
    [
        "short", "fifteen-letters", "with a blank in its middle", "aaaaaaaaaaaaaaaaaaaaaaaa",
        "ab12ab12ab12ab12ab12", "abcdefghijklmnopqrstuvwxyz", "zyxwvutsrqponmlkjihg",
        "0123456789abcdefgh", "12121212121212121213", "contraseña-muy-larga-1",
        "x" * 257,
    ],
)  # fmt: skip
def test_40_a_weak_or_mistyped_mesh_key_ends_the_start(key: str) -> None:
    with pytest.raises(ConfigError, match="D8_MESH_KEY") as refused:
        Config.from_env({"D8_MESH_KEY": key})
    assert key not in str(refused.value)
    assert "at least 8 different" in str(refused.value)


@pytest.mark.parametrize("command", ["orchestrator", "worker"])
@pytest.mark.parametrize("key", ["ab12ab12ab12ab12ab12", "0123456789abcdeñ", "with blanks in it"])
def test_40_a_weak_mesh_key_ends_a_start_with_exit_code_2(
    tmp_path: Path, command: str, key: str
) -> None:
    code, said = _start(tmp_path, command, D8_MESH_KEY=key)
    assert code == 2, said
    (line,) = [each for each in said.splitlines() if "D8_MESH_KEY" in each]
    assert "(hidden)" in line
    assert key not in said


@pytest.mark.parametrize(
    "key", ["correct-horse-battery-staple", "a-key-of-the-tests-4711", "Zm9vYmFyLXRlc3Qtb25seQ"]
)
def test_40_a_key_that_is_long_and_mixed_is_taken(key: str) -> None:
    assert Config.from_env({"D8_MESH_KEY": key}).mesh_key == key
