"""What the data of a task that a language model answers wishes for, and where that is refused."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, TypeGuard

from d8mesh.core.protocol.chat import BYTES_PER_TOKEN, EMBEDDING, INSERT, MODEL_TYPES, TOOLS, VISION
from d8mesh.core.protocol.json_model import as_json
from d8mesh.core.protocol.wish import MAX_MODELS, SERVICE_TYPES, Cloud, Wish, is_place, with_hints
from d8mesh.errors import InvalidTaskError
from d8mesh.setting_forms import MODEL_PATTERN

EMBED_TYPE: Final = "embed"
#: Hexadecimal digits that name a conversation.
CONVERSATION_DIGITS: Final = 16
#: The longest answer that is believed to be wished for.
MAX_OUTPUT_TOKENS: Final = 10_000_000
#: Wishes whose text is remembered: many tasks wish for the same.
REMEMBERED_WISHES: Final = 256

_WISHING: Final = MODEL_TYPES | SERVICE_TYPES
_MODEL: Final = re.compile(MODEL_PATTERN, re.ASCII)
_TEXTS: Final = ("system", "prompt", "suffix")


def wish_of(kind: str, data: Mapping[str, Any], path: str = "", *, is_one: bool = False) -> str:
    """Return what the data at `path` wishes for, as `Group.model` has it, or nothing.

    Args:
        is_one: the task is submitted by itself; then the wish tells too what helps to choose who
            runs it. Of many tasks it does not: those that wish for the same share a group.

    Raises:
        InvalidTaskError: a field that says what is wished for is not what it must be.
    """
    if not isinstance(kind, str) or kind not in _WISHING:
        return ""
    if kind in SERVICE_TYPES:
        return Wish(models=_model(data, path), machine=_machine(data, path)).text()
    models, is_strict = _models(data, path)
    lane = models, is_strict, _cloud(data, path), _needs(kind, data), _machine(data, path)
    try:
        text = _text(*lane)
        if is_one:
            text = with_hints(text, *_hints(data))
    except InvalidTaskError as error:  # of its names: too long together
        raise InvalidTaskError(f"{path}data.{error}") from None
    return text


@lru_cache(REMEMBERED_WISHES)
def _text(
    models: tuple[str, ...],
    is_strict: bool,
    cloud: Cloud | None,
    needs: frozenset[str],
    machine: str,
) -> str:
    wish = Wish(models=models, is_strict=is_strict, cloud=cloud, needs=needs, machine=machine)
    return wish.text()


# --- which models, and where ------------------------------------------------------------


def _models(data: Mapping[str, Any], path: str) -> tuple[tuple[str, ...], bool]:
    """Return the models wished for, and whether no other will do."""
    is_strict, several = data.get("model_strict"), data.get("models")
    if not (is_strict is None or isinstance(is_strict, bool)):
        raise _refused(f"{path}data.model_strict", is_strict, "true or false")
    if several is None:
        model = _model(data, path)
        return model, bool(model and is_strict)
    if data.get("model") not in (None, ""):
        raise InvalidTaskError(
            f"{path}data.models: saw a model too, expected one of both: model or models"
        )
    if is_strict is False:
        raise _refused(f"{path}data.model_strict", is_strict, "true, for models are always a must")
    if not _is_list(several) or not 1 <= len(several) <= MAX_MODELS:
        expected = f"a list of 1 to {MAX_MODELS} names of models, the best first"
        raise _refused(f"{path}data.models", several, expected)
    names = [_name(each, f"{path}data.models[{i}]") for i, each in enumerate(several)]
    return tuple(dict.fromkeys(names)), True


def _model(data: Mapping[str, Any], path: str) -> tuple[str, ...]:
    model = data.get("model")
    return () if model is None or model == "" else (_name(model, f"{path}data.model"),)


def _name(model: object, path: str) -> str:
    if type(model) is not str:
        model = as_json(model, path)
    if not isinstance(model, str) or not _MODEL.fullmatch(model):
        raise _refused(path, model, "a model name such as deepseek-r1:8b")
    return model


def _cloud(data: Mapping[str, Any], path: str) -> Cloud | None:
    cloud = data.get("cloud")
    if cloud is None:
        return None
    try:
        return Cloud(cloud)
    except ValueError:
        names = [str(each) for each in Cloud]
        expected = f"{', '.join(names[:-1])} or {names[-1]}"
        raise _refused(f"{path}data.cloud", cloud, expected) from None


def _machine(data: Mapping[str, Any], path: str) -> str:
    machine = data.get("machine")
    if machine is None or machine == "":
        return ""
    if not is_place(machine):
        expected = "the name of a machine, a worker or a service: at most 128 characters, no ; # |"
        raise _refused(f"{path}data.machine", machine, expected)
    return str(machine)


def _refused(path: str, saw: object, expected: str) -> InvalidTaskError:
    return InvalidTaskError(f"{path}: saw {str(saw)[:60]!r}, expected {expected}")


# --- what the model must be capable of --------------------------------------------------


def _needs(kind: str, data: Mapping[str, Any]) -> frozenset[str]:
    """Return it; what is not well formed needs nothing, and is refused by the handler."""
    if kind == EMBED_TYPE:
        return frozenset({EMBEDDING})
    has_images = bool(data.get("images")) or any(each.get("images") for each in _messages(data))
    wanted = ((TOOLS, data.get("tools")), (VISION, has_images), (INSERT, data.get("suffix")))
    return frozenset(name for name, is_needed in wanted if is_needed)


def _messages(data: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    messages = data.get("messages")
    return (
        (each for each in messages if isinstance(each, Mapping)) if _is_list(messages) else iter(())
    )


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


# --- what helps to choose ---------------------------------------------------------------


def _hints(data: Mapping[str, Any]) -> tuple[str, int, int]:
    """Return what of a `Wish` only helps: as `with_hints` takes it."""
    texts: list[str] = []
    first: dict[str, str] = {}
    for message in _messages(data):
        content = message.get("content")
        if isinstance(content, str):
            texts.append(content)
            if (role := message.get("role")) in ("system", "user"):
                first.setdefault(role, content)
    given = data.get("input")
    more: Sequence[object] = given if _is_list(given) else (given,)
    texts += [each for each in (*map(data.get, _TEXTS), *more) if isinstance(each, str)]
    size_bytes = sum(len(text) if text.isascii() else len(text.encode()) for text in texts)
    conversation = ""
    if "user" in first:
        began = f"{first.get('system', '')}\0{first['user']}".encode()
        conversation = hashlib.blake2b(began, digest_size=CONVERSATION_DIGITS // 2).hexdigest()
    return conversation, -(-size_bytes // BYTES_PER_TOKEN), _output_tokens(data)


def _output_tokens(data: Mapping[str, Any]) -> int:
    options, wished = data.get("options"), data.get("max_tokens")
    if wished is None and isinstance(options, Mapping):
        wished = options.get("num_predict")
    return wished if type(wished) is int and 0 < wished <= MAX_OUTPUT_TOKENS else 0
