"""Which GGUF files are there, and what each of them is good for.

Only heads are read, once for each state of a file. A file that is no model is told by its
name; the others work.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from d8mesh.backends.embedded.gguf import GgufHead, NotGgufError, read_head
from d8mesh.backends.embedded.packages import WEIGHTS_MODEL, weights_file
from d8mesh.core.protocol.chat import COMPLETION, EMBEDDING, THINKING, TOOLS
from d8mesh.edge.room import memory_bytes
from d8mesh.setting_forms import MODEL_PATTERN

#: Files of the folder that are looked at; more models than any machine runs.
MAX_GGUF_FILES: Final = 256
#: What could not be loaded is tried again after so long: memory may have been short.
REFUSED_FILE_S: Final = 600.0
#: The second and later files of a model in parts: the first names them.
_LATER_PART: Final = re.compile(r"-(?!00001)\d{5}-of-\d{5}$")
_PARTS: Final = re.compile(r"-00001-of-(\d{5})$")
#: Bytes of a gigabyte, as people count them.
GB: Final = 1e9
#: Architectures of the eyes and ears of other models.
_MODEL_PARTS: Final = frozenset({"clip"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufModel:
    """One model in a file."""

    name: str
    path: Path
    size_bytes: int
    changed_ns: int
    head: GgufHead

    @property
    def can(self) -> frozenset[str]:
        """What it is capable of, in Ollama's words."""
        if self.head.is_embedder:
            return frozenset({EMBEDDING})
        template = self.head.chat_template
        told = {TOOLS: "tools" in template, THINKING: "<think>" in template}
        return frozenset({COMPLETION, *(name for name, is_there in told.items() if is_there)})

    @property
    def digest(self) -> str:
        """Tell its file from others: of gigabytes not all is read."""
        seen = f"{self.path.name} {self.size_bytes} {self.head}"
        return hashlib.sha256(seen.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Shelf:
    """What was found."""

    #: by name, those of the folder first
    models: dict[str, GgufModel] = field(default_factory=dict)
    #: file -> why it is no model here
    unfit: dict[str, str] = field(default_factory=dict)
    #: why the folder cannot be read; "" if it can
    problem: str = ""


class GgufFiles:
    """The models of a folder, and the one that comes as a package.

    Args:
        folder: its ``*.gguf`` files are models; None: only the package's.

    Thread: one at a time.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._heads: dict[tuple[Path, int, int], GgufHead | str] = {}
        #: (path, changed) of files that llama.cpp could not load: when, and why
        self._refused: dict[tuple[Path, int], tuple[float, str]] = {}

    def look(self) -> Shelf:
        """Return what is there now."""
        problem, paths = "", []
        if self._folder is not None:
            try:
                paths = sorted(self._folder.iterdir())[:MAX_GGUF_FILES]
            except OSError as error:
                problem = f"D8_MODELS_DIR={self._folder} cannot be read ({error.strerror})"
        shelf = Shelf(problem=problem)
        for path in self._models_among(paths):
            self._put(shelf, path, path.stem)
        packaged = weights_file()
        if packaged is not None and WEIGHTS_MODEL not in shelf.models:
            self._put(shelf, packaged, WEIGHTS_MODEL)
        return shelf

    def refuse(self, model: GgufModel, why: str) -> None:
        """Offer a model that could not be loaded no more, until its file changes or later."""
        self._refused[(model.path, model.changed_ns)] = (time.monotonic(), why)

    def _models_among(self, paths: list[Path]) -> Iterator[Path]:
        for path in paths:
            if path.suffix.lower() == ".gguf" and not _LATER_PART.search(path.stem):
                yield path

    def _put(self, shelf: Shelf, path: Path, name: str) -> None:
        try:
            stat = path.stat()
            key = (path, stat.st_mtime_ns, stat.st_size)
            if key not in self._heads:
                self._heads[key] = _head_or_why(path)
        except OSError as error:
            shelf.unfit[path.name] = f"cannot be read ({error.strerror})"
            return
        head = self._heads[key]
        why = head if isinstance(head, str) else self._why_refused((path, stat.st_mtime_ns))
        why = why or self._why_too_large(path, stat.st_size)
        if not why and not re.fullmatch(MODEL_PATTERN, name):
            why = "has a name that no task could ask for: letters, digits and _ . @ + - are allowed"
        if why or isinstance(head, str):
            shelf.unfit[path.name] = why
            return
        shelf.models[name] = GgufModel(
            name=name, path=path, size_bytes=stat.st_size, changed_ns=stat.st_mtime_ns, head=head
        )

    def _why_too_large(self, path: Path, size_bytes: int) -> str:
        parts = _PARTS.search(path.stem)  # of which this is the first, and none is larger
        needed, there = size_bytes * (int(parts[1]) if parts else 1), memory_bytes()
        if there is None or needed <= there:
            return ""
        return f"takes {needed / GB:.1f} GB of memory, and this machine has {there / GB:.1f} GB"

    def _why_refused(self, key: tuple[Path, int]) -> str:
        at, why = self._refused.get(key, (0.0, ""))
        return why if why and time.monotonic() - at < REFUSED_FILE_S else ""


def _head_or_why(path: Path) -> GgufHead | str:
    try:
        head = read_head(path)
    except NotGgufError as error:
        return str(error)
    if head.architecture in _MODEL_PARTS:
        return "is a part of another model"
    return head
