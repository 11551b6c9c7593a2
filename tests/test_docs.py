"""What the code has stands in the docs, and the other way round."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from d8mesh import errors
from d8mesh.commands import COMMANDS
from d8mesh.core.protocol import codec, messages
from d8mesh.core.protocol.task import TRANSITIONS, TaskState

ROOT = Path(__file__).resolve().parent.parent
PROTOCOL = (ROOT / "docs" / "PROTOCOL.md").read_text("utf-8")
ARCHITECTURE = (ROOT / "docs" / "ARCHITECTURE.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")


def _messages() -> dict[str, tuple[int, list[str]]]:
    found = {}
    for name, kind in vars(messages).items():
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            tag = kind.__struct_config__.tag
            if isinstance(tag, int):
                found[name] = (tag, list(kind.__struct_fields__))
    return found


def test_every_message_stands_in_the_protocol_with_its_verb_and_fields() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| (.*) \|$", PROTOCOL, re.MULTILINE)
    documented: dict[str, tuple[int, list[str]]] = {}
    for verb, name, fields in rows:
        plain = re.sub(r"\([^)]*\)", "", fields).partition(":")[0]
        documented[name] = (int(verb), [part.split()[0] for part in plain.split(",")])
    assert documented == _messages()


def test_golden_frames_are_what_the_codec_makes() -> None:
    rows = re.findall(r"^\| `(.+?)` \| `([0-9a-f]+)` \|$", PROTOCOL, re.MULTILINE)
    assert len(rows) >= 12
    decoders = (codec.decode_to_broker, codec.decode_to_worker, codec.decode_to_client)
    for text, frame in rows:
        wanted = text.partition("(")[0]
        decoded = None
        for decode in decoders:
            try:
                decoded = decode(bytes.fromhex(frame))
                break
            except errors.ProtocolError:
                continue
        assert decoded is not None, text
        assert type(decoded).__name__ == wanted
        assert codec.encode(decoded).hex() == frame


def test_every_error_code_stands_in_the_protocol() -> None:
    section = PROTOCOL.partition("## Error codes")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`([a-z0-9]+\.[a-z_]+)`", section))
    raised = {
        kind.code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.D8Error)
    }
    assert documented == raised


def test_the_state_diagram_is_the_transition_table() -> None:
    assert diagram() in ARCHITECTURE


def test_every_command_stands_in_the_readme() -> None:
    for command in COMMANDS:
        if not command.is_internal:
            assert f"start_d8.py {command.name}" in README, command.name


def diagram() -> str:
    """Return the transition table as text, a line for each state."""
    lines = []
    for state in TaskState:
        ways: dict[str, list[str]] = {}
        for (before, fact), after in TRANSITIONS.items():
            if before is state:
                ways.setdefault(after.value, []).append(fact.__name__)
        told = ";  ".join(f"{' | '.join(names)} → {after}" for after, names in ways.items())
        lines.append(f"{state.value:9}  {told or 'final'}")
    return "\n".join(lines)
