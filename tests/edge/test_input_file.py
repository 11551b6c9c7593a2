"""Files that people write: what is in them, or where they are wrong."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from d8mesh.edge.input_file import MAX_INPUT_BYTES, read_input
from d8mesh.errors import ConfigError


class Knob(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    most: float


class Board(msgspec.Struct):
    knobs: list[Knob]


def board_of(file: Path) -> Board:
    def from_rows(rows: list[dict[str, str]]) -> object:
        return {"knobs": rows}

    return read_input(file, Board, option="--board", expected="expected knobs", from_rows=from_rows)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.yaml", "knobs:\n- name: heat\n  most: 2.5\n- {name: ñ, most: 1}\n"),
        ("a.YML", '{"knobs": [{"name": "heat", "most": 2.5}, {"name": "ñ", "most": 1}]}'),
        ("a.json", '{"knobs":\t[{"name": "heat", "most": 2.5}, {"name": "\\u00f1", "most": 1}]}'),
        ("a", '{"knobs": [{"name": "heat", "most": 2.5}, {"name": "ñ", "most": 1}]}'),
        ("a.csv", "Name,most\nheat, 2.5\nñ,1\n"),
        ("a.csv", "\ufeffname;MOST\r\nheat;2.5\r\nñ;1"),
    ],
)
def test_each_form_says_the_same(tmp_path: Path, name: str, content: str) -> None:
    file = tmp_path / name
    file.write_bytes(content.encode())
    assert board_of(file) == Board([Knob("heat", 2.5), Knob("ñ", 1.0)])


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.yaml", "knobs:\n- name: a\n  most: high\n", "line 3: Expected `float`, got `str`"),
        ("a.yaml", "knobs:\n- name: a\n", "line 2: Object missing required field `most`"),
        ("a.yaml", "knobs:\n- name: [a\n", "line 3: "),
        ("a.yaml", "knobs: &a [*a]\n", "line 1: Expected `object`, got `array`"),
        ("a.yaml", "knobs: !!python/object/apply:os.getcwd []\n", "line 1: could not determine"),
        ("a.yaml", "", "Expected `object`, got `null`"),
        ("a.json", '{"knobs": [\n{"name": 1, "most": 2}]}', "line 2: Expected `str`, got `int`"),
        ("a.json", '{"knobs":\n\n[}', "line 3: Expecting value"),
        ("a.json", "[" * 100_000, "recursion"),
        ("a.yaml", "[" * 2_000, "recursion"),
        ("a.csv", "name,most\na,high\n", "Expected `float`, got `str`"),
    ],
)
def test_what_is_wrong_is_told_with_the_line_and_what_was_expected(
    tmp_path: Path, name: str, content: str, told: str
) -> None:
    file = tmp_path / name
    file.write_text(content, "utf-8")
    with pytest.raises(ConfigError) as caught:
        board_of(file)
    said = str(caught.value)
    assert said.startswith(f"--board {file}")
    assert told in said
    assert said.endswith("; expected knobs")


def test_a_byte_that_is_no_text_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(b"knobs:\n- \xff\n")
    with pytest.raises(ConfigError, match="line 2: the byte 0xff is no UTF-8; expected knobs"):
        board_of(file)


def test_a_file_that_is_not_there_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read \("):
        board_of(tmp_path / "none.yaml")
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (MAX_INPUT_BYTES + 1))
    with pytest.raises(ConfigError, match=f"larger than {MAX_INPUT_BYTES} bytes; expected knobs"):
        board_of(large)
