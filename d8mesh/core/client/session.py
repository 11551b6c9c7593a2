"""The client's brain: submits, outcomes, questions and listening over one session.

Pure: no sockets, clock or threads. What a client awaits is state, not a message: after any
doubt it is asked for again by id.
"""

from __future__ import annotations

from collections import deque
from typing import Final, assert_never

from d8mesh.core.client.awaited import Awaited
from d8mesh.core.client.deliveries import Deliveries
from d8mesh.core.client.effects import (
    Answered,
    Arrived,
    Connected,
    Heard,
    Lost,
    Output,
    Rejected,
    Settled,
    Silent,
    Transmit,
    parts_of,
)
from d8mesh.core.client.submission import Submission
from d8mesh.core.protocol.membership import NOTHING_TO_SHOW, UNPROVEN, Credentials
from d8mesh.core.protocol.messages import (
    VERSIONS,
    Accepted,
    Answer,
    Beat,
    ClientHello,
    ClientQuestion,
    Goodbye,
    Listen,
    Outcomes,
    Query,
    Received,
    Refused,
    Rehello,
    Stream,
    Streams,
    Submit,
    ToClient,
    Unwatch,
    Watch,
    Welcome,
)

#: Submits under way at once: enough that the broker never waits for the next one.
MAX_UNACKNOWLEDGED: Final = 8
#: The same for a submission of single tasks: while two are on their way more tasks join the next,
#: so that many small submits become few messages.
MAX_GROWING: Final = 2
#: Questions under way at once: more answers than the orchestrator may have waiting for one
#: client would be dropped, and asked for again much later.
MAX_ASKED: Final = 256
#: Beside those: they are answered one by one, as there is something to tell.
PATIENT: Final = frozenset({"poll.next"})
#: HELLO is said again after this long without an answer.
HELLO_S: Final = 3.0
#: A new link on which nothing was heard for this long is given up: sooner than one that
#: worked, as the address may be that of an orchestrator that has just gone.
OPENING_S: Final = 5.0
#: A heartbeat that is not answered for this long: the orchestrator may have moved.
DOUBT_S: Final = 1.5
#: One that does not know the mesh key is not asked again at once.
UNPROVEN_PAUSE_S: Final = 3.0
#: An orchestrator that said goodbye has closed its port after this long.
LEAVING_S: Final = 0.5
#: An unanswered submit or question is sent again after this long.
RESEND_S: Final = 10.0
#: While the queue is full: how often it is looked whose time to wait for room is over.
EXPIRY_S: Final = 0.25
#: Before the first Welcome tells them: the documented lease and heartbeat.
_LEASE_S: Final = 10.0
_HEARTBEAT_S: Final = 3.0


class ClientSession:
    """One client's session.

    Args:
        session: 16 characters ``0-9a-v``, drawn at random once.
        mesh: the mesh's name.
        host: this machine's name, for people.
        credentials: what it shows an orchestrator, and asks of one.
    """

    def __init__(
        self, session: str, mesh: str, host: str, credentials: Credentials = NOTHING_TO_SHOW
    ) -> None:
        #: its 16 characters, with which the ids of its tasks begin
        self.name = session
        self._mesh, self._host, self._credentials = mesh, host, credentials
        #: the public key of the orchestrator that the link leads to
        self._server_key: bytes | None = None
        #: partial output of several tasks may come together: for an orchestrator of this version
        self.takes_streams = False
        #: the broker answers
        self.is_up = self._is_linked = False
        self._epoch = -1
        self._heartbeat_s, self._lease_s = _HEARTBEAT_S, _LEASE_S
        self._linked_at = self._heard = self._said_hello = self._next_beat = 0.0
        self._next_seq = 1
        self._backlog: deque[Submission] = deque()
        self._unacknowledged: dict[int, Submission] = {}
        self._allowed = MAX_UNACKNOWLEDGED
        self._paused_until = self._next_expiry = 0.0
        self._full: Refused | None = None  #: why the backlog is paused
        self._awaited = Awaited(session)
        #: questions under way, and when each was asked last
        self._asks: dict[int, ClientQuestion] = {}
        self._asked_at: dict[int, float] = {}
        self._patient: set[int] = set()  #: those of `PATIENT` among them
        self._unasked: dict[int, ClientQuestion] = {}  #: to be asked when others are answered
        self._listening: set[str] = set()
        self._deliveries = Deliveries()

    @property
    def paused_for(self) -> str:
        """Why the orchestrator takes no more for now; empty: it does."""
        refused = self._full
        return "" if refused is None else refused.message

    @property
    def has_room(self) -> bool:
        """True when a submission that may still grow should be sent now."""
        most = min(MAX_GROWING, self._allowed)
        is_free = not self._backlog and len(self._unacknowledged) < most
        return self.is_up and is_free and self._full is None

    # --------------------------------------------------------------- what is wanted

    def submit(self, submission: Submission, now: float) -> list[Output]:
        """Queue a submission of this session for sending, in its order."""
        self._backlog.append(submission)
        if submission.is_watched:
            self._awaited.add(submission)
        if submission.is_listened:  # output may come before the acknowledgement
            self._listening.update(submission.task_id(index) for index in range(submission.count))
        return self._pump(now)

    def abandon(self, submission: Submission) -> None:
        """Nobody waits for a submission any more: send it no more, and let its outcomes go."""
        if submission in self._backlog:
            self._backlog.remove(submission)
        for seq in [seq for seq, other in self._unacknowledged.items() if other is submission]:
            del self._unacknowledged[seq]
        self._awaited.forget(submission)

    def watch(self, submission: Submission) -> list[Output]:
        """Await the one task of `submission`, which may be anybody's."""
        ids = self._awaited.add_singles(submission)
        return [Transmit(Watch(ids))] if self.is_up else []

    def unwatch(self, submission: Submission) -> list[Output]:
        """Await it no longer."""
        task_id = self._awaited.remove_single(submission)
        return [Transmit(Unwatch([task_id]))] if self.is_up and task_id else []

    def ask(self, question: ClientQuestion, now: float) -> list[Output]:
        """Ask the broker; `Answered` brings the answer, after reconnects too."""
        self._unasked[question.request] = question
        return self._ask_more(now)

    def forget_ask(self, request: int) -> list[Output]:
        """The asker waits no longer."""
        self._answered(request)
        self._unasked.pop(request, None)
        return []

    def listen(self, task_id: str, *, is_on: bool) -> list[Output]:
        """Start or stop hearing a task's partial output."""
        (self._listening.add if is_on else self._listening.discard)(task_id)
        return [Transmit(Listen(task_id, is_on))] if self.is_up else []

    def deliver(self, task_id: str, payload: bytes, keep_s: float) -> list[Output]:
        """A task has reached who asked; told with all others of this turn, in its `tick`."""
        self._deliveries.add(task_id, payload, keep_s)
        return []

    def _heard_now(self, message: Stream | Streams) -> list[Output]:
        streams = message.streams if isinstance(message, Streams) else (message,)
        return [Heard(each) for each in streams if each.id in self._listening]

    def undelivered(self) -> set[str]:
        """Return the tasks whose delivery the broker has not on its disk yet."""
        return self._deliveries.pending()

    # ------------------------------------------------------------------- the link

    def link_up(self, now: float, server_key: bytes | None = None) -> list[Output]:
        """A new transport connection stands: open, or go on with, the session.

        Args:
            server_key: the public key of who is at the other end.
        """
        self._server_key = server_key
        self._is_linked, self.is_up = True, False
        self._linked_at = self._heard = now
        return self._hello(now)

    def link_down(self) -> None:
        """The transport connection is gone."""
        self._is_linked = self.is_up = False

    def receive(self, message: ToClient, now: float) -> list[Output]:
        """Take in one message of the broker."""
        self._heard = now
        match message:
            case Outcomes():
                return self._outcomes(message)
            case Accepted():
                return self._accepted(message, now)
            case Answer():
                if self._answered(message.request):
                    return [Answered(message.request, message.code, message.body)]
                return []
            case Stream() | Streams():
                return self._heard_now(message)
            case Received():
                self._deliveries.acknowledge(message.seq)
                return []
            case Refused():
                return self._refused(message, now)
            case Welcome():
                return self._welcome(message, now)
            case Beat():
                return self._beat(message, now)
            case Rehello():
                self.is_up = False
                return self._hello(now)
            case Goodbye():
                return [Lost(message.reason, LEAVING_S)]
            case _:
                assert_never(message)

    def tick(self, now: float) -> list[Output]:
        """Do what is due."""
        out = self._expire(now)
        if not self._is_linked:
            return out
        silence_s = now - self._heard
        if silence_s > self._patience_s:
            return [*out, Lost(f"the orchestrator has been silent for {silence_s:.0f} s")]
        if not self.is_up:
            return out + (self._hello(now) if now - self._said_hello >= HELLO_S else [])
        if now >= self._next_beat:
            self._next_beat = now + self._heartbeat_s
            out.append(Transmit(Watch(self._awaited.next_part(now))))
        for seq, submission in self._unacknowledged.items():
            if now - submission.sent > RESEND_S:
                out.append(self._transmit(seq, submission, now))
        for request, question in self._asks.items():
            if now - self._asked_at[request] > RESEND_S:
                out.append(self._ask(question, now))
        if self._deliveries:
            out += self._tell_deliveries(now, RESEND_S)
        return out + self._ask_more(now) + self._pump(now)

    @property
    def doubt_at(self) -> float:
        """When a heartbeat should have been answered."""
        return self._heard + self._heartbeat_s + DOUBT_S if self.is_up else float("inf")

    def next_deadline(self) -> float:
        """Return when `tick` has something to do next."""
        dues: list[float] = []
        if self._full is not None and self._backlog:
            dues += [self._next_expiry, self._paused_until]
        if self._is_linked:
            dues.append(self._heard + self._patience_s)
            dues.append(self._next_beat if self.is_up else self._said_hello + HELLO_S)
        return min(dues, default=float("inf"))

    def check(self) -> None:
        """Assert what must hold between the collections (for tests)."""
        self._awaited.check()
        assert self._asks.keys() == self._asked_at.keys()
        assert len(self._unacknowledged) <= MAX_UNACKNOWLEDGED

    @property
    def is_bound(self) -> bool:
        """True while another orchestrator would not know what this one was told or asked."""
        is_told = self._unacknowledged or self._asks or self._unasked or self._deliveries
        return bool(is_told) or self._awaited.is_accepted

    @property
    def _patience_s(self) -> float:
        return OPENING_S if self._heard == self._linked_at else self._lease_s

    # -------------------------------------------------------------------- messages

    def _hello(self, now: float) -> list[Output]:
        self._said_hello = now
        us = (self._mesh, self.name, self._host)
        proof = self._credentials.shown_to(self._server_key)
        return [Transmit(ClientHello(VERSIONS[0], *us, self.takes_streams, proof))]

    def _welcome(self, message: Welcome, now: float) -> list[Output]:
        if not self._credentials.accept(self._server_key, message.proof):
            return [Lost(f"{message.broker_id} {UNPROVEN}", UNPROVEN_PAUSE_S)]
        self.is_up = True
        self._epoch = message.epoch
        self._heartbeat_s, self._lease_s = message.heartbeat_s, message.lease_s
        self._next_beat = now + self._heartbeat_s
        out: list[Output] = [Connected(message.broker_id)]
        # Submits first: what is asked about may be among them.
        out += [self._transmit(seq, each, now) for seq, each in self._unacknowledged.items()]
        out += self._pump(now)
        out += self._rewatch(now)
        out += [Transmit(Listen(task_id, True)) for task_id in sorted(self._listening)]
        out += [self._ask(question, now) for question in self._asks.values()]
        return out + self._tell_deliveries(now, 0.0) + self._ask_more(now)

    def _beat(self, message: Beat, now: float) -> list[Output]:
        if message.epoch == self._epoch:
            return []
        self._epoch = message.epoch
        return self._rewatch(now)

    def _refused(self, message: Refused, now: float) -> list[Output]:
        submission = self._unacknowledged.pop(message.seq, None) if message.seq else None
        if submission is None:
            if not self.is_up and message.seq == 0 and not message.retry_after_s:
                return [Rejected(message.code, message.message)]
            return []
        if message.retry_after_s and (submission.give_up is None or now < submission.give_up):
            self._put_back(submission)
            self._full, self._paused_until = message, now + message.retry_after_s
            self._next_expiry = now + EXPIRY_S
            self._allowed = 1  # one tries whether there is room again, not all
            return []
        return [self._give_up(submission, message), *self._pump(now)]

    def _accepted(self, message: Accepted, now: float) -> list[Output]:
        submission = self._unacknowledged.pop(message.seq, None)
        if submission is None:
            return []
        self._allowed = min(MAX_UNACKNOWLEDGED, 2 * self._allowed)
        submission.accept(message.session, message.first, is_repeat=message.is_repeat)
        submission.warnings = tuple(message.warnings)
        out: list[Output] = [Settled(submission)]
        if submission.accepted_as is not None and submission.is_listened:
            out += self._listen_elsewhere(submission)
        if submission.accepted_as is not None and submission.is_watched:
            out += self._watch_elsewhere(submission)
        elif submission.is_resent and submission.is_watched:  # maybe over, and nobody was told
            out += [Transmit(Watch(part)) for part in parts_of(submission.awaited())]
        return out + self._pump(now)

    def _outcomes(self, message: Outcomes) -> list[Output]:
        out: list[Output] = [Arrived(each) for each in self._awaited.note(message)]
        if self._listening and (ended := self._listening.intersection(message.ids)):
            self._listening -= ended
            out.insert(0, Silent(sorted(ended)))
        return out

    # --------------------------------------------------------------------- helpers

    def _pump(self, now: float) -> list[Output]:
        """Send from the backlog what may be under way."""
        out: list[Output] = []
        if not self.is_up or now < self._paused_until:
            return out
        self._paused_until, self._full = 0.0, None
        while self._backlog and len(self._unacknowledged) < self._allowed:
            submission = self._backlog.popleft()
            seq, self._next_seq = self._next_seq, self._next_seq + 1
            self._unacknowledged[seq] = submission
            out.append(self._transmit(seq, submission, now))
        return out

    def _ask_more(self, now: float) -> list[Output]:
        out: list[Output] = []
        while self._unasked and self.is_up and len(self._asks) - len(self._patient) < MAX_ASKED:
            request = next(iter(self._unasked))
            out.append(self._ask(self._unasked.pop(request), now))
        return out

    def _ask(self, question: ClientQuestion, now: float) -> Transmit:
        self._asks[question.request], self._asked_at[question.request] = question, now
        if isinstance(question, Query) and question.what in PATIENT:
            self._patient.add(question.request)
        return Transmit(question)

    def _answered(self, request: int) -> bool:
        """Take a question off the list; return whether it was under way."""
        self._asked_at.pop(request, None)
        self._patient.discard(request)
        return self._asks.pop(request, None) is not None

    def _tell_deliveries(self, now: float, after_s: float) -> list[Output]:
        """Tell what waits, and again what was told `after_s` ago and is not acknowledged."""
        late = self._deliveries.resent(now, after_s)
        return [Transmit(message) for message in late + self._deliveries.take(now)]

    def _put_back(self, submission: Submission) -> None:
        """Have a submission wait again, at its place in the order."""
        at = 0
        while at < len(self._backlog) and self._backlog[at].first < submission.first:
            at += 1
        self._backlog.insert(at, submission)

    def _expire(self, now: float) -> list[Output]:
        """Give up what may not wait for room any longer."""
        if self._full is None or now < self._next_expiry:
            return []
        self._next_expiry = now + EXPIRY_S
        overdue = [p for p in self._backlog if p.give_up is not None and p.give_up <= now]
        if not overdue:
            return []
        self._backlog = deque(each for each in self._backlog if each not in overdue)
        return [self._give_up(submission, self._full) for submission in overdue]

    def _give_up(self, submission: Submission, refusal: Refused) -> Settled:
        submission.refuse(refusal)
        if submission.is_listened:
            self._listening -= {submission.task_id(index) for index in range(submission.count)}
        self._awaited.forget(submission)
        return Settled(submission)

    def _transmit(self, seq: int, submission: Submission, now: float) -> Transmit:
        submission.is_resent, submission.sent = submission.sent > 0.0, now
        return Transmit(
            Submit(
                seq,
                submission.session,
                submission.first,
                submission.groups,
                submission.is_watched,
                submission.key,
                submission.digest,
                submission.is_listened,
            )
        )

    def _watch_elsewhere(self, submission: Submission) -> list[Output]:
        """A repeated key: its tasks are those of the first time, await them there."""
        self._awaited.forget(submission)
        ids = self._awaited.add_singles(submission)
        return [Transmit(Watch(part)) for part in parts_of(ids)]

    def _listen_elsewhere(self, submission: Submission) -> list[Output]:
        """A repeated key: the tasks of the first time are listened to as well."""
        own = {f"{submission.session}-{submission.first + n}" for n in range(submission.count)}
        ids = [submission.task_id(index) for index in range(submission.count)]
        self._listening -= own
        self._listening.update(ids)
        return [Transmit(Listen(task_id, True)) for task_id in ids]

    def _rewatch(self, now: float) -> list[Output]:
        """Ask for all that is awaited: what was sent meanwhile may be lost."""
        return [Transmit(Watch(part)) for part in self._awaited.all_parts(now)]
