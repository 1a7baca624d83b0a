"""What the tests of `multiopt.keras` share: variables of each library, Adadelta written out, and the examples."""

from pathlib import Path

import numpy as np
from processes import run_python

from multiopt.keras import Variable

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def made(lib, values, dtype=np.float32, **options):
    return Variable(lib.param(np.asarray(values, dtype)), **options)


def single(value):
    """A Python number as TensorFlow holds it."""
    return float(np.float32(value))


def after(gradients, lr=0.001, rho=0.95, eps=1e-7, x=0.0, state=None):
    """x, v and u after Zeiler's algorithm, in double, with TensorFlow's float32 numbers; `lr` may be a list."""
    v, u = state or (0.0, 0.0)
    rho = single(rho)
    for i, g in enumerate(gradients):
        v = rho * v + (1 - rho) * g * g
        d = np.sqrt(u + eps) / np.sqrt(v + eps) * g
        u = rho * u + (1 - rho) * d * d
        x = x - single(lr[i] if isinstance(lr, list) else lr) * d
    return x, v, u


def run_example(name, *arguments):
    """What an example prints."""
    path = str(EXAMPLES / name)
    return run_python(
        f"import runpy, sys; sys.argv = {[path, *arguments]}; runpy.run_path({path!r}, run_name='__main__')"
    )
