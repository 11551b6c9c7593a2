"""A worker's standing with its orchestrators: links, greetings, beats, windows, what is owed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from d8mesh.core.credit import TURN_S, Credit
from d8mesh.core.employer import MAX_IN_FLIGHT, Employer, Flight, Result
from d8mesh.core.messages import (
    VERSIONS,
    Goodbye,
    Heartbeat,
    Refused,
    Release,
    Results,
    Welcome,
    WorkerHello,
)
from d8mesh.core.offer import Offer
from d8mesh.core.orders import Abort, Close, Forget, Keep, Kept, Order, Tell

#: HELLO is said again after this long without an answer, and the link given up after that.
HELLO_S: Final = 3.0
SILENCE_S: Final = 10.0
#: Results without acknowledgement are sent again after this long.
RESEND_S: Final = 10.0
#: Results that may wait for their orchestrators; beyond it nothing new is taken.
MAX_OWED_BYTES: Final = 128 * 1024 * 1024
MAX_OWED_RESULTS: Final = 100_000
#: An orchestrator that refused this worker is asked again after this long.
REFUSED_PAUSE_S: Final = 30.0
#: A heartbeat is never asked for more often than this.
_MIN_HEARTBEAT_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a worker says it is."""

    mesh: str
    worker_id: str
    boot_id: str
    worker_type: str
    machine_id: str
    host: str
    status_port: int = 0


@dataclass(slots=True, eq=False)
class Greeting:
    """A link whose HELLO has not been answered yet."""

    began: float
    hello_at: float
    #: the orchestrator whose attempts HELLO lists
    broker_id: str = ""
    #: the name given instead of the worker's own; empty for that
    alias: str = ""


class Employment:
    """The orchestrators of one worker; `orders` collects what the node is to do."""

    def __init__(self, identity: Identity, credit: Credit, offer: Offer) -> None:
        self.identity = identity
        self.orders: list[Order] = []
        self.employers: dict[str, Employer] = {}
        self.greetings: dict[int, Greeting] = {}
        self.by_link: dict[int, Employer] = {}
        self.owed_bytes = 0
        self.owed_count = 0
        self.running = 0
        self.is_draining = False
        #: why an orchestrator refused this worker last
        self.refusal = ""
        self._credit = credit
        self._offer = offer

    def employer(self, broker_id: str) -> Employer:
        """Return the orchestrator of that id, known or not."""
        employer = self.employers.get(broker_id)
        if employer is None:
            employer = self.employers[broker_id] = Employer(broker_id)
        return employer

    # ------------------------------------------------------------------------- greeting

    def greet(self, link: int, broker_id: str, now: float, *, alias: str = "") -> None:
        """Say HELLO over `link`, with what is held of `broker_id`."""
        self.greetings[link] = Greeting(now, now, broker_id, alias)
        self._hello(link, now)

    def greet_again(self, link: int, employer: Employer, now: float) -> None:
        """The orchestrator forgot this session, or was started again: open it anew."""
        self.by_link.pop(link, None)
        employer.is_open = False
        employer.recall_flights()
        self.greet(link, employer.broker_id, now, alias=employer.alias)

    def welcome(self, message: Welcome, link: int, now: float) -> None:
        """The session stands."""
        greeting = self.greetings.pop(link, None)
        employer = self.employer(message.broker_id)
        before = self.by_link.pop(link, None)
        if before is not None and before is not employer:
            self._leave(before)  # another orchestrator has taken that address
        if employer.link is not None and employer.link != link:
            self.by_link.pop(employer.link, None)
            self.orders.append(Close(employer.link, "another link is better"))
        employer.link, employer.is_open, employer.epoch = link, True, message.epoch
        employer.heartbeat_s = max(_MIN_HEARTBEAT_S, message.heartbeat_s)
        employer.lease_s = max(employer.heartbeat_s, message.lease_s)
        employer.last_heard, employer.work_seq = now, 0
        employer.next_beat = now + employer.heartbeat_s
        employer.recall_flights()
        self.by_link[link] = employer
        if greeting is not None:
            employer.alias = greeting.alias
            if greeting.broker_id != employer.broker_id and employer.claims()[0]:
                self.greet_again(link, employer, now)  # HELLO listed somebody else's attempts
                return
        if message.dropped_ids:
            self._disown(employer, message.dropped_ids)
        self.send_results(employer, now)
        if self.is_draining:
            self.beat(employer, now)

    def refused(self, message: Refused, link: int, now: float) -> None:
        """HELLO was refused: try another name, or come again later."""
        self.refusal = message.message
        greeting, me = self.greetings[link], self.identity
        if message.code == "worker.id_taken" and not greeting.alias:
            greeting.alias = f"{me.worker_id[:119]}-{me.boot_id[:8]}"
            self._hello(link, now)
        else:
            self.close(link, message.message, max(message.retry_after_s, REFUSED_PAUSE_S))

    def _hello(self, link: int, now: float) -> None:
        greeting, me = self.greetings[link], self.identity
        greeting.hello_at = now
        employer = self.employers.get(greeting.broker_id) or Employer(greeting.broker_id)
        greeting.alias = greeting.alias or employer.alias
        held_ids, held_tokens = employer.claims()
        employer.said_window = self._window(employer)
        hello = WorkerHello(
            VERSIONS[0],
            me.mesh,
            greeting.alias or me.worker_id,
            me.boot_id,
            me.worker_type,
            me.machine_id,
            me.host,
            me.status_port,
            self._offer.types(now),
            list(self._offer.models),
            self._credit.slots,
            employer.said_window,
            held_ids,
            held_tokens,
        )
        self.orders.append(Tell(link, hello))

    # -------------------------------------------------------------------------- leaving

    def close(self, link: int, why: str, pause_s: float = 0.0) -> None:
        """Let `link` go."""
        self.lost(link)
        self.orders.append(Close(link, why, pause_s))

    def lost(self, link: int) -> None:
        """`link` is gone: what its orchestrator is owed goes to the disk."""
        self.greetings.pop(link, None)
        employer = self.by_link.pop(link, None)
        if employer is not None:
            self._leave(employer)

    def goodbye(self, reason: str) -> None:
        """Say goodbye to all."""
        for link, employer in list(self.by_link.items()):
            self._leave(employer)
            self.orders.append(Tell(link, Goodbye(reason)))
        self.by_link.clear()
        self.greetings.clear()

    def _leave(self, employer: Employer) -> None:
        employer.link, employer.is_open = None, False
        employer.recall_flights()
        self.keep(
            [(employer, each) for each in employer.ready if each.task_id not in employer.kept]
        )

    # -------------------------------------------------------------------------- telling

    def send_results(self, employer: Employer, now: float) -> None:
        """Send what is ready, as one message unless it is large."""
        if employer.link is None or not employer.is_open:
            return
        while employer.ready and len(employer.flights) < MAX_IN_FLIGHT:
            results = employer.take_ready()
            seq, employer.next_seq = employer.next_seq, employer.next_seq + 1
            employer.flights[seq] = Flight(now, results)
            employer.said_window = self._window(employer)
            ids, tokens, kinds, payloads = zip(*results, strict=True)
            message = Results(
                seq, employer.said_window, list(ids), list(tokens), bytes(kinds), list(payloads)
            )
            self.orders.append(Tell(employer.link, message))

    def release(self, employer: Employer, ids: list[str], tokens: list[bytes]) -> None:
        """Give attempts back; with none this only tells the window."""
        if employer.link is not None and employer.is_open:
            employer.said_window = self._window(employer)
            message = Release(employer.said_window, ids, tokens)
            self.orders.append(Tell(employer.link, message))

    def beat(self, employer: Employer, now: float) -> None:
        """Say what is held, wanted and offered."""
        if employer.link is None:
            return
        employer.next_beat = now + employer.heartbeat_s
        employer.said_window = self._window(employer)
        message = Heartbeat(
            employer.work_seq,
            employer.said_window,
            self.running,
            self._credit.stuck,
            self._offer.types(now),
            list(self._offer.models),
            employer.claims()[0],
        )
        self.orders.append(Tell(employer.link, message))

    def beat_all(self, now: float) -> None:
        """Tell all orchestrators at once what has changed."""
        for employer in self.by_link.values():
            self.beat(employer, now)

    def update_windows(self) -> None:
        """Tell whoever may act on a window that has become quite wrong."""
        self._credit.closed = self._why_closed()
        for employer in self.by_link.values():
            held = len(employer.held)
            wanted = max(0, self._window(employer) - held)
            offered = max(0, employer.said_window - held)
            if (wanted == 0) != (offered == 0) or wanted > 2 * offered:
                self.release(employer, [], [])

    def crowd(self, employer: Employer | None = None) -> list[Employer]:
        """Return all who are connected or whose attempts take up room, and `employer`."""
        return [e for e in self.employers.values() if e.is_open or e.held or e is employer]

    def _window(self, employer: Employer) -> int:
        crowd = self.crowd(employer)
        return self._credit.window(employer, crowd if employer in crowd else [*crowd, employer])

    def _why_closed(self) -> str:
        if self.is_draining:
            return "draining"
        if self.owed_bytes >= MAX_OWED_BYTES or self.owed_count >= MAX_OWED_RESULTS:
            return "the outbox is full of results that no orchestrator has taken yet"
        return ""

    # ------------------------------------------------------------------------- what is owed

    def owe(self, count: int, size_bytes: int) -> None:
        """Count results that an orchestrator is owed; negative: that it has got."""
        self.owed_count += count
        self.owed_bytes += size_bytes

    def keep(self, results: Sequence[tuple[Employer, Result]]) -> None:
        """Have results put on the disk."""
        if results:
            for employer, result in results:
                employer.kept.add(result.task_id)
            rows = [Kept(employer.broker_id, *result) for employer, result in results]
            self.orders.append(Keep(rows))

    def settle(self, employer: Employer, results: Sequence[Result]) -> None:
        """The orchestrator has these results."""
        self.owe(-len(results), -sum([len(result.payload) for result in results]))
        if employer.kept:
            forgotten = [r.task_id for r in results if r.task_id in employer.kept]
            if forgotten:
                employer.kept.difference_update(forgotten)
                self.orders.append(Forget(employer.broker_id, forgotten))

    def _disown(self, employer: Employer, task_ids: Sequence[str]) -> None:
        aborted, dropped = employer.disown(task_ids)
        self.settle(employer, dropped)
        if aborted:
            self.orders.append(Abort(employer.broker_id, aborted))

    # ---------------------------------------------------------------------------- the clock

    def tick(self, now: float) -> None:
        """Do what is due."""
        for link, greeting in list(self.greetings.items()):
            if now - greeting.began >= SILENCE_S:
                self.close(link, "no answer to HELLO")
            elif now - greeting.hello_at >= HELLO_S:
                self._hello(link, now)
        for link, employer in list(self.by_link.items()):
            if now - employer.last_heard > employer.lease_s:
                self.close(link, f"silent for {employer.lease_s:g} s")
                continue
            if any(now - flight.sent >= RESEND_S for flight in employer.flights.values()):
                employer.recall_flights()
                self.send_results(employer, now)
            if now >= employer.next_beat:
                self.beat(employer, now)
        if self._offer.expire(now):
            self.beat_all(now)
        self._credit.expire_turns(self.crowd(), now)

    def next_deadline(self) -> float:
        """Return when `tick` has something to do next."""
        dues = [self._offer.next_deadline()]
        dues += [
            min(greeting.hello_at + HELLO_S, greeting.began + SILENCE_S)
            for greeting in self.greetings.values()
        ]
        for employer in self.by_link.values():
            dues.append(min(employer.next_beat, employer.last_heard + employer.lease_s))
            dues += [flight.sent + RESEND_S for flight in employer.flights.values()]
        began = self._credit.turn_began
        if began is not None:
            dues.append(began + TURN_S)
        return min(dues)

    def check(self) -> None:
        """Assert what must hold between the collections (for tests; walks everything)."""
        owed = [result for e in self.employers.values() for result in e.owed()]
        assert self.owed_count == len(owed), (self.owed_count, len(owed))
        assert self.owed_bytes == sum(len(result.payload) for result in owed)
        for link, employer in self.by_link.items():
            assert employer.is_open
            assert employer.link == link
            assert link not in self.greetings
            assert len(employer.flights) <= MAX_IN_FLIGHT
        for employer in self.employers.values():
            assert employer.kept <= {result.task_id for result in employer.owed()}
            assert employer.is_open == (employer in self.by_link.values())
