"""Where the data lies: one rule, for the source and for an installed d8mesh."""

from __future__ import annotations

import sys
from pathlib import Path

import platformdirs
import pytest

from d8mesh.config import Config
from d8mesh.edge.installation import HERE, Installation, config_of, settled
from d8mesh.errors import ConfigError


@pytest.fixture
def source(tmp_path: Path) -> Installation:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "start_d8.py").write_text("", "utf-8")
    return Installation(tmp_path / "source")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    for folder in ("site-packages", "home", "work"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    return Installation(tmp_path / "site-packages")


def test_the_tests_run_from_the_source() -> None:
    assert HERE.is_source
    assert HERE.home == Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("text", [None, "", "  "])
def test_in_the_source_data_lies_beside_the_launcher(
    source: Installation, text: str | None
) -> None:
    assert source.data_folder(text) == source.root / "data"
    assert source.data_folder("other") == source.root / "other"


def test_installed_data_lies_with_the_user_and_never_beside_the_package(
    installed: Installation, tmp_path: Path
) -> None:
    found = installed.data_folder(None)
    assert found.is_absolute()
    assert found.name == "d8mesh"
    assert not found.is_relative_to(installed.root)
    if sys.platform == "linux":
        assert found == tmp_path / "home" / ".local" / "share" / "d8mesh"
    assert installed.data_folder("other") == tmp_path / "work" / "other"
    assert installed.home == tmp_path / "work"


@pytest.mark.skipif(sys.platform != "linux", reason="the home folder is told by HOME")
def test_a_user_without_a_home_has_the_data_in_the_current_folder(
    installed: Installation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", "")
    assert not installed.data_folder(None).is_relative_to("/.local")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert installed.data_folder(None) == tmp_path / "xdg" / "d8mesh"
    for nowhere in ("~/.local/share/d8mesh", "/.local/share/d8mesh"):
        monkeypatch.setattr(platformdirs, "user_data_path", lambda *_, **__: Path(nowhere))  # noqa: B023
        assert installed.data_folder(None) == tmp_path / "work" / "data"


def test_the_variable_decides_everywhere(
    source: Installation, installed: Installation, tmp_path: Path
) -> None:
    for each in (source, installed):
        assert each.data_folder(str(tmp_path / "x")) == tmp_path / "x"
        assert each.data_folder("~/x") == Path("~/x").expanduser()
        with pytest.raises(ConfigError, match="D8_DATA_DIR='~nobody-of-that-name/x': expected"):
            each.data_folder("~nobody-of-that-name/x")


def test_a_library_has_the_same_rule(tmp_path: Path) -> None:
    assert config_of({}).data_dir == str(HERE.root / "data")
    assert settled(Config()).data_dir == str(HERE.root / "data")
    assert settled(Config(data_dir=str(tmp_path))).data_dir == str(tmp_path)
    assert config_of({"D8_DATA_DIR": "x", "FLASK_PORT": "7003"}).web_port == 7003


def test_another_process_never_takes_its_modules_from_a_persons_folder(
    source: Installation, installed: Installation
) -> None:
    assert source.command("status") == [sys.executable, "-m", "d8mesh", "status"]
    assert source.start_folder == source.root
    assert installed.command("status") == [sys.executable, "-P", "-m", "d8mesh", "status"]
    assert installed.start_folder is None
