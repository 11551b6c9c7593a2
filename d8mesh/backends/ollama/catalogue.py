"""What one Ollama has installed, and which of that can chat on this machine.

Plain HTTP, bounded in time and size. A model's capabilities are asked for once and kept; an
older Ollama tells none, then family and name decide.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import re
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

from d8mesh.backends.backend import ModelInfo
from d8mesh.backends.ollama.descriptions import details_in, told_text
from d8mesh.backends.streaming import BUSY, MAX_ERROR_BYTES, error_in, shut, whole_number
from d8mesh.core.protocol.chat import EMBEDDING
from d8mesh.core.protocol.model_names import plain_name
from d8mesh.errors import BackendAnswerError, BackendBusyError, BackendError
from d8mesh.setting_forms import MODEL_PATTERN

#: The list of a few hundred models takes some 100 KB.
MAX_PROBE_BYTES: Final = 4 * 1024 * 1024
MAX_INSTALLED: Final = 500
#: What a model is capable of, in so many words at most; Ollama has seven.
MAX_CAPABILITIES: Final = 20

IS_CLOUD: Final = "runs in Ollama's cloud: its prompts would leave this network"
IS_EMBEDDING: Final = "makes embeddings: it cannot chat"
CANNOT_CHAT: Final = "cannot chat"
#: What doors of a mesh call themselves: they speak Ollama's API too.
SELF: Final = "d8mesh"
#: The tags and endings that Ollama reserves for models of its cloud.
_CLOUD_NAME: Final = re.compile(r"[:-]cloud\Z")
#: What models for embeddings are called and built on.
_EMBEDDING_NAME: Final = re.compile(
    r"embed|(?:\A|/)(?:bge|gte|e5|all-minilm|paraphrase-|multilingual-e5|sentence-)"
)
_EMBEDDING_FAMILY: Final = re.compile(r"bert|\Aclip\Z")


@dataclass(frozen=True, slots=True)
class Shown:
    """What Ollama tells of one model; an older one tells no capabilities."""

    capabilities: frozenset[str]
    is_remote: bool


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that is in memory."""

    name: str
    context_length: int
    #: monotonic seconds; infinity for ever, 0 not told
    kept_until: float
    vram_bytes: int


#: What is kept for so long is kept for ever: Ollama tells it as a date some centuries away.
KEPT_FOR_EVER_S: Final = 10 * 365 * 86_400.0


@dataclass(frozen=True, slots=True)
class Installed:
    """What one address offers: model names in its order, and why others cannot be used."""

    models: tuple[str, ...]
    loaded: tuple[str, ...]
    unfit: Mapping[str, str]
    #: those that make embeddings
    embedders: tuple[str, ...]
    #: what each of the models can do, where that is known
    capabilities: Mapping[str, frozenset[str]]
    #: of the models and the embedders
    details: Mapping[str, ModelInfo]
    version: str


class Catalogue:
    """Reads what is installed; remembers what each model can do.

    Thread: one at a time.
    """

    def __init__(self) -> None:
        self._shown: dict[tuple[str, str, str], Shown] = {}
        self._versions: dict[str, str] = {}
        self._loaded: dict[str, tuple[Resident, ...]] = {}

    def read(self, url: str, *, within_s: float) -> Installed:
        """Ask the Ollama at `url`; takes some `within_s` at most for each of four questions.

        Raises:
            BackendError: what answers is no Ollama, or busy.
            OSError: nothing answers; so does `http.client.HTTPException`.
        """
        versions, self._versions = self._versions, {}
        known, self._shown = self._shown, {}  # of one that does not answer nothing is kept:
        # it may come back as a newer one, which tells more
        rows = _rows_in(ask_json(url, "/api/tags", within_s=within_s))
        loaded = self._loaded.get(url, ())  # as it was, if that is not told now
        # Older ones, and others like it, lack it; and one that is loading may keep it back.
        with contextlib.suppress(BackendError, OSError, http.client.HTTPException):
            loaded = _loaded_in(*_asked_at(url, "/api/ps", within_s=within_s))
        self._loaded[url] = loaded
        version = versions.get(url) or _version(url, within_s=within_s)
        self._versions[url] = version
        in_memory = {plain_name(each.name): each for each in loaded}
        until = time.monotonic() + within_s
        models: list[str] = []
        unfit: dict[str, str] = {}
        capabilities: dict[str, frozenset[str]] = {}
        details: dict[str, ModelInfo] = {}
        for name, row in rows.items():
            key = (url, name, str(row.get("digest") or row.get("modified_at")))
            shown = _shown_in(row)
            if not shown.capabilities and not shown.is_remote:
                told = known.get(key) or _asked(url, name, until=until)
                if told is not None:  # also that it tells nothing
                    self._shown[key] = shown = told
            why = why_not(name, shown, _families_in(row))
            if why:
                unfit[name] = why
                can = shown.capabilities or frozenset({EMBEDDING})
            else:
                can = shown.capabilities
                models.append(name)
                capabilities[name] = shown.capabilities
            if why in ("", IS_EMBEDDING):
                details[name] = _info(name, can, row, in_memory.get(plain_name(name)))
        embedders = tuple(name for name, why in unfit.items() if why == IS_EMBEDDING)
        return Installed(
            tuple(models),
            tuple(each.name for each in loaded),
            unfit,
            embedders,
            capabilities,
            details,
            version,
        )


def why_not(name: str, shown: Shown, families: tuple[str, ...] = ()) -> str:
    """Return why the model `name` shall not answer a chat here; "" if it can."""
    if shown.is_remote or is_cloud_name(name):
        return IS_CLOUD
    if shown.capabilities:
        if "completion" in shown.capabilities:
            return ""
        return IS_EMBEDDING if "embedding" in shown.capabilities else CANNOT_CHAT
    is_embedding = is_embedding_name(name) or any(map(_EMBEDDING_FAMILY.search, families))
    return IS_EMBEDDING if is_embedding else ""


def is_cloud_name(name: str) -> bool:
    """Return whether this is what a model of Ollama's cloud is called."""
    return _CLOUD_NAME.search(name.strip().lower()) is not None


def is_embedding_name(name: str) -> bool:
    """Return whether this is what a model for embeddings is called."""
    return _EMBEDDING_NAME.search(plain_name(name)) is not None


def ask_json(
    base_url: str,
    path: str,
    *,
    within_s: float,
    body: Mapping[str, object] | None = None,
    max_bytes: int = MAX_PROBE_BYTES,
) -> Any:
    """Return what a GET (a POST, with `body`) answers, read within bounds of time and size.

    Raises:
        BackendBusyError: it is busy.
        BackendAnswerError: another error status, or no JSON.
        OSError: nothing answers; so does `http.client.HTTPException`.
    """
    return _asked_at(base_url, path, within_s=within_s, body=body, max_bytes=max_bytes)[0]


def _asked_at(
    base_url: str,
    path: str,
    *,
    within_s: float,
    body: Mapping[str, object] | None = None,
    max_bytes: int = MAX_PROBE_BYTES,
) -> tuple[Any, datetime | None]:
    """Return what is answered, as `ask_json`, and when by the clock there.

    Raises:
        BackendBusyError: it is busy.
        BackendAnswerError: another error status, or no JSON.
        OSError: nothing answers; so does `http.client.HTTPException`.
    """
    parts = urlsplit(base_url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=within_s)
    is_late = threading.Event()
    with contextlib.closing(connection):
        connection.connect()

        def stop(connected: socket.socket = connection.sock) -> None:
            is_late.set()
            shut(connected)

        timer = threading.Timer(within_s, stop)
        timer.daemon = True
        timer.start()
        try:
            sent = None if body is None else json.dumps(body).encode()
            headers = {"Accept": "application/json", "Content-Type": "application/json"}
            connection.request("GET" if sent is None else "POST", path, sent, headers)
            response = connection.getresponse()
            content = response.read((max_bytes if response.status == 200 else MAX_ERROR_BYTES) + 1)
        except (OSError, http.client.HTTPException) as error:
            if is_late.is_set():
                raise TimeoutError(f"no answer within {within_s:g} s") from error
            raise
        finally:
            timer.cancel()
        if is_late.is_set():
            raise TimeoutError(f"no answer within {within_s:g} s")
    where = f"{base_url}{path}"
    if response.getheader("Server") == SELF:  # what it is asked would come back to its own workers
        raise BackendAnswerError(f"{base_url} is d8mesh itself: expected the address of an Ollama")
    if response.status != 200:
        status, why = response.status, error_in(content)
        if status in BUSY:
            raise BackendBusyError(f"Ollama is busy: {where} answered HTTP {status} ({why})")
        raise BackendAnswerError(f"{where} answered HTTP {status}: is it Ollama? ({why})")
    if len(content) > max_bytes:
        raise BackendAnswerError(f"{where} answered with more than {max_bytes} bytes")
    try:
        return json.loads(content), _date_in(response.getheader("Date"))
    except (ValueError, RecursionError) as error:
        raise BackendAnswerError(f"{where} did not answer with JSON: is it Ollama?") from error


def _rows_in(answer: Any) -> dict[str, Mapping[str, Any]]:
    """Return the models of a list by name; odd names are left out, they could not be asked for."""
    rows = answer.get("models") if isinstance(answer, dict) else None
    if not isinstance(rows, list):
        raise BackendAnswerError("the list of models has not the form of Ollama's: is it Ollama?")
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        name = (row.get("model") or row.get("name")) if isinstance(row, dict) else None
        if isinstance(name, str) and re.fullmatch(MODEL_PATTERN, name):
            found.setdefault(name, row)
        if len(found) == MAX_INSTALLED:
            break
    return found


def _loaded_in(answer: Any, now: datetime | None) -> tuple[Resident, ...]:
    """Return the models in memory; `now` by the clock that says until when they are."""
    return tuple(
        Resident(
            name,
            whole_number(row.get("context_length")),
            kept_until_of(row.get("expires_at"), now),
            whole_number(row.get("size_vram")),
        )
        for name, row in _rows_in(answer).items()
    )


def kept_until_of(expires_at: object, now: datetime | None) -> float:
    """Return it by this process's clock; 0 if it is not told by a clock that can be compared."""
    try:
        until = datetime.fromisoformat(told_text(expires_at))
    except ValueError:
        return 0.0
    if until.tzinfo is None:
        return 0.0
    left_s = (until - (now or datetime.now(UTC))).total_seconds()
    if left_s > KEPT_FOR_EVER_S:
        return math.inf
    return 0.0 if now is None else time.monotonic() + left_s


def _date_in(header: str | None) -> datetime | None:
    """Return what the header ``Date`` says."""
    try:
        told = parsedate_to_datetime(header or "")
    except ValueError:
        return None
    return told if told.tzinfo else None


def _info(
    name: str,
    can: frozenset[str],
    row: Mapping[str, Any],
    in_memory: Resident | None,
) -> ModelInfo:
    details = details_in(row)
    return ModelInfo(
        name=name,
        digest=told_text(row.get("digest")),
        size_bytes=whole_number(row.get("size")),
        can=can,
        is_loaded=in_memory is not None,
        context_length=in_memory.context_length if in_memory else 0,
        kept_until=in_memory.kept_until if in_memory else 0.0,
        changed_at=told_text(row.get("modified_at")),
        details=details,
        most_context=whole_number(details.get("context_length")),
        vram_bytes=in_memory.vram_bytes if in_memory else 0,
    )


def _version(url: str, *, within_s: float) -> str:
    """Return which Ollama it is; "" if that cannot be known now."""
    try:
        answer = ask_json(url, "/api/version", within_s=within_s)
    except (BackendError, OSError, http.client.HTTPException):
        return ""
    return told_text(answer.get("version")) if isinstance(answer, dict) else ""


def _asked(url: str, name: str, *, until: float) -> Shown | None:
    """Ask what one model can do; None if that cannot be known now."""
    left_s = until - time.monotonic()
    if left_s <= 0:
        return None
    try:
        answer = ask_json(url, "/api/show", within_s=left_s, body={"model": name})
    except (BackendError, OSError, http.client.HTTPException):
        return None
    return _shown_in(answer) if isinstance(answer, dict) else None


def _shown_in(row: Mapping[str, Any]) -> Shown:
    told = row.get("capabilities")
    rows = told[:MAX_CAPABILITIES] if isinstance(told, list) else []
    named = {told_text(each) for each in rows}
    return Shown(frozenset(named - {""}), bool(row.get("remote_host") or row.get("remote_model")))


def _families_in(row: Mapping[str, Any]) -> tuple[str, ...]:
    details = row.get("details")
    if not isinstance(details, dict):
        return ()
    listed = details.get("families")
    named = [details.get("family"), *(listed if isinstance(listed, list) else ())]
    return tuple(name.lower() for name in named if isinstance(name, str))
