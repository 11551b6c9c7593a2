"""The file ``.env``: every line of it is read, or the first look at it says what is wrong.

A line that is skipped in silence is a setting that does not hold: an orchestrator without its
key. Values may be secrets: no message shows one.

Source: `dotenv.parser`; https://saurabh-kumar.com/python-dotenv/#file-format
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from dotenv.parser import Binding, parse_stream
from dotenv.variables import Variable, parse_variables

from d8mesh.config import NAMES
from d8mesh.errors import ConfigError

#: Larger files are something else.
MAX_ENV_FILE_BYTES: Final = 1_000_000
#: Lines that are told of; more of them say nothing new.
MAX_TOLD_LINES: Final = 20
_EXPECTED: Final = "expected NAME=value"
#: Names of variables, ours and those that other programs read from the same file.
_VARIABLE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*", re.ASCII)
#: An assignment that stands inside a quoted value of several lines: the quote was forgotten.
_SWALLOWED: Final = re.compile(r"\s*(?:export\s+)?[A-Z_][A-Z0-9_]*\s*=(?!=*\s*$)", re.ASCII)
#: Other languages' ways to write an assignment, and what each is.
_FOREIGN: Final = (
    (re.compile(r"setx?\s+[^\s=]", re.I), "`set` is the Windows command line's: leave it out"),
    (re.compile(r"\$env:", re.I), "`$env:` is PowerShell's: leave it out"),
    (re.compile(r"\$"), "a name begins with no `$`"),
    (re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\s*:", re.ASCII), "saw a colon after the name"),
)
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")


def read(file: Path, environment: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Return the variables of the file.

    Args:
        environment: what `${NAME}` in a value stands for, beside the variables further up.

    Raises:
        ConfigError: it cannot be read, or a line of it cannot: a line for each, with the file,
            the number of the line, what was seen and what is expected.
    """
    bindings = list(parse_stream(io.StringIO(_text_of(file))))
    found: dict[str, str] = {}
    wrong = [*_problems(bindings), *_fill(found, bindings, environment)]
    problems = [f"{file}, line {line}: {why}" for line, why in sorted(wrong)]
    if problems:
        told = problems[:MAX_TOLD_LINES]
        if len(problems) > MAX_TOLD_LINES:
            told.append(f"{file}: {len(problems) - MAX_TOLD_LINES} more lines cannot be read")
        raise ConfigError("\n".join(told))
    return found


def _text_of(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_ENV_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be read ({error.strerror or error}): make it readable, or remove it"
        ) from error
    if len(content) > MAX_ENV_FILE_BYTES:
        raise ConfigError(f"{file} cannot be read: it is larger than {MAX_ENV_FILE_BYTES} bytes")
    if content.startswith(_UTF_16) or b"\0" in content:
        before = b"" if content.startswith(_UTF_16) else content[: content.index(b"\0")]
        line = before.count(b"\n") + 1
        what = "UTF-16 (as PowerShell's `>` writes it)" if _is_utf_16(content) else "no text"
        raise ConfigError(
            f"{file} cannot be read, line {line}: the file is {what}: save it as UTF-8"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n|\n|\r", content[: error.start])) + 1
        raise ConfigError(
            f"{file} cannot be read, line {line}: the byte {content[error.start]:#04x} is no "
            f"UTF-8: {_EXPECTED}, saved as UTF-8"
        ) from error


def _is_utf_16(content: bytes) -> bool:
    """Tell UTF-16 of mostly plain letters: every other byte is zero."""
    zeros = content.count(b"\0")
    return content.startswith(_UTF_16) or zeros * 2 >= len(content) - 1


def _problems(bindings: list[Binding]) -> Iterator[tuple[int, str]]:
    """Yield the number of each line that cannot be taken as it stands, and why."""
    for binding in bindings:
        why = _wrong_with(binding, binding.original.string.strip())
        if why:
            yield _line_of(binding), why


def _fill(
    found: dict[str, str], bindings: list[Binding], environment: Mapping[str, str]
) -> Iterator[tuple[int, str]]:
    """Put the values into `found`; yield the lines of ours that would come out with a hole."""
    known = dict(environment)
    for binding in bindings:
        if binding.key is None or binding.value is None:
            continue
        atoms = list(parse_variables(binding.value))
        named = [each for each in atoms if isinstance(each, Variable) and each.default is None]
        if binding.key in NAMES and not all(known.get(each.name) for each in named):
            why = "its value takes in a variable that is not set"
            hint = "expected one that is, or a default after :-"
            yield _line_of(binding), f"{binding.key}: {why}, {hint}"
        found[binding.key] = known[binding.key] = "".join(each.resolve(known) for each in atoms)


def _line_of(binding: Binding) -> int:
    string = binding.original.string
    blank = string[: len(string) - len(string.lstrip())]
    return binding.original.line + len(re.findall(r"\r\n|\n|\r", blank))


def _wrong_with(binding: Binding, shown: str) -> str:
    """Return what is wrong with a binding; "" if nothing is."""
    if not shown or (shown.startswith("#") and not binding.error):
        return ""
    name = re.sub(r"\Aexport\s+", "", shown)
    for pattern, what in _FOREIGN:
        if pattern.match(name):
            return f"{_EXPECTED}, {what}"
    head, sign, value = (part.strip() for part in name.partition("="))
    head = head.strip("'")
    if not _VARIABLE_NAME.fullmatch(head):
        return f"{_EXPECTED}, {'saw no name before the `=`' if sign else 'saw something else'}"
    named = head if head in NAMES else "a name"
    if not sign:
        return f"{_EXPECTED}, saw {named} without a value"
    named = head if head.isupper() else "the name"
    if binding.error:
        return f"{named}: {_wrong_value(value)}"
    if any(_SWALLOWED.match(row) for row in re.split(r"\r\n|\n|\r", shown)[1:]):
        return f"{named}: {_wrong_value(value)}"
    if head in NAMES and value[:1] not in ("'", '"'):
        last = (binding.value or "")[-1:]
        if last in ("'", '"') and (binding.value or "").count(last) % 2:
            return f"{named}: {last} ends its value and none begins it, expected both or none"
    return ""


def _wrong_value(value: str) -> str:
    quote = value[:1]
    if quote not in ("'", '"'):
        return f"its value cannot be read, {_EXPECTED}"
    first_row = re.split(r"[\r\n]", value, maxsplit=1)[0]
    if not re.fullmatch(rf"{quote}(?:\\.|[^{quote}\\])*{quote}.+", first_row):
        return f"the {quote} that begins its value does not end, expected one at its end too"
    return f"something follows the {quote} that ends its value, expected nothing or ` # a comment`"
