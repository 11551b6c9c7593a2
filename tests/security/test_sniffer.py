"""Whoever listens on the wire while tasks run learns nothing of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.end_to_end.hosts import Host, Lan, available
from tests.end_to_end.processes import until
from tests.end_to_end.test_lan import ROOT, Machines
from tests.security.sniffer import packets_in, streams_in

if reason := available():
    pytest.skip(reason, allow_module_level=True)

pytestmark = pytest.mark.namespace

KEY: Final = "the-mesh-key-is-0123456789"
#: What nobody else may read; each stands in the clear where it comes from.
PAYLOAD: Final = "PAYLOAD-6b1f"
RESULT: Final = "RESULT-93ac"
PIECE: Final = "PIECE-57de"
PROMPT: Final = "PROMPT-c0ff"
#: Of the control: what is sent in clear is found.
PLAIN: Final = "PLAIN-d00d"

HANDLERS: Final = f"""
def told(data, context):
    for _ in range(2):
        context.emit({{"text": "{PIECE}"}})
    return {{"output": "{RESULT}" + "-" + str(len(data["text"]))}}

def register(worker):
    worker.register("told", told)
"""
ASKING: Final = """
import os, sys
from d8mesh import Client
from d8mesh.config import Config
with Client(config=Config.from_env(os.environ)) as client:
    client.wait_connected(60)
    for n in range(5):
        task = client.submit("told", {"text": sys.argv[1]}, listen=True)
        assert sys.argv[2] in str(list(task.stream(60)))
        print(task.id, task.result(60)["output"], flush=True)
    messages = [{"role": "user", "content": sys.argv[3]}]
    chat = client.submit("agent_action", {"messages": messages, "max_tokens": 8})
    answer = chat.result(60)
    print(chat.id, answer["output"], flush=True)
"""
IN_CLEAR: Final = """
import socket, sys
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(sys.argv[2].encode(), (sys.argv[1], 9))
"""


def sniff(lan: Lan, file: Path) -> tuple[Host, Any]:
    """Record all that goes over the switch."""
    switch = Host(lan._switch, "")
    process = switch.popen(
        [sys.executable, "-m", "tests.security.sniffer", str(file)], env={"PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "sniffing\n"
    return switch, process


@pytest.mark.parametrize("key", ["", KEY], ids=["lan", "key"])
def test_who_listens_on_the_bridge_sees_no_payload_id_result_or_key(
    tmp_path: Path, key: str
) -> None:
    recorded, handlers = tmp_path / "recorded", tmp_path / "handlers.py"
    handlers.write_text(HANDLERS, "utf-8")
    with Lan(hosts=3) as lan:
        machines = Machines(lan, tmp_path)
        boss, far, user = lan.hosts
        switch, sniffer = sniff(lan, recorded)
        try:
            settings = {"D8_MESH_KEY": key} if key else {}
            by_url = {"ORCHESTRATOR_URL": f"http://{boss.address}:7001"} if key else {}
            standin = far.popen(
                [sys.executable, str(ROOT / "tests" / "ollama_standin.py"), "--port", "11434"],
                stdout=subprocess.DEVNULL,
            )
            machines.start(boss, "orchestrator", **settings)
            base = {"DEEPSEEK_BASE_URL": "http://127.0.0.1:11434"}
            log = machines.start(far, "worker", "--tasks", str(handlers), **base, **settings)
            until(lambda: "joined" in log.read_text("utf-8"), "a worker that joins")
            env = {
                "PYTHONPATH": str(ROOT), "D8_MESH": machines.mesh, "D8_NO_ENV_FILE": "1",
                "D8_DATA_DIR": str(tmp_path / "user"), "D8_INTERFACES": "", **settings, **by_url,
            }  # fmt: skip
            asking = [sys.executable, "-c", ASKING, PAYLOAD, PIECE, PROMPT]
            done = user.run(asking, env=env, within_s=120)
            assert done.returncode == 0, done.stderr
            looked = user.run([sys.executable, "-m", "d8mesh", "status"], env=env)
            assert looked.returncode == 0, looked.stdout + looked.stderr
            assert standin.poll() is None
            user.run([sys.executable, "-c", IN_CLEAR, boss.address, PLAIN])
            until(lambda: PLAIN.encode() in recorded.read_bytes(), "what is sent in clear")
        finally:
            sniffer.terminate()
            switch.kill_all()
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    ids, (*results, answer) = [line[0] for line in lines], [line[1] for line in lines]
    assert len(ids) == 6
    assert all(RESULT in each for each in results)
    everything = recorded.read_bytes()
    streams = streams_in(packets_in(recorded))
    over_zeromq = b"".join(b for flow, b in streams.items() if 7010 in (flow[1], flow[3]))
    assert b"CURVE" in over_zeromq
    assert over_zeromq.count(b"MESSAGE") > 12, "it is the tasks' way that was listened to"
    for secret in (PAYLOAD, RESULT, PIECE, PROMPT, answer.strip(), *ids, *filter(None, [key])):
        told = secret.encode()
        assert len(told) > 5
        assert told not in everything, secret
        assert not any(told in stream for stream in streams.values()), secret
