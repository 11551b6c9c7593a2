"""The worker's brain: several orchestrators, each with the attempts held of it.

Pure: no sockets, clock or threads. Its inputs are messages, links that come and go, and
what the slots have finished; its answers are orders to the node (`core.orders`). It knows
which attempts are held, not which of them run: that the node knows, and a hand-out of a
thousand no-op tasks costs a few operations on whole columns here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias, assert_never

from d8mesh.core.credit import Credit
from d8mesh.core.employer import Employer, Result
from d8mesh.core.employment import Employment, Identity
from d8mesh.core.messages import (
    MAX_BATCH_TASKS,
    SUCCEEDED,
    Beat,
    Chunks,
    Goodbye,
    Listening,
    Recall,
    Received,
    Refused,
    Rehello,
    Stop,
    ToWorker,
    Welcome,
    Work,
    WorkGroup,
)
from d8mesh.core.offer import Offer
from d8mesh.core.orders import Abort, GiveBack, Heed, Kept, Order, Start, Tell

#: A result that took longer than this goes to the disk: its loss would cost a second run.
EXPENSIVE_S: Final = 1.0

#: How an attempt ended: broker id, task id, kind, payload, duration in seconds.
Ended: TypeAlias = tuple[str, str, int, bytes, float]
#: A piece of output: broker id, task id, its number within the attempt, payload.
Piece: TypeAlias = tuple[str, str, int, bytes]


class WorkerSession:
    """One worker's brain.

    Args:
        identity: who it is.
        slots: how many tasks it runs at the same time.
    """

    def __init__(self, identity: Identity, *, slots: int) -> None:
        self.completed = 0
        self.failed = 0
        self.credit = Credit(slots)
        self.offered = Offer()
        self.employment = Employment(identity, self.credit, self.offered)

    # ------------------------------------------------------------------ what it is told

    def offer(self, types: Iterable[str], models: Iterable[str], now: float) -> list[Order]:
        """Say what this worker can do; orchestrators are told at once if it changed."""
        if self.offered.change(types, models):
            self.employment.beat_all(now)
        return self._take_orders()

    def restore(self, results: Iterable[Kept]) -> None:
        """Take in what the outbox holds; called before the first link is up."""
        for kept in results:
            employer = self.employment.employer(kept.broker_id)
            employer.kept.add(kept.task_id)
            employer.ready.append(Result(*kept[1:]))
            self.employment.owe(1, len(kept.payload))

    def occupied(self, *, running: int, stuck: int) -> None:
        """Say how many slots are busy, and how many of them with what nobody wants."""
        self.employment.running = running
        self.credit.stuck = stuck

    @property
    def employers(self) -> list[Employer]:
        """The orchestrators that this worker is connected to."""
        return list(self.employment.by_link.values())

    @property
    def held_count(self) -> int:
        """How many attempts wait or run here."""
        return sum([len(each.held) for each in self.employment.employers.values()])

    @property
    def is_settled(self) -> bool:
        """True when nothing waits, runs, or is owed to an orchestrator that is connected."""
        return not self.held_count and not any(
            each.ready or each.flights for each in self.employment.by_link.values()
        )

    # ------------------------------------------------------------------------ the links

    def link_up(self, link: int, now: float, *, broker_id: str = "") -> list[Order]:
        """Open a session over a new link.

        Args:
            link: what the node calls it; never used twice.
            now: monotonic seconds.
            broker_id: who is thought to be at the other end, if that is known.
        """
        self.employment.greet(link, broker_id, now)
        return self._take_orders()

    def link_down(self, link: int) -> list[Order]:
        """The node has lost a link, or closed it by itself."""
        self.employment.lost(link)
        self.employment.update_windows()
        return self._take_orders()

    def woke(self) -> list[Order]:
        """The machine has slept, or its network changed: begin anew with everybody."""
        for link in [*self.employment.by_link, *self.employment.greetings]:
            self.employment.close(link, "the network may have changed")
        return self._take_orders()

    # -------------------------------------------------------------------------- messages

    def receive(self, message: ToWorker, link: int, now: float) -> list[Order]:
        """Take in one message and return what is to be done."""
        employment = self.employment
        employer, is_greeted = employment.by_link.get(link), link in employment.greetings
        if employer is None and not is_greeted:
            return []
        match message:
            case Welcome():
                employment.welcome(message, link, now)
            case Goodbye():
                employment.close(link, message.reason)
            case Refused():
                if is_greeted and message.seq == 0:
                    employment.refused(message, link, now)
                else:
                    employment.refusal = message.message
            case _:  # while HELLO is under way, what comes belongs to the session before
                if employer is not None:
                    employer.last_heard = now
                    self._from_employer(message, employer, now)
        employment.update_windows()
        return self._take_orders()

    def _from_employer(
        self,
        message: Rehello | Beat | Work | Received | Stop | Listening | Recall,
        employer: Employer,
        now: float,
    ) -> None:
        match message:
            case Work():
                self._work(message, employer, now)
            case Received():
                flight = employer.flights.pop(message.seq, None)
                if flight is not None:
                    self.employment.settle(employer, flight.results)
                    self.employment.send_results(employer, now)
            case Beat():
                if message.epoch != employer.epoch:
                    self._greet_again(employer, now)
            case Rehello():
                self._greet_again(employer, now)
            case Stop():
                aborted = [i for i in message.ids if employer.held.pop(i, None) is not None]
                if aborted:
                    self._orders.append(Abort(employer.broker_id, aborted))
            case Listening():
                self._orders.append(Heed(employer.broker_id, message.ids, message.is_on))
            case Recall():
                self._orders.append(GiveBack(employer.broker_id, message.count))
            case _:
                assert_never(message)

    def _greet_again(self, employer: Employer, now: float) -> None:
        assert employer.link is not None  # it has just spoken
        self.employment.greet_again(employer.link, employer, now)

    def _work(self, message: Work, employer: Employer, now: float) -> None:
        """Start what can start, now or soon; give the rest back at once."""
        employer.work_seq = max(employer.work_seq, message.seq)
        room = self.credit.room(self.employment.crowd(employer))
        held = employer.held
        back_ids: list[str] = []
        back_tokens: list[bytes] = []
        for group in message.groups:
            if not held.keys().isdisjoint(group.ids):
                group = _without_held(group, held)
            if len(group.ids) > room:
                back_ids += group.ids[room:]
                back_tokens += group.tokens[room:]
                group = _first_of(group, room)
            if group.ids:
                room -= len(group.ids)
                held.update(zip(group.ids, group.tokens, strict=True))
                self._orders.append(Start(employer.broker_id, group))
                self.credit.had_turn(employer)
        if back_ids:
            if not self.credit.closed:
                self.credit.promise_turn(employer, now)
            self.employment.release(employer, back_ids, back_tokens)

    # --------------------------------------------------------------- what the slots did

    def finished(self, batch: Sequence[Ended], now: float) -> list[Order]:
        """Take in attempts that ended; those that nobody wants any more are left out."""
        employment = self.employment
        employer: Employer | None = None
        ours = ""
        touched: list[Employer] = []
        keep: list[tuple[Employer, Result]] = []
        total_s = longest_s = 0.0
        count = size = succeeded = 0
        for broker_id, task_id, kind, payload, duration_s in batch:
            if broker_id != ours or employer is None:
                ours, employer = broker_id, employment.employer(broker_id)
                touched.append(employer)
            token = employer.held.pop(task_id, None)
            if token is None:
                continue
            result = Result(task_id, token, kind, payload)
            employer.ready.append(result)
            count += 1
            size += len(payload)
            succeeded += kind == SUCCEEDED
            total_s += duration_s
            if duration_s > longest_s:
                longest_s = duration_s
            if duration_s > EXPENSIVE_S or not employer.is_open:
                keep.append((employer, result))
        if count:
            self.completed += succeeded
            self.failed += count - succeeded
            employment.owe(count, size)
            self.credit.measure(count, total_s, longest_s)
            employment.keep(keep)
            for each in dict.fromkeys(touched):
                employment.send_results(each, now)
        employment.update_windows()
        return self._take_orders()

    def given_back(self, broker_id: str, task_ids: Sequence[str]) -> list[Order]:
        """Attempts were taken back before they started: their orchestrator gets them again."""
        employer = self.employment.employer(broker_id)
        given = [(i, employer.held.pop(i)) for i in task_ids if i in employer.held]
        if given:
            ids, tokens = [i for i, _ in given], [token for _, token in given]
            self.employment.release(employer, ids, tokens)
        self.employment.update_windows()
        return self._take_orders()

    def unavailable(
        self, broker_id: str, task_ids: Sequence[str], task_type: str, now: float
    ) -> list[Order]:
        """The service behind `task_type` has no room now: the type is not offered for a while.

        The attempts are given back; that is no failure.
        """
        self.offered.withhold(task_type, now)
        self.employment.beat_all(now)  # first: what is given back must not come again
        return self.given_back(broker_id, task_ids)

    def chunks(self, pieces: Sequence[Piece]) -> list[Order]:
        """Send partial output of attempts that are still wanted."""
        messages: dict[int, Chunks] = {}
        for broker_id, task_id, seq, payload in pieces:
            employer = self.employment.employer(broker_id)
            token, link = employer.held.get(task_id), employer.link
            if token is None or link is None or not employer.is_open:
                continue
            message = messages.get(link)
            if message is None or len(message.ids) >= MAX_BATCH_TASKS:
                message = messages[link] = Chunks([], [], [], [])
                self._orders.append(Tell(link, message))
            message.ids.append(task_id)
            message.tokens.append(token)
            message.seqs.append(seq)
            message.payloads.append(payload)
        return self._take_orders()

    # ----------------------------------------------------------------------- the clock

    def tick(self, now: float) -> list[Order]:
        """Do what is due."""
        self.employment.tick(now)
        self.employment.update_windows()
        return self._take_orders()

    def next_deadline(self) -> float:
        """Return when `tick` has something to do next, if nothing comes in before."""
        return self.employment.next_deadline()

    def drain(self, now: float) -> list[Order]:
        """Take nothing new, and give back what has not started."""
        employment = self.employment
        if not employment.is_draining:
            employment.is_draining = True
            employment.update_windows()
            employment.beat_all(now)
            for employer in employment.employers.values():
                if employer.held:
                    self._orders.append(GiveBack(employer.broker_id, len(employer.held)))
        return self._take_orders()

    def leave(self, reason: str) -> list[Order]:
        """Say goodbye to all; whatever is still held waits for another worker."""
        self.employment.goodbye(reason)
        return self._take_orders()

    def check(self) -> None:
        """Assert what must hold between the collections (for tests; walks everything)."""
        self.employment.check()

    @property
    def _orders(self) -> list[Order]:
        return self.employment.orders

    def _take_orders(self) -> list[Order]:
        orders, self.employment.orders = self.employment.orders, []
        return orders


def _without_held(group: WorkGroup, held: dict[str, bytes]) -> WorkGroup:
    """A task that is held was handed out again: its one run answers for both attempts."""
    fresh = []
    for index, task_id in enumerate(group.ids):
        if task_id in held:
            held[task_id] = group.tokens[index]
        else:
            fresh.append(index)
    return WorkGroup(
        group.type,
        group.timeout_s,
        group.is_listened,
        [group.ids[index] for index in fresh],
        [group.tokens[index] for index in fresh],
        [group.payloads[index] for index in fresh],
    )


def _first_of(group: WorkGroup, count: int) -> WorkGroup:
    return WorkGroup(
        group.type,
        group.timeout_s,
        group.is_listened,
        group.ids[:count],
        group.tokens[:count],
        group.payloads[:count],
    )
