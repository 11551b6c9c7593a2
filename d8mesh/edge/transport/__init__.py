"""Links between peers: ZeroMQ, and its frames through HTTP."""
