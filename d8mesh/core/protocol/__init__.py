"""What peers say, and what all brains share."""
