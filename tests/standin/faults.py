"""What a stand-in may do wrong: the faults that were seen at real Ollamas, by name."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

EVERY_MODEL: Final = "*"
OK: Final = "ok"


class Kind(StrEnum):
    """How a request goes wrong. `after` of `Fault`: how many pieces come before."""

    SILENT = "silent"  #: accepted, never answered
    FROZEN = "frozen"  #: the whole machine: no route answers (model ``*``)
    STALL = "stall"  #: silence after so many pieces
    CUT = "cut"  #: the connection breaks after so many pieces
    NO_DONE = "no_done"  #: ends after so many pieces without ``done:true``
    ERROR_LINE = "error_line"  #: after so many pieces an error stands in the stream of status 200
    BUSY = "busy"  #: 503, the queue is full
    BUSY_500 = "busy_500"  #: 500 where 503 is meant
    FAST_FAIL = "fast_fail"  #: 500 within a millisecond
    LOAD_FAIL = "load_fail"  #: 500 after the time of a load
    TOKEN_LOOP = "token_loop"  #: 500, the model repeats itself
    MISSING = "missing"  #: 404 though installed, and loaded
    NAN = "nan"  #: embeddings: 500, a vector holds NaN
    ENDLESS = "endless"  #: generates up to ``num_predict``, or for ever
    EMPTY = "empty"  #: thinking takes all tokens: no content, done_reason ``length``
    NO_REASON = "no_reason"  #: ``done_reason`` is empty
    TOOL_INDEX = "tool_index"  #: the index of each tool call is 0
    STUCK_GPU = "stuck_gpu"  #: who leaves in the prompt phase leaves a runner that hangs
    LATE_NOTICE = "late_notice"  #: a slot is free only when the prompt phase is over
    NOT_JSON = "not_json"  #: a page of HTML with status 200


@dataclass(slots=True)
class Fault:
    """One fault of one model.

    Attributes:
        times: how many requests it meets; None: all.
    """

    kind: Kind
    after: int = 2
    times: int | None = None


class Faults:
    """The faults that are switched on, one a model; those of the model before those of all."""

    def __init__(self) -> None:
        self._by_model: dict[str, Fault] = {}

    def put(
        self, kind: str, model: str = EVERY_MODEL, *, after: int = 2, times: int | None = None
    ) -> None:
        """Switch a fault on; `kind` ``ok`` switches it off.

        Raises:
            ValueError: there is no such fault.
        """
        if kind == OK:
            self._by_model.pop(model, None)
        else:
            self._by_model[model] = Fault(Kind(kind), after, times)

    def clear(self) -> None:
        """Switch all off."""
        self._by_model.clear()

    @property
    def is_frozen(self) -> bool:
        """Whether no route answers."""
        every = self._by_model.get(EVERY_MODEL)
        return every is not None and every.kind is Kind.FROZEN

    def take(self, model: str) -> Fault | None:
        """Return what befalls this request, and count it."""
        for name in (model, EVERY_MODEL):
            fault = self._by_model.get(name)
            if fault is None:
                continue
            if fault.times is not None:
                fault.times -= 1
                if fault.times <= 0:
                    self._by_model.pop(name)
            return fault
        return None
