"""The journal: facts to disk in one commit per batch (`Journal`), and questions (`Reader`)."""

from d8mesh.edge.journal.place import refuse_held
from d8mesh.edge.journal.reader import Reader
from d8mesh.edge.journal.writer import Journal

__all__ = ["Journal", "Reader", "refuse_held"]
