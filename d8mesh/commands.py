"""The table of commands; the menu, the sub-commands and the help are views of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from d8mesh import options
from d8mesh.config import Config

#: A command's handler: given the settings and the parsed options, returns an exit code.
CommandHandler = Callable[[Config, argparse.Namespace], int]

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
    INTERRUPTED: "interrupted with Ctrl-C; tasks that were submitted go on",
    HUNG_UP: "whoever read the output has gone, as `head` does",
}

#: The groups of `--help`, in order, and what stands above each.
GROUPS: Final = {
    "run": "Run a mesh",
    "work": "Give it work",
    "look": "See what there is",
    "develop": "Develop d8mesh (in its source)",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """One line of the menu: its number, its words, and the arguments it stands for."""

    number: int
    text: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command: what runs it, what it takes, and where it stands in the menu."""

    name: str
    #: ``module:function``; "": `run` of the app of this name
    runs: str = ""
    summary: str = ""
    group: str = ""
    choices: tuple[Choice, ...] = ()
    #: option -> variable: the option is another way to give that setting
    settings: tuple[tuple[str, str], ...] = ()
    #: everything after the name goes to the handler unread, as ``options.rest``
    takes_rest: bool = False
    #: gets the default settings, whatever the environment and ``.env`` say
    ignores_settings: bool = False
    #: what one may type, without the program's name
    examples: tuple[str, ...] = ()

    @property
    def handler(self) -> str:
        """``module:function``, imported when the command is run."""
        return self.runs or f"d8mesh.apps.{self.name}:run"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add what it takes: the function of its name in `options`, if there is one."""
        getattr(options, self.name, lambda parser: None)(parser)

    @property
    def is_internal(self) -> bool:
        """Tell whether only d8mesh itself starts this command, as a child process."""
        return self.name.startswith("_")


COMMANDS: Final[tuple[Command, ...]] = (
    Command(
        name="up",
        runs="d8mesh.apps.everything:run",
        summary="everything on this machine: an orchestrator and a worker",
        group="run",
        choices=(Choice(8, "Everything on this machine"),),
    ),
    Command(
        name="orchestrator",
        runs="d8mesh.processes.launcher:run",
        summary="the broker and the REST of this mesh",
        group="run",
        choices=(Choice(4, "Orchestrator"),),
        settings=(("port", "FLASK_PORT"), ("data", "D8_DATA_DIR")),
    ),
    Command(
        name="worker",
        runs="d8mesh.processes.worker_main:run",
        summary="a worker: finds every orchestrator of its mesh",
        group="run",
        choices=(
            Choice(5, "Worker Groq", ("--type", "groq")),
            Choice(6, "Worker Gemini", ("--type", "gemini")),
            Choice(7, "Worker DeepSeek", ("--type", "deepseek")),
        ),
        settings=(("type", "WORKER_TYPE"), ("name", "WORKER_ID")),
        examples=("worker --slots 2", "worker --tasks ./my/handlers.py"),
    ),
    Command(
        name="demo",
        summary="an orchestrator and two workers at work, with a live picture",
        group="run",
    ),
    Command(
        name="ask",
        summary="ask a model of the mesh, and print its answer as it comes",
        group="work",
        examples=('ask "What is a Raspberry Pi?"', "ask --model qwen2.5:3b - < question.txt"),
    ),
    Command(
        name="batch",
        summary="answer a file of prompts, a line for each; goes on where it was stopped",
        group="work",
        examples=(
            "batch prompts.jsonl --out answers.jsonl",
            "batch mails.csv --prompt 'Summarise: {text}' --model qwen2.5:3b --out out.jsonl",
        ),
    ),
    Command(
        name="submit",
        summary="submit a task; print its id, or wait for its result",
        group="work",
        examples=(
            """submit echo '{"text": "hello"}' --wait""",
            "submit resize @job.json --follow --timeout 60",
            "submit echo - --lines --wait < many.jsonl",
        ),
    ),
    Command(
        name="niche",
        summary="Niche Discovery over the mesh",
        group="work",
        choices=(Choice(2, "Niche Discovery"),),
    ),
    Command(
        name="evolution",
        summary="evolve agents, or anything that a function scores, over the mesh",
        group="work",
        choices=(Choice(3, "Evolution"),),
        examples=(
            "evolution --questions questions.json --islands 3",
            "evolution --fitness ./my.py:cost --genome genes.yaml --time-limit 600",
        ),
    ),
    Command(
        name="status",
        summary="what runs in the mesh now",
        group="look",
        choices=(Choice(1, "Status"),),
    ),
    Command(name="workers", summary="the workers: what each can do, and why not", group="look"),
    Command(
        name="tasks",
        summary="list, show, explain, replay and cancel tasks",
        group="look",
        examples=("tasks list --state failed", "tasks explain ID", "tasks replay --all-failed"),
    ),
    Command(
        name="models",
        summary="the language models of the mesh; pull and remove them",
        group="look",
        examples=("models", "models pull qwen2.5:3b", "models remove qwen2.5:3b --on pi5"),
    ),
    Command(
        name="join",
        summary="who may join: list, approve, revoke, forget; whom we trust: pins, trust, unpin",
        group="look",
        settings=(("data", "D8_DATA_DIR"),),
        examples=("join list", "join approve k3fq-2mzd-7xwa-pq4e", "join revoke pi-7"),
    ),
    Command(
        name="logs",
        summary="the newest lines of this machine's logs, and where they are",
        group="look",
        settings=(("data", "D8_DATA_DIR"),),
        examples=("logs worker --lines 20", "logs --follow"),
    ),
    Command(
        name="recover",
        summary="save what can be read of a damaged journal or outbox",
        group="look",
        settings=(("data", "D8_DATA_DIR"),),
    ),
    Command(
        name="token",
        summary="access tokens of the HTTP port: make, list and revoke them",
        group="run",
        settings=(("data", "D8_DATA_DIR"),),
        examples=(
            "token create alice --scope chat --limit 60/min",
            "token list",
            "token revoke alice",
        ),
    ),
    Command(
        name="test",
        runs="d8mesh.cli:run_tests",
        summary="the tests; --all: the long proofs too; what follows goes to pytest",
        group="develop",
        takes_rest=True,
        ignores_settings=True,
    ),
    Command(
        name="bench",
        runs="bench.run:run",
        summary="measure: bench throughput",
        group="develop",
        takes_rest=True,
    ),
    Command(
        name="chaos",
        runs="tests.chaos.run:run",
        summary="kill, pause and cut off parts of a mesh at work: chaos --minutes 3",
        group="develop",
        takes_rest=True,
        ignores_settings=True,
    ),
    Command(
        name="simulate",
        runs="tests.simulation.run:run",
        summary="the brains in a seeded world of faults: simulate --seeds 1000",
        group="develop",
        takes_rest=True,
        ignores_settings=True,
    ),
    Command(name="_broker", runs="d8mesh.processes.launcher:run_broker", takes_rest=True),
    Command(name="_web", runs="d8mesh.processes.web_main:run_web", takes_rest=True),
    Command(name="_process", runs="d8mesh.nodes.process:run", takes_rest=True),
)
