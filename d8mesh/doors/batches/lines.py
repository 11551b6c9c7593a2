"""The lines of a batch file: each one checked, none of it kept.

Pure but for the stream that is read. Source: OpenAI's description of batch files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import msgspec

from d8mesh.core.protocol.messages import MAX_PAYLOAD_BYTES

#: What the lines of a batch may ask for.
ENDPOINTS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
EMBEDDINGS: Final = "/v1/embeddings"
#: Of one batch, as OpenAI has it.
MAX_BATCH_LINES: Final = 50_000
#: Texts of all embedding requests of one batch, as OpenAI has it.
MAX_EMBEDDED: Final = 50_000
#: A line is one task's data, and what is around it.
MAX_BATCH_LINE_BYTES: Final = MAX_PAYLOAD_BYTES + 4096
#: Longest name of a line; OpenAI's examples have some twenty characters.
MAX_CUSTOM_ID_CHARS: Final = 512
#: Wrong lines that a batch tells of: who has a thousand of them has one fault.
MAX_FAULTS: Final = 100
BOM: Final = b"\xef\xbb\xbf"

_decode: Final = msgspec.json.Decoder().decode
_METHOD: Final = "POST"


class LineFault(Exception):
    """A line of a batch file is wrong: with a code of OpenAI's, and the parameter."""

    def __init__(self, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request of a batch file."""

    #: of the line in the file, from 1
    number: int
    custom_id: str
    body: Mapping[str, Any]

    @property
    def model(self) -> str:
        """The model that it asks for; "" if that is not said in a text."""
        model = self.body.get("model")
        return model if isinstance(model, str) else ""

    @property
    def text_count(self) -> int:
        """How many texts its `input` has."""
        texts = self.body.get("input")
        return len(texts) if isinstance(texts, list) else 1


def raw_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of each line that is not blank; of a longer one than allowed b"".

    Nothing but one line is in memory.
    """
    number = 0
    while raw := stream.readline(MAX_BATCH_LINE_BYTES + 1):
        number += 1
        if number == 1:
            raw = raw.removeprefix(BOM)
        if len(raw) > MAX_BATCH_LINE_BYTES:
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(MAX_BATCH_LINE_BYTES)
            yield number, b""
        elif raw := raw.strip():
            yield number, raw


def line_of(number: int, raw: bytes, endpoint: str) -> BatchLine:
    """Return the request that a line is.

    Raises:
        LineFault: it is none for this endpoint.
    """
    if not raw:
        raise LineFault(
            "line_too_long", f"Expected at most {MAX_BATCH_LINE_BYTES} bytes in a line."
        )
    try:
        value = _decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise LineFault(
            "invalid_json_line", f"This line is not parseable as valid JSON: {error}"
        ) from error
    if not isinstance(value, dict):
        raise LineFault("invalid_json_line", "This line is no JSON object.")
    custom_id, body = _needed(value, "custom_id", str), _needed(value, "body", dict)
    if not 0 < len(custom_id) <= MAX_CUSTOM_ID_CHARS:
        told = f"Expected 1 to {MAX_CUSTOM_ID_CHARS} characters, saw {len(custom_id)}."
        raise LineFault("invalid_custom_id", told, param="custom_id")
    method, url = _needed(value, "method", str), _needed(value, "url", str)
    if method != _METHOD:
        raise LineFault("invalid_method", f"Expected POST, saw {method[:40]!r}.", param="method")
    if url != endpoint:
        told = f"The URL {url[:80]!r} is not the endpoint of the batch, {endpoint!r}."
        raise LineFault("url_mismatch", told, param="url")
    if not isinstance(body.get("model"), str) or not body["model"].strip():
        raise LineFault(
            "missing_required_parameter", "Expected the name of a model.", param="body.model"
        )
    return BatchLine(number, custom_id, body)


def _needed(value: Mapping[str, Any], name: str, kind: type) -> Any:
    found = value.get(name)
    if found is None:
        told = f"Missing required parameter: {name!r}."
        raise LineFault("missing_required_parameter", told, param=name)
    if not isinstance(found, kind):
        expected = "a text" if kind is str else "an object"
        raise LineFault("invalid_type", f"{name}: expected {expected}.", param=name)
    return found
