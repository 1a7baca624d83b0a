"""PyTorch: `torch.optim.Adadelta`'s face on multiopt's engines.

>>> import torch
>>> from multiopt.torch import Adadelta  # instead of torch.optim
>>> weights = torch.nn.Parameter(torch.ones(3))
>>> weights.sum().backward()
>>> Adadelta([weights]).step()
"""

from .adadelta import Adadelta
from .clipping import clip_grad_norm_, clip_grads_with_norm_, get_total_norm
from .functional import FunctionalAdadelta

__all__ = ["Adadelta", "FunctionalAdadelta", "clip_grad_norm_", "clip_grads_with_norm_", "get_total_norm"]
