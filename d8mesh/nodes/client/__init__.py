"""The Python client: `Client`, the `Task` handles it gives, and `RESTARTED`."""

from d8mesh.nodes.client.handle import RESTARTED, Restarted, Result, Task
from d8mesh.nodes.client.node import Client

__all__ = ["RESTARTED", "Client", "Restarted", "Result", "Task"]
