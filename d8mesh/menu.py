"""The menu: the documented numbers, each of which runs a command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from d8mesh import __version__
from d8mesh.commands import COMMANDS, INTERRUPTED, OK
from d8mesh.edge.terminal import say
from d8mesh.words import tr

#: The last line of the menu.
EXIT_NUMBER: Final = "9"
#: Of a wrong answer so much is repeated.
REPEATED_CHARS: Final = 40


def show(run: Callable[[Sequence[str]], int]) -> int:
    """Show the menu until 9 or the end of the input; a failed command comes back to it."""
    rows = {
        str(choice.number): (tr(choice.text), (command.name, *choice.arguments))
        for command in COMMANDS
        for choice in command.choices
    }
    while True:
        say(f"\n=== D8 {__version__} ===")
        for number, (text, _) in sorted(rows.items()):
            say(f"  {number}. {text}")
        say(f"  {EXIT_NUMBER}. {tr('Exit')}")
        try:
            answer = input(f"{tr('Choose (1-9):')} ").strip()
        except EOFError:
            say("")
            return OK
        if answer == EXIT_NUMBER:
            return OK
        if answer not in rows:
            shown = repr(answer[:REPEATED_CHARS])
            say(tr("{answer} is not in the menu: a number from 1 to 9", answer=shown))
            continue
        try:
            code = run(rows[answer][1])
        except KeyboardInterrupt:
            code = INTERRUPTED
        if code != OK:
            say(tr("(ended with code {code})", code=code))
