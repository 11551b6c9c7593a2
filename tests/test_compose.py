"""`compose.yaml` and the Dockerfile: what they publish, pass on, keep and watch."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from d8mesh import cli
from d8mesh.config import NAMES, Config

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "compose.yaml").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
#: Those that run our image.
OURS = sorted(name for name, service in SERVICES.items() if service["image"] == "d8mesh")
#: Named in compose.yaml only: what is put into a command or a mount.
OF_COMPOSE = {"WORKER_OPTIONS", "HANDLERS"}


def settings_of(name: str) -> dict[str, str | None]:
    return dict(SERVICES[name].get("environment", {}))


def mounts_of(name: str) -> dict[str, str]:
    """Return what is mounted where: folder in the container -> source."""
    found = {}
    for volume in SERVICES[name]["volumes"]:
        source, target = re.fullmatch(r"(.+?):(/[^:]+)(?::ro)?", volume).groups()  # type: ignore[union-attr]
        found[target] = source
    return found


def test_the_documented_services_publish_the_documented_ports() -> None:
    assert SERVICES["orchestrator"]["container_name"] == "d8-orchestrator"
    assert SERVICES["orchestrator"]["ports"] == ["7001:7001", "7010:7010"]
    assert SERVICES["worker-deepseek"]["ports"] == ["7100:7100"]
    assert (Config().web_port, Config().broker_port) == (7001, 7010)
    for name in ("orchestrator", "worker-deepseek"):
        assert {"FLASK_PORT", "D8_BROKER_PORT", "FLASK_HOST"}.isdisjoint(settings_of(name))


def test_what_is_published_on_7100_is_ollama_and_the_worker_asks_it_there() -> None:
    ollama = SERVICES["ollama"]
    assert ollama["network_mode"] == "service:worker-deepseek"
    assert ollama["environment"]["OLLAMA_HOST"] == "0.0.0.0:7100"
    assert "ports" not in ollama, "they are those of whose network it lives in"
    assert settings_of("worker-deepseek")["DEEPSEEK_BASE_URL"] == "http://localhost:7100"
    assert "/root/.ollama" in mounts_of("ollama")


def test_the_worker_reaches_the_orchestrator_beside_it_whatever_env_says() -> None:
    url = settings_of("worker-deepseek")["ORCHESTRATOR_URL"]
    assert url == "http://orchestrator:7001"
    assert Config.from_env({"ORCHESTRATOR_URL": url}).orchestrator_url == url
    assert SERVICES["worker-deepseek"]["depends_on"]["orchestrator"] == {
        "condition": "service_healthy"
    }


@pytest.mark.parametrize("name", OURS)
def test_each_service_passes_on_settings_that_there_are(name: str) -> None:
    settings = settings_of(name)
    assert set(settings) <= NAMES
    assert {"D8_MESH", "LOG_LEVEL"} <= set(settings)
    assert "D8_DATA_DIR" not in settings, "the image has it"
    fixed = {key: str(value) for key, value in settings.items() if value is not None}
    assert Config.from_env(fixed).warnings == ()
    role = SERVICES[name]["command"].split()[0]
    wanted = {
        "orchestrator": {"D8_MESH_KEY", "D8_ALLOWED_HOSTS", "D8_ORIGINS", "D8_KEEP_CHATS"},
        "worker": {"DEEPSEEK_MODEL", "D8_MESH_KEY"},
    }
    assert wanted[role] <= set(settings)


def test_every_variable_that_a_comment_names_is_used() -> None:
    comments = "\n".join(re.findall(r"#.*", TEXT))
    named = set(re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b", comments)) | {"HANDLERS"}
    passed = {key for name in SERVICES for key in settings_of(name)}
    put_in = set(re.findall(r"\$\{([A-Z0-9_]+)", TEXT))
    assert put_in == OF_COMPOSE
    assert named <= passed | put_in


@pytest.mark.parametrize("name", OURS)
def test_each_command_is_one_of_ours(name: str) -> None:
    command = re.sub(r"\$\{[^}]*\}", "", SERVICES[name]["command"])
    assert shlex.split(command)[0] in ("orchestrator", "worker")
    assert cli.main([*shlex.split(command), "--help"]) == 0


@pytest.mark.parametrize("name", OURS)
def test_each_service_is_watched_keeps_its_data_and_is_given_time_to_drain(name: str) -> None:
    service = SERVICES[name]
    assert "/srv/d8/data" in mounts_of(name)
    assert mounts_of(name)["/srv/d8/data"] in COMPOSE["volumes"]
    assert service["stop_grace_period"] == "30s"
    assert service["restart"] == "unless-stopped"
    if service["command"].startswith("worker"):
        assert "WORKER_STATUS_PORT" in service["healthcheck"]["test"][-1]
        assert "7200" in service["healthcheck"]["test"][-1]
        assert mounts_of(name)["/srv/d8/handlers"] == "${HANDLERS:-./handlers}"
    else:
        assert "HEALTHCHECK" in DOCKERFILE


@pytest.mark.parametrize("name", OURS)
def test_health_checks_are_programs_that_can_be_read(name: str) -> None:
    if "healthcheck" in SERVICES[name]:
        assert SERVICES[name]["healthcheck"]["test"][:4] == ["CMD", "python", "-P", "-c"]
        compile(SERVICES[name]["healthcheck"]["test"][4], name, "exec")
    (command,) = re.findall(r"^\s+CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    compile(json.loads(command)[-1], "Dockerfile", "exec")


def test_a_profile_is_on_the_hosts_network_for_mdns() -> None:
    on_the_lan = {name for name in OURS if SERVICES[name].get("network_mode") == "host"}
    assert on_the_lan == {"orchestrator-lan", "worker-lan"}
    for name in OURS:
        assert (SERVICES[name].get("profiles") == ["lan"]) == (name in on_the_lan)
    assert {"FLASK_HOST", "FLASK_PORT", "D8_BROKER_PORT"} <= set(settings_of("orchestrator-lan"))
    assert {"ORCHESTRATOR_URL", "DEEPSEEK_BASE_URL"} <= set(settings_of("worker-lan"))


def test_the_image_runs_what_is_installed_as_a_user_of_its_own() -> None:
    steps = [line for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    words = {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in steps}
    assert words["USER"] == "d8"
    assert words["VOLUME"] == "/srv/d8/data"
    assert "D8_DATA_DIR=/srv/d8/data" in words["ENV"]
    assert words["WORKDIR"] == "/srv/d8/handlers"
    assert json.loads(words["ENTRYPOINT"]) == ["d8mesh"]
    assert json.loads(words["CMD"]) == ["orchestrator"]
    assert words["STOPSIGNAL"] == "SIGTERM"
    assert words["EXPOSE"].split() == ["7001", "7010"]
    copied = re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE)
    for name in " ".join(copied).split():
        assert (ROOT / name).exists()
        assert f"!{name}" in (ROOT / ".dockerignore").read_text("utf-8").split()


def _compose_command() -> list[str]:
    """Return how Docker Compose is called here; [] if it is not there."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) is None:
            continue
        done = subprocess.run([*command, "version"], capture_output=True, check=False, timeout=60)
        if done.returncode == 0:
            return command
    return []


def test_docker_compose_can_read_it(tmp_path: Path) -> None:
    command = _compose_command()
    if not command:
        pytest.skip("Docker Compose is not there")
    # As of the documented `.env`, which is for programs outside of containers.
    (tmp_path / ".env").write_text(
        "ORCHESTRATOR_URL=http://localhost:7001\nOLLAMA_HOST=127.0.0.1:1\nD8_MESH=casa\n", "utf-8"
    )
    files = ["--env-file", str(tmp_path / ".env"), "-f", str(ROOT / "compose.yaml")]
    done = subprocess.run(
        [*command, *files, "--profile", "lan", "config", "--format", "json"],
        capture_output=True,
        encoding="utf-8",
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    assert set(services) == set(SERVICES)
    published = services["worker-deepseek"]["ports"]
    assert [(each["published"], each["target"]) for each in published] == [("7100", 7100)]
    settings = services["worker-deepseek"]["environment"]
    assert settings["ORCHESTRATOR_URL"] == "http://orchestrator:7001"
    assert settings["D8_MESH"] == "casa"
