"""A certificate of our own, for tests: made once in a run."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from d8mesh.config import Config
from d8mesh.http.tls import TlsFiles, prepared


@functools.cache
def certified() -> TlsFiles:
    """Return the files; they lie in the data folder of this run of the tests."""
    folder = Path(os.environ["D8_DATA_DIR"]) / "certified"
    files = prepared(Config(data_dir=str(folder), tls="auto"), ["127.0.0.1"])
    assert files is not None
    return files
