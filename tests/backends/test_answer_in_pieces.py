"""An answer grows piece by piece, within its bounds."""

from __future__ import annotations

import pytest

from d8mesh.backends import answer_in_pieces
from d8mesh.backends.answer_in_pieces import AnswerInPieces
from d8mesh.backends.backend import ChatRun
from d8mesh.core.protocol.chat import Ending, Piece
from d8mesh.errors import BackendTooLargeError

END = Piece(ending=Ending())


class Heard:
    """Who hears it."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.models: list[str] = []

    def answer(self, *, max_pieces: int | None = None) -> AnswerInPieces:
        run = ChatRun(
            on_piece=self.pieces.append,
            on_start=lambda model, _: self.models.append(model),
            is_cancelled=lambda: False,
            deadline_s=1,
        )
        return AnswerInPieces("It", "m", run, max_pieces)


def test_texts_that_are_there_together_are_told_as_one_piece_and_kept_as_they_came() -> None:
    heard = Heard()
    growing = heard.answer()
    growing.take(Piece("a"))
    assert not growing.take_all(
        iter([Piece("b"), Piece("c"), Piece(thinking="t"), Piece("d"), None])
    )
    assert heard.pieces == [Piece("a"), Piece("bc"), Piece(thinking="t"), Piece("d")]
    assert growing.take_all(iter([Piece("e"), END]))
    assert heard.pieces[4:] == [Piece("e"), END]
    assert "".join(each.text for each in growing.pieces) == "abcde"
    assert (growing.count, heard.models) == (6, ["m"])


def test_where_nothing_is_there_nothing_is_told() -> None:
    heard = Heard()
    assert not heard.answer().take_all(iter([None]))
    assert not heard.pieces
    assert not heard.models


def test_more_text_or_pieces_than_an_answer_may_have_end_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(BackendTooLargeError, match="without end"):
        Heard().answer(max_pieces=2).take_all(iter([Piece("a"), Piece("b"), Piece("c")]))
    monkeypatch.setattr(answer_in_pieces, "MAX_PIECES", 2)
    with pytest.raises(BackendTooLargeError, match="more pieces"):
        Heard().answer().take_all(iter([Piece("a"), Piece("b"), Piece("c")]))
    monkeypatch.setattr(answer_in_pieces, "MAX_TEXT_BYTES", 2)
    with pytest.raises(BackendTooLargeError, match="bytes of text"):
        Heard().answer().take(Piece("abc"))
