"""A batch as large as one may be, by the door: how quick it is, and the memory that it takes.

50,000 lines of 4 KB, 200 MB together, come in over HTTP, are answered by a stand-in that needs no
time, and are read again.
"""

from __future__ import annotations

import http.client
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import urlsplit

from bench.findings import Findings
from bench.llm import pool
from bench.mesh import Mesh
from bench.plan import Plan
from bench.progress import say
from bench.standins import Machine
from d8mesh.apps.orchestrators import ask
from d8mesh.errors import D8Error

FULL_LINES: Final = 50_000
#: Of one line's text: all lines together are just below 200 MB.
TEXT_BYTES: Final = 3_850
MODEL: Final = "qwen2.5:3b"
MACHINES: Final = (Machine(models=(MODEL,), loaded=(MODEL,), speed=0, slots=16),)
ENDPOINT: Final = "/v1/chat/completions"
PATIENCE_S: Final = 3600.0
POLL_S: Final = 1.0
READ_BYTES: Final = 1024 * 1024
_BOUNDARY: Final = "b0"
_FIELD: Final = 'Content-Disposition: form-data; name="{}"'

MEMORY: Final = "A batch of the door: the most memory that a process ever had"
SPEED: Final = "A batch of the door"


def measure(plan: Plan) -> Findings:
    """Run one batch each round."""
    found, lines = Findings(), plan.tasks(FULL_LINES)
    found.note(f"{lines} lines of 4 KB; one stand-in machine that answers at once, 16 slots")
    for turn in range(plan.rounds):
        say(f"batches: round {turn + 1}")
        with tempfile.TemporaryDirectory(prefix="d8-bench-") as folder, pool(MACHINES) as running:
            file = Path(folder) / "in.jsonl"
            with file.open("w", encoding="ascii") as opened:
                opened.writelines(_lines(lines))
            _once(found, running, file, lines)
    return found


def _once(found: Findings, running: Mesh, file: Path, lines: int) -> None:
    table = found.table(SPEED, "")
    begun = time.perf_counter()
    file_id = _upload(running.url, file)["id"]
    table.add("upload", "s", time.perf_counter() - begun)
    wish = {"input_file_id": file_id, "endpoint": ENDPOINT, "completion_window": "24h"}
    begun = time.perf_counter()
    batch = _call(running.url, "POST", "/v1/batches", json.dumps(wish))
    while batch["status"] not in ("completed", "failed"):
        if time.perf_counter() - begun > PATIENCE_S:
            raise D8Error(f"batches: not done within {PATIENCE_S:.0f} s: {batch}")
        time.sleep(POLL_S)
        batch = ask(running.url, f"/v1/batches/{batch['id']}")
    table.add("answers", "lines/s", lines / (time.perf_counter() - begun))
    begun = time.perf_counter()
    answered = _names_in(running.url, batch["output_file_id"])
    table.add("download", "s", time.perf_counter() - begun)
    if answered != lines or batch["request_counts"]["completed"] != lines:
        raise D8Error(f"batches: {answered} of {lines} lines were answered: {batch}")
    for each in running.nodes():
        if each.name in ("broker", "web"):
            peak = each.peak_rss_bytes() or each.rss_bytes()
            found.table(MEMORY, "MB").add(each.name, "peak", peak / 1e6)


def _lines(count: int) -> Iterator[str]:
    messages = [{"role": "user", "content": "say 2 words " + "x" * TEXT_BYTES}]
    line = {"method": "POST", "url": ENDPOINT, "body": {"model": MODEL, "messages": messages}}
    return (json.dumps({"custom_id": f"line-{n}", **line}) + "\n" for n in range(count))


def _upload(url: str, file: Path) -> dict[str, Any]:
    """Send a file as a form, streamed."""
    head = (
        f"--{_BOUNDARY}\r\n{_FIELD.format('purpose')}\r\n\r\nbatch\r\n"
        f'--{_BOUNDARY}\r\n{_FIELD.format("file")}; filename="in.jsonl"\r\n\r\n'
    ).encode()
    tail = f"\r\n--{_BOUNDARY}--\r\n".encode()
    length = len(head) + file.stat().st_size + len(tail)
    headers = {
        "Content-Type": f"multipart/form-data; boundary={_BOUNDARY}",
        "Content-Length": str(length),
    }

    def parts(opened: IO[bytes]) -> Iterator[bytes]:
        yield head
        while part := opened.read(READ_BYTES):
            yield part
        yield tail

    with file.open("rb") as opened:
        return _call(url, "POST", "/v1/files", parts(opened), headers)


def _call(
    url: str, method: str, path: str, body: Any, headers: Mapping[str, str] | None = None
) -> dict[str, Any]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_S)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        told: dict[str, Any] = json.loads(response.read())
        if response.status != 200:
            raise D8Error(f"batches: {path} answered {response.status}: {told}")
        return told
    finally:
        connection.close()


def _names_in(url: str, file_id: str) -> int:
    """Return how many lines of different names a file has, read as it comes."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_S)
    try:
        connection.request("GET", f"/v1/files/{file_id}/content")
        response = connection.getresponse()
        return len({json.loads(line)["custom_id"] for line in response})
    finally:
        connection.close()
