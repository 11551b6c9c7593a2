"""Models of a service, installed and removed: one at a time, and only where there is room."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Final

from d8mesh.backends.backend import Managed, PullProgress
from d8mesh.backends.services.service import Service
from d8mesh.edge.room import disk_free_bytes, models_folder
from d8mesh.errors import InvalidTaskError, TaskCancelledError

#: What a pull leaves free: a full disk stops more than Ollama.
RESERVE_BYTES: Final = 500_000_000
#: How often a change that waits for another one looks whether it is cancelled, and says so.
TURN_LOOK_S: Final = 0.25

FreeBytes = Callable[[], int | None]


def disk_of(service: Service) -> FreeBytes:
    """Return what tells the free disk of a service's machine; nobody knows another machine's."""
    if not service.is_local:
        return lambda: None
    return lambda: disk_free_bytes(models_folder(os.environ))


def pull_model(
    service: Service,
    name: str,
    on_progress: Callable[[PullProgress], None],
    is_cancelled: Callable[[], bool],
    *,
    free_bytes: FreeBytes | None = None,
) -> None:
    """Install a model at a service; what has come stays there for another try.

    Another change of the service is waited for, and told as progress.

    Args:
        free_bytes: tells the free disk there; None for what is known of the service's machine.

    Raises:
        InvalidTaskError: there is no such model, no room for it, or nobody can install there.
        TaskCancelledError: `is_cancelled` said so.
        BackendError: it cannot be had now.
    """
    managed = _managed(service)
    free, largest = free_bytes or disk_of(service), 0

    def heed(progress: PullProgress) -> None:
        nonlocal largest
        if progress.total_bytes > largest:
            largest = progress.total_bytes
            require_room(service, name, largest, largest - progress.completed_bytes, free())
        on_progress(progress)

    with _turn(service, name, on_progress, is_cancelled):
        managed.pull(name, heed, is_cancelled)
    service.needs_look.set()


def remove_model(
    service: Service,
    name: str,
    on_progress: Callable[[PullProgress], None],
    is_cancelled: Callable[[], bool],
) -> None:
    """Delete a model from a service's disk, when no other change of the service is under way.

    Raises:
        InvalidTaskError: nobody can remove there, or there is no such model.
        TaskCancelledError: `is_cancelled` said so before its turn came.
        BackendError: it cannot be removed now.
    """
    managed = _managed(service)
    with _turn(service, name, on_progress, is_cancelled):
        managed.remove(name)
    service.needs_look.set()


def require_room(
    service: Service, name: str, size_bytes: int, missing_bytes: int, free_bytes: int | None
) -> None:
    """Refuse a model that the disk has no room for.

    Raises:
        InvalidTaskError: it says how much there is.
    """
    if free_bytes is not None and missing_bytes + RESERVE_BYTES > free_bytes:
        raise InvalidTaskError(
            f"not enough room on {service.machine}: {name} takes {gigabytes(size_bytes)}, "
            f"{gigabytes(free_bytes)} are free"
        )


def gigabytes(size_bytes: int) -> str:
    """Return a size for people."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:.0f} MB"


def _managed(service: Service) -> Managed:
    managed = service.managed
    if managed is None:
        kind = service.backend.kind
        raise InvalidTaskError(f"models of a service of kind {kind} are not managed by the mesh")
    return managed


@contextlib.contextmanager
def _turn(
    service: Service,
    name: str,
    on_progress: Callable[[PullProgress], None],
    is_cancelled: Callable[[], bool],
) -> Iterator[None]:
    """Wait until no other change of the service is under way, and keep others waiting."""
    while not service.changing.acquire(timeout=TURN_LOOK_S):
        if is_cancelled():
            raise TaskCancelledError(f"cancelled while it waited for {service.changed}")
        on_progress(PullProgress(f"waiting for {service.changed}"))
    try:
        service.changed = name
        yield
    finally:
        service.changing.release()
