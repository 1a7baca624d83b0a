"""Memory of parameters: no array is updated under two names, and looking for that costs what is added."""

import copy
import itertools
import pickle
from collections import Counter

import numpy as np
import pytest
from multiopt.backends.numpy import NumpyBackend

from multiopt import Adadelta

X = np.zeros(100, np.float32)
WIDE = np.zeros((10, 10), np.float32)
#: Arrays, and which two of them share an element.
OVERLAPS = {
    "itself": ([X, X], 0, 1),
    "one element": ([X[:50], X[49:]], 0, 1),
    "with another between": ([X, np.zeros(3, np.float32), X[99:]], 0, 2),
    "in the first one's gaps": ([X[::2], X[1::2], X[2:3]], 0, 2),
    "in the second one's gaps": ([X[::2], X[1::2], X[3:4]], 1, 2),
    "behind one in the gaps": ([X[::2], X[1:2], X[98:99]], 0, 2),
    "gaps": ([X[10:90], X[::10]], 0, 1),
    "backwards": ([X[::-1], X[:1]], 0, 1),
    "row and column": ([WIDE[0], WIDE[:, 0]], 0, 1),
    "transposed": ([WIDE.T, WIDE[5:6, 5:6]], 0, 1),
    "half": ([X[:10], X.view(np.float16)[5:6]], 0, 1),
    "complex": ([X[:10], X.view(np.complex64)[4:5]], 0, 1),
}


@pytest.mark.parametrize("case", OVERLAPS)
def test_overlaps_are_refused_with_both_names_in_any_order(case):
    views, *pair = OVERLAPS[case]
    for order in itertools.permutations(range(len(views))):
        arrays = [views[i] for i in order]
        one, two = sorted(order.index(i) for i in pair)
        message = r"{}: expected memory of its own, got an array that overlaps {}$"
        with pytest.raises(ValueError, match=message.format(rf"params\[{two}\]", rf"params\[{one}\]")):
            Adadelta(arrays)
        named = message.format(rf"groups\[{two}\]\.params", rf"groups\[{one}\]\.params")
        with pytest.raises(ValueError, match=named):
            Adadelta([{"params": x} for x in arrays])
        opt = Adadelta([{"params": x} for x in arrays[:1]])
        for x in arrays[1:two]:
            opt.add_param_group({"params": x})
        for _ in range(2):  # what was refused has left no trace
            with pytest.raises(ValueError, match=named):
                opt.add_param_group({"params": arrays[two]})
        opt.add_param_group({"params": np.zeros(3, np.float32)})
        assert len(opt.groups) == two + 1


@pytest.mark.parametrize("strides", [(0, 4), (8, 4)])
def test_views_that_repeat_elements_are_refused(strides):
    with pytest.raises(ValueError, match="params: expected elements with memory of their own, got a view that repeats"):
        Adadelta(np.lib.stride_tricks.as_strided(X, (5, 5), strides))


def test_the_same_object_twice_is_refused_everywhere(plain):
    if not plain.mutable:
        pytest.skip("an immutable array twice is two parameters")
    x = plain.param(X)
    with pytest.raises(ValueError, match=r"params\['b'\]: expected memory of its own, .* overlaps params\['a'\]"):
        Adadelta({"a": x, "b": x})


def test_disjoint_views_of_one_array_are_served(engine):
    rng = np.random.default_rng(0)
    (whole, g), cuts = rng.standard_normal((2, 6, 8)), [np.s_[::2, ::2], np.s_[::2, 1::2], np.s_[1::2], np.s_[:0]]
    expected = whole.copy()
    alone, opt = Adadelta(expected, engine="eager"), Adadelta([whole[cut] for cut in cuts], engine=engine)
    for _ in range(3):
        alone.step(g)
        opt.step([g[cut] for cut in cuts])
    assert whole.tobytes() == expected.tobytes()


def test_another_group_is_compared_with_its_neighbours_only(monkeypatch):
    calls = Counter()

    def counted(name):
        kept = getattr(NumpyBackend, name)
        return lambda *args: calls.update([name]) or kept(*args)

    for name in ("extent", "overlaps_itself", "share_memory"):
        monkeypatch.setattr(NumpyBackend, name, counted(name))
    # Pairs of views within each other's gaps, in any order: each has one neighbour.
    views = [row[k::2] for row in np.zeros((30, 16)) for k in (0, 1)]
    first, *rest = np.random.default_rng(0).permutation(len(views))
    opt = Adadelta([{"params": views[first]}])
    for i in rest:
        calls.clear()
        opt.add_param_group({"params": views[i]})
        assert calls["extent"] == calls["overlaps_itself"] == 1
        assert calls["share_memory"] <= 1
    assert len(opt.groups) == len(views)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))], ids=["copy", "pickle"])
def test_copies_check_memory_of_their_own(copied):
    x = np.zeros(10)
    opt = Adadelta([{"params": [x[::2]]}, {"params": np.zeros(3)}])
    twin = copied(opt)
    for i, own in enumerate((twin.params[0][0], twin.params[1])):
        with pytest.raises(ValueError, match=rf"groups\[2\]\.params: .* overlaps groups\[{i}\]\.params"):
            twin.add_param_group({"params": own[1:]})
    with pytest.raises(ValueError, match=r"groups\[2\]\.params: .* overlaps groups\[0\]\.params\[0\]"):
        opt.add_param_group({"params": x[:1]})
    twin.add_param_group({"params": x[::2]})  # the original's memory is not the copy's
    with pytest.raises(ValueError, match=r"groups\[3\]\.params: .* overlaps groups\[2\]\.params"):
        twin.add_param_group({"params": x})
    assert (len(opt.groups), len(twin.groups)) == (2, 3)
