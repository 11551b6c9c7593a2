"""The command line: runs one command, or the menu.

Reads ``.env`` and the environment into the `Config` that every command is given; a program that
uses d8mesh as a library has its environment read by `edge.installation.config_of`.
Loads a command's own module when it is run, so that starting is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import locale
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, cast

from d8mesh import menu, words
from d8mesh.commands import BAD_USAGE, FAILED, HUNG_UP, INTERRUPTED, OK, Command, CommandHandler
from d8mesh.config import Config
from d8mesh.edge import terminal
from d8mesh.edge.installation import Installation
from d8mesh.errors import (
    ConfigError,
    D8Error,
    JournalBrokenError,
    JournalHeldError,
    OutboxBrokenError,
    OutboxKeyError,
)
from d8mesh.program import VARIABLE as STARTED_AS
from d8mesh.program import command_name
from d8mesh.usage import BadUsageError, parse
from d8mesh.words import tr, translated

#: The exit code of an error: the first class that fits.
_EXIT_OF_ERRORS: Final[tuple[tuple[type[D8Error], int], ...]] = (
    (ConfigError, BAD_USAGE),
    (JournalHeldError, 3),
    (JournalBrokenError, 4),
    (OutboxBrokenError, 4),
    (OutboxKeyError, 4),
    (D8Error, FAILED),
)

#: The folder with start_d8.py and .env; an installed d8mesh without it works where it is.
_CHECKOUT: Final = Path(__file__).resolve().parent.parent

#: Folders of the source whose commands are not installed with the package.
_OF_CHECKOUT: Final = ("bench", "tests")


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
        raise D8Error(f"the tests are not installed: run `{command_name()} test` in the source")
    import pytest

    os.chdir(_CHECKOUT)
    return int(pytest.main(list(options.rest)))


# --- one command ----------------------------------------------------------------------


def _run(arguments: Sequence[str]) -> int:
    try:
        command, options = parse(arguments)
    except SystemExit:  # argparse has printed the help
        return OK
    except BadUsageError as error:
        with contextlib.suppress(ConfigError):  # the command would tell of its settings
            _use_language()
        terminal.tell(tr("error: {why}", why=translated(error.text)))
        terminal.tell(tr("help:  {command}", command=error.help))
        return BAD_USAGE
    before = dict(os.environ)
    # a file of that name is what `bench --json` takes
    is_json = getattr(options, "json", False) is True
    try:
        _apply_settings(command, options)
        os.environ[STARTED_AS] = command_name()
        words.use(_language_of(os.environ))  # until `.env` has been read
        config = Config()
        if not command.ignores_settings:
            environment = _environment()
            config = Config.from_env(environment)
            words.use(config.lang or _language_of(environment))
        # A child's parent has said them; `up` would say each three times.
        if not command.is_internal and not getattr(options, "with_parent", False):
            for warning in (*config.warnings, *_of_interfaces(config)):
                terminal.tell(tr("warning: {why}", why=translated(warning)))
        log = logging.getLogger("d8mesh")
        if not log.hasHandlers():  # Python would print what concerns logs, and people are told
            log.addHandler(logging.NullHandler())
        return _load(command)(config, options)
    except D8Error as error:
        return _failed(error, is_json=is_json)
    except OSError as error:
        if terminal.is_reader_gone(error) or error.errno is None:
            raise
        place = [] if error.filename is None else [str(error.filename)]
        return _failed(D8Error(": ".join([*place, str(error.strerror)])), is_json=is_json)
    except KeyboardInterrupt as interrupt:
        _tell_notes(interrupt)
        return INTERRUPTED
    finally:  # the menu goes on: what this command set is not the next one's
        os.environ.clear()
        os.environ.update(before)


def _failed(error: D8Error, *, is_json: bool) -> int:
    """Say an error; return its exit code."""
    if is_json:
        terminal.say(terminal.as_json({"error": str(error), "code": error.code}))
    tell_error(error)
    return next(code for kind, code in _EXIT_OF_ERRORS if isinstance(error, kind))


def tell_error(error: D8Error) -> None:
    """Say an error, each of its lines with its mark."""
    for line in str(error).splitlines() or [error.code]:
        told = translated(line.removeprefix("error: "))
        terminal.tell(tr("error: {why}", why=told))
    _tell_notes(error)


def _tell_notes(error: BaseException) -> None:
    """Say what was noted on an error on its way: tasks that are not acknowledged, say."""
    for note in getattr(error, "__notes__", ()):
        for line in str(note).splitlines():
            told = translated(line.removeprefix("d8mesh: "))
            terminal.tell(tr("note: {why}", why=told))


def _of_interfaces(config: Config) -> list[str]:
    """Return what is worth saying of D8_INTERFACES: a cable may be plugged in later."""
    if not config.interfaces:
        return []
    from d8mesh.edge.network import unknown_interfaces  # slow to import, and seldom needed

    unknown = unknown_interfaces(config.interfaces)
    return [f"D8_INTERFACES names {name!r}, which this machine does not have" for name in unknown]


def _load(command: Command) -> CommandHandler:
    module_name, _, function = command.handler.partition(":")
    package = module_name.partition(".")[0]
    if package in _OF_CHECKOUT:
        if not (_CHECKOUT / package).is_dir():
            raise D8Error(f"{package}/ is not installed: run this command in the source")
        sys.path.insert(0, str(_CHECKOUT))
    try:
        return cast(CommandHandler, getattr(importlib.import_module(module_name), function))
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] in ("d8mesh", *_OF_CHECKOUT):
            raise
        raise D8Error(
            f"the package {error.name} is not installed: start with `{command_name()}`, "
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

        found = env_file.read(file, os.environ)
    found |= os.environ
    return found | {"D8_DATA_DIR": str(here.data_folder(found.get("D8_DATA_DIR")))}


# --- the menu -------------------------------------------------------------------------


def _menu() -> int:
    """Show the menu in the language of the settings."""
    try:
        _use_language()
    except ConfigError as error:
        tell_error(error)
        return BAD_USAGE
    return menu.show(_run)


def _use_language() -> None:
    """Speak the language of the settings.

    Raises:
        ConfigError: a setting is wrong; it is that of the environment then.
    """
    words.use(_language_of(os.environ))
    environment = _environment()
    words.use(Config.from_env(environment).lang or _language_of(environment))


def _language_of(env: Mapping[str, str]) -> str:
    """Return es or en: D8_LANG, else by the locale's variables, else by the system (Windows)."""
    if env.get("D8_LANG", "").lower() in words.LANGUAGES:
        return env["D8_LANG"].lower()
    names = (env.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    name = next((name for name in names if name), None) or locale.getlocale()[0] or ""
    return (
        "es" if name.lower().startswith(("es_", "es-", "es.", "spanish")) or name == "es" else "en"
    )
