"""LLM services: a module for each kind and its row in `BACKENDS`; many may serve one worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from d8mesh.backends import embedded, ollama, openai
from d8mesh.backends.backend import Backend
from d8mesh.config import Config


def ollama_at(config: Config, url: str) -> Backend:
    """Return the Ollama of another host: DEEPSEEK_MODEL is not expected there."""
    return ollama.backend_of(replace(config, ollama_url=url, ollama_model=None))


def _ollamas(config: Config) -> list[Backend]:
    """Return the Ollama of this machine (or of DEEPSEEK_BASE_URL), and those of other hosts."""
    others = [ollama_at(config, url) for url in config.ollama_hosts if url != config.ollama_url]
    return [ollama.backend_of(config), *others]


def _embedded(config: Config) -> list[Backend]:
    made = embedded.backend_of(config)
    return [] if made is None else [made]


#: By kind: makes the backends of the settings, one for each service; none where they configure
#: none.
BACKENDS: Final[Mapping[str, Callable[[Config], Sequence[Backend]]]] = {
    "ollama": _ollamas,
    "openai": openai.servers_of,
    "groq": openai.groq_of,
    "gemini": openai.gemini_of,
    "embedded": _embedded,
}


def configured(config: Config) -> list[Backend]:
    """Return the services of these settings; a worker of a kind that needs a key has it alone."""
    kind = config.worker_type or ""
    rows = [kind] if kind in BACKENDS and kind != "ollama" else list(BACKENDS)
    return [backend for row in rows for backend in BACKENDS[row](config)]
