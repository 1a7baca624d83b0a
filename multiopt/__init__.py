"""multiopt."""
