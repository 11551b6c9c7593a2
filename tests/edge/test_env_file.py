"""`.env`: every line is read, or told with its number; no value is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from d8mesh.edge import env_file
from d8mesh.errors import ConfigError

SECRET = "s3cr3ts3cr3ts3cr3t"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / ".env"


def refusal(file: Path, content: bytes) -> str:
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        env_file.read(file)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("", {}),
        ("\n  \n# only a remark\n", {}),
        ("A=1\nB='two words' # why\nC=\"x#y\"\n", {"A": "1", "B": "two words", "C": "x#y"}),
        ("export FLASK_PORT=7005", {"FLASK_PORT": "7005"}),
        ("FLASK_PORT = 7005 # ours\n", {"FLASK_PORT": "7005"}),
        ("FLASK_PORT=\n", {"FLASK_PORT": ""}),
        ("A=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("\ufeffA=1\n", {"A": "1"}),
        ("D8_INTERFACES=vEthernet (WSL)\n", {"D8_INTERFACES": "vEthernet (WSL)"}),
        (
            'PEM="-----BEGIN\nab==\n-----END"\nA=1\n',
            {"PEM": "-----BEGIN\nab==\n-----END", "A": "1"},
        ),
        ("GREETING=it's\n", {"GREETING": "it's"}),
        ("spring.port=1\nmy-app=2\n", {"spring.port": "1", "my-app": "2"}),
    ],
)
def test_what_can_be_read_is_read(file: Path, text: str, read: dict[str, str]) -> None:
    file.write_bytes(text.encode())
    assert env_file.read(file) == read


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (f'D8_MESH_KEY="{SECRET}', 'D8_MESH_KEY: the " that begins its value does not end'),
        (f"D8_MESH_KEY='{SECRET}", "D8_MESH_KEY: the ' that begins its value does not end"),
        (f'D8_MESH_KEY={SECRET}"', 'D8_MESH_KEY: " ends its value and none begins it'),
        (f'D8_MESH_KEY="{SECRET}"x', 'D8_MESH_KEY: something follows the " that ends its value'),
        (f"D8_MESH_KEY: {SECRET}", "saw a colon after the name"),
        (f"D8_MESH_KEY:{SECRET}", "saw a colon after the name"),
        (f"set D8_MESH_KEY={SECRET}", "`set` is the Windows command line's"),
        (f'setx D8_MESH_KEY "{SECRET}"', "`set` is the Windows command line's"),
        (f'$env:D8_MESH_KEY="{SECRET}"', "`$env:` is PowerShell's"),
        (f"$D8_MESH_KEY={SECRET}", "a name begins with no `$`"),
        (f"D8_MESH_KEY {SECRET}", "saw something else"),
        (f'"D8_MESH_KEY"={SECRET}', "saw no name before the `=`"),
        (f"={SECRET}", "saw no name before the `=`"),
        ("D8_MESH_KEY", "saw D8_MESH_KEY without a value"),
        ("export D8_MESH_KEY", "saw D8_MESH_KEY without a value"),
        (SECRET, "saw a name without a value"),
        (f"{SECRET}/+ {SECRET}", "saw something else"),
    ],
)
def test_a_line_that_cannot_be_read_is_told_with_its_number(file: Path, bad: str, why: str) -> None:
    told = refusal(
        file, f"# ours\r\n\r\nFLASK_PORT=7005\r\n\r\n  {bad}\r\n\r\nD8_MESH=x\r\n".encode()
    )
    assert told.startswith(f"{file}, line 5: ")
    assert why in told
    assert "expected" in told
    assert SECRET not in told
    assert "\n" not in told


def test_a_forgotten_quote_that_a_later_line_closes_is_told(file: Path) -> None:
    told = refusal(file, f'D8_MESH_KEY="{SECRET}\nFLASK_PORT=7005\nD8_MESH="x"\n'.encode())
    assert told.startswith(f'{file}, line 1: D8_MESH_KEY: the " that begins its value does not')
    told = refusal(file, f'D8_MESH_KEY="{SECRET}\nFLASK_HOST=1\nB=\\"x"\n'.encode())
    assert told.startswith(f"{file}, line 1: D8_MESH_KEY: ")


@pytest.mark.parametrize(
    "text",
    [
        "D8_MESH_KEY=${VAULT_KEY}",
        "D8_MESH_KEY=abc${x}def0123456789abcdef",
        "D8_MESH_KEY='abc${x}def0123456789abcdef'",
        "D8_MESH_KEY=${EMPTY}",
        "OTHER=${VAULT_KEY}\nD8_MESH_KEY=${OTHER}",
        "D8_MESH_KEY=${LATER}\nLATER=0123456789abcdef",
    ],
)
def test_a_setting_whose_variable_is_not_set_is_told_and_never_left_out(
    file: Path, text: str
) -> None:
    file.write_text(text, "utf-8")
    line = text[: text.index("D8_MESH_KEY")].count("\n") + 1
    with pytest.raises(ConfigError) as caught:
        env_file.read(file, {"EMPTY": ""})
    told = str(caught.value)
    assert told.startswith(f"{file}, line {line}: D8_MESH_KEY: its value takes in a variable")
    assert "VAULT_KEY" not in told
    assert "abc" not in told


def test_variables_in_values_are_filled_in_from_above_and_from_the_environment(file: Path) -> None:
    file.write_text(
        "A=1\nFLASK_PORT=700${A}\nD8_MESH=${NAME}\nD8_LANG=${NONE:-es}\nFOREIGN=x${NONE}y\n",
        "utf-8",
    )
    read = env_file.read(file, {"NAME": "lab", "A": "2"})
    assert read == {
        "A": "1",
        "FLASK_PORT": "7001",
        "D8_MESH": "lab",
        "D8_LANG": "es",
        "FOREIGN": "xy",
    }


def test_all_bad_lines_are_told_at_once_within_a_bound(file: Path) -> None:
    assert refusal(file, b"a: 1\nB=2\nc: 3\n").count("\n") == 1
    told = refusal(file, b"junk of some kind\n" * 100).splitlines()
    assert len(told) == env_file.MAX_TOLD_LINES + 1
    assert told[-1].endswith("80 more lines cannot be read")


@pytest.mark.parametrize(
    ("content", "line", "why"),
    [
        ("FLASK_PORT=1\n".encode("utf-16"), 1, "UTF-16 (as PowerShell's `>` writes it)"),
        ("FLASK_PORT=1\n".encode("utf-16-le"), 1, "UTF-16"),
        ("FLASK_PORT=1\n".encode("utf-16-be"), 1, "UTF-16"),
        (b"A=1\nB=caf\xe9\n", 2, "the byte 0xe9 is no UTF-8"),
        (b"A=1\r\nB=2\r\nC=\xff\xfe\r\n", 3, "the byte 0xff is no UTF-8"),
        (b"A=1\nB=\0\n", 2, "the file is no text"),
    ],
)
def test_what_is_no_utf_8_is_told(file: Path, content: bytes, line: int, why: str) -> None:
    told = refusal(file, content)
    assert told.startswith(f"{file} cannot be read, line {line}: the ")
    assert why in told
    assert "UTF-8" in told


def test_a_file_that_cannot_be_opened_or_is_too_large_is_told(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.env cannot be read \(No such file"):
        env_file.read(file)
    assert "is larger than" in refusal(file, b"#" * (env_file.MAX_ENV_FILE_BYTES + 1))
