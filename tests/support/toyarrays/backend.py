"""multiopt's backend for ToyArrays: where it differs from the standard, and where its arrays lie in memory."""

import numpy as np
from multiopt.backends import Backend


class ToyBackend(Backend):
    """Arrays of type `toyarrays.Array`, which the host engine reads and writes in place."""

    def to_host(self, array):
        return np.array(array.values, order="C")

    def from_host(self, array, dtype, like=None):
        return self.xp.asarray(array.astype(dtype))

    # --- so that overlaps are found ---

    def extent(self, array):
        return np.lib.array_utils.byte_bounds(array.values) if array.size else (0, 0)

    # --- so that the host engine serves these arrays ---

    def host_memory(self, device):
        return self

    def layout(self, array):
        return "C" if array.values.flags.c_contiguous else None

    def addresses(self, arrays, layouts, out):
        pairs = zip(arrays, layouts, strict=True)
        out[:] = [a.values.ctypes.data if self.layout(a) == layout == "C" else -1 for a, layout in pairs]
        return int((out < 0).sum())

    def contiguous(self, array):
        return self.xp.asarray(array, copy=True, order="C")

    def touched(self, arrays):
        """ToyArrays keeps no account of writing."""
