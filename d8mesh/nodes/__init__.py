"""The loops: a brain joined to its edges."""
