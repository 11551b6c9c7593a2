"""One thin module per thing outside the process; edges do not know each other."""
