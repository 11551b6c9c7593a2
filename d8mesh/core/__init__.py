"""The pure rules: no sockets, files, clock, threads, randomness or logging."""
