"""Files that can be trusted: written whole, sealed, and known by where they come from."""
