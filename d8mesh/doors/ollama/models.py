"""`/api/tags`, `/api/ps` and `/api/show`: what is known of the models, in Ollama's shapes."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from d8mesh.core.protocol.chat import COMPLETION, EMBEDDING
from d8mesh.core.protocol.model_names import shown_name
from d8mesh.doors.llm.catalogue import KnownModel, LoadedAt
from d8mesh.doors.ollama.answers import created_at

#: What "for ever" is told as: Ollama counts so many nanoseconds from now, the most that Go's
#: durations hold.
FOR_EVER_S: Final = 2**63 / 1e9
#: When a model came that nobody told of: programs want a time, and sort by it.
UNKNOWN_TIME: Final = "1970-01-01T00:00:00Z"
#: How a time is written, and a file's time as a number.
_DAY_AND_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d")
_NANOSECONDS: Final = re.compile(r"\d{18,19}", re.ASCII)
#: A model of the cloud is of no size, and runs there.
CLOUD_HOST: Final = "cloud"
#: Fields that only a verbose show tells: they are long, and kept nowhere.
_VERBOSE: Final = ("tensors",)
_NO_DETAILS: Final[Mapping[str, Any]] = {
    "parent_model": "",
    "format": "",
    "family": "",
    "families": None,
    "parameter_size": "",
    "quantization_level": "",
}


def tags_body(models: Mapping[str, KnownModel]) -> dict[str, Any]:
    """Return the list of models, by the names shown; the newest first."""
    rows = [_row(name, model) for name, model in models.items()]
    rows.sort(key=lambda row: str(row["name"]))
    rows.sort(key=lambda row: str(row["modified_at"]), reverse=True)
    return {"models": rows}


def ps_body(models: Mapping[str, KnownModel]) -> dict[str, Any]:
    """Return the list of models in memory, each once; the one that stays longest first."""
    rows: list[tuple[float, dict[str, Any]]] = []
    for model in dict.fromkeys(models.values()):
        if not model.loaded:
            continue
        until = max(each.expires_at for each in model.loaded)
        longest = max(model.loaded, key=lambda each: each.expires_at)
        rows.append((until, _resident_row(model, longest)))
    rows.sort(key=lambda row: (-row[0], str(row[1]["name"])))
    return {"models": [row for _, row in rows]}


def show_body(model: KnownModel, told: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what is known of a model: what its service told, or what can be said without."""
    if told is not None and "model_info" in told:
        return {name: value for name, value in told.items() if name not in _VERBOSE}
    details = _details(model)
    family = str(details["family"] or "unknown")
    info: dict[str, Any] = {"general.architecture": family}
    if model.context_tokens:
        info[f"{family}.context_length"] = model.context_tokens
    return {
        "license": "",
        "modelfile": f"FROM {shown_name(model.name)}\n",
        "parameters": "",
        "template": "{{ .Prompt }}",
        "details": details,
        "model_info": info,
        "capabilities": _capabilities(model),
        "modified_at": _modified(model),
    }


def _row(name: str, model: KnownModel) -> dict[str, Any]:
    remote = {"remote_model": name, "remote_host": CLOUD_HOST} if model.is_cloud else {}
    return {
        "name": name,
        "model": name,
        **remote,
        "modified_at": _modified(model),
        "size": model.size_bytes,
        "digest": model.digest,
        "details": _details(model),
        "capabilities": _capabilities(model),
    }


def _resident_row(model: KnownModel, loaded: LoadedAt) -> dict[str, Any]:
    name = shown_name(model.name)
    until = loaded.expires_at or time.time()
    return {
        "name": name,
        "model": name,
        "size": max(model.size_bytes, loaded.size_vram),
        "digest": model.digest,
        "details": _details(model),
        "expires_at": created_at(_time_of(until)),
        "size_vram": loaded.size_vram or model.size_bytes,
        "context_length": loaded.context_length or model.context_tokens,
    }


def _time_of(at: float) -> datetime:
    return datetime.fromtimestamp(time.time() + FOR_EVER_S if math.isinf(at) else at, UTC)


def _details(model: KnownModel) -> dict[str, Any]:
    details = {**_NO_DETAILS, **model.details}
    if model.context_tokens:
        details.setdefault("context_length", model.context_tokens)
    return details


def _capabilities(model: KnownModel) -> list[str]:
    """Return what it can do, the most usual first."""
    first = (COMPLETION, EMBEDDING)
    return sorted(model.can, key=lambda each: (each not in first, each))


def _modified(model: KnownModel) -> str:
    """Return when it came, as a time that programs read: services of other kinds write others."""
    told = model.modified_at
    if _NANOSECONDS.fullmatch(told):
        return created_at(datetime.fromtimestamp(int(told) / 1e9, UTC))
    return told if _DAY_AND_TIME.match(told) else UNKNOWN_TIME
