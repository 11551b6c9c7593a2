"""A local Ollama: where it is, which models chat there, and chats through the ``ollama`` package.

The package is imported when the first chat begins (it costs 20 MB and a fifth of a
second); probing is plain HTTP. Only the configured addresses are spoken to, without
redirects, proxies or keys from the environment, and everything that comes back is
bounded: a service that misbehaves fails a task, never the worker. Pulls no models, and uses
none of Ollama's cloud.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from d8mesh.backends.backend import Availability, ChatRun
from d8mesh.backends.ollama.catalogue import (
    IS_CLOUD,
    IS_EMBEDDING,
    Catalogue,
    Installed,
    is_cloud_name,
    is_embedding_name,
)
from d8mesh.backends.ollama.chat import asked
from d8mesh.backends.ollama.embed import embeddings
from d8mesh.backends.streaming import completion, said
from d8mesh.config import Config
from d8mesh.core.protocol.chat import ChatRequest, Completion, EmbeddingRequest, Embeddings
from d8mesh.core.protocol.model_names import matching
from d8mesh.errors import BackendError, BackendUnavailableError, InvalidTaskError

#: Where an Ollama is looked for when no address is set: D8's own port, then Ollama's.
DEFAULT_URLS: Final = ("http://localhost:7100", "http://localhost:11434")
#: A probe answers within this many seconds, or the service counts as down.
PROBE_S: Final = 3.0
#: What was offered is asked again after this many seconds.
PROBE_AGE_S: Final = 30.0
#: What a model cannot do without a capability.
_LACKS: Final = {
    "tools": "cannot call tools",
    "vision": "cannot see pictures and would pass over them in silence",
}
#: Model names in one sentence.
MAX_NAMED: Final = 8


def backend_of(config: Config) -> OllamaBackend:
    """Return the Ollama of the settings; it need not be there."""
    return OllamaBackend(
        config.ollama_url or DEFAULT_URLS,
        default_model=config.ollama_model,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
    )


class OllamaBackend:
    """Ollama at one address, or at the first of several that answers.

    Args:
        base_url: ``http://HOST:PORT``, as `Config.ollama_url`; or several, in order.
        default_model: runs what asks for a model that is not offered; if it is not
            offered itself, the first one is.
        max_tokens: of an answer, when the task says nothing.
        temperature: when the task says nothing.

    Thread: any; each chat has a connection and a reading thread of its own.
    """

    kind: Final = "ollama"
    is_cloud: Final = False

    def __init__(
        self,
        base_url: str | Sequence[str],
        *,
        default_model: str | None = None,
        max_tokens: int = 2000,
        temperature: float = 0.7,
    ) -> None:
        self.urls = (base_url,) if isinstance(base_url, str) else tuple(base_url)
        #: the address in use; one that answers is kept until it does not
        self.base_url = self.urls[0]
        self._default_model = default_model
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._seen: tuple[float, Availability] | None = None
        self._catalogue = Catalogue()
        self._lock = threading.Lock()

    def probe(self) -> Availability:
        """Ask Ollama what it offers; never raises, takes a few `PROBE_S` at most."""
        with self._lock:
            return self._probe()

    def chat(self, request: ChatRequest, run: ChatRun) -> Completion:
        """Return Ollama's answer; see `Backend.chat` and `streaming.completion`.

        Always streamed, so that ending early closes the connection, on which Ollama stops.
        """
        url, model = self._chosen(
            request.model, is_strict=request.is_model_strict, needs=request.needs
        )
        reader = asked(
            url, request, model=model, temperature=self._temperature, max_tokens=self._max_tokens
        )
        try:
            return completion(reader, model, run)
        except BackendError:
            self._seen = None  # it may have gone, or the model with it
            raise

    def embed(self, request: EmbeddingRequest, run: ChatRun) -> Embeddings:
        """Return Ollama's vectors; see `Backend.embed`."""
        model = matching(request.model, self._seen_embedders())
        if model is None:  # it may have been pulled just now
            self.probe()
            model = matching(request.model, self._seen_embedders())
        if model is None:
            offered = _named(self._seen_embedders()) or "none"
            raise InvalidTaskError(
                f"model: {request.model!r} makes no embeddings here; those that do: {offered}"
            )
        return embeddings(self.base_url, request, model=model, within_s=run.deadline_s)

    def _seen_embedders(self) -> tuple[str, ...]:
        seen = self._seen
        if seen is None:
            return self.probe().embedders
        if not seen[1].url:
            raise BackendUnavailableError(seen[1].reason)
        return seen[1].embedders

    def _chosen(
        self, requested: str | None, *, is_strict: bool, needs: frozenset[str]
    ) -> tuple[str, str]:
        """Return the address and the model for what asks for `requested`."""
        offer = self._offer()
        found = matching(requested or "", offer.models)
        if found is None and requested and is_strict:
            offer = self._offer(is_fresh=True)  # it may have been pulled just now
            found = matching(requested, offer.models)
            if found is None:
                _refuse_unfit(requested, offer)
                raise InvalidTaskError(
                    f"model_strict: the model {requested!r} is not installed here, and no "
                    f"worker of the mesh offers it; installed: {_named(offer.models)}"
                )
        if found is not None:
            if lacks := _lacks(found, needs, offer):
                raise InvalidTaskError(f"model: {found!r} {lacks}")
            return offer.url, found
        able = [name for name in (offer.default, *offer.models) if not _lacks(name, needs, offer)]
        if not able:
            lacks = _lacks(offer.default, needs, offer)
            raise BackendError(f"none of the models here will do: {offer.default!r} {lacks}")
        return offer.url, able[0]

    def _offer(self, *, is_fresh: bool = False) -> Availability:
        """Return what is there, asked for now or not long ago."""
        offer = None if is_fresh else self._recent()
        if offer is None:
            asked_at = time.monotonic()
            with self._lock:
                seen = self._seen
                is_told = seen is not None and seen[0] >= asked_at  # who held the lock has asked
                if seen is not None and is_told and not (is_fresh and seen[1].is_up):
                    offer = seen[1]
                else:
                    offer = self._probe()
        if not offer.is_up:
            raise BackendUnavailableError(offer.reason)
        return offer

    def _recent(self) -> Availability | None:
        """Return what was there not long ago, without waiting for a probe that hangs."""
        seen = self._seen
        if seen is None or not seen[1].is_up or time.monotonic() - seen[0] >= PROBE_AGE_S:
            return None
        return seen[1]

    def _probe(self) -> Availability:
        found: Availability | None = None
        spare: Availability | None = None  #: chats with nobody, but makes embeddings
        problems: list[str] = []
        silent: dict[str, str] = {}
        for url in sorted(self.urls, key=lambda url: url != self.base_url):
            try:
                seen = self._judged(url, self._catalogue.read(url, within_s=PROBE_S))
            except BackendError as error:
                problems.append(str(error))
                continue
            except (OSError, http.client.HTTPException, UnicodeError) as error:
                silent[url] = _why_silent(error)  # UnicodeError: a name that no host can have
                continue
            if seen.is_up:
                found = seen
                break
            problems.append(seen.reason)
            spare = spare or (seen if seen.embedders else None)
        if found is None:
            problems += [] if problems else [_silence({url: silent[url] for url in self.urls})]
            found = replace(spare or Availability(is_up=False), reason="; ".join(problems))
        self.base_url = found.url or self.urls[0]
        self._seen = (time.monotonic(), found)
        return found

    def _judged(self, url: str, installed: Installed) -> Availability:
        models, unfit = installed.models, installed.unfit
        if not models:
            others = "; ".join(f"{name} {why}" for name, why in list(unfit.items())[:MAX_NAMED])
            reason = f"Ollama at {url} has no models to chat with: pull one with `ollama pull NAME`"
            reason += f" ({others})" if others else ""
            return Availability(
                is_up=False, url=url, embedders=installed.embedders, unfit=unfit, reason=reason
            )
        default = matching(self._default_model or "", models)
        return Availability(
            is_up=True,
            url=url,
            models=models,
            embedders=installed.embedders,
            default=default or models[0],
            loaded=installed.loaded,
            unfit=unfit,
            capabilities=installed.capabilities,
            warning="" if default or not self._default_model else self._missing(models, unfit),
        )

    def _missing(self, models: Sequence[str], unfit: Mapping[str, str]) -> str:
        name = str(self._default_model)
        found = matching(name, tuple(unfit))
        what = "is not installed" if found is None else unfit[found]
        hint = f" To install it: ollama pull {name}" if found is None else ""
        return (
            f"DEEPSEEK_MODEL={name} {what}; {models[0]} answers in its place "
            f"(installed: {_named(models)}).{hint}"
        )


def _lacks(name: str, needs: frozenset[str], offer: Availability) -> str:
    """Say what a model cannot do of what is needed; "" if it can, or does not tell."""
    has = offer.capabilities.get(name)
    missing = sorted(needs - has) if has else []
    return _LACKS[missing[0]] if missing else ""


def _refuse_unfit(requested: str, offer: Availability) -> None:
    """Say of a model that is a must why it can never answer here."""
    found = matching(requested, tuple(offer.unfit))
    why = "" if found is None else offer.unfit[found]
    if not why and is_cloud_name(requested):
        why = IS_CLOUD
    if not why and is_embedding_name(requested):
        why = IS_EMBEDDING
    if why:
        raise InvalidTaskError(
            f"model_strict: the model {requested!r} {why}; "
            f"models to chat with: {_named(offer.models)}"
        )


def _named(models: Sequence[str]) -> str:
    more = f" and {len(models) - MAX_NAMED} more" if len(models) > MAX_NAMED else ""
    return ", ".join(models[:MAX_NAMED]) + more


def _silence(places: Mapping[str, str]) -> str:
    """Say that no Ollama answers at `places`, each with its reason."""
    whys = list(places.values())
    if len(set(whys)) == 1:
        told = f"{' or '.join(places)} ({whys[0]})"
    else:
        told = " or ".join(f"{url} ({why})" for url, why in places.items())
    return f"Ollama does not answer at {told}: start it (ollama serve), or set DEEPSEEK_BASE_URL"


def _why_silent(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return said(error)
