"""The command line: one table, seen as menu and as sub-commands."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from d8mesh import cli, errors, program, words
from d8mesh.cli import main
from d8mesh.commands import COMMANDS, EXIT_CODES, GROUPS, HUNG_UP, Command
from d8mesh.config import SETTINGS, Config
from d8mesh.menu import EXIT_NUMBER
from d8mesh.program import command_name

ROOT = Path(__file__).resolve().parent.parent
#: The documented numbers of the menu.
DOCUMENTED_MENU = {
    1: ("status",),
    2: ("niche",),
    3: ("evolution",),
    4: ("orchestrator",),
    5: ("worker", "--type", "groq"),
    6: ("worker", "--type", "gemini"),
    7: ("worker", "--type", "deepseek"),
    8: ("up",),
}

#: What the probe command was called with, and what it does instead of an orchestrator.
seen: list[tuple[Config, argparse.Namespace]] = []
outcomes: list[BaseException | int] = []


def probe(config: Config, options: argparse.Namespace) -> int:
    """Stand in a command's place: note what came, do what the test wants."""
    seen.append((config, options))
    outcome = outcomes.pop(0) if outcomes else 0
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


@pytest.fixture(autouse=True)
def _every_command_is_the_probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in [*(setting.variable for setting in SETTINGS), "LC_ALL", "LC_MESSAGES"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", "en_US.UTF-8")
    monkeypatch.delenv("D8_NO_ENV_FILE", raising=False)
    (tmp_path / "start_d8.py").write_text("", "utf-8")
    monkeypatch.setattr(cli, "_CHECKOUT", tmp_path)
    monkeypatch.setattr(cli, "_load", lambda command: probe)
    seen.clear()
    outcomes.clear()
    yield
    seen.clear()
    words.use(words.ENGLISH)


def choose(monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{answer}\n" for answer in answers)))


def test_the_menu_has_the_documented_numbers() -> None:
    menu = {
        choice.number: (command.name, *choice.arguments)
        for command in COMMANDS
        for choice in command.choices
    }
    assert menu == DOCUMENTED_MENU
    assert EXIT_NUMBER == "9"


@pytest.mark.parametrize("number", sorted(DOCUMENTED_MENU))
def test_each_number_runs_its_command(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    choose(monkeypatch, str(number), "9")
    assert main([]) == 0
    ((_, options),) = seen
    assert options.command == DOCUMENTED_MENU[number][0]
    if options.command == "worker":
        assert options.type == DOCUMENTED_MENU[number][2]


def test_the_menu_ends_quietly_at_the_end_of_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch)
    assert main([]) == 0


@pytest.mark.parametrize("answer", ["0", "10", "x", "", "4; rm", "٤", "-1", "9" * 5000])
def test_a_wrong_choice_is_answered_and_the_menu_comes_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str
) -> None:
    choose(monkeypatch, answer, "9")
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "is not in the menu" in out
    assert out.count("Orchestrator") == 2
    assert seen == []


def test_the_menu_comes_back_after_a_command_that_failed_or_was_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes.extend([errors.BrokerUnavailableError("nobody there"), KeyboardInterrupt()])
    choose(monkeypatch, "1", "2", "3", "9")
    assert main([]) == 0
    captured = capsys.readouterr()
    assert len(seen) == 3
    assert "error: nobody there" in captured.err
    assert "(ended with code 1)" in captured.out
    assert "(ended with code 130)" in captured.out


def test_a_setting_of_one_choice_is_not_the_next_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, "5", "8", "9")
    main([])
    assert [config.worker_type for config, _ in seen] == ["groq", None]


@pytest.mark.parametrize(
    ("env", "prompt"),
    [
        ({"LANG": "es_AR.UTF-8"}, "Elige"),
        ({"LANG": "de_DE.UTF-8"}, "Choose"),
        ({"LC_ALL": "C", "LANG": "es_ES.UTF-8"}, "Choose"),
        ({"LANG": "es_ES.UTF-8", "D8_LANG": "en"}, "Choose"),
        ({"LANG": "C", "D8_LANG": "ES"}, "Elige"),
    ],
)
def test_the_menu_speaks_by_locale_and_d8_lang_decides(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    env: dict[str, str],
    prompt: str,
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    choose(monkeypatch, "9")
    main([])
    assert prompt in capsys.readouterr().out


def test_the_environment_wins_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("FLASK_PORT=7005\nD8_MESH='casa'\n# no\n", "utf-8")
    monkeypatch.setenv("FLASK_PORT", "7006")
    assert main(["status"]) == 0
    ((config, _),) = seen
    assert (config.web_port, config.mesh) == (7006, "casa")


def test_the_file_may_be_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("FLASK_PORT=7005\n", "utf-8")
    monkeypatch.setenv("D8_NO_ENV_FILE", "1")
    main(["status"])
    assert seen[0][0].web_port == 7001


def test_a_file_that_is_no_text_is_a_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".env").write_bytes(b"FLASK_PORT=\xff\xfe\x00")
    assert main(["status"]) == 2
    assert ".env cannot be read" in capsys.readouterr().err


def test_a_line_of_the_file_that_cannot_be_read_stops_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".env").write_text('FLASK_PORT=7005\nD8_MESH_KEY="0123456789abcdef\n', "utf-8")
    for arguments in (["status"], ["orchestrator"], []):
        assert main(arguments) == 2
        told = capsys.readouterr().err
        assert told.startswith(
            f'error: {tmp_path / ".env"}, line 2: D8_MESH_KEY: the " that begins'
        )
        assert "0123456789abcdef" not in told
    assert seen == []


def test_a_command_that_ignores_the_settings_reads_no_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text('D8_MESH_KEY="0123456789abcdef\n', "utf-8")
    assert main(["test", "-q"]) == 0
    assert seen[0][0] == Config()


def test_without_arguments_given_those_of_the_process_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["d8mesh", "status"])
    assert main() == 0
    assert seen[0][1].command == "status"


def test_a_relative_data_folder_lies_beside_the_launcher(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("D8_DATA_DIR", "elsewhere")
    main(["status"])
    monkeypatch.setenv("D8_DATA_DIR", str(tmp_path.parent))
    main(["status"])
    monkeypatch.delenv("D8_DATA_DIR")
    main(["status"])
    folders = [config.data_dir for config, _ in seen]
    assert folders == [str(tmp_path / "elsewhere"), str(tmp_path.parent), str(tmp_path / "data")]


def test_a_data_folder_of_nobody_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("D8_DATA_DIR", "~nobody-of-that-name/d8")
    assert main(["orchestrator"]) == 2
    assert capsys.readouterr().err.startswith("error: D8_DATA_DIR='~nobody-of-that-name/d8': ")


def test_options_that_stand_for_a_setting_win_and_reach_children(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLASK_PORT", "7002")
    inherited: list[str] = []

    def note_environment(config: Config, options: argparse.Namespace) -> int:
        inherited.append(os.environ["FLASK_PORT"])
        return probe(config, options)

    monkeypatch.setattr(cli, "_load", lambda command: note_environment)
    assert main(["orchestrator", "--port", "7003", "--data", "here"]) == 0
    ((config, _),) = seen
    assert (config.web_port, config.data_dir) == (7003, str(tmp_path / "here"))
    assert inherited == ["7003"]
    assert os.environ["FLASK_PORT"] == "7002"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["orchestrator", "--port", "99999"], "FLASK_PORT='99999': expected a port, 1 to 65535"),
        (["worker", "--type", "a b"], "WORKER_TYPE='a b': expected"),
        (["worker", "--slots", "0"], "expected a whole number, 1 to 4096, not '0'"),
        (["worker", "--slots", "9" * 30], "expected a whole number"),
        (["evolution", "--mutation-rate", "1.5"], "expected a number, 0 to 1, not '1.5'"),
        (["evolution", "--mutation-rate", "nan"], "expected a number, 0 to 1"),
        (["niche", "--timeout", "soon"], "expected a number"),
        (["join", "approve", ""], "expected a fingerprint or a name"),
        (["join", "revoke", "  "], "expected a fingerprint or a name"),
        (["join", "trust", ""], "expected a fingerprint or a name"),
        (["models", "pull", "../../x"], "expected a model name such as qwen3:4b, not '../../x'"),
        (["models", "pull", "http://host/x"], "expected a model name"),
        (["models", "remove", "--", "-rm"], "expected a model name"),
        (["orchestratr"], "invalid choice: 'orchestratr': did you mean orchestrator?"),
        (["statsu"], "did you mean status?"),
        (["tasks", "lsit"], "did you mean list?"),
        (["tasks", "list", "--state", "complete"], "did you mean completed?"),
        (["tasks", "list", "--jsn"], "--jsn: did you mean --json?"),
        (["worker", "--slot=2"], "--slot=2: did you mean --slots?"),
        (["status", "--jso"], "unrecognized arguments: --jso: did you mean --json?"),
        (["status", "extra"], "unrecognized arguments: extra"),
        (["--nonsense"], "arguments are required: COMMAND"),
    ],
)
def test_bad_usage_is_told_with_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert main(arguments) == 2
    assert seen == []
    captured = capsys.readouterr()
    assert told in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("has_json", [True, False])
def test_trouble_of_the_system_is_a_sentence_with_the_file_and_no_traceback(
    capsys: pytest.CaptureFixture[str], has_json: bool
) -> None:
    outcomes.append(PermissionError(errno.EACCES, "Permission denied", "/data/journal.db"))
    assert main(["recover", *(["--json"] if has_json else [])]) == 1
    said = capsys.readouterr()
    assert said.err == "error: /data/journal.db: Permission denied\n"
    told = {"error": "/data/journal.db: Permission denied", "code": errors.D8Error.code}
    assert (json.loads(said.out) if has_json else said.out) == (told if has_json else "")


@pytest.mark.parametrize("command", ["join list", "status", "workers", "tasks list"])
def test_with_json_a_failure_is_an_object_and_the_words_are_beside_it(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    for has_json in (True, False):
        outcomes.append(errors.BrokerUnavailableError("no orchestrator answers"))
        assert main([*command.split(), *(["--json"] if has_json else [])]) == 1
        said = capsys.readouterr()
        told = {"error": "no orchestrator answers", "code": errors.BrokerUnavailableError.code}
        assert (json.loads(said.out) if has_json else said.out) == (told if has_json else "")
        assert said.err == "error: no orchestrator answers\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["statsu"], "opción desconocida: 'statsu': ¿querías decir status?"),
        (["tasks", "show"], "error: faltan estos argumentos: ID"),
        (["status", "--jso"], "argumentos desconocidos: --jso: ¿querías decir --json?"),
        (["worker", "--slots", "0"], "--slots: se espera un número entero, de 1 a 4096, no '0'"),
        (["worker", "--slots"], "argumento --slots: se espera un valor"),
    ],
)
def test_bad_usage_is_told_in_the_language_of_the_settings(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    monkeypatch.setenv("D8_LANG", "es")
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert told in said
    assert "ayuda: " in said


def test_all_bad_settings_are_told_one_line_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLASK_PORT", "x")
    monkeypatch.setenv("D8_LANG", "fr")
    assert main(["status"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert main([]) == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.D8Error("no"), 1),
        (errors.BrokerUnavailableError("no"), 1),
        (errors.ConfigError("no"), 2),
        (errors.JournalError("no"), 1),
        (errors.JournalHeldError("no"), 3),
        (errors.JournalBrokenError("no"), 4),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_one_line_and_their_exit_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    outcomes.append(error)
    assert main(["status"]) == code
    assert code in EXIT_CODES
    err = capsys.readouterr().err
    assert err == ("" if code == 130 else "error: no\n")


@pytest.mark.parametrize("kind", [errors.D8Error, KeyboardInterrupt])
def test_notes_of_an_error_are_said_too(
    capsys: pytest.CaptureFixture[str], kind: type[BaseException]
) -> None:
    error = kind("no")
    error.add_note("d8mesh: 1 task is not acknowledged: \x1b[31m\nand may be lost")
    outcomes.append(error)
    main(["status"])
    assert capsys.readouterr().err.splitlines()[-2:] == [
        r"note: 1 task is not acknowledged: \x1b[31m", "note: and may be lost",
    ]  # fmt: skip


def test_a_bug_is_not_hidden() -> None:
    outcomes.append(ZeroDivisionError("bug"))
    with pytest.raises(ZeroDivisionError):
        main(["status"])


def test_warnings_of_the_settings_are_told_but_not_by_children(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("D8_MESHH", "x")
    main(["_broker", "--anything", "goes"])
    assert capsys.readouterr().err == ""
    assert seen[0][1].rest == ["--anything", "goes"]
    main(["worker", "--with-parent"])
    assert capsys.readouterr().err == "", "`up`, which started it, has said it"
    main(["status"])
    assert capsys.readouterr().err.count("warning: D8_MESHH") == 1


def test_an_interface_that_is_not_there_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("D8_INTERFACES", "127.0.0.1,eth77")
    assert main(["status"]) == 0
    expected = "warning: D8_INTERFACES names 'eth77', which this machine does not have\n"
    assert capsys.readouterr().err == expected
    assert len(seen) == 1


def test_pytest_gets_its_arguments_unread_whatever_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLASK_PORT", "x")
    assert main(["test", "-k", "name", "--help"]) == 0
    assert seen[0][1].rest == ["-k", "name", "--help"]


def test_worker_options_have_their_documented_names() -> None:
    main(["worker", "--type", "cpu", "--tasks", "one", "--tasks", "two.three", "--slots", "3"])
    ((config, options),) = seen
    assert (options.type, options.tasks, options.slots) == ("cpu", ["one", "two.three"], 3)
    assert config.worker_type == "cpu"


def test_help_lists_every_command_but_the_internal_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in COMMANDS:
        is_listed = re.search(rf"^    {command.name}\b", out, re.MULTILINE) is not None
        assert is_listed != command.is_internal
        assert command.is_internal or command.summary


def test_help_shows_commands_in_their_groups_with_examples(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert {command.group for command in COMMANDS if not command.is_internal} == set(GROUPS)
    main(["--help"])
    out = capsys.readouterr().out
    assert all(f"{title}:" in out for title in GROUPS.values())
    assert f'{command_name()} ask "' in out
    main(["submit", "--help"])
    assert f"{command_name()} submit echo " in capsys.readouterr().out


def test_every_option_that_takes_a_value_says_its_default() -> None:
    silent = []
    for command in COMMANDS:
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        for action in actions_of(parser):
            takes_value = action.option_strings and action.nargs != 0
            if takes_value and "(default: " not in str(action.help):
                silent.append(f"{command.name} {action.option_strings[0]}")
            if action.default not in (None, "", [], argparse.SUPPRESS, False):
                assert f"{action.default}".removesuffix(".0") in str(action.help), command.name
    assert silent == []


def test_the_time_to_wait_is_the_same_option_everywhere() -> None:
    seen_in = set()
    for command in COMMANDS:
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        for action in actions_of(parser):
            if "--timeout" in action.option_strings:
                assert (action.dest, action.metavar) == ("timeout_s", "SECONDS")
                seen_in.add(command.name)
    looking = {"status", "workers", "tasks", "models", "join"}
    told = {"ask", "batch", "submit", "niche", "evolution"} | looking
    assert seen_in == told


def actions_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from actions_of(each)
        elif not isinstance(action, argparse._HelpAction):
            yield action


@pytest.mark.parametrize(
    ("started", "name"),
    [
        ("/home/x/d8/start_d8.py", "python3 start_d8.py"),
        ("/usr/local/bin/d8mesh", "d8mesh"),
        ("C:/venv/Scripts/d8mesh.exe", "d8mesh"),
        (str(ROOT / "d8mesh" / "__main__.py"), "python3 -m d8mesh"),
    ],
)
def test_hints_name_the_command_as_it_was_started(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    started: str,
    name: str,
) -> None:
    monkeypatch.setattr(program, "_PYTHON", "python3")
    monkeypatch.delenv(program.VARIABLE, raising=False)
    monkeypatch.setattr(sys, "argv", [started])
    assert command_name() == name
    main(["--help"])
    assert f"usage: {name} [COMMAND" in capsys.readouterr().out
    inherited: list[str] = []

    def note_environment(config: Config, options: argparse.Namespace) -> int:
        inherited.append(os.environ[program.VARIABLE])
        return 0

    monkeypatch.setattr(cli, "_load", lambda command: note_environment)
    main(["status"])
    assert inherited == [name], "children give the same hints"
    assert program.VARIABLE not in os.environ


def test_no_text_names_the_launcher_where_another_command_was_started() -> None:
    named = [
        f"{path.name}:{number}"
        for path in sorted((ROOT / "d8mesh").rglob("*.py"))
        if path.name != "program.py"
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if re.search(r"python3? start_d8|[`(]start_d8", line)
    ]
    assert named == []


def test_everything_the_menu_says_is_spanish_errors_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("D8_LANG", "es")
    outcomes.extend([errors.BrokerUnavailableError(), 0])
    choose(monkeypatch, "1", "77", "9")
    main([])
    captured = capsys.readouterr()
    assert "Estado del sistema" in captured.out
    assert "no está en el menú" in captured.out
    assert "(terminó con el código 1)" in captured.out
    assert captured.err.startswith("error: No responde ningún orquestador: ")
    monkeypatch.setenv("FLASK_PORT", "x")
    assert main([]) == 2
    assert "FLASK_PORT='x': se espera un puerto, de 1 a 65535" in capsys.readouterr().err


def test_an_error_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes.append(errors.D8Error("red \x1b[31m \x9b2J"))
    main(["status"])
    assert capsys.readouterr().err == "error: red \\x1b[31m \\x9b2J\n"


def test_every_handler_is_named_module_and_function() -> None:
    for command in COMMANDS:
        assert re.fullmatch(r"[a-z0-9_.]+:[a-z_]+", command.handler)
    assert len({command.name for command in COMMANDS}) == len(COMMANDS)


@pytest.mark.parametrize(
    "command",
    [each for each in COMMANDS if each.handler.startswith("d8mesh.")],
    ids=lambda command: str(command.name),
)
def test_every_handler_is_there(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.undo()
    assert callable(cli._load(command))


def test_a_missing_package_is_told_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    (tmp_path / "needy.py").write_text("import no_such_package\n", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(errors.D8Error, match="no_such_package is not installed: start with"):
        cli._load(Command(name="needy", runs="needy:run"))


def test_the_command_line_starts_without_loading_the_network() -> None:
    code = "import sys, d8mesh.cli; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    heavy = {"zmq", "zeroconf", "werkzeug", "httptools", "apsw", "rich", "dotenv", "yaml"}
    assert heavy & set(done.stdout.split()) == set()


def test_python_m_d8mesh_is_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "d8mesh", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "d8mesh")


def test_what_is_logged_is_not_printed_beside_what_is_said() -> None:
    code = (
        "import logging\nfrom d8mesh import cli\n"
        "cli._load = lambda command: lambda *_: "
        "logging.getLogger('d8mesh.client').warning('submit.warning') or 0\n"
        "raise SystemExit(cli.main(['status']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_has_gone_ends_it_quietly() -> None:
    code = (
        "import sys; from d8mesh import cli\n"
        "cli._load = lambda command: lambda config, options: print('x' * int(sys.argv[1])) or 0\n"
        "sys.stdin.readline()\n"
        "sys.exit(cli.main(['status']))\n"
    )
    for size in ("1", "999999"):  # found at the last flush, and while it prints
        with subprocess.Popen(
            [sys.executable, "-c", code, size],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stderr is not None
            child.stdout.close()
            child.stdin.write(b"go\n")
            child.stdin.close()
            assert child.stderr.read() == b""
            assert child.wait(60) == HUNG_UP


def test_control_c_outside_a_command_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting(io.StringIO):
        def readline(self, size: int | None = -1, /) -> NoReturn:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Interrupting())
    assert main([]) == 130


def test_the_tests_have_a_mesh_a_folder_and_an_interface_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    assert os.environ["D8_INTERFACES"] == "127.0.0.1"
    assert re.fullmatch(r"test-[0-9a-f]{8}", os.environ["D8_MESH"])
    assert Path(os.environ["D8_DATA_DIR"]).is_dir()
    assert os.environ["D8_NO_ENV_FILE"] == "1"
    assert "FLASK_PORT" not in os.environ
