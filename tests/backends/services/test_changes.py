"""Models are installed one at a time and only where there is room."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from d8mesh.backends.backend import PullProgress
from d8mesh.backends.services import Service
from d8mesh.backends.services.changes import (
    RESERVE_BYTES,
    disk_of,
    gigabytes,
    pull_model,
    remove_model,
)
from d8mesh.errors import InvalidTaskError, TaskCancelledError
from tests.backends.scripted import ManagedBackend, ScriptedBackend, up
from tests.end_to_end.processes import until


def service_of(backend: ScriptedBackend) -> Service:
    service = Service(backend)
    service.look()
    return service


def managed(url: str = "http://127.0.0.1:7100") -> tuple[ManagedBackend, Service]:
    backend = ManagedBackend(url, up("a", url=url))
    return backend, service_of(backend)


def test_a_pull_tells_its_progress_and_is_seen_by_the_next_look() -> None:
    _, service = managed()
    heard: list[PullProgress] = []
    pull_model(service, "new:1b", heard.append, lambda: False)
    assert [each.status for each in heard] == ["pulling manifest", "pulling abc", "success"]
    assert service.needs_look.is_set()
    service.look()
    assert service.has("new:1b") == "new:1b"
    remove_model(service, "new:1b", heard.append, lambda: False)
    service.look()
    assert service.has("new:1b") is None


def test_where_the_disk_is_too_small_it_is_refused_with_figures() -> None:
    backend, service = managed()
    backend.steps = (PullProgress("pulling abc", 500_000_000, 4_700_000_000),)
    free = 4_200_000_000 + RESERVE_BYTES
    pull_model(service, "new:7b", lambda each: None, lambda: False, free_bytes=lambda: free)
    with pytest.raises(InvalidTaskError, match=r"new:7b takes 4\.7 GB, 4\.7 GB are free"):
        pull_model(service, "new:7b", lambda each: None, lambda: False, free_bytes=lambda: free - 1)
    assert not service.changing.locked()


def test_only_the_disk_of_this_machine_is_known() -> None:
    assert disk_of(managed()[1])() is not None
    assert disk_of(managed("http://10.9.9.9:11434")[1])() is None


@pytest.fixture
def pulling() -> Iterator[tuple[ManagedBackend, Service]]:
    """A service that pulls `first:1b` until its backend's `waits` is set."""
    backend, service = managed()
    backend.waits = threading.Event()
    first = threading.Thread(
        target=pull_model, args=(service, "first:1b", lambda each: None, lambda: False)
    )
    first.start()
    until(lambda: service.changed == "first:1b", "the first pull to begin")
    yield backend, service
    backend.waits.set()
    first.join(30)


def test_a_second_change_waits_for_the_first_and_says_for_which(
    pulling: tuple[ManagedBackend, Service],
) -> None:
    backend, service = pulling
    assert backend.waits is not None
    heard: list[str] = []

    def hear(progress: PullProgress) -> None:
        heard.append(progress.status)
        if progress.status == "waiting for first:1b" and backend.waits is not None:
            assert backend.seen.models == ("a",)
            backend.waits.set()

    pull_model(service, "second:1b", hear, lambda: False)
    assert heard[0] == "waiting for first:1b"
    assert heard[-1] == "success"
    assert backend.seen.models == ("a", "first:1b", "second:1b")
    assert not service.changing.locked()


def test_who_waits_for_another_change_can_be_cancelled(
    pulling: tuple[ManagedBackend, Service],
) -> None:
    backend, service = pulling
    heard: list[PullProgress] = []
    with pytest.raises(TaskCancelledError, match="while it waited for first:1b"):
        pull_model(service, "second:1b", heard.append, lambda: bool(heard))
    with pytest.raises(TaskCancelledError, match="while it waited for first:1b"):
        remove_model(service, "a", heard.append, lambda: True)
    assert backend.seen.models == ("a",)


def test_a_service_that_manages_no_models_says_so() -> None:
    service = service_of(ScriptedBackend("http://127.0.0.1:1", up("a")))
    with pytest.raises(InvalidTaskError, match="kind ollama are not managed"):
        remove_model(service, "a", lambda each: None, lambda: False)


def test_sizes_are_told_for_people() -> None:
    assert [gigabytes(size) for size in (93_000_000, 1_340_000_000)] == ["93 MB", "1.3 GB"]
