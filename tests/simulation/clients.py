"""Clients of the simulation: the real brain; some die and others await in their place."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from d8mesh.core.client.effects import Answered, Arrived, Lost, Output, Rejected, Settled, Transmit
from d8mesh.core.client.session import ClientSession
from d8mesh.core.client.submission import Submission, awaiting
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.codec import decode_to_client, encode
from d8mesh.core.protocol.messages import FINAL_STATES
from tests.simulation.causes import Wish
from tests.simulation.safety import REST
from tests.simulation.wire import Wire

if TYPE_CHECKING:
    from tests.simulation.world import World

#: What half of all tasks come in by, and so can be erased; who waits at an open connection is told
#: of failures sooner, which is no promise.
SOURCE: Final = "batches 10.0.0.9 simulated"
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuv"


class Line:
    """A client's brain and its one wire; what the brain tells goes to `outputs`."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.home = world.rng.choice(world.orchestrators)
        self.outputs: list[Output] = []
        self._requests = 0
        self.begin()

    def begin(self) -> None:
        """Start a session of its own, with nothing awaited."""
        self.session_id = "".join(self.world.rng.choice(_DIGITS) for _ in range(16))
        self.session = ClientSession(self.session_id, "m", self.name)
        self.outputs.clear()
        self._inbox: list[bytes] = []
        self._wire: Wire | None = None
        self._dial(self.session)

    def end(self) -> None:
        """Die."""
        if self._wire is not None:
            self._wire.close()

    def ask(self, what: str, args: dict[str, object]) -> int:
        """Ask; returns the number of the question."""
        self._requests += 1
        question = m.Query(self._requests, what, args)
        self.perform(self.session.ask(question, self.world.now))
        return self._requests

    def tick(self) -> None:
        """One wake-up."""
        inbox, self._inbox = self._inbox, []
        for frame in inbox:
            self.perform(self.session.receive(decode_to_client(frame), self.world.now))
        self.perform(self.session.tick(self.world.now))

    def perform(self, outputs: Sequence[Output]) -> None:
        """Do what the brain asks for."""
        for output in outputs:
            match output:
                case Transmit():
                    if self._wire is not None:
                        self._wire.send(encode(output.message))
                case Lost():
                    session = self.session
                    session.link_down()
                    self.world.after(0.3, partial(self._dial, session))
                case Rejected():
                    self.world.safety.fail(self.name, f"rejected: {output.message}")
                case _:
                    self.outputs.append(output)

    def _dial(self, session: ClientSession) -> None:
        if session is not self.session:
            return  # of a life that is over
        if self._wire is not None:
            self._wire.close()
        self._wire = Wire(self.world, self.name, self.home, lambda frame: self._inbox.append(frame))
        self.perform(session.link_up(self.world.now))


class SimClient:
    """A client that submits, awaits, cancels, replays, and may die."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.name = f"c{number}"
        #: the types and wishes of what it submits, in turn
        self.kinds: tuple[tuple[str, str], ...] = (("echo", ""),)
        self.submissions: list[Submission] = []
        self.paused_until = 0.0
        self._line = Line(world, self.name)
        self._next = self._keys = 0
        #: decides what is delivered and where tasks come from
        self._dice = random.Random(self._line.session_id)
        #: tasks whose delivery was told to the orchestrator, and is not acknowledged
        self._delivering: set[str] = set()

    @property
    def is_satisfied(self) -> bool:
        """True when everything submitted has its outcome, and what was delivered is erased."""
        is_over = all(p.refusal or (p.is_accepted and not p.missing) for p in self.submissions)
        return is_over and not self._delivering and not self.world.safety.unerased()

    def submit(self) -> None:
        """Submit a few tasks of any kind."""
        rng = self.world.rng
        groups = [self._group(rng.randint(1, 5)) for _ in range(rng.choice((1, 1, 1, 2)))]
        submission = self._submission(groups)
        if rng.random() < 0.2:
            self._keys += 1
            submission.key, submission.digest = (
                f"{self.name} {self._keys}",
                bytes([self._keys % 256]),
            )
        self._send(submission)

    def _group(self, count: int) -> m.Group:
        rng, world = self.world.rng, self.world
        payloads = []
        for _ in range(count):
            world.counts.tasks += 1
            payloads.append(msgspec.msgpack.encode(f"task {world.counts.tasks}"))
        kind, model = self.kinds[world.counts.tasks % len(self.kinds)]
        priority = rng.randint(1, 10)
        is_of_door = self._dice.random() < 0.5
        return m.Group(
            kind,
            priority,
            payloads,
            model,
            deadline_s=rng.uniform(1, 60) if rng.random() < 0.1 else None,
            max_attempts=rng.choice((0, 0, 1)),
            is_fenced=rng.random() < 0.1,
            run_at=world.at + rng.random() * 20 if rng.random() < 0.1 else None,
            source=SOURCE if is_of_door else "",
        )

    def _submission(self, groups: list[m.Group]) -> Submission:
        submission = Submission(self._line.session_id, self._next, groups)
        self._next += submission.count
        return submission

    def _send(self, submission: Submission) -> None:
        self.submissions.append(submission)
        each = [Wish.of(group) for group in submission.groups for _ in group.payloads]
        wished = {submission.task_id(n): wish for n, wish in enumerate(each)}
        self.world.safety.causes.wishes.update(wished)
        self._line.perform(self._line.session.submit(submission, self.world.now))

    def meddle(self) -> None:
        """Cancel a task, or replay one."""
        accepted = [submission for submission in self.submissions if submission.is_accepted]
        if not accepted:
            return
        rng = self.world.rng
        submission = rng.choice(accepted)
        index = rng.randrange(submission.count)
        task_id = submission.task_id(index)
        if submission.states[index] == m.FAILED_STATE:
            args: dict[str, object] = {
                "id": task_id, "session": self._line.session_id, "n": self._next,
            }  # fmt: skip
            wishes = self.world.safety.causes.wishes
            wishes[f"{self._line.session_id}-{self._next}"] = wishes[task_id].again()
            self._next += 1
            self._line.ask("replay", args)
        else:
            self.world.safety.note(task_id, "its client asks to cancel it")
            self.world.safety.causes.unwanted.add(task_id)
            self._line.ask("cancel", {"id": task_id})
            if self._dice.random() < 0.3:  # the cancel may be overtaken, or lost
                self._deliver(task_id)

    def _deliver(self, task_id: str) -> None:
        """Have what a task asked and answered erased."""
        keep_s = self._dice.choice((0.0, 0.0, 4.0))
        self.world.safety.deliver(task_id)
        self._delivering.add(task_id)
        self._line.perform(self._line.session.deliver(task_id, REST, keep_s))

    def crash(self) -> None:
        """Die. Another client awaits what was accepted, and sends what has a key again."""
        submissions, self.submissions = self.submissions, []
        self._line.end()
        self._line.begin()
        self._next = 0
        self._delivering.clear()
        for submission in submissions:
            if submission.is_accepted:
                for index in range(submission.count):
                    self._await(submission.task_id(index))
            elif submission.key and submission.refusal is None:
                again = self._submission(submission.groups)
                again.key, again.digest = submission.key, submission.digest
                self._send(again)

    def _await(self, task_id: str) -> None:
        single = awaiting(task_id)
        self.submissions.append(single)
        self._line.perform(self._line.session.watch(single))

    def tick(self) -> None:
        """One wake-up."""
        if self.world.now < self.paused_until:
            return
        self._line.tick()
        self._line.session.check()
        pending = self._line.session.undelivered()
        for task_id in sorted(self._delivering - pending):
            self.world.safety.delivered(task_id)
        self._delivering &= pending
        outputs, self._line.outputs = self._line.outputs, []
        for output in outputs:
            match output:
                case Settled() if output.submission.refusal is None:
                    self._acknowledged(output.submission)
                case Arrived():
                    self._arrived(output.submission)
                case _:
                    pass

    def _acknowledged(self, submission: Submission) -> None:
        """What is acknowledged must be on the disk, now and for ever."""
        safety = self.world.safety
        for index in range(submission.count):
            if submission.task_id(index) not in safety.accepted:
                safety.fail(submission.task_id(index), "was acknowledged and is not on disk")

    def _arrived(self, submission: Submission) -> None:
        for index, state in enumerate(submission.states):
            if state:
                task_id, payload = submission.task_id(index), submission.payloads[index]
                self.world.safety.outcome(task_id, state, payload or b"")
                if state in FINAL_STATES and self._dice.random() < 0.2:
                    self._deliver(task_id)


class SimPoller:
    """A polling worker behind a client of its own: registers, polls, runs, reports."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.name = f"p{number}"
        self.paused_until = 0.0
        self._line = Line(world, f"{self.name}-web")
        self._pace_s = world.rng.choice((0.1, 1.0, 5.0))
        #: with two it polls on where an answer was lost: nothing but the time of the attempt helps
        self._slots = 1 + number % 2
        self._asked: tuple[int, str] | None = None
        self._is_registered = False
        self._task: tuple[str, bytes] | None = None
        self._until = 0.0

    def crash(self) -> None:
        """The worker dies and is started again; the web process stays, or dies too."""
        self._asked, self._is_registered, self._task = None, False, None
        self.paused_until = self.world.now + self.world.rng.random() * 10
        if self.world.rng.random() < 0.3:
            self._line.end()
            self._line.begin()

    def tick(self) -> None:
        """One wake-up of the web process, and of the worker if it is there."""
        self._line.tick()
        outputs, self._line.outputs = self._line.outputs, []
        if self.world.now < self.paused_until:
            return
        for output in outputs:
            if isinstance(output, Answered) and self._asked is not None:
                request, what = self._asked
                if output.request == request:
                    self._asked = None
                    self._answered(what, output)
        if self._asked is None:
            self._go_on()

    def _answered(self, what: str, answer: Answered) -> None:
        if answer.code == "worker.unknown":
            self._is_registered = False
        elif what == "poll.register":
            self._is_registered = True
        elif what == "poll.next":
            task = answer.body.get("task")
            if isinstance(task, dict):
                self._task = (str(task["task_id"]), task["data"])
                self._until = self.world.now + self.world.rng.random() * self._pace_s
                self.world.counts.executions += 1
                self.world.safety.note(self._task[0], f"{self.name} starts an attempt")
        elif what == "poll.report":
            self._task = None

    def _go_on(self) -> None:
        if not self._is_registered:
            capabilities = {"task_types": ["echo"], "slots": self._slots}
            args: dict[str, object] = {"worker_type": "sim", "capabilities": capabilities}
            self._ask("poll.register", args)
        elif self._task is None:
            self._ask("poll.next", {"wait_s": 2.0})
        elif self.world.now >= self._until:
            self._report(*self._task)

    def _report(self, task_id: str, payload: bytes) -> None:
        is_good = self.world.is_kind or self.world.rng.random() < 0.9
        told: dict[str, object] = {"success": False, "error": "bad luck"}
        if is_good:
            told = {"success": True, "output": msgspec.msgpack.decode(payload), "by": self.name}
        result = msgspec.msgpack.encode(told)
        if is_good:
            self.world.safety.produced.add((task_id, result))
        else:
            self.world.safety.causes.failed(task_id, self.name, result)
        self.world.safety.note(task_id, f"{self.name} reports: {is_good}")
        self._ask("poll.report", {"task_id": task_id, "is_success": is_good, "result": result})

    def _ask(self, what: str, args: dict[str, object]) -> None:
        self._asked = (self._line.ask(what, {"worker_id": self.name, **args}), what)
