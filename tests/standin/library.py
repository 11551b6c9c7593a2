"""The models that a stand-in has on its disk, and what it tells of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from tests.standin.asked import WrongRequestError, full_name
from tests.standin.machine import Model

#: What is told of the parts of a model that is pulled.
PULL_STEPS: Final = 4


class Library:
    """Names and the models behind them; two names may stand for one model."""

    def __init__(self, models: Sequence[Model]) -> None:
        self._by_name: dict[str, Model] = {}
        self._changed_at: dict[str, str] = {}
        for model in models:
            for name in (model.name, *model.aliases):
                self._put(full_name(name), model)

    def find(self, name: str, *, is_old: bool = False) -> Model:
        """Return the model of a name as somebody wrote it.

        Raises:
            WrongRequestError: the name is none (400), or no model has it (404).
        """
        found = self._by_name.get(full_name(name)) if name else None
        if found is not None:
            return found
        old = f'model "{name}" not found, try pulling it first'
        raise WrongRequestError(404, old if is_old else f"model '{name}' not found")

    def has(self, model: Model) -> bool:
        """Tell whether any name stands for it."""
        return any(each is model for each in self._by_name.values())

    def row(self, name: str, model: Model) -> dict[str, Any]:
        """Return what the list tells of a name."""
        return {
            "name": name,
            "model": name,
            "modified_at": self._changed_at.get(name, _now()),
            "size": model.size,
            "digest": model.digest,
            "details": {
                "parent_model": "",
                "format": "gguf",
                "family": model.family,
                "families": [model.family],
                "parameter_size": f"{model.size / 6e8:.1f}B",
                "quantization_level": "Q4_K_M",
            },
        }

    def tags(self, *, tells_capabilities: bool) -> list[dict[str, Any]]:
        """Return the list, newest first."""
        rows = []
        for name, model in self._by_name.items():
            row = self.row(name, model)
            if tells_capabilities:
                row["capabilities"] = list(model.can)
            rows.append(row)
        return sorted(rows, key=lambda row: str(row["modified_at"]), reverse=True)

    def shown(self, name: str, *, tells_capabilities: bool) -> dict[str, Any]:
        """Return what ``/api/show`` tells."""
        model = self.find(name)
        row = self.row(full_name(name), model)
        told = {
            "license": "",
            "modelfile": f"FROM {model.name}",
            "parameters": 'stop                           "<|im_end|>"',
            "template": "{{ .Prompt }}{{ .Suffix }}" if "insert" in model.can else "{{ .Prompt }}",
            "details": row["details"],
            "model_info": {
                "general.architecture": model.family,
                f"{model.family}.context_length": model.context_length,
            },
            "modified_at": row["modified_at"],
        }
        return told | ({"capabilities": list(model.can)} if tells_capabilities else {})

    def pulled(self, name: str, known: Sequence[str] | None) -> Iterator[dict[str, Any]]:
        """Pull a model: yield what is told of it; it is there before ``success``."""
        yield {"status": "pulling manifest"}
        model = self._by_name.get(name)
        if model is None and known is not None and name not in map(full_name, known):
            yield {"error": "pull model manifest: file does not exist"}
            return
        found = model or Model(name=name)
        part = {"status": f"pulling {found.digest[:12]}", "digest": f"sha256:{found.digest}"}
        yield part | {"total": found.size}
        for step in range(1, PULL_STEPS + 1):
            yield part | {"total": found.size, "completed": found.size * step // PULL_STEPS}
        yield {"status": "verifying sha256 digest"}
        yield {"status": "writing manifest"}
        if model is None:
            self._put(name, found)
        yield {"status": "success"}

    def copy(self, source: str, target: str) -> None:
        """Give a model one more name."""
        self._put(full_name(target), self.find(source))

    def delete(self, name: str) -> None:
        """Take a name away."""
        self.find(name)
        del self._by_name[full_name(name)]

    def _put(self, name: str, model: Model) -> None:
        self._by_name[name] = model
        self._changed_at[name] = _now()


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
