"""How one model at one service does: its slots, its speeds, and whether it may be trusted now.

Pure: who runs the requests tells when they begin, speak and end. A model that failed is paused at
once and gets nothing until it has answered a small question again; who asks that, and how, is not
decided here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from d8mesh.core.worker.slot_gauge import SlotGauge, SlotRun

#: Seconds from a failure to the first probe; each failed one doubles them up to the second bound.
FIRST_PAUSE_S: Final = 1.0
MODEL_PAUSE_MOST_S: Final = 60.0
#: A model that does not fit will not fit in a minute either: somebody must make room.
NO_ROOM_PAUSE_S: Final = 600.0
#: Beyond these a service tells nonsense: more tokens of one request than any context holds, more in
#: a second than any machine makes. What is told goes on to the mesh, whose messages are bounded.
MOST_TOKENS_OF_ONE: Final = 10_000_000
MOST_TOKENS_PER_S: Final = 1_000_000.0
#: A model that was in memory reports a few milliseconds of loading.
LOADED_ANEW_S: Final = 0.25
#: Answers that take less in all, and so little of it for their output, are short: see
#: `SlotGauge.is_short`.
SHORT_S: Final = 2.0
SHORT_OUTPUT: Final = 0.2
#: Of all that was measured so much is kept with each request: about the last five count.
KEPT_SHARE: Final = 0.8
#: Nothing at all for so long until the caller's own deadline: the service may be dead.
LATE_SILENCE_S: Final = 10.0


class RunEnd(Enum):
    """How a request ended, as far as it tells something of the service."""

    ANSWERED = auto()
    FAILED = auto()  #: the service's fault: a stall, a broken answer, an error, no connection
    NO_ROOM = auto()  #: the model does not fit into the machine's memory
    FULL = auto()  #: the service has no room for another request now
    LATE = auto()  #: the caller's deadline was over
    OURS = auto()  #: the caller's own mistake, or his cancelling


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a request took, as the service tells; 0 where it does not."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    load_s: float = 0.0
    prompt_s: float = 0.0
    output_s: float = 0.0


NOTHING: Final = Spent()


class _Rate:
    """Something per second, of the last few requests, each by its weight."""

    def __init__(self) -> None:
        self._amount = self._seconds = 0.0

    def add(self, amount: float, seconds: float) -> None:
        if amount > 0 and seconds > 0:
            self._amount = KEPT_SHARE * self._amount + amount
            self._seconds = KEPT_SHARE * self._seconds + seconds

    @property
    def per_s(self) -> float:
        return min(self._amount / self._seconds, MOST_TOKENS_PER_S) if self._seconds else 0.0


class ModelMeter:
    """One model at one service; `now` is monotonic seconds."""

    def __init__(self) -> None:
        self.gauge = SlotGauge(self._usual_s)
        #: answered since the start
        self.requests = self.prompt_tokens = self.output_tokens = 0
        #: seconds that loading takes; 0 while none was seen
        self.load_s = 0.0
        #: why it gets nothing; "" if it may have requests
        self.paused = ""
        self._prompt, self._output = _Rate(), _Rate()
        #: of answers that come whole, by how long the question is thought to be
        self._whole = _Rate()
        self._first_s = self._streamed_s = self._whole_s = 0.0
        self._number = 0
        self._pause_s, self._probe_at = FIRST_PAUSE_S, 0.0
        self._is_probed = False
        self._heard = float("-inf")

    @property
    def prompt_tokens_per_s(self) -> float:
        """How fast it reads; 0 while that is not known."""
        return self._prompt.per_s

    @property
    def output_tokens_per_s(self) -> float:
        """How fast it answers; 0 while that is not known."""
        return self._output.per_s

    def slots(self, now: float) -> int:
        """Return how many requests may be there at once; see `SlotGauge.slots`."""
        return self.gauge.slots(now)

    # ------------------------------------------------------------------ requests

    def began(self, now: float, *, prompt_tokens: int = 0, is_streamed: bool = True) -> int:
        """Count a request in and return its number.

        Args:
            prompt_tokens: about how long it is; 0 where that is not known.
            is_streamed: False: it answers all at once, so `first_token` is never told.
        """
        self._number += 1
        self.gauge.begin(self._number, now, prompt_tokens=prompt_tokens, is_streamed=is_streamed)
        return self._number

    def first_token(self, run: int, now: float) -> None:
        """Note that a request is being answered."""
        self._heard = now
        self.gauge.first_token(run, now)

    def ended(
        self, run: int, now: float, end: RunEnd, *, spent: Spent = NOTHING, why: str = ""
    ) -> None:
        """Count a request out.

        Args:
            why: of a failure, for people.
        """
        if end is RunEnd.FULL:
            self.gauge.full(run, now)
            return
        seen = self.gauge.run(run)
        if end is RunEnd.ANSWERED:
            self._measure(seen, now, spent)
        self.gauge.end(run, now, is_answered=end is RunEnd.ANSWERED)
        if end is RunEnd.NO_ROOM or (end is RunEnd.FAILED and not self.paused):
            # those that were there together fail together: that is one failure
            self._fail(now, why, is_long=end is RunEnd.NO_ROOM)
        elif end is RunEnd.LATE and self._is_silent(seen, now):
            self.pause(now, f"it sent nothing for {now - seen.began:.0f} s")

    def _measure(self, seen: SlotRun, now: float, spent: Spent) -> None:
        self._heard = now
        self.requests += 1
        self.prompt_tokens += min(spent.prompt_tokens, MOST_TOKENS_OF_ONE)
        self.output_tokens += min(spent.output_tokens, MOST_TOKENS_OF_ONE)
        self._pause_s = FIRST_PAUSE_S
        self.gauge.is_known = True
        if self.paused:
            self._probe_at = now  # it does answer: the next probe need not wait
        self.loaded(spent.load_s)
        if seen.is_streamed:
            self._measure_streamed(seen, now, spent)
        else:
            took_s = max(now - seen.began - spent.load_s, 0.0)
            self._prompt.add(spent.prompt_tokens, spent.prompt_s or (0 if seen.beside else took_s))
            if not seen.beside and seen.freed is None:
                self._whole_s = _quickest(self._whole_s, took_s)
                self._whole.add(seen.prompt_tokens, took_s)

    def _measure_streamed(self, seen: SlotRun, now: float, spent: Spent) -> None:
        first = now if seen.first is None else seen.first
        reading_s = max(first - seen.began - spent.load_s, 0.0)
        output_s, whole_s = spent.output_s or now - first, now - seen.began - spent.load_s
        self.gauge.is_short = whole_s < SHORT_S and output_s <= SHORT_OUTPUT * whole_s
        if not seen.beside:  # others may have had to wait for a slot
            self._first_s = _quickest(self._first_s, reading_s)
            self._streamed_s = _quickest(self._streamed_s, whole_s)
        self.gauge.took(whole_s, self._streamed_s, is_alone=not seen.beside)
        self._prompt.add(spent.prompt_tokens, spent.prompt_s or (0 if seen.beside else reading_s))
        self._output.add(spent.output_tokens, output_s)

    def _usual_s(self, run: SlotRun) -> float:
        speed = self.prompt_tokens_per_s if run.is_streamed else self._whole.per_s
        reading_s = run.prompt_tokens / speed if speed else 0.0
        if not run.is_streamed:  # the quickest had the least to read
            return reading_s or self._whole_s
        return max(self._first_s, reading_s) if self._first_s else 0.0

    def expected_first_s(self, prompt_tokens: int) -> float:
        """Return in how many seconds the first token of one more request should come.

        0 where that is not known: it has not answered yet, or may have to wait for a slot.
        """
        if not self.gauge.is_known or self.gauge.in_flight >= self.gauge.proved:
            return 0.0
        return self._usual_s(SlotRun(0.0, prompt_tokens, True, self.gauge.in_flight))

    def _is_silent(self, seen: SlotRun, now: float) -> bool:
        """Tell whether nothing at all was heard while this request waited."""
        waited_s = now - seen.began
        is_mute = seen.first is None and seen.is_streamed
        return is_mute and waited_s >= LATE_SILENCE_S and self._heard < seen.began

    def loaded(self, load_s: float) -> None:
        """Note how long loading took; next to nothing means that it was in memory before."""
        if load_s >= LOADED_ANEW_S:
            self.load_s = (self.load_s + load_s) / 2 if self.load_s else load_s
            self.gauge.reloaded()

    # ------------------------------------------------------------------ pauses

    def pause(self, now: float, why: str) -> None:
        """Give it nothing until a probe has succeeded; the first may be asked at once."""
        self.paused, self._probe_at = why, now

    def probe_due(self, now: float) -> bool:
        """Return whether the small question should be asked now."""
        return bool(self.paused) and not self._is_probed and now >= self._probe_at

    def probe_begins(self) -> None:
        """Note that the small question is being asked: until `probed` it is not due."""
        self._is_probed = True

    def next_change(self, now: float) -> float | None:
        """Return when to look again though nothing happens: a probe, or slots that come back."""
        times = [self._probe_at] if self.paused and not self._is_probed else []
        times += [at for at in [self.gauge.next_change(now)] if at is not None]
        return min(times, default=None)

    def probed(self, now: float, why: str = "", *, is_long: bool = False) -> None:
        """Note how the small question was answered.

        Args:
            why: it was not; "" ends the pause. Only a real request makes the next one short again.
            is_long: the model does not fit.
        """
        self._is_probed = False
        if why:
            self._fail(now, why, is_long=is_long)
        else:
            self.paused = ""

    def _fail(self, now: float, why: str, *, is_long: bool) -> None:
        self.paused = why or "it failed"
        self._probe_at = now + (NO_ROOM_PAUSE_S if is_long else self._pause_s)
        self._pause_s = min(2 * self._pause_s, MODEL_PAUSE_MOST_S)


def _quickest(before: float, now: float) -> float:
    """Return what is usual: the quickest, as far as it is not long ago."""
    return KEPT_SHARE * before + (1 - KEPT_SHARE) * now if 0 < before < now else now
