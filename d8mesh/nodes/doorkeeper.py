"""The orchestrator's door: the gate's answers, the members on the disk, what people are told.

Joins the brain's members to what is outside. The gate asks on a thread of its own, and decides by
a view that never changes; what it has decided is told to the brain at the loop's next wake-up.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from d8mesh.config import Config
from d8mesh.core.broker.effects import KeepMembers, Notice, UseView
from d8mesh.core.broker.members import Members
from d8mesh.core.broker.members_view import VERDICTS, Knock
from d8mesh.core.protocol.membership import Verdict
from d8mesh.edge import members_file
from d8mesh.edge.logs import event
from d8mesh.edge.transport.own_keys import OwnKeys

#: Knocks that wait for the loop; beyond these the oldest are not counted.
MAX_KNOCKS: Final = 10_000
_log: Final = logging.getLogger("d8mesh.broker")


class Doorkeeper:
    """Keeps the door of one orchestrator.

    Args:
        folder: where the file of members lies.
        wake: has the loop look at the knocks.
        tell: takes in what is to be told to whoever runs the orchestrator.

    Raises:
        ConfigError: the file of members is damaged.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        wake: Callable[[], None],
        tell: Callable[[Notice], None],
    ) -> None:
        self._folder, self._wake, self._tell = folder, wake, tell
        self._own_keys = OwnKeys(Path(config.data_dir))
        self.members = Members(
            needs_approval=config.join == "approve",
            allows_public=config.allow_public and config.mesh_key is not None,
            own=self._own_keys.all(),
            kept=members_file.read(folder),
        )
        self._view = self.members.view
        self._knocks: deque[Knock] = deque(maxlen=MAX_KNOCKS)

    def admits(self, address: str, key: bytes) -> Verdict:
        """Say whether a connection may speak.

        Thread: the gate's.
        """
        code = self._view.refusal(address, key)
        if not code:
            return Verdict.ADMITTED
        is_own = code == "access.pending" and key in self._own_keys.all()
        if is_own:
            code = ""
        self._knocks.append(Knock(key, address, code, is_own))
        self._wake()
        return VERDICTS[code]

    def knocks(self) -> Iterator[Knock]:
        """Yield what was decided since the last call; before any frame of those let in."""
        while self._knocks:
            yield self._knocks.popleft()

    def use(self, effect: UseView) -> None:
        """Decide by another view from now on."""
        self._view = effect.view

    def keep(self, effect: KeepMembers) -> str:
        """Write the file of members; return why that failed, "" if it did not."""
        try:
            members_file.write(self._folder, effect.members)
        except OSError as error:
            why = f"{members_file.MEMBERS_NAME} cannot be written: {error.strerror or error}"
            event(_log, logging.ERROR, "members.unkept", why=why)
            return why
        return ""

    def notify(self, notice: Notice) -> None:
        """Tell of somebody who waits, or was refused for the first time."""
        level = logging.INFO if notice.code == "access.pending" else logging.WARNING
        event(
            _log,
            level,
            "peer.waits" if notice.code == "access.pending" else "peer.refused",
            address=notice.address,
            key=notice.fingerprint,
            name=notice.name,
            code=notice.code,
        )
        self._tell(notice)
