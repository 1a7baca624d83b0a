"""The optimizer API of TensorFlow and Keras, on NumPy, CuPy, PyTorch and JAX arrays, without TensorFlow."""

from .variable import IndexedSlices, Variable

__all__ = ["IndexedSlices", "Variable"]
