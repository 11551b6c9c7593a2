"""A client ends: what was submitted is acknowledged, or it is said which tasks are not."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from d8mesh.config import Config
from d8mesh.core.broker import admission
from d8mesh.core.protocol.messages import Group
from d8mesh.errors import (
    ForbiddenError,
    NodeClosedError,
    NotAcknowledgedError,
    NotAdmittedError,
    QueueFullError,
    TaskError,
)
from d8mesh.nodes.client import Client, closing, wait
from d8mesh.nodes.client.completion_waiters import MAX_PENDING_TASKS
from d8mesh.nodes.client.outputs import listen
from tests.keyed import endpoint_of
from tests.nodes.mesh import PATIENCE_S, Mesh, free_port, mesh_in, until

ID = r"[0-9a-v]{16}-\d+"


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with mesh_in(tmp_path) as mesh:
        yield mesh


def new_client(mesh: Mesh, port: int) -> Client:
    """A client that the mesh does not close."""
    return Client(endpoint=mesh.endpoint(port), config=mesh.config())


def pending(mesh: Mesh, port: int) -> int:
    return int(mesh.client(port).ask("health", {}, timeout=PATIENCE_S)["tasks_pending"])


# ----------------------------------------------------------------- waiting for the disk


def test_what_was_submitted_is_on_the_disk_when_the_with_is_left(mesh: Mesh) -> None:
    port = mesh.broker()
    with new_client(mesh, port) as client:  # not connected yet
        for n in range(1000):
            client.submit("nobody", {"n": n})
    assert pending(mesh, port) == 1000


def test_every_way_of_submitting_is_waited_for(mesh: Mesh) -> None:
    port = mesh.broker()
    client = new_client(mesh, port)
    client.submit("nobody", {})
    client.submit("nobody", {}, priority=9)  # of another kind: the first submission is sealed
    submits: list[Callable[[], object]] = [
        lambda: client.submit_many("nobody", [{}, {}]),
        lambda: client.node.submitter.enqueue(
            [Group("a", 5, [b"\x80"]), Group("b", 5, [b"\x80"])], PATIENCE_S, is_watched=False
        ),
        lambda: client.submit("nobody", {}, idempotency_key="k"),
    ]
    threads = [threading.Thread(target=submit) for submit in submits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    client.close()
    assert pending(mesh, port) == 7


def test_an_orchestrator_that_comes_later_is_waited_for(mesh: Mesh) -> None:
    port = free_port()
    client = new_client(mesh, port)
    client.submit("nobody", {})
    closing = threading.Thread(target=client.close, args=(PATIENCE_S,))
    closing.start()
    until(lambda: client.node.waiters._is_shut)
    mesh.broker(port=port)
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert pending(mesh, port) == 1


def test_what_is_not_acknowledged_is_raised_with_its_ids_and_the_reason() -> None:
    client = Client(endpoint=f"tcp://127.0.0.1:{free_port()}", config=Config())
    tasks = [client.submit("nobody", {"n": n}) for n in range(25)]
    with pytest.raises(NotAcknowledgedError, match=r"^25 tasks are not ack.*and 15 more") as caught:
        client.close(0.3)
    assert caught.value.task_ids == tuple(task.id for task in tasks)
    assert len(re.findall(ID, str(caught.value))) == closing.SHOWN_IDS
    assert "never connected" in str(caught.value)
    assert "refused" in str(caught.value)
    for twin in (copy.copy(caught.value), copy.deepcopy(caught.value)):
        assert twin.task_ids == caught.value.task_ids
    client.close()  # it is over: said once


def test_the_same_holds_for_leaving_a_with() -> None:
    def use(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Client.close.__wrapped__, "__defaults__", (0.2,))  # type: ignore[attr-defined]
        with Client(endpoint=f"tcp://127.0.0.1:{free_port()}", config=Config()) as client:
            client.submit("nobody", {})

    with pytest.MonkeyPatch.context() as patch, pytest.raises(NotAcknowledgedError):
        use(patch)


def test_an_error_that_is_under_way_stays_and_says_what_is_missing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d8mesh.nodes.client.node.CLOSE_S", 0.2)

    ids: list[str] = []

    def use() -> None:
        with Client(endpoint=f"tcp://127.0.0.1:{free_port()}", config=Config()) as client:
            ids.extend(client.submit("nobody", {}).id for _ in range(20))
            raise LookupError("the user's own")

    with pytest.raises(LookupError, match="the user's own") as caught:
        use()
    (note,) = caught.value.__notes__
    assert re.search(f"20 tasks are not acknowledged, and may be lost: {ID}", note)
    assert {*re.findall(ID, caplog.text)} == {*ids}  # the log has all, as nobody may read the note


def test_a_reason_that_the_error_itself_gives_is_not_said_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    why = "the orchestrator has not let in this machine yet. To let it in, run this"
    for error, times in ((NotAdmittedError(why), 0), (LookupError("the user's own"), 1)):
        caplog.clear()
        missing = NotAcknowledgedError(f"1 task is not acknowledged: t1. {why}", task_ids=["t1"])
        closing.note_missing(error, missing)
        (note,) = error.__notes__
        assert "1 task is not acknowledged: t1" in note
        assert note.count("has not let in") == times
        assert caplog.text.count("has not let in") == times
        assert "t1" in caplog.text


def test_who_leaves_by_ctrl_c_is_not_held_up() -> None:
    begun = time.monotonic()

    def use() -> None:
        with Client(endpoint=f"tcp://127.0.0.1:{free_port()}", config=Config()) as client:
            client.submit("nobody", {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    assert time.monotonic() - begun < closing.CLOSE_S - 1


def test_another_mesh_is_not_waited_for(mesh: Mesh) -> None:
    port = mesh.broker()
    config = Config(mesh="another", interfaces=("127.0.0.1",))
    client = Client(endpoint=mesh.endpoint(port), config=config)
    client.submit("nobody", {})
    with pytest.raises(NotAcknowledgedError, match="'another'"):
        client.close(PATIENCE_S)
    with pytest.raises(ForbiddenError):
        client.submit("nobody", {})


# ------------------------------------------------------------------- what was refused


def test_a_full_queue_is_the_reason(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(admission._RETRY_S, QueueFullError, PATIENCE_S)  # no try in between
    port = mesh.broker(queue_size=3)
    client = new_client(mesh, port)
    client.submit_many("nobody", [{}] * 3)
    waiting = [client.submit("nobody", {}) for _ in range(2)]
    until(lambda: client.node.session.paused_for)
    with pytest.raises(NotAcknowledgedError, match="TASK_QUEUE_SIZE") as caught:
        client.close(1.0)
    assert caught.value.task_ids == tuple(task.id for task in waiting)


def test_a_refusal_of_which_nobody_was_told_is_raised(mesh: Mesh) -> None:
    port = mesh.broker(queue_size=1)
    client = new_client(mesh, port)
    client.submit_many("nobody", [{}])
    untold = client.submit("nobody", {}, timeout=0.6)
    told = client.submit("nobody", {}, timeout=0.7)
    with pytest.raises(QueueFullError):
        told.result(PATIENCE_S)
    until(untold.done)
    with pytest.raises(NotAcknowledgedError, match="TASK_QUEUE_SIZE") as caught:
        client.close()
    assert caught.value.task_ids == (untold.id,)
    assert isinstance(caught.value.__cause__, QueueFullError)
    assert isinstance(caught.value, TaskError)


def test_a_refusal_that_only_a_future_knows_of_is_raised(mesh: Mesh) -> None:
    port = mesh.broker(queue_size=1)
    client = new_client(mesh, port)
    client.submit_many("nobody", [{}])
    untold = client.executor("nobody", timeout=0.6).submit()
    told = client.executor("nobody", timeout=0.7).submit()
    waited = client.submit("nobody", timeout=0.8)
    assert isinstance(told.exception(PATIENCE_S), QueueFullError)
    assert wait([waited], PATIENCE_S, "FIRST_EXCEPTION").done == {waited}
    until(untold.done)
    with pytest.raises(NotAcknowledgedError, match="TASK_QUEUE_SIZE") as caught:
        client.close()
    assert caught.value.task_ids == (untold.task.id, waited.id)


def test_a_flush_that_raises_tells_of_all_and_has_their_ids(mesh: Mesh) -> None:
    port = mesh.broker(queue_size=1)
    client = new_client(mesh, port)
    client.submit_many("nobody", [{}])
    refused = [client.submit("nobody", {}, timeout=0.6) for _ in range(3)]
    with pytest.raises(QueueFullError) as caught:
        client.flush(PATIENCE_S)
    assert caught.value.details["task_ids"] == [task.id for task in refused]
    client.close()


def test_a_client_whose_own_queue_is_full_closes_too() -> None:
    client = Client(endpoint=f"tcp://127.0.0.1:{free_port()}", config=Config())
    for n in range(MAX_PENDING_TASKS):
        client.submit("nobody", {"n": n})
    blocked: list[Exception] = []

    def submit() -> None:
        try:
            client.submit("nobody", {})
        except NodeClosedError as error:
            blocked.append(error)

    thread = threading.Thread(target=submit)
    thread.start()
    with pytest.raises(NotAcknowledgedError) as caught:
        client.close(0.2)
    assert len(set(caught.value.task_ids)) == MAX_PENDING_TASKS
    thread.join(PATIENCE_S)
    assert len(blocked) == 1


# ---------------------------------------------------------------- several, twice, Ctrl-C


def test_all_who_close_at_the_same_time_are_told() -> None:
    client = Client(endpoint=f"tcp://127.0.0.1:{free_port()}", config=Config())
    client.submit("nobody", {})
    told: list[tuple[str, ...]] = []

    def close() -> None:
        try:
            client.close(0.5)
        except NotAcknowledgedError as error:
            told.append(error.task_ids)

    threads = [threading.Thread(target=close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(told) == 4
    assert len(set(told)) == 1


def test_nothing_is_taken_from_the_moment_of_closing() -> None:
    client = Client(endpoint=f"tcp://127.0.0.1:{free_port()}", config=Config())
    client.submit("nobody", {})
    closing = threading.Thread(target=_close_quietly, args=(client, 1.0))
    closing.start()
    until(lambda: client.node.waiters._is_shut)
    with pytest.raises(NodeClosedError):
        client.submit("nobody", {})
    with pytest.raises(NodeClosedError):
        client.submit_many("nobody", [{}])
    closing.join(PATIENCE_S)


def _close_quietly(client: Client, timeout: float) -> None:
    with contextlib.suppress(NotAcknowledgedError):
        client.close(timeout)


@pytest.mark.skipif(sys.platform == "win32", reason="a signal to oneself")
def test_ctrl_c_ends_the_wait_and_the_client(caplog: pytest.LogCaptureFixture) -> None:
    client = Client(endpoint=f"tcp://127.0.0.1:{free_port()}", config=Config())
    task = client.submit("nobody", {})
    begun = time.monotonic()

    def interrupt() -> None:
        until(lambda: client.node.waiters._is_shut)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt) as caught:
        client.close(PATIENCE_S)
    assert task.id in caught.value.__notes__[0]
    assert time.monotonic() - begun < PATIENCE_S - 5
    assert task.id in caplog.text
    with pytest.raises(NodeClosedError):
        client.submit("nobody", {})


def test_a_listener_may_close_its_client(mesh: Mesh) -> None:
    """It runs on the I/O thread, which must not wait for itself."""
    port = mesh.broker()
    worker = mesh.worker(port)
    worker.register("echo", lambda data: data)
    mesh.run(worker)
    client = new_client(mesh, port)
    task = client.submit("echo", {})
    task.wait_accepted(PATIENCE_S)
    listen(client.node.runner, task.id, lambda stream: client.close())
    until(lambda: not client.node.runner._thread.is_alive())


# ------------------------------------------------------------------- ends of programs


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    code = "import sys\nfrom d8mesh import Client\nfrom d8mesh.config import Config\n"
    return subprocess.run(
        [sys.executable, "-c", code + textwrap.dedent(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


OPEN = """
    config = Config(mesh=sys.argv[2], interfaces=("127.0.0.1",))
    client = Client(endpoint=sys.argv[1], config=config)
"""


def said(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a program said of what is missing; that nobody offers the type is no matter."""
    return "".join(row for row in done.stderr.splitlines() if not row.startswith("submit.warning"))


@pytest.mark.parametrize(
    "end",
    [
        "client.submit('nobody', {})",
        "client.submit('nobody', {}); client.close(10)",
        "client.submit('nobody', {}); client = None",
        "client.submit('nobody', {}); sys.exit(0)",
        "with client: client.submit('nobody', {})",
        "import threading\n    threading.Timer(0.2, client.submit, ['nobody', {}]).start()",
    ],
)
def test_a_program_that_just_ends_has_its_task_on_the_disk(mesh: Mesh, end: str) -> None:
    port = mesh.broker()
    done = run(f"{OPEN}\n    {end}", mesh.endpoint(port), mesh.mesh)
    assert (done.returncode, said(done)) == (0, "")
    assert pending(mesh, port) == 1


def test_a_program_that_ends_without_an_orchestrator_says_so() -> None:
    program = f"""
    from d8mesh.nodes.client import closing
    closing.CLOSE_S, closing.PRINT_AFTER_S = 0.8, 0.2
    {OPEN.strip()}
    print(client.submit("nobody", {{}}).id)
    """
    done = run(program, endpoint_of(free_port()), "m")
    assert done.returncode == 0
    first, second = done.stderr.splitlines()
    assert first.startswith("d8mesh: waiting up to 1 s for the acknowledgement of 1 task")
    assert second.startswith("d8mesh: 1 task is not acknowledged, and may be lost: ")
    assert done.stdout.strip() in second
    assert "the connection is refused" in second


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks there")
def test_a_forked_child_leaves_its_parents_tasks_alone(mesh: Mesh) -> None:
    port = mesh.broker()
    program = f"""
    import os, warnings
    warnings.simplefilter("ignore")
    {OPEN.strip()}
    with client:
        client.submit("nobody", {{}})
        if os.fork() == 0:
            client.close()
            sys.exit(7)
        print(os.waitstatus_to_exitcode(os.wait()[1]))
    """
    done = run(program, mesh.endpoint(port), mesh.mesh)
    assert (done.returncode, done.stdout.strip(), said(done)) == (0, "7", "")
    assert pending(mesh, port) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks there")
def test_a_child_of_multiprocessing_that_ends_has_its_task_on_the_disk(mesh: Mesh) -> None:
    port = mesh.broker()
    program = f"""
    import multiprocessing
    def work():
        {textwrap.indent(textwrap.dedent(OPEN), " " * 8).strip()}
        client.submit("nobody", {{}})
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    """
    done = run(program, mesh.endpoint(port), mesh.mesh)
    assert (done.returncode, said(done)) == (0, "")
    assert pending(mesh, port) == 1
