"""How the command line is read: the parser, its help, and what was meant instead."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import Final, NoReturn

from d8mesh import __version__
from d8mesh.commands import COMMANDS, EXIT_CODES, GROUPS, Command
from d8mesh.program import command_name

#: How alike a word must be to be proposed.
LIKENESS: Final = 0.6
_EXAMPLES: Final = (
    "up",
    'ask "What is a Raspberry Pi?"',
    """submit echo '{"text": "hello"}' --wait""",
    "tasks list --state failed",
)


class BadUsageError(Exception):
    """The arguments are wrong.

    Attributes:
        text: what is wrong, in English.
        help: the command that says what is right.
    """

    def __init__(self, text: str, help_command: str) -> None:
        super().__init__(text)
        self.text, self.help = text, help_command


class CommandParser(argparse.ArgumentParser):
    """A parser that says what may have been meant."""

    def __init__(self, **given: object) -> None:
        given.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**given, allow_abbrev=False)  # type: ignore[arg-type]

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [str(each) for each in action.choices]
        listed = ", ".join(name for name in known if not name.startswith("_"))
        text = f"invalid choice: {str(value)[:80]!r}{meant(str(value), known)} (there is: {listed})"
        raise argparse.ArgumentError(action, text)

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the arguments: who catches it knows the language."""
        raise BadUsageError(message, f"{self.prog} --help")


def parse(arguments: Sequence[str]) -> tuple[Command, argparse.Namespace]:
    """Return the command and what was given to it.

    Raises:
        BadUsageError: they are wrong.
        SystemExit: after printing help or the version.
    """
    name = arguments[0]
    for command in COMMANDS:
        if command.takes_rest and command.name == name:
            return command, argparse.Namespace(command=name, rest=list(arguments[1:]))
    parser, rows = _parsers()
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        row = rows[given.command]
        known = [option for option in _options_of(row) if option.startswith("--")]
        hints = (f"{word[:80]}{meant(word, known)}" for word in unknown)
        row.error(f"unrecognized arguments: {', '.join(hints)}")
    return next(each for each in COMMANDS if each.name == given.command), given


def meant(word: str, known: Iterable[str]) -> str:
    """Return ``: did you mean …?`` if one of `known` is like `word`, else nothing."""
    near = difflib.get_close_matches(word.partition("=")[0].lower(), known, n=1, cutoff=LIKENESS)
    return f": did you mean {near[0]}?" if near else ""


def _parsers() -> tuple[CommandParser, dict[str, CommandParser]]:
    program = command_name()
    parser = CommandParser(
        prog=program,
        usage=f"{program} [COMMAND …]   (without a command: a menu)",
        description=_overview(program),
        epilog="\n".join(
            ["Exit codes:", *(f"    {code:3}  {text}" for code, text in EXIT_CODES.items()), ""]
        ),
    )
    parser.add_argument("--version", action="version", version=f"d8mesh {__version__}")
    row_of = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", help=argparse.SUPPRESS, prog=program
    )
    rows = {}
    for command in COMMANDS:
        if not command.is_internal:
            examples = "\n".join(f"  {program} {each}" for each in command.examples)
            row = rows[command.name] = row_of.add_parser(
                command.name,
                description=command.summary,
                epilog=f"examples:\n{examples}\n" if examples else None,
            )
            command.add_arguments(row)
            # For `demo`, `up` and the bench, which start commands as children.
            row.add_argument("--set", action="append", default=[], help=argparse.SUPPRESS)
            row.add_argument("--with-parent", action="store_true", help=argparse.SUPPRESS)
    return parser, rows


def _overview(program: str) -> str:
    lines = ["The machines of a LAN as one pool for LLM and agent tasks."]
    widest = max(len(command.name) for command in COMMANDS)
    for group, title in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [
            f"    {command.name:{widest}}  {command.summary}"
            for command in COMMANDS
            if command.group == group
        ]
    lines += [
        "",
        "Programs that know an Ollama or OpenAI (docs/COOKBOOK.md):",
        "    OLLAMA_HOST=http://ORCHESTRATOR:7001, or base_url=http://ORCHESTRATOR:7001/v1",
    ]
    lines += ["", "Examples:", *(f"    {program} {each}" for each in _EXAMPLES)]
    lines += ["", f"`{program} COMMAND --help` says what a command takes. Settings: docs/CONFIG.md"]
    return "\n".join(lines)


def _options_of(parser: argparse.ArgumentParser) -> Iterable[str]:
    """Yield the names of a parser's options, and those of its own sub-commands."""
    for action in parser._actions:
        if action.help is not argparse.SUPPRESS:
            yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _options_of(each)
