"""No byte is read or written that is not an array's own: arrays between pages that nobody may touch."""

from programs_of import run_program


def test_no_kernel_leaves_its_arrays(numba, torch, cases, seed):
    print(run_program("guard_pages", seed, cases(12)), "arrays")
