"""LLM services: a module for each and its row in `BACKENDS`; several may serve one worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from d8mesh.backends import ollama
from d8mesh.backends.backend import Backend
from d8mesh.backends.several import Several
from d8mesh.config import Config

#: By name: makes the backend of the settings, or None where they do not configure it.
BACKENDS: Final[Mapping[str, Callable[[Config], Backend | None]]] = {
    "ollama": ollama.backend_of,
}


def configured(config: Config) -> Backend | Several:
    """Return what answers with these settings: one backend, or several as one."""
    made = [each for make in BACKENDS.values() if (each := make(config)) is not None]
    return made[0] if len(made) == 1 else Several(made)
