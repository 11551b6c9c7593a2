"""Real processes and a stand-in of a cloud: its budgets are kept, and what may not leave stays."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from bench.mesh import Mesh, mesh
from d8mesh.apps.orchestrators import ask
from d8mesh.nodes.client import Client, Task
from tests.cloud_servers import CloudServer, Quota
from tests.end_to_end.processes import PATIENCE_S, until
from tests.ollama_standin import OllamaStandin

MODEL: Final = "qwen/qwen3-32b"
#: Of the long proof.
PROOF_S: Final = 300.0
#: As the proof of the budget is about requests, tokens are not the bound.
MANY: Final = 1_000_000


def cloud_worker(server: CloudServer, limits: str) -> dict[str, str]:
    """Return the settings of a worker of this cloud."""
    return {
        "WORKER_TYPE": server.kind,
        f"{server.kind.upper()}_API_KEY": server.key,
        f"{server.kind.upper()}_BASE_URL": server.url,
        "D8_CLOUD_LIMITS": f"{server.kind}:{limits}" if limits else "",
    }


def local_worker(standin: OllamaStandin) -> dict[str, str]:
    return {"WORKER_TYPE": "deepseek", "DEEPSEEK_BASE_URL": standin.url}


@contextmanager
def mesh_of(*workers: Mapping[str, str], folder: Path | None = None) -> Iterator[Mesh]:
    with mesh(workers=0, folder=folder) as running:
        for settings in workers:
            running.add_worker(settings)
        running.await_workers(len(workers))
        yield running


def asked(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 20, **fields}


def services_of(running: Mesh) -> int:
    """Return how many models the orchestrator knows of."""
    return len(ask(running.url, "/api/models")["models"])


def results(tasks: list[Task], within_s: float = PATIENCE_S) -> list[Mapping[str, Any]]:
    deadline = time.monotonic() + within_s
    return [task.result(timeout=max(0.1, deadline - time.monotonic())) for task in tasks]


def submit(client: Client, datas: list[dict[str, Any]]) -> list[Task]:
    return list(client.submit_many("agent_action", datas))


def test_three_workers_share_a_minutes_budget_over_a_restart_of_all(tmp_path: Path) -> None:
    bound = 6
    limits = f"minute_requests={bound},minute_tokens={MANY},day_requests={MANY}"
    with CloudServer("groq") as cloud:
        cloud.quota = Quota(minute_requests=bound)
        workers = [cloud_worker(cloud, limits)] * 3
        with mesh_of(*workers, folder=tmp_path) as running, running.client() as client:
            until(lambda: services_of(running), "the cloud's models")
            tasks = submit(client, [asked(f"q{i}", cloud="yes", model=MODEL) for i in range(9)])
            until(lambda: len(cloud.asked) >= bound, "as many requests as a minute allows")
            first = cloud.asked[0].at
            assert sum(task.done() for task in tasks) <= bound
        with mesh_of(*workers, folder=tmp_path) as running:
            until(lambda: services_of(running), "the cloud's models, once more")
            still_s = first + 20 - time.monotonic()  # a good while in which nothing may be sent
            until(lambda: time.monotonic() > first + 20, "twenty seconds", max(still_s, 0) + 5)
            totals = ask(running.url, "/api/stats")["tasks"]
        assert len(cloud.asked) == bound
        assert cloud.refused() == 0
        assert totals["failed"] == 0


def test_a_days_quota_is_remembered_over_a_restart_and_nothing_fails(tmp_path: Path) -> None:
    limits = f"day_requests=3,minute_requests={MANY},minute_tokens={MANY}"
    with CloudServer("gemini") as cloud:
        cloud.quota = Quota(day_requests=3)
        worker = cloud_worker(cloud, limits)
        wish = {"cloud": "yes", "model": "gemini-2.5-flash"}
        with mesh_of(worker, folder=tmp_path) as running, running.client() as client:
            until(lambda: services_of(running), "the cloud's models")
            done = results(submit(client, [asked(f"q{i}", **wish) for i in range(3)]))
            assert all(each["is_cloud"] for each in done)
        with mesh_of(worker, folder=tmp_path) as running, running.client() as client:
            until(lambda: services_of(running), "the cloud's models, once more")
            task = client.submit("agent_action", asked("q4", **wish, model_strict=True))
            explained: dict[str, Any] = {}

            def is_told() -> bool:
                explained.update(ask(running.url, f"/api/tasks/{task.id}/explain"))
                return "day" in str(explained).lower()

            until(is_told, "why it waits")
            assert not task.done()
        assert len(cloud.asked) == 3
        assert cloud.refused() == 0


def test_a_day_that_the_service_says_is_over_is_remembered_over_a_restart(tmp_path: Path) -> None:
    with CloudServer("gemini") as cloud:
        cloud.quota = Quota(day_requests=2)  # less than what is thought of it
        worker = cloud_worker(cloud, "")
        wish = {"cloud": "yes", "model": "gemini-2.5-flash"}
        with mesh_of(worker, folder=tmp_path) as running, running.client() as client:
            until(lambda: services_of(running), "the cloud's models")
            results(submit(client, [asked(f"q{i}", **wish) for i in range(2)]))
            late = client.submit("agent_action", asked("q3", **wish))
            until(cloud.refused, "a refusal")
            sent = len(cloud.asked)
            assert not late.done()
        with mesh_of(worker, folder=tmp_path) as running, running.client() as client:
            until(lambda: services_of(running), "the cloud's models, once more")
            again = client.submit("agent_action", asked("q4", **wish))
            until(lambda: ask(running.url, "/api/stats")["tasks"]["pending"] >= 2, "both wait")
            assert not again.done()
            assert ask(running.url, "/api/stats")["tasks"]["failed"] == 0
        assert len(cloud.asked) == sent


def test_no_prompt_leaves_the_lan_unless_its_task_says_so() -> None:
    with CloudServer("groq") as cloud, OllamaStandin(models=["m:1b"]) as local:
        with mesh_of(cloud_worker(cloud, ""), local_worker(local)) as running:
            with running.client() as client:
                until(lambda: services_of(running) >= 3, "all models")
                datas = [asked(f"secret {i}") for i in range(5)]
                datas += [asked("secret", cloud="never"), asked("secret", model=MODEL)]
                for each in results(submit(client, datas)):
                    assert (each["model"], "is_cloud" in each) == ("m:1b", False)
                open_ = client.submit("agent_action", asked("public", cloud="yes", model=MODEL))
                done = open_.result(timeout=PATIENCE_S)
        assert (done["model"], done["is_cloud"], done["backend"]) == (MODEL, True, "groq")
        assert "secret" not in str(cloud.bodies)
        assert len(cloud.asked) == 1


def test_a_task_that_may_goes_to_the_cloud_when_the_lan_is_full_and_no_other_does() -> None:
    limits = f"minute_requests={MANY},minute_tokens={MANY},day_requests={MANY}"
    with CloudServer("groq") as cloud, OllamaStandin(models=["m:1b"], tokens_per_s=4.0) as local:
        with mesh_of(cloud_worker(cloud, limits), local_worker(local)) as running:
            with running.client() as client:
                until(lambda: services_of(running) >= 3, "all models")
                words = "word " * 40
                kept = submit(client, [asked(f"secret {words}") for _ in range(3)])
                until(lambda: local.chats, "the machine of the LAN at work")
                may = submit(client, [asked(f"public {words}", cloud="overflow") for _ in range(6)])
                done = results(may, 2 * PATIENCE_S)
                assert any(each.get("is_cloud") for each in done)
                for task in kept:
                    task.cancel()
        assert "secret" not in str(cloud.bodies)


@pytest.mark.slow
@pytest.mark.timeout(PROOF_S + 240)
def test_a_minutes_budget_of_thirty_holds_over_five_minutes() -> None:
    """Counted at the service, in a sliding window; run it alone: ``-k five_minutes``."""
    bound = 30
    limits = f"minute_requests={bound},minute_tokens={MANY},day_requests={MANY}"
    with CloudServer("groq") as cloud:
        cloud.quota = Quota(minute_requests=bound)
        with mesh_of(*[cloud_worker(cloud, limits)] * 3) as running, running.client() as client:
            until(lambda: services_of(running), "the cloud's models")
            wanted = bound * (int(PROOF_S / 60) + 1)  # so that the last go after five minutes
            datas = [asked(f"q{i}", cloud="yes", model=MODEL) for i in range(wanted)]
            tasks, began = submit(client, datas), time.monotonic()
            done = results(tasks, PROOF_S + 120)
            took_s = time.monotonic() - began
            totals = ask(running.url, "/api/stats")["tasks"]
        assert all(each["is_cloud"] for each in done)
        assert totals["failed"] == 0
        assert cloud.most_in_a_minute() <= bound
        assert cloud.refused() == 0
        times = [each.at - cloud.asked[0].at for each in cloud.asked]
        assert times[-1] >= PROOF_S
        assert len(times) == wanted
        print([round(at) for at in times[::10]])
        print(f"{wanted} requests in {took_s:.0f} s, {cloud.most_in_a_minute()} a minute at most")
