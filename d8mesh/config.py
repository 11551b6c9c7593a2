"""The settings: one frozen `Config`, read from a mapping, validated once.

Reads no environment and no file itself: it is handed the variables. Every variable stands in
one row of `SETTINGS`; a test checks that each row stands in ``docs/CONFIG.md`` and the other
way round.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from d8mesh import setting_forms as forms
from d8mesh.errors import ConfigError
from d8mesh.setting_forms import MODEL_PATTERN, NAME_PATTERN, Parser

#: Ports of the broker tried in turn when the first is taken: 7010 to 7019.
BROKER_PORT_TRIES: Final = 10
#: Status ports tried in turn for several workers on one machine: 7200, then 7201 to 7210.
STATUS_PORT_TRIES: Final = 11
#: One more than the last port there is.
PORTS_END: Final = 65_536
#: What older D8 files carry; far too small for a night's batch.
LEGACY_QUEUE_SIZE: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings, validated. Secrets are not in its `repr`."""

    web_host: str = "0.0.0.0"
    web_port: int = 7001
    orchestrator_url: str | None = None
    ollama_url: str | None = None
    ollama_model: str | None = None
    ollama_listen: str = "0.0.0.0:7100"
    ollama_hosts: tuple[str, ...] = ()
    ollama_mdns: bool = False
    ollama_serve: bool = True
    first_token_s: float = 300.0
    token_gap_s: float = 60.0
    status_port: int = 7200
    worker_id: str | None = None
    worker_type: str | None = None
    groq_api_key: str | None = field(default=None, repr=False)
    groq_model: str | None = None
    groq_base_url: str = "https://api.groq.com/openai/v1"
    gemini_api_key: str | None = field(default=None, repr=False)
    gemini_model: str | None = None
    gemini_base_url: str = "https://generativelanguage.googleapis.com/v1beta/openai"
    openai_hosts: tuple[str, ...] = ()
    openai_key: str | None = field(default=None, repr=False)
    cloud_limits: tuple[tuple[str, str, int], ...] = ()
    max_tokens: int = 2000
    temperature: float = 0.7
    heartbeat_timeout_s: float = 60.0
    task_timeout_s: float = 300.0
    max_attempts: int = 3
    queue_size: int = 1_000_000
    poll_interval_s: float = 5.0
    log_level: str = "INFO"
    mesh: str = "d8"
    broker_port: int = 7010
    #: "" for the default of `edge.installation`, which also makes it absolute
    data_dir: str = ""
    #: its GGUF files are models; "" for the model of its package alone; "none" for none at all
    models_dir: str = ""
    interfaces: tuple[str, ...] = ()
    lang: str | None = None
    mesh_key: str | None = field(default=None, repr=False)
    #: an access token of the orchestrator, for its HTTP port
    token: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    keep_chats: bool = False
    allow_public: bool = False
    #: lan or approve; a mesh key closes the mesh beside it
    join: str = "lan"
    #: "" for plain HTTP; auto; or the files of a certificate and its key
    tls: str = ""
    #: certificates of orchestrators that no authority has signed: SHA-256 fingerprints
    tls_trust: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    encrypt: bool = False
    queue_bytes: int = 4_000_000_000
    disk_reserve_mb: int = 200
    retention_days: float = 7.0
    retention_count: int = 1_000_000
    cloud: str = "never"
    model_changes: str = "pull"
    #: model, "" for all -> the options that it is loaded with
    load_options: Mapping[str, Mapping[str, int | bool]] | None = None
    #: things worth saying that do not stop the program, one line each
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Config:
        """Read the settings from `env`; a missing or empty variable means its default.

        Raises:
            ConfigError: one or more variables are invalid; one line for each names the
                variable, its value (secrets masked) and what is allowed.
        """
        values: dict[str, object] = {}
        problems: list[str] = []
        for setting in SETTINGS:
            text = env.get(setting.variable, "").strip()
            if not text:
                continue
            try:
                values[setting.field] = setting.parse(text)
            except ValueError:
                shown = "(hidden)" if setting.is_secret else repr(text[:80])
                problems.append(f"{setting.variable}={shown}: expected {setting.allowed}")
        if problems:
            raise ConfigError("\n".join(problems))
        return cls(**values, warnings=tuple(_warnings(env, values)))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Setting:
    """One variable: where it goes, how it is read, and what is allowed (for people)."""

    variable: str
    field: str
    parse: Parser
    allowed: str
    is_secret: bool = False


_IS_NAME: Final = forms.matching(NAME_PATTERN)


def is_model_name(text: str) -> bool:
    """Return whether a model may be called so."""
    return re.fullmatch(MODEL_PATTERN, text, re.ASCII) is not None


_PORT: Final = forms.integer(1, 65535)
_PORT_TEXT: Final = "a port, 1 to 65535"
_NAME_TEXT: Final = "1 to 128 of A-Z a-z 0-9 _ . : @ + -, starting with a letter, digit or _"
#: A card: "Ethernet 2", "vEthernet (WSL)", "LAN-Verbindung* 3"; a `;` is a comma meant.
_CARD: Final = r"[^,;]{1,128}"
_IS_KEY: Final = forms.matching(r"[!-~]{8,256}")
_KEY_TEXT: Final = "a key, 8 to 256 printable characters without blanks"
_MODEL_TEXT: Final = "a model name such as deepseek-r1:8b"
_URL_TEXT: Final = "http://HOST:PORT, HOST:PORT or HOST"
_API_TEXT: Final = "the address of an API, with its path, such as {}"
_CLOUD_TEXT: Final = "never, overflow or yes"
_LOAD_OPTIONS_TEXT: Final = (
    "a JSON object of num_ctx, num_batch, num_gpu, main_gpu, use_mmap, num_thread and "
    "draft_num_predict for all models, or of such objects by model"
)
_LIMITS_TEXT: Final = (
    "groq or gemini, or groq/MODEL, with a colon and bounds, separated by semicolons: "
    "groq:minute_requests=30,minute_tokens=8000,day_requests=1000,day_tokens=200000"
)
_URLS_TEXT: Final = "up to 32 of http://HOST:PORT, HOST:PORT or HOST, separated by commas"
_TLS_TEXT: Final = "auto, or the files of a certificate and its key: CERT.pem,KEY.pem"
_SECONDS_TEXT: Final = "seconds, {} to {}"

SETTINGS: Final[tuple[Setting, ...]] = (
    Setting(
        "FLASK_HOST", "web_host", forms.listened_host, "an IP address to listen on, or localhost"
    ),
    Setting("FLASK_PORT", "web_port", _PORT, _PORT_TEXT),
    Setting("ORCHESTRATOR_URL", "orchestrator_url", forms.url(7001), _URL_TEXT),
    Setting("DEEPSEEK_BASE_URL", "ollama_url", forms.url(7100), _URL_TEXT),
    Setting("DEEPSEEK_MODEL", "ollama_model", forms.matching(MODEL_PATTERN), _MODEL_TEXT),
    Setting("OLLAMA_HOST", "ollama_listen", str, "anything: it is Ollama's own variable"),
    Setting("D8_OLLAMA_HOSTS", "ollama_hosts", forms.urls(forms.url(11434)), _URLS_TEXT),
    Setting("D8_OLLAMA_MDNS", "ollama_mdns", forms.switch, "1 or 0"),
    Setting("D8_OLLAMA_SERVE", "ollama_serve", forms.switch, "1 or 0"),
    Setting(
        "D8_FIRST_TOKEN_S", "first_token_s", forms.number(1, 86_400), _SECONDS_TEXT.format(1, 86400)
    ),
    Setting(
        "D8_TOKEN_GAP_S", "token_gap_s", forms.number(1, 86_400), _SECONDS_TEXT.format(1, 86400)
    ),
    Setting("WORKER_STATUS_PORT", "status_port", _PORT, _PORT_TEXT),
    Setting("WORKER_ID", "worker_id", _IS_NAME, _NAME_TEXT),
    Setting("WORKER_TYPE", "worker_type", _IS_NAME, _NAME_TEXT),
    Setting("GROQ_API_KEY", "groq_api_key", _IS_KEY, _KEY_TEXT, True),
    Setting("GROQ_MODEL", "groq_model", forms.matching(MODEL_PATTERN), _MODEL_TEXT),
    Setting(
        "GROQ_BASE_URL",
        "groq_base_url",
        forms.base_url("/openai/v1"),
        _API_TEXT.format("https://HOST/openai/v1"),
    ),
    Setting("GEMINI_API_KEY", "gemini_api_key", _IS_KEY, _KEY_TEXT, True),
    Setting("GEMINI_MODEL", "gemini_model", forms.matching(MODEL_PATTERN), _MODEL_TEXT),
    Setting(
        "GEMINI_BASE_URL",
        "gemini_base_url",
        forms.base_url("/v1beta/openai"),
        _API_TEXT.format("https://HOST/v1beta/openai"),
    ),
    Setting("MAX_TOKENS", "max_tokens", forms.integer(1, 10_000_000), "tokens, 1 to 10000000"),
    Setting("TEMPERATURE", "temperature", forms.number(0, 2), "a number, 0 to 2"),
    Setting(
        "HEARTBEAT_TIMEOUT",
        "heartbeat_timeout_s",
        forms.number(1, 86_400),
        _SECONDS_TEXT.format(1, 86400),
    ),
    Setting(
        "TASK_TIMEOUT", "task_timeout_s", forms.number(1, 604_800), _SECONDS_TEXT.format(1, 604800)
    ),
    Setting("MAX_RETRY_ATTEMPTS", "max_attempts", forms.integer(1, 100), "attempts, 1 to 100"),
    Setting(
        "TASK_QUEUE_SIZE", "queue_size", forms.integer(1, 100_000_000), "tasks, 1 to 100000000"
    ),
    Setting(
        "POLL_INTERVAL",
        "poll_interval_s",
        forms.number(0.05, 3600),
        _SECONDS_TEXT.format(0.05, 3600),
    ),
    Setting(
        "LOG_LEVEL",
        "log_level",
        forms.matching("DEBUG|INFO|WARNING|ERROR|CRITICAL", upper=True),
        "DEBUG, INFO, WARNING, ERROR or CRITICAL",
    ),
    Setting(
        "D8_MESH",
        "mesh",
        forms.matching(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}"),
        "1 to 32 of A-Z a-z 0-9 _ -",
    ),
    Setting("D8_BROKER_PORT", "broker_port", _PORT, _PORT_TEXT),
    Setting(
        "D8_DATA_DIR",
        "data_dir",
        forms.folder,
        "a folder, in UTF-8 without control characters",
    ),
    Setting(
        "D8_MODELS_DIR",
        "models_dir",
        forms.folder,
        "a folder, in UTF-8 without control characters, or none",
    ),
    Setting(
        "D8_INTERFACES",
        "interfaces",
        forms.names(_CARD, is_printable=True),
        "interface names or addresses, separated by commas",
    ),
    Setting("D8_LANG", "lang", forms.matching("es|en", lower=True), "es or en"),
    Setting(
        "D8_MESH_KEY",
        "mesh_key",
        forms.mesh_key,
        "16 to 256 printable characters without blanks, at least 8 different ones, neither a part "
        'repeated nor the alphabet or digits in order (python -c "import secrets; '
        'print(secrets.token_urlsafe(24))" makes one)',
        True,
    ),
    Setting("D8_TOKEN", "token", _IS_KEY, _KEY_TEXT, True),
    Setting(
        "D8_ALLOWED_HOSTS",
        "allowed_hosts",
        forms.names(r"[A-Za-z0-9.:\[\]-]{1,253}"),
        "host names, separated by commas",
    ),
    Setting(
        "D8_ORIGINS",
        "origins",
        forms.names(r"\*|[A-Za-z][A-Za-z0-9+.-]{0,31}://[A-Za-z0-9.:*_\[\]-]{0,253}"),
        "origins of web pages as browsers tell them, https://HOST or https://HOST:PORT, "
        "separated by commas; a * stands for any part",
    ),
    Setting("D8_KEEP_CHATS", "keep_chats", forms.switch, "1 or 0"),
    Setting(
        "D8_OPENAI_HOSTS",
        "openai_hosts",
        forms.urls(forms.base_url("/v1")),
        "addresses of APIs, separated by commas, such as http://HOST:8000/v1 or HOST:8000",
    ),
    Setting("D8_OPENAI_KEY", "openai_key", _IS_KEY, _KEY_TEXT, True),
    Setting("D8_CLOUD", "cloud", forms.matching(r"never|overflow|yes", lower=True), _CLOUD_TEXT),
    Setting(
        "D8_MODEL_CHANGES",
        "model_changes",
        forms.matching(r"none|pull|all", lower=True),
        "none, pull or all",
    ),
    Setting("D8_LOAD_OPTIONS", "load_options", forms.load_options_of, _LOAD_OPTIONS_TEXT),
    Setting("D8_CLOUD_LIMITS", "cloud_limits", forms.limits, _LIMITS_TEXT),
    Setting("D8_ALLOW_PUBLIC", "allow_public", forms.switch, "1 or 0"),
    Setting("D8_JOIN", "join", forms.matching(r"lan|approve", lower=True), "lan or approve"),
    Setting("D8_TLS", "tls", forms.tls, _TLS_TEXT),
    Setting(
        "D8_TLS_TRUST",
        "tls_trust",
        forms.fingerprints,
        "SHA-256 fingerprints of certificates, 64 hex digits each, separated by commas",
    ),
    Setting(
        "D8_TRUSTED_PROXY",
        "trusted_proxies",
        forms.addresses,
        "addresses of proxies, separated by commas",
    ),
    Setting("D8_ENCRYPT", "encrypt", forms.switch, "1 or 0"),
    Setting(
        "D8_QUEUE_BYTES", "queue_bytes", forms.integer(1_000_000, 10**15), "bytes, 1000000 or more"
    ),
    Setting(
        "D8_DISK_RESERVE_MB",
        "disk_reserve_mb",
        forms.integer(0, 10_000_000),
        "megabytes, 0 to 10000000",
    ),
    Setting("D8_RETENTION_DAYS", "retention_days", forms.number(0, 36_500), "days, 0 to 36500"),
    Setting(
        "D8_RETENTION_COUNT",
        "retention_count",
        forms.integer(0, 1_000_000_000),
        "finished tasks, 0 to 1000000000",
    ),
)

#: ``D8_*`` variables of the launcher and the tests, not of `Config`.
OTHER_VARIABLES: Final = frozenset(
    {"D8_VENV", "D8_NO_INSTALL", "D8_NO_ENV_FILE", "D8_FAILPOINT", "D8_STARTED_AS"}
)
#: All variables that mean something here.
NAMES: Final = frozenset(setting.variable for setting in SETTINGS) | OTHER_VARIABLES
#: Variables whose values nobody is to see.
SECRET_NAMES: Final = frozenset(setting.variable for setting in SETTINGS if setting.is_secret)
#: How near a name of no `D8_` must come to one of ours: FLASK_PROT does, FLASK_DEBUG does not.
_NEARNESS: Final = 0.85


def _warnings(env: Mapping[str, str], values: Mapping[str, object]) -> list[str]:
    found: list[str] = []
    known = [setting.variable for setting in SETTINGS]
    for name in sorted(set(env) - NAMES):
        upper = re.sub(r"[^A-Z0-9]", "_", name.upper())  # D8-MESH-KEY, D8.MESH.KEY
        is_ours = upper.startswith("D8_")
        near = difflib.get_close_matches(upper, known, n=1, cutoff=0.6 if is_ours else _NEARNESS)
        if is_ours or near:
            hint = f": did you mean {near[0]}?" if near else ""
            found.append(f"{name[:80]} is not a variable of d8mesh{hint}")
    if values.get("queue_size") == LEGACY_QUEUE_SIZE:
        found.append(
            f"TASK_QUEUE_SIZE={LEGACY_QUEUE_SIZE} looks like the older system's default: "
            "obeyed, submits beyond it get 429; unset it for 1000000"
        )
    origins = values.get("origins")
    if isinstance(origins, tuple) and "*" in origins:
        found.append("D8_ORIGINS=*: every web page that is opened in this network may use models")
    return found
