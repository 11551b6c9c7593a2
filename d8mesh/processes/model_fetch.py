"""Pulls the configured default model where this machine's own Ollama lacks it, with its progress.

The worker offers meanwhile what is there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from d8mesh.backends.services import Service
from d8mesh.backends.services.changes import pull_model
from d8mesh.core.protocol.model_names import matching
from d8mesh.errors import BackendUnavailableError, D8Error, TaskCancelledError
from d8mesh.processes.pull_progress import pull_view
from d8mesh.words import tr, translated


class ModelFetch:
    """Pulls one model once, if it is missing.

    Args:
        model: its name; None: nothing is to be pulled.
        tell: says a finished line to people.

    Thread: any.
    """

    def __init__(self, model: str | None, *, tell: Callable[[str], None]) -> None:
        self._model, self._tell = model, tell
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._service: Service | None = None
        self._lock = threading.Lock()

    def seen(self, service: Service) -> bool:
        """Begin to pull if this Ollama of this machine lacks the model; only the first time.

        Returns:
            Whether it is being pulled there.
        """
        name, seen = self._model, service.seen
        if name is None or not (seen.url and service.is_local and service.managed is not None):
            return False
        if service.has(name) is not None or matching(name, seen.unfit) is not None:
            return False
        with self._lock:
            if self._thread is not None or self._stop.is_set():
                return service is self._service
            self._service = service
            self._thread = threading.Thread(
                target=self._pull, args=(service, name), name="pull", daemon=True
            )
            self._thread.start()
        return True

    def close(self, wait_s: float) -> None:
        """Stop pulling; what has come stays."""
        self._stop.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(wait_s)

    def _pull(self, service: Service, name: str) -> None:
        self._tell(tr("DEEPSEEK_MODEL={model} is not installed: pulling it", model=name))
        view = pull_view(name, tell=self._tell)
        try:
            pull_model(service, name, view.show, self._stop.is_set)
        except TaskCancelledError:
            return
        except D8Error as error:
            self._fails(service, name, error)
        else:
            view.close()
            self._tell(tr("{model} is installed", model=name))
        finally:
            view.close()

    def _fails(self, service: Service, name: str, error: D8Error) -> None:
        if isinstance(error, BackendUnavailableError):
            with self._lock:
                self._thread = None  # at the next look
        why = translated(str(error))
        self._tell(tr("{model} could not be pulled: {why}", model=name, why=why))
