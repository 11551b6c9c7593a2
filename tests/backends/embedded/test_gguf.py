"""Heads of GGUF files."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from d8mesh.backends.embedded.gguf import NotGgufError, read_head
from tests.backends.embedded.files import head
from tests.real_model import model_file, needs_model

LLAMA = {
    "general.architecture": "llama",
    "tokenizer.ggml.tokens": ["a", "ü", ""],
    "llama.context_length": 8192,
    "tokenizer.chat_template": "{{ messages }}",
}


def test_a_head_tells_what_kind_of_model_follows(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(head(LLAMA) + b"data")
    seen = read_head(file)
    assert (seen.architecture, seen.context_length) == ("llama", 8192)
    assert seen.chat_template == "{{ messages }}"
    assert not seen.is_embedder


def test_a_model_that_pools_makes_embeddings(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(head({"general.architecture": "bert", "bert.pooling_type": 2}))
    assert read_head(file).is_embedder


@pytest.mark.parametrize("kept", range(4, len(head(LLAMA)), 7))
def test_a_head_that_was_cut_off_is_told(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(head(LLAMA)[:kept])
    with pytest.raises(NotGgufError, match="cut off"):
        read_head(file)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not a GGUF file"),
        (b"PK\x03\x04 a zip", "not a GGUF file"),
        (head(LLAMA, version=1), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "damaged"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60), "damaged"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 99), "damaged"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**60),
         "damaged"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 1) * 9,
         "damaged|cut off"),
    ],
)  # fmt: skip
def test_what_is_no_model_is_refused_with_a_reason(
    tmp_path: Path, content: bytes, why: str
) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    with pytest.raises(NotGgufError, match=why):
        read_head(file)


@needs_model
def test_the_head_of_the_real_model_is_read() -> None:
    seen = read_head(model_file())
    assert (seen.architecture, seen.context_length, seen.is_embedder) == ("llama", 8192, False)
    assert "<|im_start|>" in seen.chat_template
