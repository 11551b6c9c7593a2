"""The client for asyncio: `AsyncClient` and the `AsyncTask` handles it gives."""

from d8mesh.nodes.client.aio.client import AsyncClient
from d8mesh.nodes.client.aio.task import AsyncTask

__all__ = ["AsyncClient", "AsyncTask"]
