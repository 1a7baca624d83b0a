"""An array library that multiopt has never heard of: NumPy's arrays, wrapped, with what rules need of the standard."""

import operator
import sys

import numpy as np
from multiopt.backends import Library

float32, float64, int64, bool = (np.dtype(name) for name in ("float32", "float64", "int64", "bool"))


class Array:
    """An array; ``values`` holds it."""

    def __init__(self, values):
        self.values = np.asarray(values)

    dtype = property(lambda self: self.values.dtype)
    shape = property(lambda self: self.values.shape)
    ndim = property(lambda self: self.values.ndim)
    size = property(lambda self: self.values.size)
    device = "cpu"

    def __array_namespace__(self, api_version=None):
        return sys.modules[__name__]

    def __getitem__(self, key):
        return Array(self.values[key])

    def __setitem__(self, key, new):
        self.values[key] = _plain(new)

    def __float__(self):
        return float(self.values)

    def __int__(self):
        return int(self.values)

    def __bool__(self):
        return self.values.__bool__()

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


def _plain(value):
    return value.values if isinstance(value, Array) else value


def _wrapped(function):
    def call(*args, device=None, **options):
        return Array(function(*map(_plain, args), **{name: _plain(value) for name, value in options.items()}))

    return call


for _name in ["add", "sub", "mul", "truediv", "pow", "lt", "le", "gt", "ge", "eq", "ne", "and", "or"]:
    _operator = _wrapped(getattr(operator, f"{_name}_" if _name in ("and", "or") else _name))
    setattr(Array, f"__{_name}__", _operator)
    setattr(Array, f"__r{_name}__", lambda self, other, do=_operator: do(other, self))
for _name in ("neg", "abs", "invert"):
    setattr(Array, f"__{_name}__", _wrapped(getattr(operator, _name)))
_FUNCTIONS = """
asarray astype sqrt abs sign where clip minimum maximum square isnan isfinite all sum max zeros zeros_like full_like
empty_like ones_like reshape real imag any
"""
for _name in _FUNCTIONS.split():
    globals()[_name] = _wrapped(getattr(np, _name))

LIBRARY = Library("toyarrays", "ToyArrays", "toyarrays", "toyarrays.backend:ToyBackend")
