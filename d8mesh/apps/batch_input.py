"""What the command `batch` is given: JSON on each line or a table, read row by row, never whole.

A row is a line of a batch file as OpenAI has it, a plain ``{"prompt": …}``, or a table's row.
All are checked before anything is sent.
"""

from __future__ import annotations

import csv
import io
import shutil
import string
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from d8mesh.doors.batches.lines import ENDPOINTS, MAX_BATCH_LINE_BYTES, raw_lines
from d8mesh.edge.input_file import CSV_SUFFIX
from d8mesh.errors import ConfigError

STDIN: Final = "-"
CHAT_ENDPOINT: Final = "/v1/chat/completions"
#: Faults that are told, of all there are.
TOLD_FAULTS: Final = 10
#: Of standard input, kept in a file at once.
SPOOLED_BYTES: Final = 1024 * 1024
#: Of what is wrong, so much is repeated.
SAW_CHARS: Final = 60
_EXPECTED_ROWS: Final = (
    'expected on each line {"prompt": "…"}, {"messages": […]}, or what a batch of OpenAI has: '
    '{"custom_id", "method", "url", "body"}'
)
#: Of a plain row, what names it.
_NAMING_FIELDS: Final = ("custom_id", "id")
_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode


class RowFault(Exception):
    """A row is not what it must be; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class AskedRow:
    """One row of the input."""

    #: counted from 1, without blank lines
    number: int
    #: "" if the row names none
    name: str
    endpoint: str
    body: Mapping[str, Any]
    #: its answer is to be plain too, and not as OpenAI has it
    is_plain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the command line says for all rows that do not say it themselves."""

    model: str = ""
    system: str = ""
    #: of a table, or of rows with other fields: ``Translate {text}``
    prompt: str = ""
    max_tokens: int | None = None
    schema: Mapping[str, Any] | None = None


class BatchInput:
    """The rows of a file, or of standard input, as often as they are asked for.

    Raises:
        ConfigError: it cannot be read.
    """

    def __init__(self, given: str, wishes: Wishes) -> None:
        self.name = "standard input" if given == STDIN else given
        self._wishes = wishes
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._path = Path(given)
        if given == STDIN:
            self._folder = tempfile.TemporaryDirectory(prefix="d8-batch-")
            self._path = Path(self._folder.name) / "input"
            with self._path.open("wb") as spool:
                shutil.copyfileobj(sys.stdin.buffer, spool, SPOOLED_BYTES)
        self.is_table = given.lower().endswith(CSV_SUFFIX)
        self._fields = _fields_of(wishes.prompt)

    def close(self) -> None:
        """Let go what was kept of standard input."""
        if self._folder is not None:
            self._folder.cleanup()

    def rows(self) -> Iterator[tuple[int, bytes]]:
        """Yield number and content of each row."""
        return ((number, raw) for number, _, raw in self._placed())

    def row(self, number: int, raw: bytes) -> AskedRow:
        """Return what a row asks for.

        Raises:
            RowFault: it is none.
        """
        if not raw:
            raise RowFault(f"it is longer than {MAX_BATCH_LINE_BYTES} bytes")
        try:
            value = _decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            shown = raw[:SAW_CHARS].decode("utf-8", "replace")
            raise RowFault(f"saw {shown!r}, expected a JSON object ({error})") from error
        if not isinstance(value, dict):
            shown = raw[:SAW_CHARS].decode("utf-8", "replace")
            raise RowFault(f"saw {shown!r}, expected a JSON object")
        return self._whole(number, value) if "body" in value else self._plain(number, value)

    def checked(self, check: Any) -> tuple[int, str]:
        """Look at all rows; return how many there are, and a digest of them.

        Args:
            check: called with each row; it may raise `RowFault` too.

        Raises:
            ConfigError: rows are wrong, or there are none; names their lines.
        """
        digest, names = blake2b(digest_size=16), dict[bytes, int]()
        faults: list[str] = []
        count = wrong = 0
        for number, line, raw in self._placed():
            count = number
            digest.update(len(raw).to_bytes(8, "big") + raw)
            try:
                row = self.row(number, raw)
                if row.name:
                    key = blake2b(row.name.encode("utf-8", "replace"), digest_size=16).digest()
                    if key in names:
                        told = f"the id {row.name!r:.80} is that of line {names[key]} too"
                        raise RowFault(f"{told}; expected each only once")
                    names[key] = line
                check(row)
            except RowFault as error:
                wrong += 1
                if len(faults) < TOLD_FAULTS:
                    faults.append(f"line {line}: {error}")
        if wrong:
            more = f"\n  and {wrong - len(faults)} more lines" if wrong > len(faults) else ""
            listed = "\n  ".join(faults)
            raise ConfigError(
                f"{self.name}: {wrong} of {count} lines are wrong, nothing was sent:\n  "
                f"{listed}{more}\n  {'' if self.is_table else _EXPECTED_ROWS}".rstrip()
            )
        if not count:
            raise ConfigError(f"{self.name}: there is nothing in it; {_EXPECTED_ROWS}")
        return count, digest.hexdigest()

    # ---------------------------------------------------------------------- reading

    def _placed(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield number, line and content of each row."""
        with self._opened() as stream:
            try:
                yield from self._table(stream) if self.is_table else _lines(stream)
            except (OSError, UnicodeDecodeError, csv.Error) as error:
                raise ConfigError(f"{self.name}: it cannot be read ({error})") from error

    def _opened(self) -> BinaryIO:
        try:
            return self._path.open("rb")
        except OSError as error:
            why = error.strerror or error
            raise ConfigError(f"{self.name} cannot be read ({why})") from error

    def _table(self, stream: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
        text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
        csv.field_size_limit(MAX_BATCH_LINE_BYTES)
        head = text.readline()
        text.seek(0)
        delimiter = max((",", ";", "\t"), key=head.count)
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        line = 1
        try:
            columns = [name.strip() for name in next(rows, [])]
            self._check_columns(columns)
            number, line = 0, rows.line_num + 1
            for cells in rows:
                if any(cell.strip() for cell in cells):
                    number += 1
                    if len(cells) > len(columns):
                        told = f"{len(cells)} cells for {len(columns)} columns"
                        raise ConfigError(f"{self.name}, line {line}: {told}: is a quote missing?")
                    yield number, line, _encode(dict(zip(columns, cells, strict=False)))
                line = rows.line_num + 1
        except csv.Error as error:
            raise ConfigError(
                f"{self.name}, line {line}: {error}: is a quote missing or too much?"
            ) from error
        finally:
            text.detach()

    def _check_columns(self, columns: list[str]) -> None:
        if not columns:
            raise ConfigError(f"{self.name}: there is nothing in it; expected a line of columns")
        twice = {name for name in columns if columns.count(name) > 1}
        if twice:
            raise ConfigError(f"{self.name}, line 1: the column {twice.pop()!r:.60} is there twice")
        wanted = self._fields if self._wishes.prompt else {"prompt"}
        if missing := sorted(wanted - set(columns)):
            listed = ", ".join(columns)[:200]
            hint = "" if self._wishes.prompt else ", or --prompt 'text with {column}'"
            raise ConfigError(
                f"{self.name}, line 1: there is no column {missing[0]!r:.60} (there is: {listed})"
                f"; expected it{hint}"
            )

    # ------------------------------------------------------------------ understanding

    def _whole(self, number: int, value: Mapping[str, Any]) -> AskedRow:
        name, body, endpoint = (
            value.get("custom_id"),
            value["body"],
            value.get("url", CHAT_ENDPOINT),
        )
        if not isinstance(name, str) or not name:
            raise RowFault("custom_id: expected a text that is not empty")
        if not isinstance(body, dict):
            raise RowFault("body: expected an object")
        if endpoint not in ENDPOINTS:
            raise RowFault(f"url: saw {endpoint!r:.80}, expected one of {', '.join(ENDPOINTS)}")
        if value.get("method", "POST") != "POST":
            raise RowFault(f"method: saw {value['method']!r:.40}, expected POST")
        given = {} if body.get("model") or not self._wishes.model else {"model": self._wishes.model}
        return AskedRow(number, name, endpoint, {**body, **given}, is_plain=False)

    def _plain(self, number: int, value: Mapping[str, Any]) -> AskedRow:
        wishes = self._wishes
        given = {key: each for key, each in value.items() if each not in (None, "")}
        name = next((given[key] for key in _NAMING_FIELDS if key in given), "")
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise RowFault("id: expected a text")
        if self.is_table:
            given = _from_cells(given)
        messages = given.get("messages")
        if messages is None:
            messages = self._messages(given)
        elif wishes.prompt:
            raise RowFault("messages: saw some, and --prompt; expected one of both")
        used = {
            *_NAMING_FIELDS,
            "messages",
            "prompt",
            "system",
            *(self._fields if wishes.prompt else ()),
        }
        body = {key: each for key, each in given.items() if key not in used}
        if self.is_table or wishes.prompt:  # columns that are for the person
            body = {key: each for key, each in body.items() if key in _CELLS}
        if wishes.model:
            body.setdefault("model", wishes.model)
        if wishes.max_tokens is not None and "max_completion_tokens" not in body:
            body.setdefault("max_tokens", wishes.max_tokens)
        if wishes.schema is not None:
            form = {"name": "answer", "schema": wishes.schema}
            body.setdefault("response_format", {"type": "json_schema", "json_schema": form})
        return AskedRow(
            number, str(name), CHAT_ENDPOINT, {**body, "messages": messages}, is_plain=True
        )

    def _messages(self, given: Mapping[str, Any]) -> list[dict[str, Any]]:
        prompt = given.get("prompt")
        if self._wishes.prompt:
            lacking = sorted(self._fields - given.keys())
            if lacking and not self.is_table:
                raise RowFault(f"--prompt: there is no field {lacking[0]!r:.60} in it")
            texts = {name: _shown(given.get(name, "")) for name in self._fields}
            prompt = string.Formatter().vformat(self._wishes.prompt, (), texts)
        if not isinstance(prompt, str) or not prompt.strip():
            saw = "none" if prompt is None else f"{prompt!r:.60}"
            raise RowFault(f"prompt: saw {saw}, expected a text")
        system = given.get("system") or self._wishes.system
        if not isinstance(system, str):
            raise RowFault("system: expected a text")
        first = [{"role": "system", "content": system}] if system else []
        return [*first, {"role": "user", "content": prompt}]


#: Columns of a table that say how is asked, and how a cell is read.
_CELLS: Final[Mapping[str, type]] = {
    "model": str,
    "max_tokens": int,
    "temperature": float,
    "top_p": float,
    "seed": int,
}


def _from_cells(given: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(given)
    for name, kind in _CELLS.items():
        if name in found:
            try:
                found[name] = kind(found[name].strip())
            except ValueError:
                raise RowFault(f"{name}: saw {found[name]!r:.60}, expected a number") from None
    return found


def _fields_of(prompt: str) -> set[str]:
    """Return the columns that a template names.

    Raises:
        ConfigError: it is none.
    """
    try:
        parts = list(string.Formatter().parse(prompt))
    except ValueError as error:
        raise ConfigError(f"--prompt: {error}; write {{{{ for a brace itself") from error
    names = {name for _, name, form, how in parts if name is not None and not form and not how}
    odd = [name for _, name, form, how in parts if name is not None and (form or how or not name)]
    if odd or any(not name.replace(" ", "_").isidentifier() for name in names):
        raise ConfigError("--prompt: expected columns in braces, {column}; {{ for a brace itself")
    if prompt and not names:
        raise ConfigError("--prompt: there is no {column} in it: all rows would ask the same")
    return names


def _shown(value: object) -> str:
    return value if isinstance(value, str) else _encode(value).decode()


def _lines(stream: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    for number, (line, raw) in enumerate(raw_lines(stream), 1):
        yield number, line, raw
