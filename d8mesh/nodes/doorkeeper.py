"""The orchestrator's door: the gate's answers, the members on the disk, what people are told.

Joins the brain's members to what is outside. The gate asks on a thread of its own, and decides by
a view that never changes; what it has decided is told to the brain at the loop's next wake-up.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from d8mesh.config import Config
from d8mesh.core.broker.dispatcher import Dispatcher
from d8mesh.core.broker.effects import Effect, KeepMembers, Notice, UseView
from d8mesh.core.broker.members import Members
from d8mesh.core.broker.members_view import VERDICTS, Knock
from d8mesh.core.protocol.addresses import is_loopback
from d8mesh.core.protocol.membership import Verdict
from d8mesh.edge import members_file
from d8mesh.edge.logs import event
from d8mesh.edge.transport.own_keys import OwnKeys

#: Knocks that wait for the loop; beyond these the oldest are not counted.
MAX_KNOCKS: Final = 10_000
#: What the view says of a key of our own that it does not know yet.
_OPEN_TO_OWN: Final = ("", "access.pending")
#: Code of a notice -> its event in the log; all others are refusals.
_NOTICE_EVENTS: Final = {
    "access.pending": "peer.waits",
    "member.approve": "member.approved",
    "member.revoke": "member.revoked",
    "member.forget": "member.forgotten",
}
_log: Final = logging.getLogger("d8mesh.broker")


class Doorkeeper:
    """Keeps the door of one orchestrator.

    Args:
        folder: where the file of members lies.
        wake: has the loop look at the knocks.
        say: takes in what is to be told to whoever runs the orchestrator.

    Raises:
        ConfigError: the file of members is damaged.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        wake: Callable[[], None],
        say: Callable[[Notice], None],
    ) -> None:
        self._folder, self._wake, self._say = folder, wake, say
        self._own_keys = OwnKeys(Path(config.data_dir))
        self._told_own = set(self._own_keys.all(is_fresh=True))
        self.members = Members(
            needs_approval=config.join == "approve",
            allows_public=config.allow_public and config.mesh_key is not None,
            own=self._told_own,
            kept=members_file.read(folder),
        )
        self._view = self.members.view
        self._knocks: deque[Knock] = deque(maxlen=MAX_KNOCKS)
        self._names: deque[tuple[bytes, str]] = deque(maxlen=MAX_KNOCKS)
        #: the brain has to be told something
        self.has_news = False

    def admits(self, address: str, key: bytes) -> Verdict:
        """Say whether a connection may speak.

        Thread: the gate's.
        """
        code = self._view.refusal(address, key)
        is_own = code in _OPEN_TO_OWN and self._is_own(address, key)
        if is_own:
            code = ""
        elif not code:
            return Verdict.ADMITTED
        self._knocks.append(Knock(key, address, code, is_own))
        self.has_news = True
        self._wake()
        return VERDICTS[code]

    def _is_own(self, address: str, key: bytes) -> bool:
        """Return whether the brain has to be told that this key is one of the data folder.

        One that is made after this start, as the REST process's at the very first, is seen at once
        when its node comes, which is on this machine.
        """
        if key in self._told_own or key not in self._own_keys.all(is_fresh=is_loopback(address)):
            return False
        self._told_own.add(key)
        return True

    def heard(self, key: bytes, name: str) -> None:
        """Note the name that a node announces for its key.

        Thread: any.
        """
        self._names.append((key, name))
        self.has_news = True

    def tell(self, dispatcher: Dispatcher, now: float) -> list[Effect]:
        """Tell the brain what has happened here: before any frame of those who were let in."""
        self.has_news = False
        while self._names:
            dispatcher.announced(*self._names.popleft())
        effects: list[Effect] = []
        while self._knocks:
            effects += dispatcher.knocked(self._knocks.popleft(), now)
        return effects

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
        """Tell of somebody who waits, was refused for the first time, or what `join` did."""
        name = _NOTICE_EVENTS.get(notice.code)
        event(
            _log,
            logging.WARNING if name is None else logging.INFO,
            name or "peer.refused",
            address=notice.address,
            key=notice.fingerprint,
            name=notice.name,
            code=notice.code,
        )
        if not notice.is_quiet:
            self._say(notice)
