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
MAX_SHOWN_MODELS: Final = 8
_BELOW: Final = "  "
#: What people call the kinds of services; an address comes behind it.
_SERVICE_KINDS: Final = {
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
        #: by the service's identity: why it is down, as it was said
        self._told_down: dict[int, str] = {}
        self._had: set[str] = set()
        self._paused: dict[tuple[str, str], str] = {}

    def begin(self, services: Sequence[Service], *, types: Sequence[str]) -> None:
        """Say what is taken for services once they answer, and where they are looked for."""
        places = dict.fromkeys(_place_of(each, each.backend.url) for each in services)
        if places:
            told = tr(
                "beside these, as many at once as its LLM services answer: {types}; looking for "
                "{places}",
                types=_shortened(types),
                places=_shortened(list(places)),
            )
            self._tell(told)

    def changed(
        self,
        service: Service,
        before: Availability,
        services: Sequence[Service],
        *,
        types: Sequence[str],
        is_being_mended: bool = False,
    ) -> None:
        """Say what a service offers, when that has changed.

        Args:
            services: all that there are, with this one.
            types: the task types that a language model answers.
            is_being_mended: what it warns of is being seen to.
        """
        with self._lock:
            seen = service.seen
            if seen.is_up:
                self._told_down.pop(id(service), None)
                self._say_offer(service, before, _listed(types))
                if seen.warning and before.warning != seen.warning and not is_being_mended:
                    self._tell(tr("note: {text}", text=translated(seen.warning)))
            self._say_who_is_down(services, _listed(types))

    def _say_offer(self, service: Service, before: Availability, types: str) -> None:
        seen = service.seen
        is_same = before.is_up and before.url == seen.url
        if is_same and before.models == seen.models:
            return
        back = tr("back: ") if seen.url in self._had and not is_same else ""
        self._had.add(seen.url)
        self._tell(back + _offer_of(service, types))
        self._tell(_BELOW + _slots_of(service))
        if seen.embedders:
            self._tell(_BELOW + tr("embed with {models}", models=_shortened(seen.embedders)))
        unfit = [each for each in seen.unfit.items() if each[0] not in seen.embedders]
        for name, why in unfit[:MAX_SHOWN_MODELS]:
            told = tr("{model} is not offered: it {why}", model=name, why=translated(why))
            self._tell(_BELOW + told)

    def _say_who_is_down(self, services: Sequence[Service], types: str) -> None:
        """Say of each that is down why, once all have been asked; what is all down in one line."""
        down = [each for each in services if not each.seen.is_up]
        if any(not each.is_asked for each in down):
            return
        news = [each for each in down if self._told_down.get(id(each)) != each.seen.reason]
        self._told_down |= {id(each): each.seen.reason for each in news}
        if not news:
            return
        if len(down) < len(services):
            for each in news:
                self._tell(tr("note: {text}", text=translated(each.seen.reason)))
            return
        why = translated("; ".join(dict.fromkeys(each.seen.reason for each in down)))
        self._tell(
            tr("no language model here, so {types} are not offered: {why}", types=types, why=why)
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
    seen, place = service.seen, _place_of(service, service.seen.url)
    others = [name for name in seen.models if name != seen.default]
    told = tr("{place}: {types} with {model}", place=place, types=types, model=seen.default)
    return told + (tr("; others: {models}", models=_shortened(others)) if others else "")


def _place_of(service: Service, url: str) -> str:
    kind = _SERVICE_KINDS.get(service.backend.kind, service.backend.kind)
    return tr("{kind} at {url}", kind=kind, url=url) if url else tr(kind)


def _slots_of(service: Service) -> str:
    """Say how many requests it gets at once, as far as that is known."""
    slots = {model.name: model.slots for model in service.offered().models}
    if not slots or len(set(slots.values())) == 1:
        most = max(slots.values(), default=1)
        return tr("{count} at once with each model, more if it proves to answer more", count=most)
    named = _shortened([f"{count} with {name}" for name, count in slots.items()])
    return tr("at once {counts}, more if it proves to answer more", counts=named)


def _shortened(names: Sequence[str]) -> str:
    more = len(names) - MAX_SHOWN_MODELS
    told = ", ".join(names[:MAX_SHOWN_MODELS])
    return told + (tr(" and {count} more", count=more) if more > 0 else "")


def _listed(names: Sequence[str]) -> str:
    """Return names as a sentence has them: commas, and a word before the last."""
    *first, last = names
    return (", ".join(first) + tr(" and ") if first else "") + last
