"""What a worker's console says of its LLM services: what they offer, and what is paused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from d8mesh.backends.backend import Availability
from d8mesh.backends.services import Service
from d8mesh.core.protocol.messages import OfferedModel
from d8mesh.words import tr, translated

#: Names in one line.
MAX_SHOWN: Final = 8
_BELOW: Final = "  "
#: What people call the kinds of services; an address comes behind it.
_KINDS: Final = {
    "ollama": "Ollama",
    "groq": "Groq",
    "gemini": "Gemini",
    "openai": "OpenAI-compatible service",
    "embedded": "llama.cpp in this worker",
}


class ServicesConsole:
    """Says a line when something happens to a service.

    Args:
        tell: prints a finished line.

    Thread: any.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._no_model = ""
        self._had: set[str] = set()
        self._paused: dict[tuple[str, str], str] = {}

    def changed(
        self,
        service: Service,
        before: Availability,
        together: Availability,
        *,
        types: Sequence[str],
    ) -> None:
        """Say what a service offers, when that has changed.

        Args:
            together: what all services offer.
            types: the task types that a language model answers.
        """
        seen, named = service.seen, tr(" and ").join(types)
        with self._lock:
            if not seen.is_up:
                self._down(service, together, named)
                return
            self._no_model = ""
            is_same = before.is_up and before.url == seen.url
            if not is_same or before.models != seen.models:
                back = tr("back: ") if seen.url in self._had and not is_same else ""
                self._had.add(seen.url)
                self._tell(back + _offer_of(service, named))
                for name, why in list(seen.unfit.items())[:MAX_SHOWN]:
                    told = tr("{model} is not offered: it {why}", model=name, why=translated(why))
                    self._tell(_BELOW + told)
            if seen.warning and before.warning != seen.warning:
                self._tell(tr("note: {text}", text=translated(seen.warning)))

    def _down(self, service: Service, together: Availability, types: str) -> None:
        if together.is_up:
            self._no_model = ""
            why = translated(service.seen.reason)
            self._tell(tr("note: {text}", text=why))
        elif together.reason != self._no_model and "not asked yet" not in together.reason:
            self._no_model = together.reason
            self._tell(
                tr(
                    "no language model here, so {types} are not offered: {why}",
                    types=types,
                    why=translated(together.reason),
                )
            )

    def heard(self, service: str, machine: str, models: Iterable[OfferedModel]) -> None:
        """Say which models are paused, and which answer again."""
        for model in models:
            key = (service, model.name)
            with self._lock:
                was = self._paused.get(key, "")
                if bool(was) == bool(model.paused):
                    continue
                if model.paused:
                    self._paused[key] = model.paused
                else:
                    del self._paused[key]
            named = {"model": model.name, "machine": machine or service}
            if model.paused:
                told = tr(
                    "{model} at {machine} gets no tasks until it answers a probe: {why}",
                    **named,
                    why=translated(model.paused),
                )
            else:
                told = tr("{model} at {machine} answers again", **named)
            self._tell(told)


def _offer_of(service: Service, types: str) -> str:
    seen, kind = service.seen, _KINDS.get(service.backend.kind, service.backend.kind)
    place = tr("{kind} at {url}", kind=kind, url=seen.url) if seen.url else tr(kind)
    others = [name for name in seen.models if name != seen.default]
    told = tr("{place}: {types} with {model}", place=place, types=types, model=seen.default)
    return told + (tr("; others: {models}", models=_listed(others)) if others else "")


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_SHOWN
    told = ", ".join(names[:MAX_SHOWN])
    return told + (tr(" and {count} more", count=more) if more > 0 else "")
