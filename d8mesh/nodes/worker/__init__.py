"""The worker: takes tasks from every orchestrator of its mesh and runs handlers for them."""

from d8mesh.nodes.worker.node import Worker

__all__ = ["Worker"]
