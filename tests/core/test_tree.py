"""Structures: parameters come back as they came, and gradients must come in the same structure."""

from collections import OrderedDict, namedtuple

import numpy as np
import pytest
from libraries import refused

from multiopt import Adadelta

pytest.importorskip("optree", reason="optree is not installed")
from optree import tree_leaves, tree_structure

Pair = namedtuple("Pair", "w b")
BUILDS = {
    "one": lambda p, q: p,
    "list": lambda p, q: [p, q],
    "tuple": lambda p, q: (p, q),
    "dict": lambda p, q: {"a": p, "b": q},
    "nested": lambda p, q: {"a": [p, {"deep": q}], "e": ()},
    "groups": lambda p, q: [{"params": [p]}, {"params": {"q": q}, "lr": 0.5}],
}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_step_returns_the_parameters_as_they_came(plain, build):
    params, grads = (build(make(np.ones(3)), make(np.ones((2, 2)))) for make in (plain.param, plain.grad))
    opt = Adadelta(params, engine=plain.engine)
    if opt.grouped:
        params, grads = ([group["params"] for group in tree] for tree in (params, grads))
    for _ in range(2):
        out = opt.step(grads)
        assert type(out) is type(params)
        assert tree_structure(out) == tree_structure(params) == tree_structure(opt.params)
        assert {x is y for x, y in zip(tree_leaves(out), tree_leaves(params), strict=True)} == {plain.mutable}
        assert all(x is y for x, y in zip(tree_leaves(out), tree_leaves(opt.params), strict=True))
        assert all((x < 1).all() for x in plain.backs(tree_leaves(out)))


def test_iterators():
    a, b = np.ones(3), np.ones(2)
    opt = Adadelta(x for x in (a, b))
    out = opt.step(x for x in (np.ones(3), np.ones(2)))
    assert out[0] is a
    assert out[1] is b


def test_named_tuples_and_ordered_dicts():
    opt = Adadelta(Pair(np.ones(2), OrderedDict(z=np.ones(1), a=np.ones(3))))
    out = opt.step(Pair(np.ones(2), OrderedDict(z=np.ones(1), a=None)))
    assert isinstance(out, Pair)
    assert list(out.b) == ["z", "a"]
    assert out.b["a"][0] == 1
    assert out.b["z"][0] < 1
    assert set(opt.state.b["z"]) == {"square_avg", "acc_delta"}


def test_a_dicts_gradients_may_come_in_any_order():
    opt = Adadelta({"a": np.ones(2), "b": np.ones(3)})
    out = opt.step({"b": np.ones(3), "a": np.zeros(2)})
    assert list(out) == ["a", "b"]
    assert out["a"][0] == 1
    assert out["b"][0] < 1


ONE, TWO = np.ones(1), np.ones(2)
#: Parameters, gradients of another structure, and what the message says.
WRONG = [
    ({"a": ONE, "b": TWO}, None, "expected a dict, as params is, got None"),
    ({"a": ONE, "b": TWO}, ONE, "expected a dict, as params is, got a ndarray"),
    ({"a": ONE, "b": TWO}, [ONE, TWO], "expected a dict, as params is, got a list"),
    ({"a": ONE, "b": TWO}, {"a": ONE}, r".*missing \['b'\], unexpected \[\]"),
    ({"a": ONE, "b": TWO}, {"a": ONE, "b": TWO, "c": ONE}, r".*missing \[\], unexpected \['c'\]"),
    ({"a": ONE, "b": TWO}, {"a": ONE, "c": TWO}, r".*missing \['b'\], unexpected \['c'\]"),
    ({"a": ONE, "b": TWO}, {}, r".*missing \['a', 'b'\]"),
    ({"a": ONE, "b": TWO}, {"a": None, "b": None}, "expected at least one gradient, got None for every parameter"),
    ([ONE, TWO], [ONE], "expected 2 entries, one for each of params, got 1"),
    ([ONE, TWO], {"a": 1}, "expected a list or tuple, as params is, got a dict"),
    (ONE, [ONE], "expected one array, as params is, got a list"),
    ([{"params": ONE}, {"params": [TWO]}], ONE, "expected a list with one entry for each of 2 groups, got a ndarray"),
    ([{"params": ONE}, {"params": [TWO]}], [ONE], "expected a list with one entry for each of 2 groups, got 1 entries"),
    ({"x": [ONE, TWO]}, {"x": [ONE]}, r"expected the structure .*missing \[\"grads\['x'\]\[1\]\"\]"),
    ({"x": [ONE, TWO]}, {"x": (ONE, TWO)}, "expected the structure"),
]


@pytest.mark.parametrize(("params", "grads", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_gradients_of_another_structure(params, grads, message):
    opt = Adadelta(params, engine="eager")
    with refused(opt, ValueError, f"^grads: {message}"):
        opt.step(grads)


class Key:
    """Of these, several have one repr."""

    def __init__(self, word):
        self.word = word

    def __repr__(self):
        return self.word


class Same(Key):
    pass


@pytest.mark.parametrize(
    ("tree", "one", "two"),
    [
        ({Key("w"): ONE, Same("w"): TWO}, r"w \(.*Key\)", r"w \(.*Same\)"),
        ({Key("'w'"): ONE, "w": TWO}, r"'w' \(.*Key\)", r"'w' \(builtins.str\)"),
        ({"a": [{Key("1"): ONE, 1: TWO}]}, r"'a' \(builtins.str\) / 0 .* / 1 \(.*Key\)", r"'a' .* 1 \(builtins.int\)"),
        ({"a": {"b": ONE}, Key("'a']['b'"): TWO}, r"'a' .* / 'b' \(builtins.str\)", r"'a'\]\['b' \(.*Key\)"),
    ],
    ids=["two classes", "a string's", "nested", "paths"],
)
def test_two_keys_with_one_name_are_refused(tree, one, two):
    """Checkpoints go by names: one of the two would lose its state."""
    for params in (tree, [{"params": np.ones(3)}, {"params": tree}]):
        with pytest.raises(
            ValueError, match=f"expected keys that their repr tells apart.* both ({one} and {two}|{two} and {one})"
        ):
            Adadelta(params)
    opt = Adadelta(np.ones(3))
    with refused(opt, ValueError, r"^groups\[1\].params: expected keys that their repr tells apart"):
        opt.add_param_group({"params": tree})


def test_names_with_an_address_are_not_saved(tmp_path):
    """No other process would find the parameter by it; within this one, snapshots work."""
    pytest.importorskip("safetensors")
    for key in (object(), (1, object())):
        opt = Adadelta({key: np.ones(2), "b": np.ones(2)})
        with refused(opt, ValueError, r"^params\[.*0x.*\]: expected keys with the same repr in every process"):
            opt.save(tmp_path / "file")
        assert not list(tmp_path.iterdir())
        opt.load_state_dict(opt.state_dict())
    Adadelta({"<w at 0x1f>": np.ones(2), Key("stable"): np.ones(1)}, engine="eager").save(tmp_path / "file")
