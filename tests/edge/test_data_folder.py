"""A data folder that cannot be used is told in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from d8mesh.edge import data_folder
from d8mesh.errors import ConfigError


def test_what_is_missing_is_made_and_what_is_there_is_kept(tmp_path: Path) -> None:
    for _ in range(2):
        data_folder.require(tmp_path / "a" / "b", "orchestrator", "logs")
    assert (tmp_path / "a" / "b" / "orchestrator").is_dir()
    assert (tmp_path / "a" / "b" / "logs").is_dir()


@pytest.mark.parametrize("path", ["file", "file/below", "data-with-a-file-as-room"])
def test_what_cannot_be_a_folder_names_the_variable(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    (tmp_path / "data-with-a-file-as-room").mkdir()
    (tmp_path / "data-with-a-file-as-room" / "logs").write_text("", "utf-8")
    with pytest.raises(ConfigError) as caught:
        data_folder.require(tmp_path / path, "logs")
    message = str(caught.value)
    assert message.startswith("D8_DATA_DIR=")
    assert "expected a folder that can be written" in message
    assert "\n" not in message


def test_a_folder_that_may_not_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # the superuser may write everywhere
    with pytest.raises(ConfigError, match="not writable"):
        data_folder.require(tmp_path, "logs")
