"""What a worker can do, and what it says of its language model."""

from __future__ import annotations

from typing import Any

from d8mesh.apps.capabilities import can, reasons_of, why_lines

REASON = "Ollama does not answer at http://127.0.0.1:7100"


def worker(name: str, *types: str, **more: object) -> dict[str, Any]:
    return {"worker_id": name, "status": "online", "capabilities": {"task_types": [*types]}, **more}


def test_a_worker_can_do_what_it_offers_while_it_is_there() -> None:
    assert can(worker("a", "echo"), "echo")
    assert not can(worker("a", "echo"), "agent_action")
    assert not can(worker("a", "echo", status="offline"), "echo")
    assert can(worker("old", dialect="polling"), "agent_action"), "it need not say what it takes"
    assert not can({"worker_id": "odd", "status": "online", "capabilities": "?"}, "echo")


def test_why_a_worker_has_no_model_is_what_the_orchestrator_lists() -> None:
    workers = [
        worker("llm", "agent_action", reason="one of its models is gone"),
        worker("gone", status="offline", reason=REASON),
        worker("silent", "echo", status_port=1, address="10.0.0.1", reason=None),
        worker("older", "echo"),
        worker("told", "echo", reason=REASON),
    ]
    assert reasons_of(workers) == {"told": REASON}


def test_workers_with_one_reason_are_told_in_one_line() -> None:
    reasons = {f"w{n}": REASON for n in range(6)} | {"x": "no models\x1b[31m"}
    told = list(why_lines(reasons, None))
    assert told == [
        f"without a language model: w0, w1, w2, w3, …: {REASON}",
        "without a language model: x: no models\\x1b[31m",
    ]
