"""What a worker can do, and what it says of its language model."""

from __future__ import annotations

from typing import Any

from d8mesh.apps.capabilities import MAX_ASKED, can, reasons_of, why_lines

REASON = "Ollama does not answer at http://127.0.0.1:7100"


def worker(name: str, *types: str, **more: object) -> dict[str, Any]:
    return {"worker_id": name, "status": "online", "capabilities": {"task_types": [*types]}, **more}


def nobody(url: str, path: str, *, answer_s: float) -> Any:
    raise AssertionError(url)


def test_a_worker_can_do_what_it_offers_while_it_is_there() -> None:
    assert can(worker("a", "echo"), "echo")
    assert not can(worker("a", "echo"), "agent_action")
    assert not can(worker("a", "echo", status="offline"), "echo")
    assert can(worker("old", dialect="polling"), "agent_action"), "it need not say what it takes"
    assert not can({"worker_id": "odd", "status": "online", "capabilities": "?"}, "echo")


def test_who_has_a_model_is_not_asked_and_who_tells_the_orchestrator_neither() -> None:
    workers = [
        worker("llm", "agent_action", status_port=1, address="10.0.0.1"),
        worker("gone", status="offline", status_port=1, address="10.0.0.1"),
        worker("told", backend={"reason": REASON}),
    ]
    assert reasons_of(workers, nobody) == {"told": REASON}


def test_others_are_asked_at_their_status_page() -> None:
    asked: list[str] = []

    def ask(url: str, path: str, *, answer_s: float) -> Any:
        asked.append(url)
        if "10.0.0.9" in url:
            raise OSError("away")
        return {"backend": {"reason": REASON}}

    workers = [
        worker("there", status_port=7200, address="10.0.0.1"),
        worker("away", status_port=7200, address="10.0.0.9"),
        worker("six", status_port=7201, address="fd00::5"),
        worker("beside", status_port=7202, address="127.0.0.1"),
    ]
    found = reasons_of(workers, ask, "10.0.0.7")
    assert found == {"there": REASON, "six": REASON, "beside": REASON}
    assert sorted(asked) == [
        "http://10.0.0.1:7200", "http://10.0.0.7:7202", "http://10.0.0.9:7200",
        "http://[fd00::5]:7201",
    ]  # fmt: skip


def test_no_more_are_asked_than_a_person_reads() -> None:
    asked: list[str] = []

    def ask(url: str, path: str, *, answer_s: float) -> Any:
        asked.append(url)
        return {}

    many = [worker(f"w{n}", status_port=7200, address="10.0.0.1") for n in range(300)]
    assert reasons_of(many, ask) == {}
    assert len(asked) == MAX_ASKED


def test_workers_with_one_reason_are_told_in_one_line() -> None:
    reasons = {f"w{n}": REASON for n in range(6)} | {"x": "no models\x1b[31m"}
    told = list(why_lines(reasons, None))
    assert told == [
        f"without a language model: w0, w1, w2, w3, …: {REASON}",
        "without a language model: x: no models\\x1b[31m",
    ]
