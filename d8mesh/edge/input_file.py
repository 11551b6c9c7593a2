"""A file that a person wrote for a command: YAML, JSON or a table, checked when it is read.

What is wrong is told with the file, the line, and what was expected. The suffix says what it
is: `.yaml` or `.yml`, `.csv`, and JSON for all others. YAML is read by `safe_load`: it makes
values and runs nothing.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import yaml

from d8mesh.errors import ConfigError

_T = TypeVar("_T")

#: A file that a person writes has less; PyYAML needs a second for a tenth of it.
MAX_INPUT_BYTES: Final = 2 * 1024 * 1024
YAML_SUFFIXES: Final = frozenset({".yaml", ".yml"})
CSV_SUFFIX: Final = ".csv"
#: Where msgspec says that a value is wrong: `$.markets[3]`.
_WRONG_AT: Final = re.compile(r" - at `(?:key in )?\$([^`]*)`\Z")
_PATH_STEP: Final = re.compile(r"\.([^.\[]+)|\[(\d+)\]")


def read_input(
    file: Path,
    model: type[_T],
    *,
    option: str,
    expected: str,
    from_rows: Callable[[list[dict[str, str]]], object] = list,
) -> _T:
    """Return what is in `file`, as `model`.

    Args:
        option: where the file was named, for messages: ``--markets``.
        expected: how such a file looks, for messages.
        from_rows: makes of a table's rows what `model` is made of. Each row has the names of
            the first line in small letters; numbers in it may be text.

    Raises:
        ConfigError: the file cannot be read, or is not of that form.
    """
    text = _text_of(file, option, expected)
    suffix = file.suffix.lower()
    try:
        if suffix == CSV_SUFFIX:
            return msgspec.convert(from_rows(_rows_in(text)), model, strict=False)
        value = yaml.safe_load(text) if suffix in YAML_SUFFIXES else json.loads(text)
        return msgspec.convert(value, model)
    except json.JSONDecodeError as error:
        line, why = error.lineno, error.msg
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line, why = mark.line + 1 if mark else 0, str(getattr(error, "problem", "") or error)
    except msgspec.ValidationError as error:
        line, why = 0 if suffix == CSV_SUFFIX else _line_of(text, str(error)), str(error)
    except (ValueError, RecursionError, csv.Error) as error:
        line, why = 0, str(error)
    why = " ".join(why.split())
    if line:
        raise ConfigError(f"{option} {file}, line {line}: {why}; {expected}")
    raise ConfigError(f"{option} {file}: {why}; {expected}")


def _text_of(file: Path, option: str, expected: str) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_INPUT_BYTES + 1)
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(f"{option} {file}: cannot be read ({why})") from error
    if len(content) > MAX_INPUT_BYTES:
        raise ConfigError(f"{option} {file}: larger than {MAX_INPUT_BYTES} bytes; {expected}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        byte = f"{content[error.start]:#04x}"
        raise ConfigError(
            f"{option} {file}, line {line}: the byte {byte} is no UTF-8; {expected}"
        ) from error


def _rows_in(text: str) -> list[dict[str, str]]:
    """Return the rows of a table; separators are commas or semicolons."""
    head = text.partition("\n")[0]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=";" if ";" in head else ",")
    names = [name.strip().lower() for name in next(rows, [])]
    cells = (map(str.strip, row) for row in rows)
    return [dict(zip(names, row, strict=False)) for row in cells]


def _line_of(text: str, problem: str) -> int:
    """Return the line of what msgspec calls wrong; 0 if it cannot be told.

    Nearly all JSON is YAML too, whose parser knows where each value stands.
    """
    found = _WRONG_AT.search(problem)
    try:
        node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return 0
    if node is None:
        return 0
    for name, index in _PATH_STEP.findall(found[1] if found else ""):
        inner = _inner(node, name, index)
        if inner is None:
            break
        node = inner
    return int(node.start_mark.line) + 1


def _inner(node: Any, name: str, index: str) -> Any:
    if isinstance(node, yaml.SequenceNode) and index and int(index) < len(node.value):
        return node.value[int(index)]
    if isinstance(node, yaml.MappingNode) and name:
        return next((value for key, value in node.value if key.value == name), None)
    return None
