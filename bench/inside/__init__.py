"""What runs inside a peer's environment: the peer's own client and workers, told by JSON lines.

Nothing here imports d8mesh: these environments hold the peer and what it needs, nothing else.
"""
