"""The launch plan is plain data: every element is done once, and tables are rewritten where something moved."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multiopt.backends.engines.cuda import plan as cuda_plan
from multiopt.backends.engines.cuda.plan import CHUNK, changes, make_plan

SIZES = st.lists(st.sampled_from([0, 1, 5, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 7 * CHUNK + 3]), min_size=1)


def shares(plan):
    """What each tensor's chunks cover, as the kernels compute it."""
    covered = [[] for _ in plan.sizes]
    for block in range(plan.grid):
        for chunk in range(block, len(plan.owners), plan.grid):
            tensor = plan.owners[chunk]
            start = (chunk - plan.rows[tensor + len(plan.sizes)]) * CHUNK
            covered[tensor].append((int(start), int(min(plan.rows[tensor] - start, CHUNK))))
    return covered


@given(SIZES, st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_every_element_is_done_once(sizes, most_blocks):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_plan, "MOST_BLOCKS", most_blocks)
        plan = make_plan(np.array(sizes))
    assert plan.grid <= most_blocks
    for size, covered in zip(sizes, shares(plan), strict=True):
        ends = 0
        for start, count in sorted(covered):
            assert (start, count > 0) == (ends, True)
            ends = start + count
        assert ends == size


def test_chunks_of_an_aligned_array_are_aligned():
    # 2 bytes is the narrowest element.
    assert CHUNK * 2 % 16 == 0
    # Each thread's share is a whole number of packs, of up to 8 elements.
    assert CHUNK % (cuda_plan.BLOCK * 8) == 0


def test_many_small_tensors_and_a_huge_one_are_one_launch():
    assert make_plan(np.array([0, 0])).grid == 0  # nothing to do
    small = make_plan(np.full(1000, 64))
    assert (small.grid, len(small.owners)) == (1000, 1000)
    # 2**33 elements: beyond 32 bits, and beyond the grid, so that blocks take several chunks.
    huge = make_plan(np.array([3, 1 << 33]))
    assert huge.grid == cuda_plan.MOST_BLOCKS < len(huge.owners)
    assert huge.owners.dtype == np.int32
    assert (int(huge.owners[-1]), int(huge.firsts[1])) == (1, 1)
    assert (len(huge.owners) - 1 - int(huge.firsts[1])) * CHUNK == (1 << 33) - CHUNK


@given(st.integers(1, 3), st.integers(1, 9), st.data())
@settings(max_examples=60, deadline=None)
def test_changes_bring_a_table_up_to_date(columns, tensors, data):
    held = np.arange(columns * tensors).reshape(columns, tensors)
    now = held.copy()
    for place in data.draw(st.lists(st.integers(0, now.size - 1), max_size=4)):
        now.ravel()[place] += 1000
    table = held.ravel().copy()
    for start, words in changes(held, now):
        assert len(words)
        table[start : start + len(words)] = words
    assert np.array_equal(table.reshape(now.shape), now)


def test_what_did_not_move_is_not_written():
    held = np.arange(3000).reshape(3, 1000)
    assert list(changes(held, held.copy())) == []
    now = held.copy()
    now[1, [7, 9]] = 0
    ((start, words),) = changes(held, now)
    assert (start, words.tolist()) == (1007, [0, 1008, 0])
