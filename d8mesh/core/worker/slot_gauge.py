"""How many requests a model answers at the same time: found out by trying, for no service tells.

While all the slots that are known are taken one more is offered, of many slots several at once
until a bound was seen; before the first answer only while they are generating, for the model may be
loading. Whether that was one too many shows by its first token: it comes while all the others still
generate, or only after one of them has ended, and late.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

#: What was found out holds so long; then one more is tried again. A model that is loaded anew is
#: tried at once.
SETTLED_S: Final = 600.0
#: Until a bound was seen one is tried for so many that are proved: two hundred slots are found in a
#: dozen first tokens, and of a few never more than one at once is tried.
PROVED_FOR_ONE: Final = 4
#: A first token that takes so many times as long as alone has waited for its slot. Beside others
#: reading takes longer too, so it must happen more than once in a row.
LATE_TIMES: Final = 2.0
VAIN_TIMES: Final = 2
#: A wait for another's end that was no longer is none, unless answers are short: on a busy machine
#: first tokens come as late when many begin at once. One too many who waits so long is no harm.
LEAST_WAIT_S: Final = 0.1
#: A short answer had a slot of its own if it came before half the time was over by which it would
#: be later had it waited for another's end. Of times as short as this, and of so small a share of
#: its own, nothing can be said.
JITTER_S: Final = 0.01
LEAST_SHARE: Final = 0.1
#: Where a whole answer takes less than this, so many may be there at once that the last of them
#: waits no longer: else the service would stand idle while the next one is on its way to it.
BRIEF_S: Final = 0.02
BRIEF_MOST: Final = 16
#: An answer beside others that takes so many times `BRIEF_S` shows that they are brief no longer.
BRIEF_TIMES: Final = 3
#: An answer that comes whole beside others may take so many times as long as alone.
FAIR: Final = 1.5
#: A service that says that it is full gets no more for so long, and each time twice as long.
BUSY_S: Final = 1.0
BUSY_MOST_S: Final = 30.0


@dataclass(slots=True)
class SlotRun:
    """One request that is being answered."""

    began: float
    prompt_tokens: int
    #: False: it answers all at once, so nothing shows when it begins
    is_streamed: bool
    #: others that were being answered when it began
    beside: int
    first: float | None = None
    #: when the first of the others ended, and how many were generating until then
    freed: float | None = None
    generated: int = 0

    @property
    def is_generating(self) -> bool:
        """True if it takes a slot for certain, or nothing will show it."""
        return self.first is not None or not self.is_streamed


class SlotGauge:
    """The slots of one model at one service; `now` is monotonic seconds.

    Args:
        usual_s: of a request that is alone: seconds to its first token, or (not streamed) to its
            end; 0 where that is not known yet.
    """

    def __init__(self, usual_s: Callable[[SlotRun], float]) -> None:
        #: so many answered at the same time
        self.proved = 1
        #: it has answered: whether one more has to wait can be told then
        self.is_known = False
        #: an answer takes little time, and hardly any from its first token to its end: a slot too
        #: many costs little, and they are found the more boldly
        self.is_short = False
        #: so many may be there at once though that is not proved: see `BRIEF_S`
        self._brief = 0
        self._usual_s = usual_s
        self._runs: dict[int, SlotRun] = {}
        self._settled_until = self._full_until = 0.0
        #: one too many was seen since the model was loaded
        self._is_bounded = False
        self._full_s = BUSY_S
        #: first tokens in a row that have waited for a slot
        self._vain = 0

    @property
    def in_flight(self) -> int:
        """Requests that have begun and not ended."""
        return len(self._runs)

    def run(self, number: int) -> SlotRun:
        """Return a request that is being answered."""
        return self._runs[number]

    def slots(self, now: float) -> int:
        """Return how many requests may be there at once: what is proved, and one to try."""
        if now < self._full_until:
            return min(self.proved, self.in_flight)
        taken = self.in_flight if self.is_known else self._generating()
        is_tried = now >= self._settled_until and taken >= self.proved
        known = self.proved + (self._tried if is_tried else 0)
        return self._brief if self._brief > known and self._is_brisk(now) else known

    @property
    def _tried(self) -> int:
        """How many more than those that are proved are tried at once."""
        return 1 if self._is_bounded else max(1, self.proved // PROVED_FOR_ONE)

    @property
    def _least_wait_s(self) -> float:
        return JITTER_S if self.is_short else LEAST_WAIT_S

    def _is_brisk(self, now: float) -> bool:
        """Tell whether those that are being answered may be as brief as those before them."""
        began = next(iter(self._runs.values()), None)
        return began is None or now - began.began <= BRIEF_TIMES * BRIEF_S

    def took(self, whole_s: float, usual_s: float, *, is_alone: bool) -> None:
        """Note how long a streamed answer took from its beginning to its end.

        Args:
            usual_s: the same of what is alone.
        """
        if not is_alone and whole_s > BRIEF_TIMES * BRIEF_S:
            self._brief = 0
        elif is_alone:
            self._brief = min(int(BRIEF_S / usual_s), BRIEF_MOST) if usual_s else BRIEF_MOST

    def begin(self, number: int, now: float, *, prompt_tokens: int, is_streamed: bool) -> None:
        """Count a request in."""
        self._runs[number] = SlotRun(now, prompt_tokens, is_streamed, len(self._runs))

    def first_token(self, number: int, now: float) -> None:
        """Note that it generates, and what that shows."""
        run = self._runs[number]
        run.first = now
        generating = sum(each.first is not None for each in self._runs.values())
        if generating > self.proved:
            self._prove(generating)  # as many as do so now have proved to do so at once
        usual_s = self._usual_s(run)
        if run.freed is not None and run.beside and usual_s:
            self._judge_first(run, now, usual_s, generating)

    def _judge_first(self, run: SlotRun, now: float, usual_s: float, generating: int) -> None:
        """Judge a first token that came after another had ended."""
        took_s, beside_s = now - run.began, (run.freed or now) - run.began
        if self.is_short and took_s <= usual_s + beside_s / 2:
            is_clear = beside_s >= max(JITTER_S, LEAST_SHARE * usual_s)
            if is_clear and run.beside >= self.proved:
                self._prove(run.beside + 1)
        elif took_s >= LATE_TIMES * usual_s and beside_s >= max(usual_s, self._least_wait_s):
            self._vain += 1
            if self._vain >= VAIN_TIMES:
                short = self.proved if self.is_short else 1  # those hardly generate
                self._settle(max(run.generated, generating, short), now)

    def end(self, number: int, now: float, *, is_answered: bool) -> None:
        """Count a request out.

        Args:
            is_answered: it ended by itself; what was cancelled or failed proves nothing.
        """
        generating, ended = self._generating(), self._runs.pop(number)
        for run in self._runs.values():
            if run.freed is None and ended.is_generating:
                run.freed, run.generated = now, generating
        if is_answered:
            self._full_s = BUSY_S
            if not ended.is_streamed and ended.beside >= self.proved:
                self._judge_whole(ended, now)

    def full(self, number: int, now: float) -> None:
        """Count a request out that was refused because the service is full."""
        del self._runs[number]
        self._settle(max(1, min(self.proved, self.in_flight)), now)
        self._full_until = now + self._full_s
        self._full_s = min(2 * self._full_s, BUSY_MOST_S)

    def reloaded(self) -> None:
        """Forget what was found out not to go: the model was loaded anew."""
        self._settled_until, self._is_bounded = 0.0, False

    def next_change(self, now: float) -> float | None:
        """Return when `slots` changes by itself, though nothing happens; None: never."""
        return self._full_until if now < self._full_until else None

    def _generating(self) -> int:
        return sum(run.is_generating for run in self._runs.values())

    def _judge_whole(self, ended: SlotRun, now: float) -> None:
        """Judge one that answered all at once: it was as fast as alone, or it had to wait."""
        usual_s = self._usual_s(ended)
        together_s = (now if ended.freed is None else ended.freed) - ended.began
        if not usual_s or together_s < usual_s / 2:
            return
        if now - ended.began <= FAIR * usual_s + JITTER_S:
            self._prove(ended.beside + 1)
        else:
            self._settle(self.proved, now)

    def _prove(self, count: int) -> None:
        self.proved, self._vain = count, 0

    def _settle(self, count: int, now: float) -> None:
        self.proved, self._vain, self._is_bounded = count, 0, True
        self._settled_until = now + SETTLED_S
