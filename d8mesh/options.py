"""What each command takes on its command line.

Every option that takes a value says its unit and its default in its help (a test insists).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Final

from d8mesh import option_values as values
from d8mesh.core.protocol.access_tokens import ALL_SCOPES, TokenScope

TASK_STATES: Final = ("queued", "delayed", "running", "completed", "failed", "cancelled")
BATCH_ORDERS: Final = ("input", "done")
CLOUD_WORDS: Final = ("never", "overflow", "yes")
#: What `tasks` can do, in words, and how many ids that takes.
TASK_ACTIONS: Final = {
    "list": ("tasks, newest first", ""),
    "show": ("all that is known of tasks: input, result, traceback, history", "+"),
    "explain": ("why tasks wait and what would run them, or why they ran where they ran", "+"),
    "replay": ("submit failed or cancelled tasks anew, under new ids", "*"),
    "cancel": ("cancel tasks", "+"),
}
#: What `join` can do, in words, and the word for what it takes.
JOIN_ACTIONS: Final = {
    "list": ("who is known to the orchestrator of this machine, and who waits", ""),
    "approve": ("let a key in", "FINGERPRINT|NAME"),
    "revoke": ("show a key out at once; its tasks go on elsewhere", "FINGERPRINT|NAME"),
    "forget": ("free the worker ids of a key, after its key file was lost", "FINGERPRINT|NAME"),
}
#: What `join` can do on the side of workers and clients, on their machine.
TRUST_ACTIONS: Final = {
    "pins": ("which orchestrators the workers and clients of this machine trust", ""),
    "trust": ("trust another orchestrator, or one that was installed anew", "FINGERPRINT"),
    "unpin": ("trust one no longer (all: none)", "FINGERPRINT|all"),
}
#: Seconds that any command can be told to wait: a week.
MAX_TIMEOUT_S: Final = 604_800
#: A mesh that is there is found sooner; whoever asks what there is should not wait for nothing.
FIND_S: Final = 6.0
#: How long one orchestrator may take to answer a question of `status`.
ANSWER_S: Final = 5.0
LISTED: Final = 50
LOG_LINES: Final = 50
FITNESS_DEFAULT: Final = "sphere"


def orchestrator(parser: argparse.ArgumentParser) -> None:
    """Add what `orchestrator` takes."""
    parser.add_argument("--port", help="the REST port (default: FLASK_PORT, else 7001)")
    _data(parser)


def worker(parser: argparse.ArgumentParser) -> None:
    """Add what `worker` takes."""
    add = parser.add_argument
    add("--type", help="deepseek or a name of your own (default: WORKER_TYPE, else deepseek)")
    add(
        "--tasks",
        action="append",
        default=[],
        metavar="MODULE|FILE",
        help="a Python module (my.handlers) or file (./my/handlers.py) with a function "
        "register(worker); may be given again (default: only the built-in task types)",
    )
    add(
        "--slots",
        type=values.count(1, 4096),
        metavar="N",
        help="tasks at the same time (default: as many as processors, 2 at least)",
    )
    add("--name", help="the id of this worker (default: WORKER_ID, else made once and kept)")


def demo(parser: argparse.ArgumentParser) -> None:
    """Add what `demo` takes."""
    parser.add_argument(
        "--no-llm", action="store_true", help="no prompts: no model is looked for or installed"
    )


def ask(parser: argparse.ArgumentParser) -> None:
    """Add what `ask` takes."""
    add = parser.add_argument
    add(
        "prompt",
        nargs="*",
        metavar="PROMPT",
        help="the question; `-` stands for what is piped in, and so does no prompt at all",
    )
    _which_models(parser)
    add("--system", default="", metavar="TEXT", help="instructions for the model (default: none)")
    _timeout(parser, "give up waiting after so many seconds", "as long as it takes")
    add("--json", action="store_true", help="one JSON object with the whole result, at the end")


def submit(parser: argparse.ArgumentParser) -> None:
    """Add what `submit` takes."""
    add = parser.add_argument
    add("type", metavar="TYPE", help="the task type, as `workers` lists them")
    add(
        "data",
        nargs="?",
        default="{}",
        metavar="JSON|-|@FILE",
        help="the data, a JSON object; `-`: from standard input; @FILE: from a file (default: {})",
    )
    add("--lines", action="store_true", help="the data is many tasks, one JSON object on each line")
    add("--wait", action="store_true", help="wait for the result and print it; code 1 if it failed")
    add("--follow", action="store_true", help="as --wait, and print partial output as it comes")
    _number_option(parser, "--priority", values.count(1, 10), "1..10", 5, "higher comes first")
    add(
        "--deadline",
        dest="deadline_s",
        type=values.number(0.001, 1e9),
        metavar="SECONDS",
        help="the task fails if it is not finished so many seconds from now (default: none)",
    )
    add(
        "--attempts",
        type=values.count(1, 100),
        metavar="N",
        help="attempts before it has failed (default: the orchestrator's MAX_RETRY_ATTEMPTS, 3)",
    )
    _timeout(parser, "give up waiting after so many seconds", "as long as it takes")
    _json(parser, "one JSON object a line")


def batch(parser: argparse.ArgumentParser) -> None:
    """Add what `batch` takes."""
    add = parser.add_argument
    add(
        "input",
        metavar="FILE|-",
        help='JSON on each line, {"prompt": …} or as OpenAI\'s batches have it, or a .csv table; '
        "`-`: from standard input",
    )
    add(
        "--out",
        default="-",
        metavar="FILE|-",
        help="where the answers go, a line for each; the same command again goes on with it "
        "(default: -, standard output, which cannot be gone on with)",
    )
    add(
        "--prompt",
        default="",
        metavar="TEXT",
        help="what is asked of each row, its columns in braces: 'Translate {text}' (default: the "
        "column prompt)",
    )
    _which_models(parser)
    add("--system", default="", metavar="TEXT", help="instructions for the model (default: none)")
    add(
        "--max-tokens",
        type=values.count(1, 10_000_000),
        metavar="N",
        help="tokens of an answer at most (default: the model's own bound)",
    )
    add(
        "--schema",
        type=Path,
        metavar="FILE",
        help="a JSON schema that each answer keeps to (default: none)",
    )
    add(
        "--order",
        choices=BATCH_ORDERS,
        default=BATCH_ORDERS[0],
        metavar="ORDER",
        help="of the answers: input, as they are asked, or done, as they come (default: input)",
    )
    _number_option(parser, "--priority", values.count(1, 10), "1..10", 3, "higher comes first")
    add("--retry-failed", action="store_true", help="ask those again that have failed")
    _timeout(parser, "stop waiting after so many seconds", "as long as it takes")
    _json(parser, "one JSON object at the end")


def niche(parser: argparse.ArgumentParser) -> None:
    """Add what `niche` takes."""
    parser.add_argument(
        "--markets",
        type=Path,
        metavar="FILE",
        help="YAML, JSON or CSV file: markets, geographies (default: 5 markets in 3 geographies)",
    )
    _number_option(
        parser,
        "--at-once",
        values.count(1, 10_000),
        "N",
        100,
        "questions under way at the same time",
    )
    _output(parser, "niche")
    _timeout(
        parser,
        "give up waiting after so many seconds",
        "60 without a worker that can, else as long as it takes",
    )
    _json(parser, "one JSON object at the end")


def evolution(parser: argparse.ArgumentParser) -> None:
    """Add what `evolution` takes."""
    add = parser.add_argument
    add(
        "--fitness",
        default="",
        metavar="NAME|MODULE:FUNCTION",
        help="a built-in fitness function, agent (with --questions), or a function of your own, "
        f"my.module:cost or ./my.py:cost (default: {FITNESS_DEFAULT}, with --questions agent)",
    )
    add(
        "--questions",
        type=Path,
        metavar="FILE",
        help="JSON, YAML or CSV file of what agents are asked, and what is right (default: none)",
    )
    add(
        "--genome",
        type=Path,
        metavar="FILE",
        help="JSON or YAML file of the genes and their bounds (default: an agent's temperature, "
        "top_p, max_tokens, system prompt and frame of the question)",
    )
    add(
        "--judge",
        default="",
        metavar="NAME",
        help="the model that marks answers to questions with a rubric (default: any)",
    )
    _breeding(parser)
    add("--seed", type=int, help="the same seed gives the same run (default: by chance)")
    add(
        "--patience",
        type=values.count(1, 100_000),
        default=0,
        metavar="N",
        help="end after so many generations without a better one (default: any number)",
    )
    add(
        "--time-limit",
        dest="time_limit_s",
        type=values.number(0.1, MAX_TIMEOUT_S),
        metavar="SECONDS",
        help="end after so many seconds, with what was found (default: none)",
    )
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="where the results go; the folder of an earlier run goes on with it (default: a new "
        "folder in evolution/ of the data folder)",
    )
    _timeout(
        parser,
        "give up waiting after so many seconds",
        "60 without a worker that can, else as long as it takes",
    )
    _json(parser, "one JSON object at the end")


def tasks(parser: argparse.ArgumentParser) -> None:
    """Add what `tasks` takes."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, (text, ids) in TASK_ACTIONS.items():
        action = actions.add_parser(name, help=text, description=text)
        if ids:
            action.add_argument("ids", nargs=ids, metavar="ID", help="a task's id")
        if name == "list":
            action.add_argument(
                "--state",
                choices=TASK_STATES,
                default="",
                help=f"of this only: {', '.join(TASK_STATES)} (default: all)",
                metavar="STATE",
            )
            most = values.count(1, 1_000_000)
            _number_option(action, "--limit", most, "N", LISTED, "tasks at most")
            door = "of what came in by this door only, as ollama or openai (default: all)"
            action.add_argument("--door", default="", help=door)
        if name == "replay":
            action.add_argument("--all-failed", action="store_true", help="all that have failed")
        if ids != "+":
            action.add_argument("--type", default="", help="of this task type only (default: all)")
        _timeout(action, "look for an orchestrator for so many seconds", f"{FIND_S:g}", FIND_S)
        _json(action, "one JSON object a line")


def join(parser: argparse.ArgumentParser) -> None:
    """Add what `join` takes."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, (text, who) in (JOIN_ACTIONS | TRUST_ACTIONS).items():
        action = actions.add_parser(name, help=text, description=text)
        action.set_defaults(who=None)
        if who:
            shown = "as `join list` or the console shows it"
            action.add_argument("who", type=values.member_name, metavar=who, help=shown)
        if name in JOIN_ACTIONS:
            _timeout(action, "look for the orchestrator for so many seconds", f"{FIND_S:g}", FIND_S)
        _data(action)
        _json(action, "one JSON object, for programs")


def models(parser: argparse.ArgumentParser) -> None:
    """Add what `models` takes."""
    _timeout(parser, "look for an orchestrator for so many seconds", f"{FIND_S:g}", FIND_S)
    _json(parser, "one JSON object, for programs")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    pull = _change(actions, "pull", "install a model on machines of the mesh")
    where = pull.add_mutually_exclusive_group()
    _on(where, "the one that it fits best")
    where.add_argument("--all", action="store_true", help="on every machine with an Ollama")
    where.add_argument("--fit", action="store_true", help="on every machine that has room for it")
    remove = _change(actions, "remove", "remove a model from machines of the mesh")
    where = remove.add_mutually_exclusive_group()
    _on(where, "the only one that has it")
    where.add_argument("--all", action="store_true", help="from every machine that has it")
    remove.add_argument("--yes", action="store_true", help="--all asks no question")


def status(parser: argparse.ArgumentParser) -> None:
    """Add what `status` takes."""
    _looking(parser)
    _json(parser, "one JSON object, for programs")


def workers(parser: argparse.ArgumentParser) -> None:
    """Add what `workers` takes."""
    _looking(parser)
    _json(parser, "one JSON object a line, for programs")


def logs(parser: argparse.ArgumentParser) -> None:
    """Add what `logs` takes."""
    add = parser.add_argument
    add(
        "name",
        nargs="?",
        default="",
        metavar="NAME",
        help="whose: orchestrator, broker, web, worker, worker-2, … (default: all)",
    )
    newest = "the newest lines, over all of them"
    _number_option(parser, "--lines", values.count(1, 100_000), "N", LOG_LINES, newest)
    add("--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    _data(parser)


def recover(parser: argparse.ArgumentParser) -> None:
    """Add what `recover` takes."""
    _data(parser)
    _json(parser, "one JSON object, for programs")


def token(parser: argparse.ArgumentParser) -> None:
    """Add what `token` takes."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    name_help = "what it is called: who, or which program, has it"
    create = actions.add_parser("create", help="make a token; it is shown once")
    create.add_argument("name", type=values.token_name, metavar="NAME", help=name_help)
    create.add_argument(
        "--scope",
        action="append",
        choices=[each.value for each in TokenScope if each in ALL_SCOPES],
        default=[],
        metavar="SCOPE",
        help="what it is for; may be given again: chat (language models, files, batches), submit "
        "(tasks and their results), work (polling workers, the tunnel), admin (everything) "
        "(default: chat)",
    )
    create.add_argument(
        "--limit",
        type=values.limit,
        metavar="N/min|N/h",
        help="requests at most in any minute or hour, 60/min or 1000/h (default: none)",
    )
    listed = actions.add_parser("list", help="the tokens, and what each has used")
    revoke = actions.add_parser("revoke", help="end a token, within a second")
    revoke.add_argument("name", metavar="NAME", help=name_help)
    for action in (create, listed, revoke):
        _data(action)
        _json(action, "one JSON object, for programs")


def _breeding(parser: argparse.ArgumentParser) -> None:
    """Add how genomes are bred."""
    _number_option(
        parser, "--population", values.count(2, 100_000), "N", 24, "genomes of an island"
    )
    _number_option(
        parser, "--generations", values.count(1, 100_000), "N", 10, "generations at most"
    )
    apart = "populations that evolve apart"
    _number_option(parser, "--islands", values.count(1, 100), "N", 1, apart)
    exchange = "generations from one exchange of the islands' best to the next"
    _number_option(parser, "--migrate-every", values.count(1, 100_000), "N", 5, exchange)
    rate = values.number(0, 1)
    _number_option(parser, "--mutation-rate", rate, "0..1", 0.2, "how much of a genome is changed")


# --- what several commands take -------------------------------------------------------


def _data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", help="the data folder (default: D8_DATA_DIR)")


def _output(parser: argparse.ArgumentParser, room: str) -> None:
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"where the results go (default: a new folder in {room}/ of the data folder)",
    )


def _number_option(
    parser: argparse.ArgumentParser,
    name: str,
    parse: Callable[[str], float],
    shown: str,
    default: float,
    text: str,
) -> None:
    help_text = f"{text} (default: {default:g})"
    parser.add_argument(name, type=parse, default=default, metavar=shown, help=help_text)


def _json(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--json", action="store_true", help=text)


def _change(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    """Add an action that changes where a model is installed."""
    action: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text)
    help_text = "the model's name, as Ollama knows it"
    action.add_argument("name", type=values.model_name, metavar="NAME", help=help_text)
    _timeout(action, "give up waiting after so many seconds", "as long as it takes")
    more = "one JSON object a line, for programs"
    action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=more)
    return action


def _on(group: argparse._MutuallyExclusiveGroup, default: str) -> None:
    group.add_argument(
        "--on",
        action="append",
        default=[],
        metavar="MACHINE",
        help=f"a machine, worker or service; may be given again (default: {default})",
    )


def _looking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="also the workers that ended longer ago")
    _timeout(
        parser, "an orchestrator may take so many seconds for an answer", f"{ANSWER_S:g}", ANSWER_S
    )


def _timeout(
    parser: argparse.ArgumentParser, text: str, default: str, default_s: float | None = None
) -> None:
    """Add ``--timeout``, the same option wherever something is waited for."""
    parser.add_argument(
        "--timeout",
        dest="timeout_s",
        type=values.number(0.1, MAX_TIMEOUT_S),
        default=default_s,
        metavar="SECONDS",
        help=f"{text} (default: {default})",
    )


def _which_models(parser: argparse.ArgumentParser) -> None:
    """Add which model is asked, and whether in the cloud too."""
    which = parser.add_mutually_exclusive_group()
    help_text = "a model's name (default: the service's own)"
    which.add_argument("--model", default="", metavar="NAME", help=help_text)
    which.add_argument(
        "--models",
        type=values.names,
        default=[],
        metavar="NAMES",
        help="models, the first that is to be had answers: a,b (default: any)",
    )
    parser.add_argument(
        "--cloud",
        choices=CLOUD_WORDS,
        metavar="WHEN",
        help="may the question leave the LAN: never, overflow (only if no machine of the LAN can "
        "begin soon) or yes (default: D8_CLOUD of the orchestrator)",
    )
