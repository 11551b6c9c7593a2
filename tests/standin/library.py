"""The models that a stand-in has on its disk, and what it tells of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from tests.standin.asked import WrongRequestError, full_name
from tests.standin.descriptions import description, details
from tests.standin.machine import Model

#: What is told of the parts of a model that is pulled: so many lines, more of a long pull.
PULL_STEPS: Final = 4
#: A long pull is told of so often.
PULL_TOLD_S: Final = 0.1


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
            "details": details(model),
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

    def shown(self, name: str, *, is_verbose: bool, tells_capabilities: bool) -> dict[str, Any]:
        """Return what ``/api/show`` tells."""
        model = self.find(name)
        told = description(model, is_verbose=is_verbose)
        told["modified_at"] = self._changed_at[full_name(name)]
        return told | ({"capabilities": list(model.can)} if tells_capabilities else {})

    def pulled(
        self, name: str, known: Sequence[Model | str] | None, bytes_per_s: float = 0.0
    ) -> Iterator[tuple[float, dict[str, Any]]]:
        """Pull a model: yield how long it takes until a line, and the line.

        It is there before ``success``; nothing is loaded of one that was there.

        Args:
            known: what can be pulled; None: whatever is asked for.
            bytes_per_s: how quick that is; 0: at once.
        """
        yield 0.0, {"status": "pulling manifest"}
        model = self._by_name.get(name)
        found = model or _known(name, known)
        if found is None:
            yield 0.0, {"error": "pull model manifest: file does not exist"}
            return
        part = {"status": f"pulling {found.digest[:12]}", "digest": f"sha256:{found.digest}"}
        total_s = found.size / bytes_per_s if bytes_per_s and model is None else 0.0
        steps = max(PULL_STEPS, round(total_s / PULL_TOLD_S))
        yield 0.0, part | {"total": found.size}
        for step in range(1, steps + 1):
            told = part | {"total": found.size, "completed": found.size * step // steps}
            yield total_s / steps, told
        yield 0.0, {"status": "verifying sha256 digest"}
        yield 0.0, {"status": "writing manifest"}
        if model is None:
            self._put(name, found)
        yield 0.0, {"status": "success"}

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


def _known(name: str, known: Sequence[Model | str] | None) -> Model | None:
    """Return the model of a name that can be pulled."""
    if known is None:
        return Model(name=name)
    models = (each if isinstance(each, Model) else Model(name=full_name(each)) for each in known)
    return next((each for each in models if full_name(each.name) == name), None)


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
