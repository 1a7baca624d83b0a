"""Arrays that end, or begin, where the process has no memory: to touch one byte beyond them ends the process."""

import ctypes
import mmap

import numpy as np

PAGE = mmap.PAGESIZE
#: What the bytes hold that lie within reach and belong to no element.
SLACK = 0xA5
NONE, READ = 0, 1  # PROT_NONE, PROT_READ
_libc = ctypes.CDLL(None, use_errno=True)


def _protect(address, length, how):
    if _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(length), how) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")


class Guarded:
    """One array in memory of its own, with a page that nobody may touch before and after it.

    Parameters
    ----------
    values : numpy.ndarray
        What it holds.
    side : {"end", "start"}
        The page that its memory touches.
    strides : sequence of int, optional
        In bytes; by default those of C order.
    shift : int
        Bytes between the array and that page: 1 makes an array that is not aligned.
    readonly : bool
        Whether writing to it, too, ends the process. NumPy is not told.
    """

    def __init__(self, values, side, strides=None, shift=0, readonly=False):
        strides = values.copy(order="C").strides if strides is None else tuple(strides)
        reach = [(n - 1) * stride for n, stride in zip(values.shape, strides, strict=True)]
        below = sum(r for r in reach if r < 0) if values.size else 0
        length = sum(map(abs, reach)) + values.itemsize if values.size else 0
        room = -(-max(length + shift, 1) // PAGE) * PAGE
        memory = mmap.mmap(-1, room + 2 * PAGE)
        whole = np.frombuffer(memory, np.uint8)
        self.region = whole[PAGE : PAGE + room]
        self.region[:] = SLACK
        start = shift if side == "start" else room - length - shift
        self._place = values.shape, values.dtype, start - below, strides
        self.array = self._view(self.region)
        self.array[...] = values
        begin = whole.ctypes.data
        _protect(begin, PAGE, NONE)
        _protect(begin + PAGE + room, PAGE, NONE)
        if readonly:
            _protect(begin + PAGE, room, READ)

    def _view(self, region):
        shape, dtype, offset, strides = self._place
        return np.ndarray(shape, dtype, region, offset if 0 not in shape else 0, strides)

    def slack_is_whole(self):
        """Whether the bytes between the elements, and up to the pages, are what they were."""
        region = self.region.copy()
        shape, dtype, offset, strides = self._place
        np.ndarray(shape, f"V{dtype.itemsize}", region, offset if 0 not in shape else 0, strides)[...] = np.void(
            bytes([SLACK]) * dtype.itemsize
        )
        return bool((region == SLACK).all())


def strides_of(layout, shape, itemsize):
    """Strides in bytes of a layout: ``"C"``, ``"F"``, ``"gaps"`` or ``"backwards"`` along the last axis."""
    order = list(range(len(shape)))
    step, strides = itemsize * (2 if layout in ("gaps", "backwards") else 1), [0] * len(shape)
    for axis in order if layout == "F" else reversed(order):
        strides[axis], step = step, step * max(shape[axis], 1)
    if layout == "backwards" and strides:
        strides[-1] = -strides[-1]
    return tuple(strides)
