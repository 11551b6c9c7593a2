"""Who comes in by a HELLO, who has to wait for it, and who is shown out."""

from __future__ import annotations

from functools import partial
from typing import Final

from d8mesh.core.broker import member_report
from d8mesh.core.broker.client_requests import ClientRequests
from d8mesh.core.broker.effects import Drop, KeepMembers, Notice, Peer, Send, UseView
from d8mesh.core.broker.hello_rules import refuse_hello, refuse_other_id
from d8mesh.core.broker.members_view import Knock
from d8mesh.core.broker.polling import Polling
from d8mesh.core.broker.returns import LEAVING, Returns
from d8mesh.core.broker.state import BrokerState, ClientState
from d8mesh.core.broker.strikes import UNKNOWN_STRIKE
from d8mesh.core.broker.unwelcome import Unwelcome
from d8mesh.core.broker.worker_registry import WorkerState
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.membership import fingerprint
from d8mesh.errors import D8Error, ForbiddenError

#: How soon what has been noted of members is written: a start writes once for all that come back.
KEEP_S: Final = 5.0
#: After a disk that refused the file it is tried again this much later.
KEEP_AGAIN_S: Final = 10.0
#: Who was told of as refused for the first time; those of the longest ago may be told of again.
MAX_NOTED: Final = 1000
#: Of connections whose session has gone on over another one so many are known.
MAX_LEFT_BEHIND: Final = 4096
#: Counts connections that are closed because nothing that they said has opened a session.
_UNHEARD_CODE: Final = "zmq.unheard"
#: Notices of refusals that people are told of in a minute; the log has all.
NOTICES_PER_MINUTE: Final = 10


class Joins:
    """Lets peers in, and shows them out."""

    def __init__(
        self, state: BrokerState, returns: Returns, clients: ClientRequests, polling: Polling
    ) -> None:
        self._state = state
        self._returns = returns
        self._clients = clients
        self._polling = polling
        self._keep_at = 0.0
        self._told: dict[tuple[bytes | str, str], None] = {}
        self._notices: list[float] = []
        self._shown = state.members.view
        self._unwelcome = Unwelcome()
        #: routing ids of connections whose session has gone on over another one, the oldest first
        self._left_behind: dict[bytes, None] = {}

    # ------------------------------------------------------------------------ HELLO

    def admits(
        self,
        message: m.WorkerHello | m.ClientHello,
        peer: Peer,
        worker: WorkerState | None,
        client: ClientState | None,
    ) -> bool:
        """Return whether a HELLO may open a session; if not, it has been refused.

        Args:
            worker, client: whose session stands under this connection.
        """
        state = self._state
        refused = refuse_other_id(message, worker, client) or refuse_hello(message, peer, state)
        if refused is not None:
            self._refuse_peer(peer, refused)
            return False
        self._unwelcome.forget(peer)
        self._leave_behind(message, peer)
        if peer.key is None:
            return True
        state.members.make_room(partial(member_report.connected, state))
        if isinstance(message, m.WorkerHello):
            state.members.come(peer.key, "worker", message.worker_id, peer.address, state.at)
        else:
            state.members.come(peer.key, "client", message.host, peer.address, state.at)
        return True

    def _leave_behind(self, message: m.WorkerHello | m.ClientHello, peer: Peer) -> None:
        """Note the connection under which this session was until now, if it was another."""
        state = self._state
        standing: WorkerState | ClientState | None
        if isinstance(message, m.WorkerHello):
            standing = state.registry.workers.get(message.worker_id)
        else:
            standing = state.clients.get(message.session)
        self._left_behind.pop(peer.routing_id, None)
        if standing is not None and standing.peer.routing_id not in (b"", peer.routing_id):
            self._left_behind[standing.peer.routing_id] = None
            if len(self._left_behind) > MAX_LEFT_BEHIND:
                del self._left_behind[next(iter(self._left_behind))]

    # --------------------------------------------------------------------- refusing

    def forbid(self, peer: Peer, why: str) -> None:
        """Refuse what this peer may not say."""
        self._refuse_peer(peer, m.Refused(0, "access.forbidden", why))

    def no_session(self, peer: Peer) -> None:
        """Somebody speaks who has not said HELLO, or whose session has ended.

        What was under way when its session went on over another connection is said again there.
        """
        state = self._state
        if peer.routing_id not in self._left_behind:
            state.metrics.reject("session.unknown")
        state.send(peer, m.Rehello("no session under this connection: say HELLO"))
        self._strike(peer, UNKNOWN_STRIKE)
        self._bear(peer)

    def malformed(self, peer: Peer, code: str) -> None:
        """Count a frame that was no message."""
        self._state.metrics.reject(code)
        self._strike(peer)
        self._bear(peer)

    def _refuse_peer(self, peer: Peer, refused: m.Refused) -> None:
        self._state.metrics.reject(refused.code)
        self._state.send(peer, refused)
        self._note(peer.key, peer.address, refused.code)
        if refused.code in ("access.revoked", "access.pending"):
            self._drop(peer)  # the gate tells it from now on
        else:
            self._strike(peer)
            if self._bear(peer) and self._unwelcome.are_many(peer.address):
                self._drop(peer, _UNHEARD_CODE)

    def _bear(self, peer: Peer) -> bool:
        """Let who has no session stay for a while; return whether it is one of these."""
        is_unwelcome = not self._has_session(peer) and peer.key not in self._state.members.own
        if is_unwelcome:
            self._unwelcome.note(peer, self._state.now)
        return is_unwelcome

    def _has_session(self, peer: Peer) -> bool:
        state = self._state
        is_client = peer.routing_id in state.clients_by_routing_id
        return is_client or state.registry.by_peer(peer) is not None

    def _strike(self, peer: Peer, weight: float = 1.0) -> None:
        """Count what a peer did against its key; enough of it has the key banned for a while."""
        state, key = self._state, peer.key
        if key is None or key in state.members.own:
            return
        if state.members.strikes.add(key, state.now, weight):
            state.members.renew()
            self._show()
            self._note(key, peer.address, "access.banned")
            self._end_sessions(key, "its key is banned for a while: it sent what is not allowed")
            self._drop(peer)

    # ------------------------------------------------------------------- at the gate

    def knocked(self, knock: Knock) -> None:
        """Take in what the gate has decided: each refusal is counted, who waits is noted."""
        state = self._state
        state.members.knock(knock, state.at)
        self._show()
        if knock.code:
            state.metrics.reject(knock.code)
            self._note(knock.key, knock.address, knock.code)

    def _note(self, key: bytes | None, address: str, code: str) -> None:
        """Tell who runs this of a refusal, once for each key (or address) and reason.

        What a node of ours mends by itself, as an id that is taken, is of interest to the log only.
        """
        state = self._state
        what = (address if key is None else key, code)
        if what in self._told:
            return
        self._told[what] = None
        if len(self._told) > MAX_NOTED:
            del self._told[next(iter(self._told))]
        self._notices = [at for at in self._notices if at > state.now - 60.0]
        is_quiet = len(self._notices) >= NOTICES_PER_MINUTE or not code.startswith("access.")
        if not is_quiet:
            self._notices.append(state.now)
        members = state.members
        member = None if key is None else members.waiting.get(key) or members.by_key.get(key)
        shown = fingerprint(key) if key is not None else ""
        name = member.name if member else ""
        state.effects.append(Notice(code, address, shown, name, is_quiet))

    # ------------------------------------------------------------- asked by who runs it

    def listing(self, peer: Peer, request: int) -> None:
        """Answer with all members; raises as `change`."""
        self._require_own(peer)
        self._state.answer(peer, request, member_report.listing(self._state))

    def change(self, peer: Peer, message: m.ChangeMembers) -> None:
        """Let a key in, show one out, or forget one; answered when that is on the disk.

        Raises:
            ForbiddenError: this peer may not, or that key may not be shown out.
            UnknownMemberError, AmbiguousMemberError: `who` names none, or several.
        """
        self._require_own(peer)
        state, action = self._state, message.action
        member = member_report.found(state.members, action, message.who)
        body = member_report.shown(state, member) | {"action": action}
        if action == "approve":
            state.members.make_room(partial(member_report.connected, state))
            state.members.approve(member, state.at)
        elif action == "revoke":
            state.members.revoke(member)
            self._end_sessions(member.key, "its key was revoked", "access.revoked")
        else:
            state.members.forget(member)
            self._end_sessions(member.key, "its key was forgotten")
        body["standing"] = member_report.standing_of(state.members, member)
        body["is_connected"] = member.key in member_report.connected(state)
        self._show()
        for told in [each for each in self._told if each[0] == member.key]:
            del self._told[told]  # what comes of the change is news
        shown = fingerprint(member.key)
        state.effects.append(Notice(f"member.{action}", peer.address, shown, member.name))
        state.effects.append(self._keep(Send(peer, m.Answer(message.request, "", body))))

    def _show(self) -> None:
        """Have the gate decide by what is so now."""
        members = self._state.members
        if members.view is not self._shown:
            self._shown = members.view
            self._state.effects.append(UseView(members.view))

    def _require_own(self, peer: Peer) -> None:
        if peer.key is None or peer.key not in self._state.members.own:
            raise ForbiddenError(
                "only who uses the data folder of the orchestrator may see and change who may "
                "join: run this on its machine, as its user, with its D8_DATA_DIR"
            )

    def _end_sessions(self, key: bytes, why: str, code: str = "") -> None:
        """End what a key has open: its tasks wait again at once, uncounted."""
        state = self._state
        for worker in list(state.registry.workers.values()):
            if worker.peer.key != key or not worker.is_live:
                continue
            self._say_end(worker.peer, why, code)
            held = list(worker.outstanding.values())
            name = f"worker {worker.worker_id!r} was shown out: {why}"
            self._returns.take(worker.worker_id, held, name, LEAVING)
            state.part_with(worker)
        for client in list(state.clients.values()):
            if client.peer.key == key:
                self._say_end(client.peer, why, code)
                self._clients.leave(client)
                self._polling.forget_peer(client.peer)

    def _say_end(self, peer: Peer, why: str, code: str) -> None:
        said = m.Refused(0, code, why) if code else m.Rehello(why)
        self._state.send(peer, said)
        self._drop(peer)

    def _drop(self, peer: Peer, code: str = "") -> None:
        self._unwelcome.forget(peer)
        drop, effects = Drop(peer, code), self._state.effects
        if drop not in effects:
            effects.append(drop)

    # -------------------------------------------------------------------- in between

    def sweep(self) -> None:
        """Lift bans, close who has no session, and have what was noted written."""
        state, members = self._state, self._state.members
        for peer in self._unwelcome.due(state.now):
            self._drop(peer, _UNHEARD_CODE)
        if members.strikes.banned and members.strikes.expire(state.now):
            members.renew()
            self._show()
        if members.is_unkept and state.now >= self._keep_at:
            state.effects.append(self._keep())

    def _keep(self, answer: Send | None = None) -> KeepMembers:
        members = self._state.members
        members.is_unkept = False
        self._keep_at = self._state.now + KEEP_S
        return KeepMembers(members.kept(), answer)

    def kept(self, effect: KeepMembers, trouble: str) -> None:
        """Go on when the file is written; `trouble` says why it could not be, if it was not."""
        state, answer = self._state, effect.answer
        if trouble:
            state.members.is_unkept = True
            self._keep_at = state.now + KEEP_AGAIN_S
        if answer is None:
            return
        message = answer.message
        if trouble and isinstance(message, m.Answer):
            error = D8Error(f"done, but until the next start only: {trouble}")
            message = m.Answer(message.request, error.code, {"error": str(error)})
        state.send(answer.peer, message)
