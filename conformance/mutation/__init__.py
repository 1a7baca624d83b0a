"""Mutation testing: wrong optimizers, which the checks must reject."""
