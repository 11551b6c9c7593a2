"""A relay on loopback that keeps what passes: whoever sits between two machines sees this."""

from __future__ import annotations

import contextlib
import socket
import threading


class Relay:
    """Carries connections to a port; `heard` is all that has passed, both ways."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.heard: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def everything(self) -> bytes:
        """All of it, one piece after the other."""
        return b"".join(self.heard)

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                there = socket.create_connection(self._target)
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError), source:
            while data := source.recv(65_536):
                self.heard.append(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
