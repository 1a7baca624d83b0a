"""Assertions for other people's tests: two optimizers do the same; and why, where they do not."""
