"""`multiopt.keras.Variable` and `IndexedSlices`, on each library's arrays."""

import copy
import pickle
import random

import numpy as np
import pytest
from keras_arrays import made
from libraries import LIBRARIES, library_of

from multiopt.keras import IndexedSlices, Variable
from multiopt.keras.variables import slices as sparse
from multiopt.keras.variables.initializers import fresh, like
from multiopt.keras.variables.variable import Boxes


def test_it_says_what_it_holds(lib):
    v = made(lib, [[1, 2, 3], [4, 5, 6]], name="kernel")
    assert (v.name, v.shape, v.ndim, v.dtype, v.trainable, v.constraint) == ("kernel", (2, 3), 2, "float32", True, None)
    assert "kernel" in repr(v)
    np.testing.assert_array_equal(v.numpy(), [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(np.asarray(v), v.numpy())
    assert len(v) == 2
    with pytest.raises(ValueError, match="without a copy"):
        np.array(v, copy=False)


def test_the_array_is_the_callers_own(lib):
    array = lib.param(np.ones(3, np.float32))
    v = Variable(array)
    assert v.value is array
    v.assign([1, 2, 3])
    assert (v.value is array) == lib.mutable
    if lib.mutable:
        np.testing.assert_array_equal(lib.back(array), [1, 2, 3])


def test_assignment(lib):
    v = made(lib, [1, 2, 3])
    assert v.assign([4, 5, 6]) is v
    v.assign_add(np.ones(3))
    v.assign_sub(made(lib, [0.5, 0.5, 0.5]))
    np.testing.assert_array_equal(v.numpy(), [4.5, 5.5, 6.5])
    v.assign_add(v)
    assert v.dtype == "float32"
    np.testing.assert_array_equal(v.numpy(), [9, 11, 13])


def test_a_wrong_shape_is_refused_and_nothing_is_written(lib):
    v = made(lib, [1, 2, 3], name="bias")
    for value in ([1, 2], 5.0, np.ones((3, 1))):
        with pytest.raises(ValueError, match=r"bias: expected a value of shape \(3,\)"):
            v.assign(value)
    np.testing.assert_array_equal(v.numpy(), [1, 2, 3])


def test_another_library_is_refused():
    torch, jnp = pytest.importorskip("torch"), pytest.importorskip("jax.numpy")
    with pytest.raises(TypeError, match="expected a torch or numpy array, got a jax array"):
        Variable(torch.ones(2)).assign(jnp.ones(2))
    with pytest.raises(TypeError, match=r"expected an array, got builtins\.str"):
        Variable("one")
    with pytest.raises(TypeError, match="constraint"):
        Variable([1.0], constraint=3)


def test_numbers_and_lists_become_numpy_arrays_as_in_tensorflow():
    assert Variable(3.0).dtype == Variable([[1.0]]).dtype == "float32"
    assert Variable([1, 2]).dtype == "int32"
    assert Variable(True).dtype == "bool"
    assert Variable(np.float64(2)).dtype == "float64"
    assert Variable(lambda: [1.0, 2.0]).shape == (2,)
    assert Variable(3.0, dtype="float64").dtype == "float64"
    assert (int(Variable(7)), float(Variable(0.5)), bool(Variable(0))) == (7, 0.5, False)
    assert [10, 20, 30][Variable(2)] == 30


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "complex64"])
def test_other_dtypes(lib, dtype):
    pytest.importorskip("ml_dtypes")
    import ml_dtypes

    held = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    v = made(lib, [1.5, -2.0, 0.25], held)
    v.assign(np.array([0.1, 2.0, -3.0]))
    assert v.dtype == dtype
    expected = np.array([0.1, 2.0, -3.0]).astype(held)
    if dtype == "bfloat16":
        expected = expected.astype(np.float32)
    assert v.numpy().dtype == expected.dtype
    np.testing.assert_array_equal(v.numpy(), expected)


def test_it_stands_in_expressions_for_its_array(lib):
    v, other = made(lib, [1, 2, 3]), lib.param(np.array([2, 2, 2], np.float32))
    for result, expected in [
        (3 * v * v + 2 * v, [5, 16, 33]), (v - other, [-1, 0, 1]), (other - v, [1, 0, -1]), (v / other, [0.5, 1, 1.5]),
        (2**v, [2, 4, 8]), (-v, [-1, -2, -3]), (abs(-v), [1, 2, 3]), (v[1:], [2, 3]), (v @ other, 12),
        (v > 1, [False, True, True]), (v <= other, [True, True, False]), (+v, [1, 2, 3]), (v % 2, [1, 0, 1]),
    ]:  # fmt: skip
        np.testing.assert_array_equal(lib.back(result), expected)
    assert {v: 1}[v] == 1  # hashable, by identity


def test_torch_functions_take_it(torch):
    v = Variable(torch.tensor([1.0, 4.0]))
    assert torch.sqrt(v).tolist() == [1, 2]
    assert torch.stack([v, v]).shape == (2, 2)
    assert torch.nn.functional.mse_loss(input=v, target=torch.zeros(2)).item() == 8.5


def test_trainable_tensors_require_gradients(torch):
    tensor = torch.ones(2)
    v = Variable(tensor)
    assert tensor.requires_grad
    v.trainable = False
    assert not tensor.requires_grad
    Variable(torch.ones(2, dtype=torch.int64))  # cannot, and is not asked to
    assert not Variable(torch.ones(2), trainable=False).value.requires_grad


def test_copies_have_memory_of_their_own(lib):
    v = made(lib, [1, 2], name="v", trainable=False)
    for twin in (copy.deepcopy(v), pickle.loads(pickle.dumps(v))):
        twin.assign([8, 9])
        assert (twin.name, twin.trainable) == ("v", False)
    np.testing.assert_array_equal(v.numpy(), [1, 2])


# --- plain arrays ---


def test_a_plain_array_gets_one_box_if_it_can_be_written_to(jnp):
    boxes, array = Boxes(), np.ones(3)
    v = boxes.of(array)
    assert boxes.of(array) is v
    assert v.value is array
    assert boxes.of(v) is v
    assert boxes.of(np.ones(3)) is not v
    with pytest.raises(TypeError, match="x: jax arrays are immutable; expected a Variable"):
        Boxes().of(jnp.ones(3), "x")
    with pytest.raises(TypeError, match="x: expected a Variable or an array"):
        Boxes().of([1.0], "x")


# --- rows ---


def test_rows_are_checked():
    with pytest.raises(ValueError, match="one for each of the rows"):
        IndexedSlices(np.ones((2, 3)), [0])
    with pytest.raises(ValueError, match=r"expected indices in \[0, 5\)"):
        IndexedSlices(np.ones((2, 3)), [0, 5], (5, 3))
    with pytest.raises(ValueError, match="expected indices"):
        IndexedSlices(np.ones((1, 3)), [-1], (5, 3))
    with pytest.raises(ValueError, match=r"rows of shape \(4,\)"):
        IndexedSlices(np.ones((1, 3)), [0], (5, 4))
    with pytest.raises(TypeError, match="expected integers"):
        IndexedSlices(np.ones((1, 3)), [0.5])


def test_repeated_rows_are_added_up(lib):
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 7, 50)
    values = rng.integers(-9, 9, (50, 2)).astype(np.float32)  # whole numbers: every order gives the same sum
    expected = np.zeros((9, 2), np.float32)
    np.add.at(expected, indices, values)
    slices = IndexedSlices(lib.grad(values), indices, (9, 2))
    single = sparse.summed(slices)
    assert single.indices.tolist() == sorted(set(indices.tolist()))
    np.testing.assert_array_equal(lib.back(single.values), expected[single.indices])
    np.testing.assert_array_equal(lib.back(sparse.dense(slices, made(lib, np.ones((9, 2))))), expected)


def test_sums_have_the_same_bits_on_every_library():
    rng = np.random.default_rng(1)
    indices, values = rng.integers(0, 5, 64), rng.standard_normal((64, 3)).astype(np.float32)
    sums = []
    for name in ("numpy", "torch", "jax"):
        with library_of(LIBRARIES[name]) as lib:
            sums.append(lib.back(sparse.summed(IndexedSlices(lib.grad(values), indices)).values).tobytes())
    assert len(set(sums)) == 1


def test_no_rows_at_all(lib):
    none = sparse.summed(IndexedSlices(lib.grad(np.ones((0, 2), np.float32)), []))
    assert none.values.shape == (0, 2)


def test_rows_are_taken_out_and_put_back(lib):
    array = lib.param(np.arange(8, dtype=np.float32).reshape(4, 2))
    rows = np.array([3, 1])
    out = sparse.take(array, rows)
    np.testing.assert_array_equal(lib.back(out), [[6, 7], [2, 3]])
    after = sparse.put(array, rows, out * 10)
    np.testing.assert_array_equal(lib.back(after), [[0, 1], [20, 30], [4, 5], [60, 70]])
    assert (after is array) == lib.mutable


def test_torch_sparse_gradients_become_rows(torch):
    table = torch.nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1, 1, 3])).sum().backward()
    rows = sparse.as_gradient(table.weight.grad)
    assert rows.indices.tolist() == [1, 1, 3]
    assert rows.dense_shape == (4, 2)
    with pytest.raises(TypeError, match="1 sparse dimension, got 2"):
        sparse.as_gradient(torch.eye(3).to_sparse())


# --- initial values ---


def test_initial_values(lib):
    v = made(lib, np.ones((2, 3)), np.float64)
    cases = {"zeros": 0.0, "ones": 1.0, None: 2.0}
    for name, expected in cases.items():
        initializer = (lambda shape, dtype: np.full(shape, 2, dtype)) if name is None else name
        for shape in (None, (4,)):
            array = like(v, initializer, shape)
            box = Variable(array, trainable=False)
            assert (box.shape, box.dtype, box.backend.name) == (shape or (2, 3), "float64", lib.name)
            assert (box.numpy() == expected).all()
        box = Variable(fresh((2,), None, initializer, v), trainable=False)
        assert (box.shape, box.dtype, box.backend.name) == ((2,), "float32", lib.name)
    assert fresh((2,), "int64", "ones", None).dtype == np.int64
    with pytest.raises(ValueError, match=r"expected one of zeros, .*got 'glorot'"):
        like(v, "glorot")


@pytest.mark.parametrize(
    ("names", "deviation", "bound"),
    [
        (("random_normal", "normal", "RandomNormal"), 0.05, None),
        (("random_uniform", "uniform"), 0.05 / 3**0.5, 0.05),
        (("truncated_normal",), 0.05 * 0.87963, 0.1),
        (("lecun_normal", "variance_scaling", "VarianceScaling"), 200**-0.5, 2 / 0.87962 * 200**-0.5),
        (("lecun_uniform",), 200**-0.5, (3 / 200) ** 0.5),
        (("he_normal",), (2 / 200) ** 0.5, 2 / 0.87962 * (2 / 200) ** 0.5),
        (("he_uniform",), (2 / 200) ** 0.5, (6 / 200) ** 0.5),
        (("glorot_normal",), 150**-0.5, 2 / 0.87962 * 150**-0.5),
        (("glorot_uniform", "GlorotUniform"), 150**-0.5, (3 / 150) ** 0.5),
    ],
)
def test_random_initial_values_have_the_distributions_of_keras(names, deviation, bound):
    """The fan in is 2 * 100, as of a convolution's kernel, the fan out 2 * 50, and their mean 150."""
    for name in names:
        random.seed(4)
        x = fresh((2, 100, 50), "float64", name, None)
        # Of 10,000 numbers, six standard errors of the mean and four of the deviation.
        assert abs(x.mean()) < 0.06 * deviation
        assert x.std() == pytest.approx(deviation, rel=0.03)
        assert bound is None or 0.95 * bound < abs(x).max() <= bound
        random.seed(4)
        np.testing.assert_array_equal(fresh((2, 100, 50), "float64", name, None), x)
        assert (fresh((2, 100, 50), "float64", name, None) != x).any()


def test_matrices_as_initial_values(lib):
    v = made(lib, np.ones((2, 3, 4)), np.float64)
    q = Variable(like(v, "orthogonal"), trainable=False).numpy().reshape(6, 4)
    np.testing.assert_allclose(q.T @ q, np.eye(4), atol=1e-14)  # a few roundings
    q = fresh((3, 4), "float64", "Orthogonal", None)
    np.testing.assert_allclose(q @ q.T, np.eye(3), atol=1e-14)
    assert fresh((2, 3), None, "identity", v if lib.name == "numpy" else None).tolist() == [[1, 0, 0], [0, 1, 0]]
    for shape, dtype, name, message in [
        ((2,), "float32", "orthogonal", "two axes or more"),
        ((2, 2, 2), "float32", "identity", "two axes"),
        ((2, 2), "int32", "identity", "real dtype"),
        ((2,), "complex64", "he_normal", "real dtype"),
    ]:
        with pytest.raises(ValueError, match=f"initializer: expected .*{message}"):
            fresh(shape, dtype, name, None)


def test_shapes_as_tf_keras_takes_them(lib):
    for shape, expected in [
        ([0], (0,)), (np.array([0]), (0,)), (np.array([2, 3]), (2, 3)), (np.array([], np.int64), ()),
        (lib.param(np.array([2, 0], np.int32)), (2, 0)), (Variable([3]), (3,)), (5, (5,)), (np.array(5), (5,)),
    ]:  # fmt: skip
        assert fresh(shape, None, "zeros", None).shape == expected
        assert like(made(lib, [1.0, 2.0]), "zeros", shape).shape == expected
    for shape in ([2.0], np.array([2.0]), "x", [[1, 2]], np.array([[5]]), [None], None):
        with pytest.raises(TypeError, match="shape: expected integers"):
            fresh(shape, None, "zeros", None)
    with pytest.raises(ValueError, match="shape: expected sizes of at least 0"):
        fresh([-1], None, "zeros", None)
