"""The settings: read once, checked whole, documented one to one."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d8mesh.commands import EXIT_CODES
from d8mesh.config import LEGACY_QUEUE_SIZE, OTHER_VARIABLES, SETTINGS, Config
from d8mesh.errors import ConfigError

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "CONFIG.md"
BY_VARIABLE = {setting.variable: setting for setting in SETTINGS}
SECRETS = sorted(setting.variable for setting in SETTINGS if setting.is_secret)

BAD_VALUES = [
    ("FLASK_HOST", "example.org"),
    ("FLASK_PORT", "0"),
    ("FLASK_PORT", "65536"),
    ("FLASK_PORT", "7001.0"),
    ("FLASK_PORT", "٧٠٠١"),
    ("ORCHESTRATOR_URL", "ftp://host"),
    ("ORCHESTRATOR_URL", "http://host:99999"),
    ("ORCHESTRATOR_URL", "http://user:word@host"),
    ("ORCHESTRATOR_URL", "http://:word@host"),
    ("ORCHESTRATOR_URL", "two words"),
    ("ORCHESTRATOR_URL", "7001"),
    ("ORCHESTRATOR_URL", "http://host/path"),
    ("DEEPSEEK_BASE_URL", "http://a..b:7100"),
    ("DEEPSEEK_BASE_URL", "http://"),
    ("WORKER_ID", "../../etc"),
    ("WORKER_ID", "-rf"),
    ("WORKER_TYPE", "a b"),
    ("TEMPERATURE", "nan"),
    ("TEMPERATURE", "2.1"),
    ("TASK_TIMEOUT", "inf"),
    ("TASK_TIMEOUT", "1_0"),
    ("POLL_INTERVAL", "٥"),
    ("MAX_RETRY_ATTEMPTS", "0"),
    ("TASK_QUEUE_SIZE", "-1"),
    ("LOG_LEVEL", "LOUD"),
    ("D8_MESH", "a.b"),
    ("D8_LANG", "fr"),
    ("D8_ALLOW_PUBLIC", "perhaps"),
    ("D8_INTERFACES", "eth0;rm"),
    ("D8_INTERFACES", "eth\x1b[31m"),
    ("D8_INTERFACES", "caf\udce9"),
    ("D8_DATA_DIR", "/srv/caf\udce9"),
    ("D8_DATA_DIR", "C:\temp\new"),  # as double quotes of `.env` make it of a Windows path
    ("D8_DATA_DIR", "a" * 1025),
    ("D8_INTERFACES", ","),
    ("D8_ALLOWED_HOSTS", ",,"),
    ("D8_ORIGINS", "chat.example.org"),
    ("D8_ORIGINS", "http://chat.example.org/path"),
    ("D8_ORIGINS", "null"),
    ("D8_MODEL_CHANGES", "delete"),
    ("D8_MESH_KEY", "short"),
    ("GROQ_BASE_URL", "https://host/openai/v1?key=x"),
    ("GROQ_BASE_URL", "https://user:word@host/v1"),
    ("GEMINI_BASE_URL", "ftp://host/v1"),
    ("GEMINI_BASE_URL", "https://host/v1/../admin"),
    ("D8_OPENAI_HOSTS", ","),
    ("D8_OPENAI_HOSTS", "http://a:1/v1,http://:2"),
    ("D8_OPENAI_KEY", "short"),
    ("D8_CLOUD_LIMITS", "minute_requests=30"),
    ("D8_CLOUD_LIMITS", "ollama:minute_requests=30"),
    ("D8_CLOUD_LIMITS", "groq:hour_requests=30"),
    ("D8_CLOUD_LIMITS", "groq:minute_requests=-1"),
    ("D8_CLOUD_LIMITS", "groq:minute_requests"),
    ("D8_CLOUD_LIMITS", ";"),
]


def documented() -> dict[str, list[str]]:
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \|(.*)\|$", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split(" | ")] for name, cells in rows}


def test_every_setting_stands_in_the_document_and_the_other_way_round() -> None:
    assert set(documented()) == set(BY_VARIABLE) | OTHER_VARIABLES


@pytest.mark.parametrize("variable", sorted(BY_VARIABLE))
def test_the_document_tells_the_true_default(variable: str) -> None:
    shown = documented()[variable][0]
    default = getattr(Config(), BY_VARIABLE[variable].field)
    if default in (None, (), ""):
        assert not shown.startswith("`")
    else:
        read = getattr(Config.from_env({variable: shown.strip("`")}), BY_VARIABLE[variable].field)
        assert read == default


def test_the_document_lists_every_exit_code() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    assert {int(code): text for code, text in rows} == EXIT_CODES


def test_every_setting_has_a_field_of_its_own() -> None:
    fields = {field.name for field in dataclasses.fields(Config)} - {"warnings"}
    assert {setting.field for setting in SETTINGS} == fields
    assert len({setting.field for setting in SETTINGS}) == len(SETTINGS)


def test_without_variables_the_defaults_hold() -> None:
    assert Config.from_env({}) == Config()


@pytest.mark.parametrize("text", ["", "   "])
def test_an_empty_variable_means_its_default(text: str) -> None:
    assert Config.from_env({"FLASK_PORT": text}) == Config()


@pytest.mark.parametrize(("variable", "value"), BAD_VALUES)
def test_a_bad_value_names_variable_value_and_what_is_allowed(variable: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_env({variable: value})
    message = str(caught.value)
    assert message.startswith(f"{variable}=")
    assert BY_VARIABLE[variable].allowed in message
    assert "\n" not in message
    if not BY_VARIABLE[variable].is_secret:
        assert repr(value[:80]) in message


def test_addresses_of_apis_keep_their_path_or_get_the_usual_one() -> None:
    config = Config.from_env(
        {
            "GROQ_BASE_URL": "https://host/openai/v1/",
            "GEMINI_BASE_URL": "https://host",
            "D8_OPENAI_HOSTS": "a:8000, http://b:1234/api/v1, a:8000, https://c",
        }
    )
    assert config.groq_base_url == "https://host/openai/v1"
    assert config.gemini_base_url == "https://host/v1beta/openai"
    assert config.openai_hosts == ("http://a:8000/v1", "http://b:1234/api/v1", "https://c/v1")


def test_limits_of_a_cloud_are_read_by_provider_and_model() -> None:
    text = "groq: minute_requests=30, day_requests=0; gemini/gemini-2.5-pro:minute_tokens=9"
    text += ";groq/openai/m:1b:day_tokens=7"
    assert Config.from_env({"D8_CLOUD_LIMITS": text}).cloud_limits == (
        ("groq", "minute_requests", 30),
        ("groq", "day_requests", 0),
        ("gemini/gemini-2.5-pro", "minute_tokens", 9),
        ("groq/openai/m:1b", "day_tokens", 7),
    )


def test_load_options_are_read_for_all_models_and_by_model() -> None:
    told = '{"num_ctx": 8192, "use_mmap": false, "llama3.2:3b": {"num_ctx": 4096}}'
    assert Config.from_env({"D8_LOAD_OPTIONS": told}).load_options == {
        "": {"num_ctx": 8192, "use_mmap": False},
        "llama3.2:3b": {"num_ctx": 4096},
    }


@pytest.mark.parametrize(
    "text",
    [
        "num_ctx=1",
        "[" * 100_000,
        "[1]",
        '{"temperature": 1}',
        '{"num_ctx": "8192"}',
        '{"num_ctx": 1e3}',
        '{"num_ctx": 99999999999}',
        '{"a model": {"num_ctx": 1}}',
        '{"m": {"seed": 1}}',
    ],
)
def test_load_options_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="D8_LOAD_OPTIONS"):
        Config.from_env({"D8_LOAD_OPTIONS": text})


def test_the_cloud_is_closed_unless_somebody_opens_it() -> None:
    assert Config.from_env({}).cloud == "never"
    assert Config.from_env({"D8_CLOUD": "Overflow"}).cloud == "overflow"


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_env({"FLASK_PORT": "x", "D8_LANG": "fr", "TEMPERATURE": "9"})
    names = [line.partition("=")[0] for line in str(caught.value).splitlines()]
    assert sorted(names) == ["D8_LANG", "FLASK_PORT", "TEMPERATURE"]


@pytest.mark.parametrize("variable", SECRETS)
def test_secrets_are_neither_in_repr_nor_in_errors(variable: str) -> None:
    secret = "s3cr3t-of-the-mesh"
    assert secret not in repr(Config.from_env({variable: secret}))
    with pytest.raises(ConfigError) as caught:
        Config.from_env({variable: f"{secret} with blanks"})
    assert secret not in str(caught.value)


def test_an_unknown_variable_of_ours_is_warned_of_with_the_nearest_name() -> None:
    (warning,) = Config.from_env({"D8_MESHH": "x", "HOME": "/"}).warnings
    assert "D8_MESHH" in warning
    assert "did you mean D8_MESH?" in warning


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("FLASK_PROT", "FLASK_PORT"),
        ("flask_port", "FLASK_PORT"),
        ("ORCHESTRATR_URL", "ORCHESTRATOR_URL"),
        ("d8_mesh_key", "D8_MESH_KEY"),
        ("D8MESH_KEY", "D8_MESH_KEY"),
        ("D8-MESH-KEY", "D8_MESH_KEY"),
        ("d8.mesh.key", "D8_MESH_KEY"),
    ],
)
def test_a_name_that_is_nearly_one_of_ours_is_warned_of(name: str, meant: str) -> None:
    (warning,) = Config.from_env({name: "x"}).warnings
    assert warning == f"{name} is not a variable of d8mesh: did you mean {meant}?"


def test_other_programs_variables_are_theirs() -> None:
    names = "FLASK_APP FLASK_ENV FLASK_DEBUG OLLAMA_MODELS OPENAI_API_KEY LANG HOME WORKER D8 PORT"
    assert Config.from_env(dict.fromkeys(names.split(), "x")).warnings == ()


@pytest.mark.parametrize("variable", sorted(OTHER_VARIABLES))
def test_variables_of_the_launcher_are_known(variable: str) -> None:
    assert Config.from_env({variable: "1"}).warnings == ()


def test_the_older_systems_queue_size_is_obeyed_with_a_warning() -> None:
    config = Config.from_env({"TASK_QUEUE_SIZE": str(LEGACY_QUEUE_SIZE)})
    assert config.queue_size == LEGACY_QUEUE_SIZE
    assert any("TASK_QUEUE_SIZE" in warning for warning in config.warnings)


def test_urls_lose_their_last_slash_and_may_lack_their_scheme() -> None:
    assert Config.from_env({"ORCHESTRATOR_URL": "h:7001/"}).orchestrator_url == "http://h:7001"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("box", "http://box:7001"),
        ("box:80", "http://box:80"),
        ("http://box", "http://box:7001"),
        ("http://box:", "http://box:7001"),
        ("HTTP://box/", "http://box:7001"),
        ("http://192.168.1.9", "http://192.168.1.9:7001"),
        ("http://[fe80::1]", "http://[fe80::1]:7001"),
        ("https://d8.example.org", "https://d8.example.org"),
    ],
)
def test_a_place_without_a_port_is_at_the_documented_one(written: str, read: str) -> None:
    assert Config.from_env({"ORCHESTRATOR_URL": written}).orchestrator_url == read
    ollama_url = Config.from_env({"DEEPSEEK_BASE_URL": written}).ollama_url
    assert ollama_url == read.replace(":7001", ":7100")


@pytest.mark.parametrize(
    "text",
    ["0.0.0.0", ":11434", "box", "box:11434", "https://ollama.example.org/path", "[::1]:11434",
     "::1", "http://0.0.0.0", "0.0.0.0:99999", "not one at all"],
)  # fmt: skip
def test_the_variable_of_another_program_stops_nothing(text: str) -> None:
    assert Config.from_env({"OLLAMA_HOST": text}).ollama_listen == text


@pytest.mark.parametrize(
    ("variable", "allowed"), [("GROQ_API_KEY", "8 to 256"), ("D8_MESH_KEY", "16 to 256")]
)
def test_a_key_is_refused_with_its_range(variable: str, allowed: str) -> None:
    with pytest.raises(ConfigError, match=allowed):
        Config.from_env({variable: "a b"})


def test_lists_are_split_and_trimmed() -> None:
    config = Config.from_env({"D8_INTERFACES": " eth0 ,, 192.168.1.5"})
    assert config.interfaces == ("eth0", "192.168.1.5")


@pytest.mark.parametrize(
    "card",
    ["Ethernet 2", "vEthernet (WSL)", "Wi-Fi", "LAN-Verbindung* 3", "Büro [1]", "Card #2", "a&b's"],
)
def test_a_card_may_be_called_as_windows_calls_it(card: str) -> None:
    assert Config.from_env({"D8_INTERFACES": f"{card}, fe80::1%eth0"}).interfaces == (
        card,
        "fe80::1%eth0",
    )


@given(st.dictionaries(st.sampled_from(sorted(BY_VARIABLE)), st.text(max_size=40), max_size=6))
def test_any_text_gives_settings_or_one_clear_error(env: dict[str, str]) -> None:
    try:
        Config.from_env(env)
    except ConfigError as error:
        named = {line.partition("=")[0] for line in str(error).splitlines()}
        assert named <= set(env)


@given(st.integers(1, 65535))
def test_every_port_is_allowed(port: int) -> None:
    assert Config.from_env({"FLASK_PORT": str(port)}).web_port == port
