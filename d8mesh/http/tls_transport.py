"""TLS between a connection and its socket: the connection above it sees plain bytes.

It is counted, bounded and timed from its first byte on, by the same caps and deadlines as one
without TLS: the handshake is a part of the time that a request has to come in.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterable
from typing import Any, Final

from d8mesh.http.answers import Refusal
from d8mesh.http.connection import HANDSHAKING, HttpConnection

#: How a TLS connection begins: a record of the handshake.
_HANDSHAKE_RECORD: Final = 22


class TlsConnection(asyncio.BufferedProtocol):
    """What the socket's bytes come to: deciphers them for an `HttpConnection`.

    Args:
        above: who reads what was said, and writes the answers.
        buffer: what comes is read into it; it is used up in the same call.
    """

    def __init__(self, above: HttpConnection, context: ssl.SSLContext, buffer: bytearray) -> None:
        self._above, self._buffer = above, buffer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._transport: TlsTransport | None = None
        self._is_begun = self._is_plain = False

    # ----------------------------------------------------------- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = TlsTransport(transport, self._tls, self._outgoing, self._read)
        self._above.connection_made(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._above.connection_lost(exc)
        self._transport = None

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        transport = self._transport
        if transport is None:
            return
        if not self._is_begun:
            self._is_begun = transport.is_begun = True
            if self._buffer[0] != _HANDSHAKE_RECORD:
                self._is_plain = True
                self._refuse_plain(transport, bytes(self._buffer[:nbytes]))
                return
        if self._is_plain or transport.is_ending:  # nothing of it is of interest
            self._above.buffer_updated(nbytes)
            return
        self._incoming.write(memoryview(self._buffer)[:nbytes])
        self._read()

    def eof_received(self) -> None:
        return None  # the transport closes itself, and tells of it

    def pause_writing(self) -> None:
        self._above.pause_writing()

    def resume_writing(self) -> None:
        self._above.resume_writing()

    # ------------------------------------------------------------------- deciphering

    def _read(self) -> None:
        """Go on with the handshake, or pass on what can be read by now."""
        transport = self._transport
        if transport is None:
            return
        try:
            if not transport.is_secure:
                self._tls.do_handshake()
                transport.secured()
            while not (transport.is_paused or transport.is_ending):
                # typeshed has it return bytes; with a buffer it is how many
                count: int = self._tls.read(len(self._buffer), self._buffer)  # type: ignore[assignment]
                if not count:
                    raise ssl.SSLZeroReturnError
                self._above.buffer_updated(count)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            transport.close()
        except ssl.SSLError:
            transport.fail()
        transport.flush()

    def _refuse_plain(self, transport: TlsTransport, said: bytes) -> None:
        """Say where to ask instead, in the form of the door that was meant."""
        transport.is_plain = True
        words = said.partition(b"\r\n")[0].split(b" ")
        path = words[1].partition(b"?")[0].decode("latin-1") if len(words) > 1 else ""
        host, port = (transport.get_extra_info("sockname") or ("", 0))[:2]
        place = f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
        plain = Refusal("http.plain", f"this port speaks HTTPS: ask https://{place}")
        self._above.refuse(plain, path)


class TlsTransport(asyncio.Transport):
    """What an `HttpConnection` writes to.

    Args:
        below: the socket's.
        read: goes on reading, after a pause.
    """

    def __init__(
        self,
        below: asyncio.Transport,
        tls: ssl.SSLObject,
        outgoing: ssl.MemoryBIO,
        read: Callable[[], None],
    ) -> None:
        super().__init__()
        self._below, self._tls, self._outgoing, self._resume = below, tls, outgoing, read
        #: whether anything has come; whether the handshake is done; it will be no TLS at all
        self.is_begun = self.is_secure = self.is_plain = False
        self.is_paused = self.is_ending = False

    def secured(self) -> None:
        """The handshake is done."""
        self.is_secure = True

    def flush(self) -> None:
        """Send what TLS itself has to say."""
        if self._outgoing.pending and not self._below.is_closing():
            self._below.write(self._outgoing.read())

    def fail(self) -> None:
        """End: what came is no TLS that we speak; the alert that says why is sent."""
        self.is_ending = True
        self.flush()
        self._below.close()

    # ------------------------------------------------------------ asyncio.Transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.is_plain:
            self._below.write(data)
        elif data and self.is_secure and not self.is_ending:
            with contextlib.suppress(ssl.SSLError):
                self._tls.write(data)
            self.flush()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        self._say_goodbye()
        if not self._below.is_closing():
            self._below.write_eof()

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        if self.is_begun and not (self.is_secure or self.is_plain):
            self._below.abort()  # whoever does not get through the handshake is told nothing
            return
        self._say_goodbye()
        self._below.close()

    def abort(self) -> None:
        self.is_ending = True
        self._below.abort()

    def is_closing(self) -> bool:
        return self._below.is_closing()

    def pause_reading(self) -> None:
        self.is_paused = True
        if not self._below.is_closing():
            self._below.pause_reading()

    def resume_reading(self) -> None:
        if not self.is_paused:
            return
        self.is_paused = False
        if not self._below.is_closing():
            self._below.resume_reading()
            # what was deciphered in part is in no socket: nothing would tell of it
            asyncio.get_running_loop().call_soon(self._resume)

    def is_reading(self) -> bool:
        return not self.is_paused

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._below.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._below.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._below.get_write_buffer_limits()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == HANDSHAKING:
            return self.is_begun and not (self.is_secure or self.is_plain)
        return self._below.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        raise RuntimeError("what is below TLS keeps its protocol")

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._below.get_protocol()

    def _say_goodbye(self) -> None:
        """Say that nothing follows, so that nobody takes a cut for the end."""
        if self.is_secure and not self.is_ending:
            self.is_ending = True
            with contextlib.suppress(ssl.SSLError):  # it wants to read the other side's goodbye
                self._tls.unwrap()
            self.flush()
