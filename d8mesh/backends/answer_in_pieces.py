"""The pieces of an answer as it grows, within their bounds, each told to who hears it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from d8mesh.backends.backend import ChatRun
from d8mesh.core.protocol.chat import Piece
from d8mesh.errors import BackendTooLargeError

#: An answer, thoughts and all: the longest contexts give a few megabytes, a result must hold it.
MAX_TEXT_BYTES: Final = 8 * 1024 * 1024
#: Pieces of an answer: those of the longest contexts, each with its own bookkeeping.
MAX_PIECES: Final = 1_000_000


class AnswerInPieces:
    """One answer so far.

    Args:
        service: what it is called in errors.
        model: which answers.
        run: who hears it.
        max_pieces: of something that the model said; None: `MAX_PIECES` alone bounds them.
    """

    def __init__(self, service: str, model: str, run: ChatRun, max_pieces: int | None) -> None:
        self.pieces: list[Piece] = []
        #: pieces in which something was said
        self.count = 0
        self._service, self._model, self._run = service, model, run
        self._max_pieces = math.inf if max_pieces is None else max_pieces
        self._size = 0
        self._is_started = False

    def take(self, piece: Piece) -> None:
        """Keep a piece, and tell it."""
        self._keep(piece)
        self._run.on_piece(piece)

    def take_all(self, coming: Iterable[Piece | None]) -> bool:
        """Take what is there now, texts in a row as one piece; True: that was the end."""
        texts: list[Piece] = []
        for piece in coming:
            if piece is None:
                self._tell(texts)
                return False
            self._keep(piece)
            if piece.is_text:
                texts.append(piece)
                continue
            self._tell(texts)
            self._run.on_piece(piece)
        self._tell(texts)
        return True

    def _tell(self, texts: list[Piece]) -> None:
        if texts:
            is_one = len(texts) == 1
            self._run.on_piece(texts[0] if is_one else Piece("".join(each.text for each in texts)))
            texts.clear()

    def _keep(self, piece: Piece) -> None:
        if not self._is_started:
            self._is_started = True
            self._run.on_start(self._model, None)
        size = piece.size_bytes
        self.count += piece.is_sign_of_life
        self._size += size
        if self._size > MAX_TEXT_BYTES:
            sent = f"{self._service} sent more than {MAX_TEXT_BYTES} bytes of text"
            raise BackendTooLargeError(sent)
        if self.count > self._max_pieces:
            raise BackendTooLargeError(
                f"{self._service} generates without end: more tokens than it was asked for"
            )
        if len(self.pieces) >= MAX_PIECES:
            raise BackendTooLargeError(f"{self._service} sent more pieces than an answer has")
        if size or piece.ending:  # others may come without end
            self.pieces.append(piece)
