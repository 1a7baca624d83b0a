"""optax: `optax.adadelta`'s face on multiopt's formula and engines.

>>> import jax.numpy as jnp
>>> from multiopt.optax import adadelta  # instead of from optax import adadelta
>>> opt, params = adadelta(0.5), {"w": jnp.ones(3)}
>>> state = opt.init(params)
>>> updates, state = opt.update(params, state, params)  # to be added to the parameters, as in optax
>>> params, state = opt.step(params, params, state)  # or both in one pass over memory
"""

try:
    import jax as _jax
    import optax as _optax
except ImportError as error:
    raise ImportError('multiopt.optax needs JAX and optax: pip install "multiopt[optax]"') from error

from .adadelta import Adadelta, adadelta, scale_by_adadelta

__all__ = ["Adadelta", "adadelta", "scale_by_adadelta"]
del _jax, _optax
