"""Everything behind the menu is said in every language."""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from d8mesh import errors, words
from d8mesh.commands import COMMANDS
from d8mesh.config import SETTINGS
from d8mesh.words import LANGUAGES, catalogue, escaped, places_in, tr, translated

PACKAGE = Path(words.__file__).resolve().parent.parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
OTHERS = [language for language in LANGUAGES if language != words.ENGLISH]
#: Who prints by itself: the terminal, and children that tell their parent one line of JSON.
PRINTERS = frozenset({"edge/terminal.py", "processes/launcher.py", "processes/web_main.py"})
#: Calls that translate what they are given.
TRANSLATING = frozenset({"tr", "_say_tr"})
#: Calls that print for people.
PRINTING = frozenset({"say", "tell", "print", "on_wait", "on_silence", "advance"})
#: What is behind the menu: all that these print is said through `tr`.
BEHIND_THE_MENU = (
    "cli", "menu", "apps/status", "apps/workers", "apps/capabilities", "apps/tasks", "apps/logs",
    "apps/ask", "apps/submit", "apps/following", "apps/work", "apps/everything",
    "processes/console", "processes/launcher", "apps/niche", "apps/evolution", "apps/progress",
    "processes/worker_main", "apps/models", "apps/model_changes", "apps/model_places",
    "apps/change_display", "apps/explanation", "apps/join",
    "apps/orchestrators", "apps/token", "apps/pins", "apps/recover",
)  # fmt: skip
#: Errors that commands of the menu end with, or that are warned of: each has its entry.
RAISING = (
    *BEHIND_THE_MENU,
    "apps/results",
    "apps/findings",
    "apps/niche_plan",
    "apps/answers",
    "apps/evolution_file",
    "apps/evolution_plan",
    "apps/own_fitness",
    "apps/mesh_batches",
    "processes/task_modules",
    "processes/web_main",
    "processes/status",
    "edge/data_folder",
    "edge/identity",
    "edge/input_file",
    "edge/sqlite/outbox",
    "edge/network/__init__",
    "edge/transport/sockets",
    "edge/sqlite/place",
    "nodes/client/completion_waiters",
    "nodes/client/runner",
    "backends/ollama/__init__",
    "backends/ollama/chat",
    "backends/ollama/connection",
    "backends/ollama/embed",
    "backends/ollama/faults",
    "backends/ollama/models",
    "backends/ollama/selection",
    "backends/streaming",
    "backends/openai/service",
    "backends/openai/listing",
    "option_values",
    "core/broker/hello_rules",
    "core/broker/member_report",
    "core/protocol/pinning",
    "edge/members_file",
    "edge/pins",
    "edge/token_file",
    "edge/transport/keys",
    "edge/sqlite/payload_key",
    "edge/sqlite/sealing",
    "edge/sqlite/recovery/recover",
    "http/tls",
)
ERRORS = frozenset(
    name for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.D8Error)
) | {"ArgumentTypeError"}  # fmt: skip


@pytest.fixture(autouse=True)
def _english_again() -> Iterator[None]:
    yield
    words.use(words.ENGLISH)


def said() -> set[str]:
    """Return every text that the package gives to `tr`."""
    found = set()
    for path in MODULES:
        for call in calls_of(path):
            if name_of(call) in TRANSLATING and isinstance(call.args[0], ast.Constant):
                found.add(str(call.args[0].value))
    return found | named()


def named() -> set[str]:
    """Return the words that are said as they are: rows of the menu, states, names."""
    return {choice.text for command in COMMANDS for choice in command.choices} | {
        "queued", "delayed", "running", "completed", "failed", "cancelled",
        "online", "busy", "offline", "healthy", "unhealthy",
        "worker", "host", "type", "state", "slots", "done", "failures", "models", "types",
        "task", "tries", "created", "why", "priority", "attempts", "ended", "replay of",
        "input", "history", "result", "traceback", "broker", "REST process", "orchestrator",
        "model", "size", "loaded", "installed", "can", "tokens/s", "waiting",
        "machine", "service", "default", "address", "requests",
        "cloud", "loading", "paused", "down", "away",
    }  # fmt: skip


def raised() -> dict[str, str]:
    """Return the form of every error that `RAISING` raises -> where."""
    found = {}
    for module in RAISING:
        for call in calls_of(PACKAGE / f"{module}.py"):
            if name_of(call) in ERRORS and call.args and (form := form_of(call.args[0])):
                found[form] = module
    return found


def calls_of(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            yield node


def name_of(call: ast.Call) -> str:
    if isinstance(call.func, ast.Name):
        return call.func.id
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""


def form_of(node: ast.expr) -> str:
    """Return a text with {} for what is filled in; "" for no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return plain(node.value.replace("{", "{{").replace("}", "}}"))
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value).replace("{", "{{").replace("}", "}}")
            if isinstance(part, ast.Constant)
            else "{}"
            for part in node.values
        )
    return ""


def plain(template: str) -> str:
    return re.sub(r"(?<!\{)\{\w+\}", "{}", template)


@pytest.mark.parametrize("language", OTHERS)
def test_every_text_that_is_said_has_its_translation(language: str) -> None:
    assert said() - catalogue(language).keys() == set()


@pytest.mark.parametrize("language", OTHERS)
def test_every_error_behind_the_menu_has_its_translation(language: str) -> None:
    known = {plain(text) for text in catalogue(language)}
    missing = {form: place for form, place in raised().items() if form not in known}
    assert missing == {}


@pytest.mark.parametrize("language", OTHERS)
def test_what_a_setting_allows_has_its_translation(language: str) -> None:
    words.use(language)
    assert [s.allowed for s in SETTINGS if translated(s.allowed) == s.allowed] == []


@pytest.mark.parametrize("language", OTHERS)
def test_a_translation_has_the_places_of_its_text(language: str) -> None:
    for text, other in catalogue(language).items():
        assert sorted(set(places_in(text))) == sorted(set(places_in(other))), text
        assert all(re.fullmatch(r"[a-z_0-9]+", name) for name in places_in(text)), text
        assert len(places_in(text)) == len(set(places_in(text))), text
        assert text.strip(), "an entry needs a text"
        assert other.strip(), text


@pytest.mark.parametrize("language", OTHERS)
def test_no_entry_stands_twice_or_is_lost_in_reading(language: str) -> None:
    file = (PACKAGE / "words" / f"{language}.po").read_text("utf-8")
    ids, texts = (re.findall(rf"^{word}", file, re.MULTILINE) for word in ("msgid", "msgstr"))
    assert len(ids) == len(texts) == len(catalogue(language))


def test_whatever_is_printed_behind_the_menu_is_said_through_the_catalogue() -> None:
    bare = []
    for module in BEHIND_THE_MENU:
        for call in calls_of(PACKAGE / f"{module}.py"):
            if name_of(call) in PRINTING and call.args and has_words(call.args[0]):
                bare.append(f"{module}:{call.lineno}: {ast.unparse(call.args[0])}")
    assert bare == []


def test_whatever_is_printed_goes_through_the_terminal() -> None:
    """What comes from the net cannot drive it then, whichever command prints it."""
    past_it = [
        f"{path.relative_to(PACKAGE)}:{call.lineno}"
        for path in MODULES
        if path.relative_to(PACKAGE).as_posix() not in PRINTERS
        for call in calls_of(path)
        if isinstance(call.func, ast.Name) and call.func.id == "print"
    ]
    assert past_it == []


def has_words(node: ast.expr) -> bool:
    """Tell whether there are words of English in what is printed, outside of `tr`."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and re.search(r"[A-Za-z]{3}", node.value) is not None
    if isinstance(node, ast.JoinedStr):
        return any(has_words(part) for part in node.values if isinstance(part, ast.Constant))
    if isinstance(node, ast.BinOp):
        return has_words(node.left) or has_words(node.right)
    return False


def test_what_is_filled_in_cannot_drive_a_terminal() -> None:
    evil = "a\x1b[31m\x9b2J\r\n\u202eb\ud83d"
    for language in LANGUAGES:
        words.use(language)
        told = tr("error: {why}", why=evil)
        assert told.isprintable(), told
    assert escaped("a\tb\nc\x1b", keep="\n\t") == "a\tb\nc\\x1b"
    assert escaped("niño 👩‍🔬 日本") == "niño 👩‍🔬 日本"


def test_a_finished_text_is_translated_with_what_is_in_it() -> None:
    text = "--tasks x.py: cannot be imported: ValueError: no"
    assert translated(text) == text
    words.use("es")
    assert translated(text) == "--tasks x.py: no se puede importar: ValueError: no"
    inner = "/x/y cannot be read (No such file or directory)"
    assert translated(inner) == "no se puede leer /x/y (no existe el archivo o la carpeta)"
    assert translated("something else: 5") == "something else: 5"


def test_a_list_of_reasons_is_translated_item_by_item() -> None:
    words.use("es")
    who = "b: Ollama does not answer at http://b:1; pi: offers data, echo; c: offers nothing"
    told = translated(f"no worker in the mesh offers 'x' (5 workers there; {who}; and 2 more)")
    items = "b: Ollama no responde en http://b:1; pi: ofrece data, echo; c: no ofrece nada; y 2 más"
    assert told == f"ningún worker de la malla ofrece 'x' (hay 5 workers; {items})"
    assert translated("my own words; last error: no way") == "my own words; último error: no way"


def test_names_within_a_text_stay_as_they_are() -> None:
    words.use("es")
    assert translated("worker 'busy' has it") == "la tiene el worker 'busy'"
    assert translated("busy: offers result") == "busy: ofrece result"
    assert translated("ValueError: failed") == "ValueError: failed"


def test_the_text_of_a_handler_holds_nobody_up() -> None:
    words.use("es")
    for text in ("(a: b; c " * 10_000, "a: b; " * (words.MAX_CHARS // 6)):
        began_s = time.thread_time()
        assert translated(text) == text
        assert time.thread_time() - began_s < 1


def test_an_unknown_language_is_english() -> None:
    words.use("es")
    assert tr("Exit") != "Exit"
    words.use("tlh")
    assert tr("Exit") == "Exit"
