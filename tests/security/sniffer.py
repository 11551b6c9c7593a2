"""Records every packet of all cards of a network namespace, until it is told to end (Linux, root).

``python -m tests.security.sniffer FILE``: each packet as its length (4 bytes) and its bytes.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: Every protocol, and packets that are only passed on, too.
ETH_P_ALL: Final = 0x0003
#: Offloading makes packets of up to 64 KiB of what is one for the card.
MAX_PACKET_BYTES: Final = 70_000
BUFFER_BYTES: Final = 256 * 1024 * 1024
_IPV4: Final = 0x0800
_TCP: Final = 6


def record(file: Path) -> None:
    """Record until SIGTERM."""
    sniffing = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    with contextlib.suppress(OSError):  # beyond what others may have
        sniffing.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_RCVBUFFORCE", 33), BUFFER_BYTES)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with file.open("wb") as out:
        print("sniffing", flush=True)
        while True:
            packet = sniffing.recv(MAX_PACKET_BYTES)
            out.write(struct.pack("!I", len(packet)) + packet)
            out.flush()


def packets_in(file: Path) -> Iterator[bytes]:
    """Yield what was recorded."""
    content = file.read_bytes()
    at = 0
    while at + 4 <= len(content):
        (size,) = struct.unpack_from("!I", content, at)
        yield content[at + 4 : at + 4 + size]
        at += 4 + size


def streams_in(packets: Iterator[bytes]) -> dict[tuple[bytes, int, bytes, int], bytes]:
    """Return what went over TCP, put together: (from, port, to, port) -> bytes."""
    parts: dict[tuple[bytes, int, bytes, int], dict[int, bytes]] = defaultdict(dict)
    for packet in packets:
        if len(packet) < 54 or struct.unpack_from("!H", packet, 12)[0] != _IPV4:
            continue
        ip = packet[14:]
        if ip[9] != _TCP:
            continue
        length = struct.unpack_from("!H", ip, 2)[0] or len(ip)
        tcp = ip[(ip[0] & 15) * 4 : length]
        source, target, seq = struct.unpack_from("!HHI", tcp)
        payload = tcp[(tcp[12] >> 4) * 4 :]
        if payload:
            parts[(ip[12:16], source, ip[16:20], target)][seq] = payload
    return {flow: _joined(pieces) for flow, pieces in parts.items()}


def _joined(pieces: dict[int, bytes]) -> bytes:
    """Return the pieces in the order of their numbers; what was sent twice stands once."""
    out, end = b"", -1
    for seq in sorted(pieces):
        piece = pieces[seq]
        fresh = piece if end < 0 or seq >= end else piece[end - seq :]
        out += fresh
        end = max(end, seq + len(piece))
    return out


if __name__ == "__main__":
    record(Path(sys.argv[1]))
