"""How a door writes an answer that grows."""

from __future__ import annotations

from typing import Protocol

from d8mesh.core.protocol.chat import Origin, Piece
from d8mesh.errors import D8Error


class StreamForm(Protocol):
    """Writes one answer, which may be of several tasks (choices): the same object to its end.

    Nothing is called before `begin`, nothing after `end` or `broken`. Every method may return b"".
    """

    #: of the body
    media_type: str
    #: what tells a reader that we live while there is nothing to say; b"" where the form has none:
    #: then nothing is sent, and no status, before something is said
    comment: bytes

    def begin(self, task_ids: list[str]) -> bytes:
        """Return what stands before everything else."""

    def piece(self, index: int, piece: Piece, origin: Origin | None) -> bytes:
        """Return what the task `index` has said since the piece before; the last has an ending."""

    def end(self) -> bytes:
        """Return what follows when all tasks have ended well."""

    def broken(self, error: D8Error) -> bytes:
        """Return what says that the answer ends here and is not complete."""
