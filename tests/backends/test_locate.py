"""Blocks of a shape, and gradients in the memory of parameters."""

import numpy as np
from multiopt.backends.engines.locate import Ranges, blocks


def test_blocks_tile_every_shape():
    for shape in [(), (0,), (5,), (3, 4), (2, 3, 4, 5), (4, 0, 3), (1, 1, 7)]:
        for size in (1, 2, 5, 7, 60, 1000):
            seen = np.zeros(shape, int)
            for block in blocks(shape, size):
                assert seen[block].size <= size
                seen[block] += 1
            assert (seen == 1).all()


def test_gradients_in_the_memory_of_parameters_are_found():
    params, length = np.array([1000, 2000, 3000]), 100
    ranges = Ranges(params, params + length)

    def found(*grads, lengths=length):
        begins = np.array(grads)
        ends = begins + lengths
        return ranges.aliases(begins, ends, (begins == params) & (ends == params + length))

    assert found(5000, 6000, 7000) == []
    assert found(1000, 2000, 3000) == []  # each its own parameter: read before it is written
    assert found(2000, 1000, 3000) == [0, 1]
    assert found(1004, 2100, 2901) == [0, 2]
    assert found(0, 1900, 3000) == []  # absent; side by side
    assert found(1000, 0, 0, lengths=np.array([200, 0, 0])) == [0]
    # One parameter in the gaps of another.
    wide = Ranges(np.array([0, 50]), np.array([200, 60]))
    assert wide.aliases(np.array([300, 55]), np.array([400, 56]), np.array([False, False])) == [1]
