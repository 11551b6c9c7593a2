"""What an orchestrator may tell of models and services, for tests of what is shown of it."""

from __future__ import annotations

from typing import Any

Facts = dict[str, Any]


def place(machine: str, name: str = "qwen2.5:3b", **more: Any) -> Facts:
    given: Facts = {
        "service": f"{machine}:11434", "machine": machine, "kind": "ollama", "is_cloud": False,
        "state": "online", "name": name, "is_loaded": False, "is_loading": False, "slots": 1,
        "in_flight": 0, "load_s": None, "prompt_tokens_per_s": None, "output_tokens_per_s": None,
        "requests": 0, "paused": None, "probed_in_s": None, "budget": None,
    }  # fmt: skip
    return given | more


def model(name: str, *places: Facts, **more: Any) -> Facts:
    given: Facts = {
        "name": name, "names": [name], "digest": "d", "size_bytes": 1_900_000_000,
        "can": ["completion", "tools"], "is_cloud": False,
        "slots": sum(each["slots"] for each in places), "in_flight": 0, "waiting": 0,
        "places": list(places),
    }  # fmt: skip
    return given | more


def service(machine: str, **more: Any) -> Facts:
    given: Facts = {
        "id": f"{machine}:11434", "kind": "ollama", "machine": machine,
        "url": f"http://{machine}:11434", "is_cloud": False, "is_managed": True,
        "state": "online", "reason": None, "slots": None, "in_flight": 0, "default": "qwen2.5:3b",
        "workers": [f"w-{machine}"], "models": ["qwen2.5:3b"],
    }  # fmt: skip
    return given | more


def overview() -> Facts:
    """Return a mesh with a bit of everything."""
    paused: Facts = {"paused": "model requires more system memory", "probed_in_s": 12.0}
    left = {
        "minute_requests": 12, "minute_tokens": 4000, "day_requests": 900, "day_tokens": None,
        "blocked_s": 0.0, "blocked_why": "",
    }  # fmt: skip
    loaded = place("pi5", is_loaded=True, slots=2, in_flight=2, output_tokens_per_s=11.7)
    cloud = place(
        "groq", "llama-3.3-70b", kind="groq", is_cloud=True, is_loaded=True, slots=30, budget=left
    )
    return {
        "models": [
            model(
                "qwen2.5:3b",
                loaded,
                place("nas", output_tokens_per_s=48.2, **paused),
                names=["qwen2.5:3b", "chat:latest"],
                in_flight=2,
                waiting=4,
            ),
            model("nomic-embed-text:latest", place("nas"), can=["embedding"], size_bytes=274e6),
            model("llama-3.3-70b", cloud, is_cloud=True, size_bytes=None, can=[]),
        ],
        "services": [
            service("pi5", in_flight=2),
            service("nas"),
            service("attic", state="down", reason="Ollama does not answer at http://attic:11434"),
            service("groq", kind="groq", is_cloud=True, is_managed=False, default=None),
        ],
        "waiting_for_any": 3,
    }
