"""Recorders: programs that run the real optimizers and write down everything they do.

Each module here drives one family of frameworks. Most of them must own their process (TensorFlow's virtual
devices, Keras' backend and JAX's precision are fixed at import), so they run as ``python -m
multiopt.conformance.recording``.
"""
