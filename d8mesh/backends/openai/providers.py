"""What is peculiar to each provider of an OpenAI-compatible service: data, no code.

Sources: `docs/CLOUD.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from d8mesh.backends.accounts.days import Day

#: What `more["think"]` may be, and the fields that say the same to the service.
Thinking = Mapping[object, Mapping[str, object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One provider; what a field of a request is not named in, it does not take."""

    #: its row in `BACKENDS`
    kind: str
    #: what it is called in what people read
    title: str
    #: what it is asked leaves the LAN, and an account says how much may be asked
    is_cloud: bool
    #: what people set: the variable of its address, and of its key
    url_variable: str
    key_variable: str
    #: Ollama's options by name, and what the same is called here
    options: Mapping[str, str]
    #: the field of the longest answer
    max_tokens: str = "max_tokens"
    #: a temperature below it is raised to it
    least_temperature: float = 0.0
    has_logprobs: bool = False
    #: fields of a request that are handed on as they are, beside those of tools
    extras: frozenset[str] = frozenset()
    #: ``stream_options``: usage comes with a stream that asks for it
    has_usage_option: bool = True
    #: ``response_format`` of "json"
    any_json: Mapping[str, object] = field(default_factory=lambda: {"type": "json_object"})
    streams_formats: bool = True
    has_formats_with_tools: bool = True
    thinking: Thinking = field(default_factory=dict)
    #: fields of a call beside OpenAI's own that must come back with it
    call_extras: frozenset[str] = frozenset()
    has_embeddings: bool = False
    #: ``/completions``: a text without a template, a gap between two texts
    has_completions: bool = False
    #: stands before the names of models in its lists
    prefix: str = ""
    #: the longest answer that is asked for counts as used tokens when the request comes
    counts_max_tokens: bool = False
    day: Day = Day.UTC
    #: when a day's requests are used up, it says truly for how long
    has_true_day_waits: bool = True


#: Those that mean the same everywhere.
_SAMPLING: Final = {"top_p": "top_p", "stop": "stop"}
_PENALTIES: Final = {name: name for name in ("frequency_penalty", "presence_penalty")}
_EFFORTS: Final[dict[object, dict[str, object]]] = {
    level: {"reasoning_effort": level} for level in ("low", "medium", "high")
}

GROQ: Final = Provider(
    kind="groq",
    title="Groq",
    is_cloud=True,
    url_variable="GROQ_BASE_URL",
    key_variable="GROQ_API_KEY",
    options=_SAMPLING | {"seed": "seed"} | _PENALTIES,
    max_tokens="max_completion_tokens",
    least_temperature=1e-8,
    streams_formats=False,
    has_formats_with_tools=False,
    thinking={
        **_EFFORTS,
        "max": {"reasoning_effort": "high"},
        True: {"reasoning_format": "parsed"},
        False: {"reasoning_effort": "none"},
    },
    counts_max_tokens=True,
)

GEMINI: Final = Provider(
    kind="gemini",
    title="Gemini",
    is_cloud=True,
    url_variable="GEMINI_BASE_URL",
    key_variable="GEMINI_API_KEY",
    options=_SAMPLING,
    thinking={
        **_EFFORTS,
        "max": {"reasoning_effort": "high"},
        True: {"reasoning_effort": "medium"},
        False: {"reasoning_effort": "none"},
    },
    call_extras=frozenset({"extra_content"}),
    has_embeddings=True,
    prefix="models/",
    day=Day.PACIFIC,
    has_true_day_waits=False,
)

#: vLLM, llama.cpp's server, LM Studio and others on the LAN. They pass over what they do not know,
#: but for vLLM's oldest versions; what one refuses by name is left out the next time.
LAN: Final = Provider(
    kind="openai",
    title="the OpenAI-compatible server",
    is_cloud=False,
    url_variable="D8_OPENAI_HOSTS",
    key_variable="D8_OPENAI_KEY",
    options=_SAMPLING
    | _PENALTIES
    | {name: name for name in ("seed", "top_k", "min_p", "typical_p", "repeat_penalty")}
    | {"repeat_last_n": "repeat_last_n"},
    has_logprobs=True,
    extras=frozenset({"logit_bias", "min_tokens"}),
    # LM Studio refuses "json_object".
    any_json={
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": {"type": "object"}},
    },
    thinking={
        **_EFFORTS,
        "max": {"reasoning_effort": "high"},
        True: {"chat_template_kwargs": {"enable_thinking": True}},
        False: {"chat_template_kwargs": {"enable_thinking": False}},
    },
    has_embeddings=True,
    has_completions=True,
)
