"""The meters of one service's models, for many threads at once; what an error says of a service."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from d8mesh.core.protocol.chat import Timing, Usage
from d8mesh.core.worker.model_meter import NOTHING, ModelMeter, RunEnd, Spent
from d8mesh.errors import BackendError, D8Error

#: Of a reason, as much as travels with each offer.
MAX_PAUSED_CHARS: Final = 300
#: What errors mean, by their code, for who sends requests there; all other errors of a service are
#: its own failures.
_RUN_ENDS: Final[Mapping[str, RunEnd]] = {
    "backend.busy": RunEnd.FULL,
    "backend.deadline": RunEnd.LATE,
    "backend.limit": RunEnd.OURS,
    "backend.memory": RunEnd.NO_ROOM,
    "backend.too_large": RunEnd.OURS,
}


def end_of(error: BaseException) -> RunEnd:
    """Return what an error says of the service; a caller's mistake or cancelling says nothing."""
    if not isinstance(error, BackendError):
        return RunEnd.OURS
    return _RUN_ENDS.get(error.code, RunEnd.FAILED)


def reason_of(error: BaseException) -> str:
    """Return why a model is paused, in one bounded sentence."""
    told = str(error) if isinstance(error, D8Error) else f"{type(error).__name__}: {error}"
    return told[:MAX_PAUSED_CHARS] or type(error).__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How a model does now; see `OfferedModel`."""

    slots: int = 1
    in_flight: int = 0
    load_s: float = 0.0
    prompt_tokens_per_s: float = 0.0
    output_tokens_per_s: float = 0.0
    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    paused: str = ""


class Meters:
    """A meter for each model of one service.

    Args:
        on_change: told of a model whenever its figures have changed.
        on_figures: told in its place of what need not be known at once: how fast it is.

    Thread: any.
    """

    def __init__(
        self,
        on_change: Callable[[str], None],
        *,
        clock: Callable[[], float],
        on_figures: Callable[[str], None] | None = None,
    ) -> None:
        self._on_change, self._clock = on_change, clock
        self._on_figures = on_figures or on_change
        self._lock = threading.Lock()
        self._meters: dict[str, ModelMeter] = {}

    def keep(self, names: Collection[str], *, anew: Collection[str], slots: int = 1) -> None:
        """Have a meter for each of `names` and for no other.

        Args:
            anew: those that are another model than before, of the same name.
            slots: how many requests at once a model gets that was never measured.
        """
        with self._lock:
            before, self._meters = self._meters, {}
            for name in names:
                meter = None if name in anew else before.get(name)
                if meter is None:
                    meter = ModelMeter()
                    meter.gauge.proved = slots
                self._meters[name] = meter

    def came_back(self) -> None:
        """Note that the service was gone: it may answer more or fewer at once now."""
        with self._lock:
            for meter in self._meters.values():
                meter.gauge.reloaded()

    def due(self) -> list[str]:
        """Return the paused models that should be asked the small question now."""
        now = self._clock()
        with self._lock:
            return [name for name, meter in self._meters.items() if meter.probe_due(now)]

    def next_change_s(self, at_most_s: float) -> float:
        """Return in how many seconds one is due, or changes by itself."""
        now = self._clock()
        with self._lock:
            times = [meter.next_change(now) for meter in self._meters.values()]
        due_s = min((at - now for at in times if at is not None), default=at_most_s)
        return min(max(due_s, 0.0), at_most_s)

    def probe_begins(self, name: str) -> None:
        """Note that a paused model is being asked the small question."""
        with self._lock:
            if (meter := self._meters.get(name)) is not None:
                meter.probe_begins()

    def probed(self, name: str, error: BackendError | None = None) -> None:
        """Note how the small question was answered."""
        with self._lock:
            meter = self._meters.get(name)
            if meter is not None and error is None:
                meter.probed(self._clock())
            elif meter is not None and error is not None:
                is_long = end_of(error) is RunEnd.NO_ROOM
                meter.probed(self._clock(), reason_of(error), is_long=is_long)
        self._on_change(name)

    def failed(self, name: str, error: BackendError) -> None:
        """Pause a model for an error beside its requests, if that is the service's own fault."""
        if end_of(error) in (RunEnd.FAILED, RunEnd.NO_ROOM):
            self.probed(name, error)

    def loaded(self, name: str, load_s: float) -> None:
        """Note how long loading took."""
        with self._lock:
            if (meter := self._meters.get(name)) is not None:
                meter.loaded(load_s)

    def load_s(self, name: str) -> float:
        """Return how long loading takes; 0 where that is not known."""
        return self.figures(name).load_s

    def expected_first_s(self, name: str, prompt_tokens: int) -> float:
        """Return when the first token of one more request should come; 0: nobody knows."""
        with self._lock:
            meter = self._meters.get(name)
            return 0.0 if meter is None else meter.expected_first_s(prompt_tokens)

    def figures(self, name: str) -> Figures:
        """Return how a model does now."""
        with self._lock:
            meter = self._meters.get(name)
            if meter is None:
                return Figures()
            return Figures(
                slots=meter.slots(self._clock()),
                in_flight=meter.gauge.in_flight,
                load_s=meter.load_s,
                prompt_tokens_per_s=meter.prompt_tokens_per_s,
                output_tokens_per_s=meter.output_tokens_per_s,
                requests=meter.requests,
                prompt_tokens=meter.prompt_tokens,
                output_tokens=meter.output_tokens,
                paused=meter.paused[:MAX_PAUSED_CHARS],
            )

    def measured(
        self, name: str, *, prompt_tokens: int = 0, is_streamed: bool = True
    ) -> MeasuredRun:
        """Return what one request is wrapped in; a model that is not known is measured nowhere."""
        now = self._clock()
        with self._lock:
            meter = self._meters.get(name) or ModelMeter()
            before = meter.slots(now)
            run = meter.began(now, prompt_tokens=prompt_tokens, is_streamed=is_streamed)
            is_news = meter.slots(now) != before
        if is_news:  # one more may be tried now: at its end it would be over
            self._on_change(name)
        return MeasuredRun(self, name, meter, run)

    def heard(self, name: str, meter: ModelMeter, run: int) -> None:
        """Note the first token of a request."""
        now = self._clock()
        with self._lock:
            before = meter.slots(now)
            meter.first_token(run, now)
            is_news = meter.slots(now) != before
        if is_news:
            self._on_change(name)

    def ended(self, run: MeasuredRun, error: BaseException | None, spent: Spent) -> None:
        """Note the end of a request, and tell of it before anybody else hears of the error."""
        end = RunEnd.ANSWERED if error is None else end_of(error)
        why = "" if error is None else reason_of(error)
        now, meter = self._clock(), run.meter
        with self._lock:
            before = (meter.slots(now), meter.paused)
            meter.ended(run.number, now, end, spent=spent, why=why)
            is_news = before != (meter.slots(now), meter.paused)
        (self._on_change if is_news or error is not None else self._on_figures)(run.name)


class MeasuredRun:
    """One request at a model: a context manager, whose end is the request's."""

    def __init__(self, meters: Meters, name: str, meter: ModelMeter, number: int) -> None:
        self._meters, self.name, self.meter, self.number = meters, name, meter, number
        self._is_heard, self._spent = False, NOTHING

    def hear(self) -> None:
        """Note that it speaks; only the first time counts."""
        if not self._is_heard:
            self._is_heard = True
            self._meters.heard(self.name, self.meter, self.number)

    def answered(self, usage: Usage, timing: Timing) -> None:
        """Note what it took, by the service's own account."""
        self._spent = Spent(
            prompt_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            load_s=timing.load_s,
            prompt_s=timing.prompt_s,
            output_s=timing.output_s,
        )

    def __enter__(self) -> MeasuredRun:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._meters.ended(self, error, self._spent)
