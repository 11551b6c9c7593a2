"""A whole batch file is looked at before anything of it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from d8mesh.doors.batches.lines import (
    EMBEDDINGS,
    MAX_BATCH_LINES,
    MAX_EMBEDDED,
    MAX_FAULTS,
    BatchLine,
    LineFault,
    line_of,
    raw_lines,
)

#: Of a custom_id so many bytes are remembered: two alike by chance are one in 10**28.
_DIGEST_BYTES = 16


@dataclass(slots=True)
class Looked:
    """What was found in a batch file."""

    count: int = 0
    #: the number of its last line
    last: int = 0
    #: the model of all lines; "" if they have several
    model: str = ""
    #: what is wrong, as a batch tells it: code, line, message, param
    faults: list[Mapping[str, object]] = field(default_factory=list)
    texts: int = 0

    def fault(self, error: LineFault, line: int | None) -> None:
        """Note that something is wrong; the first ones are told."""
        if len(self.faults) < MAX_FAULTS:
            told = {"code": error.code, "line": line, "message": str(error), "param": error.param}
            self.faults.append(told)


def look_at(path: Path, endpoint: str) -> Looked:
    """Return what is in a batch file.

    Raises:
        OSError: it cannot be read.
    """
    found, ids = Looked(), set[bytes]()
    with path.open("rb") as stream:
        for number, raw in raw_lines(stream):
            found.count += 1
            found.last = number
            if found.count > MAX_BATCH_LINES:
                told = f"The file has more than {MAX_BATCH_LINES} requests."
                found.fault(LineFault("too_many_tasks", told), None)
                break
            try:
                _take(found, line_of(number, raw, endpoint), ids, endpoint)
            except LineFault as error:
                found.fault(error, number)
    if not found.count:
        found.fault(LineFault("empty_file", "The file has no requests."), None)
    return found


def _take(found: Looked, line: BatchLine, ids: set[bytes], endpoint: str) -> None:
    digest = blake2b(line.custom_id.encode(), digest_size=_DIGEST_BYTES).digest()
    if digest in ids:
        told = f"The custom_id {line.custom_id!r:.100} is that of an earlier line."
        raise LineFault("duplicate_custom_id", told, param="custom_id")
    ids.add(digest)
    found.model = line.model if len(ids) == 1 or line.model == found.model else ""
    if endpoint == EMBEDDINGS:
        found.texts += line.text_count
        if found.texts > MAX_EMBEDDED:
            told = f"The file has more than {MAX_EMBEDDED} texts to embed."
            raise LineFault("too_many_embedding_inputs", told, param="body.input")
