"""Nothing in the package can open or connect a ZeroMQ socket in clear: only the bench can."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import pytest

from d8mesh.edge.transport.connector import Connector
from d8mesh.edge.transport.keys import KeyPair
from tests.nodes.mesh import free_port

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "d8mesh"
TRANSPORT = PACKAGE / "edge" / "transport"
#: The second two knock at the orchestrator's own door: in clear, to see that it is shut; inside
#: the process, to see what connections are called. The last answers inside the process.
MAKERS = {
    TRANSPORT / name
    for name in ("router.py", "sockets.py", "self_test.py", "routing_numbers.py", "zap.py")
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
#: What has keys, or none.
KEYED = ("RouterEndpoint", "DealerLink")


def calls_of(path: Path, names: tuple[str, ...]) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
            if name in names:
                yield node


def test_only_the_room_of_the_sockets_makes_any() -> None:
    made = {
        path
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("ROUTER", "DEALER")
    }
    assert made == MAKERS


def test_whoever_makes_a_connection_gives_it_keys() -> None:
    seen: list[str] = []
    for path in MODULES:
        for call in calls_of(path, KEYED):
            given = {each.arg: each.value for each in call.keywords}
            assert "keys" in given, f"{path}:{call.lineno}"
            assert not isinstance(given["keys"], ast.Constant), f"{path}:{call.lineno}: no keys"
            seen.append(path.name)
    assert sorted(set(seen)) == ["broker.py", "connector.py"]
    assert get_type_hints(Connector)["keys"] is KeyPair


@pytest.mark.skipif(not (ROOT / "bench").exists(), reason="no bench in this installation")
def test_the_benchs_side_in_clear_and_an_encrypted_one_do_not_hear_each_other(
    tmp_path: Path,
) -> None:
    script = """
        import sys
        from d8mesh.config import Config
        from d8mesh.nodes.client import Client

        config = Config(mesh="clear", interfaces=("no-mdns",), data_dir=sys.argv[2])
        with Client(endpoint=sys.argv[1], config=config) as client:
            print(client.wait_connected(float(sys.argv[3])))
    """
    port = free_port()
    (tmp_path / "ask.py").write_text("\n".join(line[8:] for line in script.splitlines()), "utf-8")
    environment = os.environ | {"D8_MESH": "clear", "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}

    def start(*command: str, clear: bool) -> subprocess.Popen[str]:
        before = ["bench.inside.in_clear"] if clear else []
        return subprocess.Popen(
            [sys.executable, "-m", *before, *command],
            env=environment | {"D8_DATA_DIR": str(tmp_path / "data"), "D8_BROKER_PORT": str(port)},
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answers(place: str, patience_s: float, *, clear: bool) -> bool:
        asked = start("ask", place, str(tmp_path / "data"), str(patience_s), clear=clear)
        said, _ = asked.communicate(timeout=60)
        return said.strip() == "True"

    broker = start("d8mesh", "_broker", clear=True)
    try:
        assert broker.stdout is not None
        told = ast.literal_eval(broker.stdout.readline())
        place = f"tcp://127.0.0.1:{told['port']}?key={told['server_key']}"
        assert answers(place, 30, clear=True)
        assert not answers(place, 1.5, clear=False)
    finally:
        broker.kill()
        broker.communicate()
