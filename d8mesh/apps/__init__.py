"""What a person runs on the mesh."""
