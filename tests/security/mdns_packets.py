"""Says over multicast what a node that means no good might say of itself.

``python -m tests.security.mdns_packets``: a JSON object a line on standard input, each sent as one
packet; an empty line is answered with one, so that all before it have gone out.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Final

MDNS: Final = ("224.0.0.251", 5353)
#: An answer, with authority.
_ANSWER: Final = 0x8400
_PTR: Final = 12
_TXT: Final = 16
_SRV: Final = 33
_A: Final = 1


def packet(
    service: str,
    label: str,
    txt: Sequence[bytes],
    *,
    ip: str = "10.77.0.3",
    port: int = 7010,
    ttl: int = 120,
) -> bytes:
    """Return one packet with all that is known of a service: PTR, SRV, TXT, A."""
    instance, host = f"{label}.{service}", f"{label}.local."
    strings = b"".join(bytes([len(each)]) + each for each in txt)
    records = [
        _record(service, _PTR, _name(instance), ttl),
        _record(instance, _SRV, struct.pack("!HHH", 0, 0, port) + _name(host), ttl),
        _record(instance, _TXT, strings, ttl),
        _record(host, _A, socket.inet_aton(ip), ttl),
    ]
    return struct.pack("!6H", 0, _ANSWER, 0, len(records), 0, 0) + b"".join(records)


def txt_of(mesh: str, name: str, *more: bytes, key: str = "ab" * 32) -> list[bytes]:
    """Return the strings of a TXT record as a node writes it."""
    pairs = {"id": name, "boot": name, "mesh": mesh, "version": "1", "key": key}
    return [f"{each}={value}".encode() for each, value in pairs.items()] + list(more)


def _name(text: str) -> bytes:
    labels = text.rstrip(".").encode().split(b".")
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def _record(owner: str, kind: int, data: bytes, ttl: int) -> bytes:
    return _name(owner) + struct.pack("!HHIH", kind, 1, ttl, len(data)) + data


def main() -> None:
    """Send what is asked for until standard input ends."""
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    out.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
    out.bind(("", MDNS[1]))
    print(flush=True)
    for line in sys.stdin:
        if line.strip():
            told = json.loads(line)
            txt = [bytes.fromhex(each) for each in told.pop("txt")]
            out.sendto(packet(told.pop("service"), told.pop("label"), txt, **told), MDNS)
        else:
            print(flush=True)


if __name__ == "__main__":
    main()
