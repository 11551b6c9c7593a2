"""What is announced is served as long as it is announced."""

from __future__ import annotations

from d8mesh.backends.services import ServicePool
from d8mesh.processes.announced_ollamas import AnnouncedOllamas
from tests.backends.scripted import ScriptedBackend, up

OWN, NEW = "http://127.0.0.1:7100", "http://10.9.9.9:11434"


def test_an_announced_ollama_comes_and_goes_and_is_never_there_twice() -> None:
    lines: list[str] = []
    pool = ServicePool([ScriptedBackend(OWN, up("a", url=OWN))])
    announced = AnnouncedOllamas(
        pool,
        make=lambda url: ScriptedBackend(url, up("b", url=url)),
        addresses=lambda: (),
        tell=lines.append,
    )
    announced.heed([OWN, NEW])
    announced.heed([OWN, NEW])
    assert [each.backend.url for each in pool.services] == [OWN, NEW]
    announced.heed([])
    assert [each.backend.url for each in pool.services] == [OWN]
    assert lines == [
        f"an Ollama is announced at {NEW}",
        f"the Ollama at {NEW} is announced no longer",
    ]
