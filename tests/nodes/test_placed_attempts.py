"""Attempts that run at services: beside the slots, and in all else as any other."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.route import KnownBroker
from d8mesh.errors import BackendUnavailableError, TaskFailedError
from d8mesh.handlers import TaskContext
from d8mesh.nodes.worker import Worker, placed_threads, slots
from tests.keyed import SERVER
from tests.nodes import process_handlers
from tests.nodes.mesh import PATIENCE_S, Mesh, free_port, mesh_in, until
from tests.nodes.scripted_broker import ScriptedBroker

SPOT = m.Placement("m1:11434", "m:1b", 2, {"num_ctx": 8192})
MODEL = m.OfferedModel("m:1b")
SERVICE = m.OfferedService("m1:11434", "ollama", "pi", "", False, 0, "m:1b", [MODEL])


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with mesh_in(tmp_path) as mesh:
        yield mesh


@pytest.fixture
def broker() -> Iterator[ScriptedBroker]:
    with closing(ScriptedBroker(free_port())) as broker:
        yield broker


def begin(mesh: Mesh, worker: Worker, *brokers: ScriptedBroker) -> None:
    """Start a worker and have it welcomed."""
    worker.start()
    mesh.at_end(lambda: worker.stop(drain_s=1.0))
    for broker in brokers:
        broker.until(m.WorkerHello)
    assert worker.wait_joined(PATIENCE_S)


class Gate:
    """A handler that waits until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Semaphore(0), threading.Event()
        self.contexts: list[TaskContext] = []

    def __call__(self, data: dict[str, Any], context: TaskContext) -> str:
        self.contexts.append(context)
        self.begun.release()
        while not self.go.wait(0.01):
            context.raise_if_cancelled()
        return "done"

    def await_begun(self, times: int = 1) -> None:
        for _ in range(times):
            assert self.begun.acquire(timeout=PATIENCE_S)


def test_many_run_beside_one_slot_and_know_where(mesh: Mesh, broker: ScriptedBroker) -> None:
    worker, gate = mesh.worker(broker.endpoint, slots=1), Gate()
    worker.register("chat", gate)
    worker.register("echo", lambda data, context: [data["x"], context.placement])
    begin(mesh, worker, broker)
    ids = [broker.hand_out("chat", placement=SPOT) for _ in range(20)]
    gate.await_begun(20)
    assert {context.task_id for context in gate.contexts} == set(ids)
    assert all(context.placement == SPOT for context in gate.contexts)
    broker.hand_out("echo", {"x": 1})
    assert broker.result()["output"] == [1, None]  # the slot is free
    gate.go.set()
    done: list[str] = []
    while len(done) < 20:
        results = broker.until(m.Results)
        done += results.ids
        assert results.window <= 2  # the slot, and one fetched ahead
        broker.send(m.Received(results.seq))
    assert sorted(done) == sorted(ids)


def test_a_cancelled_one_ends_and_nothing_is_told_of_it(mesh: Mesh, broker: ScriptedBroker) -> None:
    worker, gate = mesh.worker(broker.endpoint), Gate()
    worker.register("chat", gate)
    begin(mesh, worker, broker)
    task = broker.hand_out("chat", placement=SPOT)
    gate.await_begun()
    broker.send(m.Stop([task], "cancelled"))
    until(lambda: worker.status()["running"] == 0)  # though the gate is closed
    gate.go.set()
    broker.hand_out("chat", placement=SPOT)
    assert broker.result()["output"] == "done"
    assert not [each for each in broker.heard if isinstance(each, m.Results)]


def test_its_partial_output_reaches_who_listens(mesh: Mesh, broker: ScriptedBroker) -> None:
    worker, gate = mesh.worker(broker.endpoint), Gate()

    def talk(data: dict[str, Any], context: TaskContext) -> str:
        context.emit("one")
        gate(data, context)
        context.emit("two")
        return "said"

    worker.register("talk", talk)
    begin(mesh, worker, broker)
    task = broker.hand_out("talk", placement=SPOT)
    gate.await_begun()
    broker.send(m.Listening([task], True))
    until(lambda: task in worker._slots.listened)  # type: ignore[union-attr]
    gate.go.set()
    chunks = broker.until(m.Chunks)
    assert (chunks.ids, chunks.seqs) == ([task], [1])
    assert broker.result()["output"] == "said"


def test_one_past_its_time_fails_is_shown_and_leaves_the_slots_alone(
    mesh: Mesh, broker: ScriptedBroker
) -> None:
    worker, go = mesh.worker(broker.endpoint, slots=1), threading.Event()
    shown: list[str] = []
    worker.show_failures(shown.append)

    def deaf(data: dict[str, Any]) -> None:
        go.wait(PATIENCE_S)

    worker.register("deaf", deaf)
    worker.register("echo", lambda data: "heard")
    begin(mesh, worker, broker)
    broker.hand_out("deaf", placement=SPOT, timeout_s=0.2)
    assert "not finished after 0.2 s" in str(broker.result()["error"])
    assert "in deaf" in shown[0]
    assert worker.status()["stuck"] == 0
    broker.hand_out("echo")
    assert broker.result()["output"] == "heard"
    go.set()


def test_a_handler_that_fails_is_a_failure_with_its_traceback(
    mesh: Mesh, broker: ScriptedBroker
) -> None:
    worker = mesh.worker(broker.endpoint)

    def broken(data: dict[str, Any]) -> None:
        raise ZeroDivisionError("by nought")

    worker.register("broken", broken)
    begin(mesh, worker, broker)
    broker.hand_out("broken", placement=SPOT)
    result = broker.result()
    assert "by nought" in str(result["error"])
    assert "in broken" in str(result["traceback"])


def test_what_its_service_cannot_do_now_comes_back_at_once(
    mesh: Mesh, broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "BUSY_PAUSE_S", 4 * PATIENCE_S)
    worker = mesh.worker(broker.endpoint, slots=1)

    def busy(data: dict[str, Any]) -> None:
        raise BackendUnavailableError("HTTP 503")

    worker.register("busy", busy)
    begin(mesh, worker, broker)
    ids = [broker.hand_out("busy", placement=SPOT) for _ in range(5)]
    returned: list[str] = []
    while len(returned) < 5:
        release = broker.until(m.Release)
        assert "HTTP 503" in release.reason
        returned += release.ids
    assert sorted(returned) == sorted(ids)


def test_that_a_model_is_paused_is_told_before_what_failed_there(
    mesh: Mesh, broker: ScriptedBroker
) -> None:
    worker = mesh.worker(broker.endpoint)
    worker.offer_services(["chat"], [SERVICE])

    def fails(data: dict[str, Any]) -> None:
        worker.measured(SERVICE.id, [m.OfferedModel("m:1b", paused=f"HTTP 500, {data['n']}")])
        raise BackendUnavailableError("HTTP 500")

    worker.register("chat", fails)
    begin(mesh, worker, broker)
    broker.until(m.Services)
    for n in range(50):
        broker.hand_out("chat", {"n": n}, placement=SPOT)
        broker.until(m.Release)
        assert f"HTTP 500, {n}" in broker.pauses()
        worker.measured(SERVICE.id, [MODEL])
        while broker.until(m.Measured).models[0].paused:
            pass


def test_services_are_told_when_they_change_and_after_a_restart_with_what_runs(
    mesh: Mesh, broker: ScriptedBroker
) -> None:
    worker, gate = mesh.worker(broker.endpoint), Gate()
    worker.register("chat", gate)
    begin(mesh, worker, broker)
    worker.offer_services(["chat"], [SERVICE])
    assert broker.until(m.Services) == m.Services(["chat"], [SERVICE], [], [], [])
    task = broker.hand_out("chat", placement=SPOT)
    gate.await_begun()
    worker.measured(SERVICE.id, [m.OfferedModel("m:1b", slots=2)])
    assert broker.until(m.Measured).models[0].slots == 2
    broker.restart()
    assert broker.until(m.WorkerHello).held_ids == [task]
    told = broker.until(m.Services)
    assert (told.held_ids, told.held_services, told.held_models) == (
        [task], [SPOT.service], [SPOT.model],
    )  # fmt: skip
    assert told.services[0].models[0].slots == 2
    gate.go.set()
    assert broker.result()["output"] == "done"


def test_a_drain_lets_it_end_and_gives_what_comes_meanwhile_back(
    mesh: Mesh, broker: ScriptedBroker
) -> None:
    worker, gate = mesh.worker(broker.endpoint), Gate()
    worker.offer_services(["chat"], [SERVICE])
    worker.register("chat", gate)
    begin(mesh, worker, broker)
    broker.until(m.Services)
    broker.hand_out("chat", placement=SPOT)
    gate.await_begun()
    stopper = threading.Thread(target=worker.stop)
    stopper.start()
    while broker.until(m.Services).services:
        pass
    late = broker.hand_out("chat", placement=SPOT)
    assert broker.until(m.Release).ids == [late]
    gate.go.set()
    assert broker.result()["output"] == "done"
    broker.until(m.Goodbye)
    stopper.join(PATIENCE_S)
    assert len(gate.contexts) == 1


def test_what_no_thread_is_left_for_waits_and_goes_back_in_a_drain(
    mesh: Mesh, broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placed_threads, "MAX_PLACED_THREADS", 2)
    worker, gate = mesh.worker(broker.endpoint), Gate()
    worker.register("chat", gate)
    begin(mesh, worker, broker)
    ids = [broker.hand_out("chat", placement=SPOT) for _ in range(4)]
    gate.await_begun(2)
    while set(broker.until(m.Heartbeat).held_ids) != set(ids):
        pass
    assert worker.status()["running"] == 2
    stopper = threading.Thread(target=worker.stop)
    stopper.start()
    assert sorted(broker.until(m.Release).ids) == sorted(ids[2:])
    gate.go.set()
    done: list[str] = []
    while len(done) < 2:
        results = broker.until(m.Results)
        done += results.ids
        broker.send(m.Received(results.seq))
    broker.until(m.Goodbye)
    stopper.join(PATIENCE_S)


def test_two_orchestrators_place_at_one_worker_at_once(mesh: Mesh, broker: ScriptedBroker) -> None:
    with closing(ScriptedBroker(free_port(), "other")) as other:
        worker, gate = mesh.worker(broker.endpoint, slots=1), Gate()
        worker.offer_services(["chat"], [SERVICE])
        worker.register("chat", gate)
        begin(mesh, worker, broker)
        known = KnownBroker("other", ("127.0.0.1",), other.port, None, SERVER.public)
        worker._runner._orchestrators.told(known)  # type: ignore[union-attr]
        other.until(m.WorkerHello)
        for each in (broker, other):
            assert each.until(m.Services).services == [SERVICE]
        tasks = [each.hand_out("chat", placement=SPOT) for each in (broker, other)]
        gate.await_begun(2)
        for each, task in zip((broker, other), tasks, strict=True):
            beat = each.until(m.Heartbeat)
            while not beat.held_ids:
                beat = each.until(m.Heartbeat)
            assert (beat.held_ids, beat.window) == ([task], 1)
        gate.go.set()
        for each in (broker, other):
            assert each.result()["output"] == "done"


def test_a_process_handler_knows_where_it_runs_and_is_killed_when_it_is_cancelled(
    mesh: Mesh, broker: ScriptedBroker
) -> None:
    worker = mesh.worker(broker.endpoint, slots=1)
    worker.register("where", process_handlers.where_placed, process=True)
    worker.register("sleep", process_handlers.hang, process=True)
    begin(mesh, worker, broker)
    broker.hand_out("where", placement=SPOT)
    where = broker.result()["output"]
    assert isinstance(where, list)
    assert where[0] != os.getpid()
    assert where[1:] == [SPOT.service, SPOT.model, SPOT.waiting, SPOT.options]
    task = broker.hand_out("sleep", placement=SPOT)
    until(lambda: worker.status()["running"] == 1)
    broker.send(m.Stop([task], "cancelled"))
    until(lambda: worker.status()["running"] == 0)


def test_a_model_is_loaded_ahead_off_the_io_thread_one_at_a_time_for_each_service(
    mesh: Mesh, broker: ScriptedBroker
) -> None:
    worker, begun, go = mesh.worker(broker.endpoint), threading.Semaphore(0), threading.Event()
    loaded: list[m.Placement] = []

    def load(placement: m.Placement) -> None:
        loaded.append(placement)
        begun.release()
        go.wait(PATIENCE_S)
        raise BackendUnavailableError("it does not fit")

    begin(mesh, worker, broker)
    broker.send(m.Warm(SPOT))  # nothing can load it yet
    worker.on_warm(load)
    worker.register("echo", lambda data: "well")
    other = m.Placement("m2:11434", "n")
    broker.send(m.Warm(SPOT), m.Warm(m.Placement(SPOT.service, "n")), m.Warm(other))
    for _ in range(2):
        assert begun.acquire(timeout=PATIENCE_S)
    broker.hand_out("echo")
    assert broker.result()["output"] == "well"
    assert loaded == [SPOT, other]
    go.set()
    until(lambda: not [t for t in threading.enumerate() if t.name == "warm-up"])
    broker.send(m.Warm(SPOT))
    assert begun.acquire(timeout=PATIENCE_S)
    assert loaded == [SPOT, other, SPOT]


def test_threads_that_have_nothing_to_do_end(
    mesh: Mesh, broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placed_threads, "IDLE_THREAD_S", 0.2)
    worker = mesh.worker(broker.endpoint)
    worker.register("who", lambda data: threading.current_thread().name)
    begin(mesh, worker, broker)
    for _ in range(3):
        broker.hand_out("who", placement=SPOT)
        assert broker.result()["output"] == "placed-0"  # the same, while it lasts
    pool = worker._slots._placed  # type: ignore[union-attr]
    until(lambda: not pool.threads)
    broker.hand_out("who", placement=SPOT)
    assert broker.result()["output"] == "placed-0"


def test_what_the_machine_has_no_thread_for_goes_back(
    mesh: Mesh, broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = mesh.worker(broker.endpoint)
    worker.register("chat", lambda data: "done")
    begin(mesh, worker, broker)
    start = threading.Thread.start

    def start_but_placed(thread: threading.Thread) -> None:
        if thread.name.startswith("placed-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_but_placed)
        task = broker.hand_out("chat", placement=SPOT)
        release = broker.until(m.Release)
    assert (release.ids, release.reason) == ([task], slots.NO_THREAD.decode())
    broker.hand_out("chat", placement=SPOT)
    assert broker.result()["output"] == "done"


def test_an_older_orchestrator_that_knows_no_services_is_served_as_before(
    mesh: Mesh, broker: ScriptedBroker
) -> None:
    worker = mesh.worker(broker.endpoint)
    worker.register("chat", lambda data, context: str(context.placement))
    worker.offer_services(["chat"], [SERVICE])
    worker.start()
    mesh.at_end(lambda: worker.stop(drain_s=1.0))
    hello = broker.until(m.WorkerHello)
    assert (hello.task_types, hello.window) == (["chat"], 0)
    broker.until(m.Services)
    broker.send(m.Refused(0, "protocol.error", "not a message to a broker"))
    while broker.until(m.Heartbeat).window == 0:
        pass
    broker.hand_out("chat")
    assert broker.result()["output"] == "None"


def serve(mesh: Mesh, port: int, service: m.OfferedService, slots: int = 1) -> tuple[Worker, Gate]:
    """Run a worker that answers chats with this service."""
    worker, gate = mesh.worker(port, slots=slots), Gate()
    worker.register("agent_action", gate)
    worker.register("echo", lambda data: data["x"])
    worker.offer_services(["agent_action"], [service])
    worker.offer(["echo"])
    mesh.run(worker)
    return worker, gate


def test_a_real_orchestrator_places_as_many_as_the_services_have_slots(mesh: Mesh) -> None:
    port = mesh.broker()
    many = m.OfferedModel("m:1b", is_loaded=True, slots=3, requests=1, output_tokens=9)
    service = m.OfferedService("m1:11434", "ollama", "pi", "", False, 0, "m:1b", [many])
    _, gate = serve(mesh, port, service)
    client = mesh.client(port)
    tasks = [client.submit("agent_action", {"model": "m:1b"}) for _ in range(5)]
    gate.await_begun(3)
    assert client.call("echo", {"x": 1}, timeout=PATIENCE_S)["output"] == 1
    assert len(gate.contexts) == 3
    placements = [context.placement for context in gate.contexts]
    assert all(each and (each.service, each.model) == ("m1:11434", "m:1b") for each in placements)
    gate.go.set()
    for task in tasks:
        assert task.result(PATIENCE_S)["output"] == "done"


def test_what_runs_at_a_service_goes_on_while_a_real_orchestrator_is_started_anew(
    mesh: Mesh,
) -> None:
    port = mesh.broker()
    _, gate = serve(mesh, port, SERVICE, slots=4)
    client = mesh.client(port)
    first, second = (client.submit("agent_action", {}) for _ in range(2))
    gate.await_begun()
    mesh.stop_broker(*mesh.brokers[0])
    mesh.broker(port=port)
    assert client.call("echo", {"x": 1}, timeout=PATIENCE_S)["output"] == 1
    assert len(gate.contexts) == 1  # its slot is known to be taken
    gate.go.set()
    for task in (first, second):
        assert task.result(PATIENCE_S)["output"] == "done"
    assert len({context.task_id for context in gate.contexts}) == len(gate.contexts) == 2


def test_what_goes_on_at_a_service_may_take_longer_than_what_runs_in_a_slot(mesh: Mesh) -> None:
    port = mesh.broker(task_timeout_s=1.0)
    worker, gate = serve(mesh, port, SERVICE)
    worker.register("echo", Gate())  # never let go
    client = mesh.client(port)
    task = client.submit("agent_action", {})
    gate.await_begun()
    for _ in range(2):
        with pytest.raises(TaskFailedError, match="not finished after 1 s"):
            client.call("echo", {}, max_attempts=1, timeout=PATIENCE_S)
    gate.go.set()
    assert task.result(PATIENCE_S)["output"] == "done"
    assert [context.attempt for context in gate.contexts] == [1]


def test_two_real_orchestrators_place_at_one_worker(mesh: Mesh) -> None:
    ports = [mesh.broker(name, is_announced=True) for name in ("o1", "o2")]
    worker, gate = mesh.worker(None, slots=1), Gate()
    worker.register("agent_action", gate)
    worker.offer_services(["agent_action"], [SERVICE])
    worker.offer([])
    mesh.run(worker)
    until(lambda: len(worker.status()["orchestrators"]) == 2)  # type: ignore[arg-type]
    tasks = [mesh.client(port).submit("agent_action", {}) for port in ports]
    gate.await_begun(2)
    gate.go.set()
    for task in tasks:
        assert task.result(PATIENCE_S)["output"] == "done"


def test_a_placed_task_is_cancelled_by_who_submitted_it(mesh: Mesh) -> None:
    port = mesh.broker()
    worker, gate = serve(mesh, port, SERVICE)
    task = mesh.client(port).submit("agent_action", {})
    gate.await_begun()
    assert task.cancel()
    until(lambda: worker.status()["running"] == 0)
