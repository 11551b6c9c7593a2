"""A long queue: ``python -m tests.chaos.backlog LOG MESH URL COUNT``.

Submits tasks that no worker offers, so that every restart of the orchestrator finds them queued.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from d8mesh import Client
from tests.chaos.diary import Diary
from tests.chaos.settings import config_of

BACKLOG_TYPE: Final = "chaos_backlog"
BATCH: Final = 10_000


def main() -> None:
    """Submit, note what was acknowledged, end."""
    log, mesh, url, count = sys.argv[1:5]
    diary = Diary(Path(log) / "backlog.jsonl")
    config = config_of(mesh, url, Path(log).parent / "backlog")
    with Client(url or None, config=config) as client:
        for start in range(0, int(count), BATCH):
            datas = [{"n": n} for n in range(start, min(start + BATCH, int(count)))]
            diary.note("acked", count=len(client.submit_many(BACKLOG_TYPE, datas)))
    diary.note("done")


if __name__ == "__main__":
    main()
