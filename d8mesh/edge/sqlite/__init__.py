"""The journal: facts to disk in one commit per batch (`Journal`), and questions (`Reader`)."""

from d8mesh.edge.sqlite.journal import Journal
from d8mesh.edge.sqlite.place import held
from d8mesh.edge.sqlite.reader import Reader

__all__ = ["Journal", "Reader", "held"]
