"""What runs as a process: the launcher and its children, the worker."""
