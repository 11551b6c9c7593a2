"""The command line: one table of commands; the menu and the sub-commands are views of it.

The only reader of the environment and of ``.env``: everything else is given a `Config`.
Loads a command's own module when it is run, so that starting is quick.
"""

from __future__ import annotations

import argparse
import importlib
import locale
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from d8mesh import __version__, options
from d8mesh.config import Config
from d8mesh.edge import terminal
from d8mesh.edge.installation import Installation
from d8mesh.errors import (
    ConfigError,
    D8Error,
    JournalBrokenError,
    JournalHeldError,
    OutboxBrokenError,
)

#: A command's handler: given the settings and the parsed options, returns an exit code.
Handler = Callable[[Config, argparse.Namespace], int]

OK: Final = 0
FAILED: Final = 1
BAD_USAGE: Final = 2
INTERRUPTED: Final = 130
#: As a shell tells of a program that SIGPIPE ended.
HUNG_UP: Final = 141

#: Every exit code and what it means; `docs/CONFIG.md` lists them (a test insists).
EXIT_CODES: Final = {
    OK: "done",
    FAILED: "failed; the last line on stderr says why",
    BAD_USAGE: "bad usage, or a setting with a value that is not allowed",
    3: "another orchestrator holds the journal",
    4: "the journal or an outbox is damaged or of a newer version",
    INTERRUPTED: "interrupted with Ctrl-C before anything was running",
    HUNG_UP: "whoever read the output has gone, as `head` does",
}
#: The exit code of an error: the first class that fits.
_EXIT_OF_ERRORS: Final[tuple[tuple[type[D8Error], int], ...]] = (
    (ConfigError, BAD_USAGE),
    (JournalHeldError, 3),
    (JournalBrokenError, 4),
    (OutboxBrokenError, 4),
    (D8Error, FAILED),
)

#: The folder with start_d8.py and .env; an installed d8mesh without it works where it is.
_CHECKOUT: Final = Path(__file__).resolve().parent.parent

#: Folders of the source whose commands are not installed with the package.
_OF_CHECKOUT: Final = ("bench", "tests")


@dataclass(frozen=True, slots=True)
class Choice:
    """One line of the menu: its number, its words, and the arguments it stands for."""

    number: int
    es: str
    en: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command: what runs it, what it takes, and where it stands in the menu."""

    name: str
    #: ``module:function``, imported when the command is run
    handler: str
    summary: str = ""
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    choices: tuple[Choice, ...] = ()
    #: option -> variable: the option is another way to give that setting
    settings: tuple[tuple[str, str], ...] = ()
    #: everything after the name goes to the handler unread, as ``options.rest``
    takes_rest: bool = False
    #: gets the default settings, whatever the environment and ``.env`` say
    ignores_settings: bool = False

    @property
    def is_internal(self) -> bool:
        """Tell whether only d8mesh itself starts this command, as a child process."""
        return self.name.startswith("_")


COMMANDS: Final[tuple[Command, ...]] = (
    Command(
        name="status",
        handler="d8mesh.apps.status:run",
        summary="what runs in the mesh now",
        add_arguments=options.status,
        choices=(Choice(1, "Estado del sistema", "Status"),),
    ),
    Command(
        name="niche",
        handler="d8mesh.apps.niche:run",
        summary="Niche Discovery over the mesh",
        add_arguments=options.niche,
        choices=(Choice(2, "Niche Discovery", "Niche Discovery"),),
    ),
    Command(
        name="evolution",
        handler="d8mesh.apps.evolution:run",
        summary="evolve a population over the mesh",
        add_arguments=options.evolution,
        choices=(Choice(3, "Evolución", "Evolution"),),
    ),
    Command(
        name="orchestrator",
        handler="d8mesh.web.orchestrator:run",
        summary="the broker and the REST of this mesh",
        add_arguments=options.orchestrator,
        choices=(Choice(4, "Orchestrator", "Orchestrator"),),
        settings=(("port", "FLASK_PORT"), ("data", "D8_DATA_DIR")),
    ),
    Command(
        name="worker",
        handler="d8mesh.web.worker_main:run",
        summary="a worker: finds every orchestrator of its mesh",
        add_arguments=options.worker,
        choices=(
            Choice(5, "Worker Groq", "Worker Groq", ("--type", "groq")),
            Choice(6, "Worker Gemini", "Worker Gemini", ("--type", "gemini")),
            Choice(7, "Worker DeepSeek", "Worker DeepSeek", ("--type", "deepseek")),
        ),
        settings=(("type", "WORKER_TYPE"), ("name", "WORKER_ID")),
    ),
    Command(
        name="up",
        handler="d8mesh.apps.everything:run",
        summary="everything on this machine: an orchestrator and a worker",
        choices=(Choice(8, "Todo en esta máquina", "Everything on this machine"),),
    ),
    Command(
        name="demo",
        handler="d8mesh.apps.demo:run",
        summary="an orchestrator and two workers at work, with a live picture",
    ),
    Command(
        name="recover",
        handler="d8mesh.apps.recover:run",
        summary="save what can be read of a damaged journal or outbox",
        add_arguments=options.recover,
        settings=(("data", "D8_DATA_DIR"),),
    ),
    Command(
        name="tasks",
        handler="d8mesh.apps.tasks:run",
        summary="list, show, replay and cancel tasks",
        add_arguments=options.tasks,
    ),
    Command(
        name="test",
        handler="d8mesh.cli:run_tests",
        summary="the tests; what follows goes to pytest",
        takes_rest=True,
        ignores_settings=True,
    ),
    Command(
        name="bench",
        handler="bench.run:run",
        summary="measure: bench throughput",
        takes_rest=True,
    ),
    Command(
        name="chaos",
        handler="tests.chaos.run:run",
        summary="kill, pause and cut off parts of a mesh at work: chaos --minutes 3",
        takes_rest=True,
        ignores_settings=True,
    ),
    Command(
        name="simulate",
        handler="tests.simulation.run:run",
        summary="the brains in a seeded world of faults: simulate --seeds 1000",
        takes_rest=True,
        ignores_settings=True,
    ),
    Command(name="_broker", handler="d8mesh.web.orchestrator:run_broker", takes_rest=True),
    Command(name="_web", handler="d8mesh.web.orchestrator:run_web", takes_rest=True),
    Command(name="_process", handler="d8mesh.nodes.process:run", takes_rest=True),
)

#: The last line of the menu.
EXIT_NUMBER: Final = "9"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, or the menu if there is none; return the exit code.

    Args:
        arguments: those after the program's name; None: of this process, as the installed
            command ``d8mesh`` asks for.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name from the net must never break a message
            stream.reconfigure(errors="replace")
    try:
        code = _menu() if not arguments else _run(arguments)
        if sys.stdout is not None:  # it is closed, or this is a program without a console
            sys.stdout.flush()  # here and not at exit, where nothing can be said or caught
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        if not terminal.is_reader_gone(error):
            raise
        terminal.silence()
        return HUNG_UP


def run_tests(config: Config, options: argparse.Namespace) -> int:
    """Run pytest on the project; its conftest gives it a mesh and a folder of its own."""
    del config
    if not (_CHECKOUT / "tests").is_dir():
        raise D8Error("the tests are not installed: run `python3 start_d8.py test` in the source")
    import pytest

    os.chdir(_CHECKOUT)
    return int(pytest.main(list(options.rest)))


# --- one command ----------------------------------------------------------------------


def _run(arguments: Sequence[str]) -> int:
    try:
        command, options = _parse(arguments)
    except SystemExit as ended:  # argparse has said what is wrong, or printed the help
        return BAD_USAGE if ended.code else OK
    before = dict(os.environ)
    try:
        _apply_settings(command, options)
        config = Config() if command.ignores_settings else Config.from_env(_environment())
        if not command.is_internal:
            for warning in (*config.warnings, *_of_interfaces(config)):
                print(f"warning: {warning}", file=sys.stderr)
        return _load(command)(config, options)
    except D8Error as error:
        print(f"error: {error}", file=sys.stderr)
        return next(code for kind, code in _EXIT_OF_ERRORS if isinstance(error, kind))
    finally:  # the menu goes on: what this command set is not the next one's
        os.environ.clear()
        os.environ.update(before)


def _of_interfaces(config: Config) -> list[str]:
    """Return what is worth saying of D8_INTERFACES: a cable may be plugged in later."""
    if not config.interfaces:
        return []
    from d8mesh.edge.network import unknown_interfaces  # slow to import, and seldom needed

    unknown = unknown_interfaces(config.interfaces)
    return [f"D8_INTERFACES names {name!r}, which this machine does not have" for name in unknown]


def _parse(arguments: Sequence[str]) -> tuple[Command, argparse.Namespace]:
    for command in COMMANDS:
        if command.takes_rest and command.name == arguments[0]:
            return command, argparse.Namespace(command=command.name, rest=list(arguments[1:]))
    options = _parser().parse_args(arguments)
    return next(each for each in COMMANDS if each.name == options.command), options


def _parser() -> argparse.ArgumentParser:
    is_launcher = Path(sys.argv[0]).name == "start_d8.py"
    parser = argparse.ArgumentParser(
        prog="start_d8.py" if is_launcher else "d8mesh",
        description="The machines of a LAN as one pool for LLM and agent tasks. "
        "Without a command: a menu.",
        epilog="Exit codes: " + "; ".join(f"{code} {text}" for code, text in EXIT_CODES.items()),
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"d8mesh {__version__}")
    rows = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        if not command.is_internal:
            row = rows.add_parser(
                command.name,
                help=command.summary,
                description=command.summary,
                allow_abbrev=False,
            )
            command.add_arguments(row)
            # For `demo`, `up` and the bench, which start commands as children.
            row.add_argument("--set", action="append", default=[], help=argparse.SUPPRESS)
            row.add_argument("--with-parent", action="store_true", help=argparse.SUPPRESS)
    return parser


def _load(command: Command) -> Handler:
    module_name, _, function = command.handler.partition(":")
    package = module_name.partition(".")[0]
    if package in _OF_CHECKOUT:
        if not (_CHECKOUT / package).is_dir():
            raise D8Error(f"{package}/ is not installed: run this command in the source")
        sys.path.insert(0, str(_CHECKOUT))
    try:
        return cast(Handler, getattr(importlib.import_module(module_name), function))
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] in ("d8mesh", *_OF_CHECKOUT):
            raise
        raise D8Error(
            f"the package {error.name} is not installed: start with `python3 start_d8.py`, "
            "which installs what is missing"
        ) from error


# --- settings -------------------------------------------------------------------------


def _apply_settings(command: Command, options: argparse.Namespace) -> None:
    """Put options that stand for a setting into the environment: children inherit them."""
    for assignment in getattr(options, "set", ()):
        variable, _, text = assignment.partition("=")
        os.environ[variable] = text
    for option, variable in command.settings:
        value = getattr(options, option)
        if value is not None:
            is_folder = variable == "D8_DATA_DIR"
            os.environ[variable] = str(Path(value).absolute()) if is_folder else value


def _environment() -> dict[str, str]:
    """Return the variables of ``.env`` and, over them, those of the environment.

    Raises:
        ConfigError: a line of ``.env`` cannot be read, or there is no such data folder.
    """
    here = Installation(_CHECKOUT)
    found: dict[str, str] = {}
    file = here.home / ".env"
    if not os.environ.get("D8_NO_ENV_FILE") and os.path.lexists(file) and not file.is_dir():
        from d8mesh.edge import env_file  # slow to import, and most have no such file

        found = env_file.read(file)
    found |= os.environ
    return found | {"D8_DATA_DIR": str(here.data_folder(found.get("D8_DATA_DIR")))}


# --- the menu -------------------------------------------------------------------------


def _menu() -> int:
    """Show the menu until 9 or the end of the input; a failed command comes back to it."""
    try:
        config = Config.from_env(_environment())
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE
    is_spanish = (config.lang or _language_of(_environment())) == "es"
    words = _SPANISH if is_spanish else _ENGLISH
    rows = {
        str(choice.number): (choice.es if is_spanish else choice.en, (name, *choice.arguments))
        for choice, name in sorted(
            ((choice, command.name) for command in COMMANDS for choice in command.choices),
            key=lambda row: row[0].number,
        )
    }
    while True:
        print(f"\n=== D8 {__version__} ===")
        for number, (text, _) in [*rows.items(), (EXIT_NUMBER, (words.leave, ()))]:
            print(f"  {number}. {text}")
        try:
            answer = input(f"{words.prompt} ").strip()
        except EOFError:
            print()
            return OK
        if answer == EXIT_NUMBER:
            return OK
        if answer not in rows:
            print(words.wrong.format(answer[:40]))
            continue
        code = _run_from_menu(rows[answer][1])
        if code != OK:
            print(words.ended.format(code))


def _run_from_menu(arguments: Sequence[str]) -> int:
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    prompt: str
    leave: str
    wrong: str
    ended: str


_ENGLISH: Final = _Words(
    prompt="Choose (1-9):",
    leave="Exit",
    wrong="{!r} is not in the menu: a number from 1 to 9",
    ended="(ended with code {})",
)
_SPANISH: Final = _Words(
    prompt="Elige (1-9):",
    leave="Salir",
    wrong="{!r} no está en el menú: un número del 1 al 9",
    ended="(terminó con el código {})",
)


def _language_of(env: Mapping[str, str]) -> str:
    """Return es or en, by the locale's variables, else by what the system says (Windows)."""
    names = (env.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    name = next((name for name in names if name), None) or locale.getlocale()[0] or ""
    return (
        "es" if name.lower().startswith(("es_", "es-", "es.", "spanish")) or name == "es" else "en"
    )
