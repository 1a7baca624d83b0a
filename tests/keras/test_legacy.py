"""`multiopt.keras.legacy`: each feature that the documents of TensorFlow 2.1, 2.3 and 2.4 name."""

import copy
import json
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from keras_arrays import after, made, run_example, single

from multiopt.keras import IndexedSlices, Variable, schedules
from multiopt.keras.legacy import Adadelta, Operation, Optimizer


def descend(opt, gradients, x=0.0):
    """The value after these gradients, one number in float64."""
    v = Variable(np.array([x]), name="x")
    for g in gradients:
        opt.apply_gradients([(np.array([float(g)]), v)])
    return v.numpy()[0]


# A few operations of rounding in float64; the numbers themselves are near 1.
CLOSE = {"rel": 1e-13, "abs": 1e-18}


# --- the rule and its hyperparameters ---


@pytest.mark.feature("B:rule", "AB:learning_rate", "AB:rho", "AB:epsilon")
def test_the_formula():
    gradients = [1.0, -0.5, 2.0, 0.0, 0.25]
    opt = Adadelta(learning_rate=1.0, rho=0.9, epsilon=1e-6)
    v = Variable(np.array(3.0))
    for g in gradients:
        opt.apply_gradients([(np.array(g), v)])
    x, accum_grad, accum_var = after(gradients, 1.0, 0.9, 1e-6, x=3.0)
    assert float(v) == pytest.approx(x, **CLOSE)
    assert float(opt.get_slot(v, "accum_grad")) == pytest.approx(accum_grad, **CLOSE)
    assert float(opt.get_slot(v, "accum_var")) == pytest.approx(accum_var, **CLOSE)


@pytest.mark.feature("A:defaults", "ABE:name")
def test_defaults():
    opt = Adadelta()
    assert opt.get_config() == {
        "name": "Adadelta", "learning_rate": 0.001, "decay": 0.0, "rho": 0.95, "epsilon": 1e-7,
    }  # fmt: skip
    assert descend(opt, [1.0, 1.0]) == pytest.approx(after([1.0, 1.0])[0], **CLOSE)
    assert descend(Adadelta(), [1.0]) == pytest.approx(-1.414e-6, rel=1e-3)  # TensorFlow's famous first step
    assert Adadelta(name="critic/1").get_config()["name"] == "critic/1"
    assert Adadelta(name=None).get_config()["name"] == "Adadelta"


@pytest.mark.feature("A:name-valueerror", "E:valueerror")
@pytest.mark.parametrize("name", ["", "two words", "_hidden", "ü", 3, b"x"])
def test_a_malformed_name_is_refused(name):
    with pytest.raises(ValueError, match="name: expected letters"):
        Adadelta(name=name)


@pytest.mark.feature("E:valueerror")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"clipnorm": -1.0}, ValueError, "clipnorm: expected a number that is not negative"),
        ({"clipvalue": math.nan}, ValueError, "clipvalue: expected a number that is not negative"),
        ({"decay": -0.5}, ValueError, "decay: expected a number that is not negative"),
        ({"clipnorm": 1.0, "global_clipnorm": 1.0}, ValueError, "expected one of the two, got both"),
        ({"clipnorm": 1.0, "gradient_transformers": [list]}, ValueError, "clipnorm: expected None with"),
        ({"rho": 1.5}, ValueError, r"rho: expected a number in \[0, 1\]"),
        ({"learning_rate": -0.1}, ValueError, "learning_rate: expected a number in"),
        ({"epsilon": -1e-7}, ValueError, "epsilon: expected a number in"),
        ({"learning_rate": "fast"}, ValueError, "learning_rate: expected a real number"),
        ({"learning_rate": None}, ValueError, "learning_rate: expected a real number"),
        ({"rho": [0.5, 0.5]}, ValueError, "rho: expected a real number"),
        ({"epsilon": "x"}, ValueError, "epsilon: expected a real number"),
        ({"clipnorm": "one"}, ValueError, "clipnorm: expected a number"),
        ({"decay": [1.0]}, ValueError, "decay: expected a number"),
        ({"lr": "x"}, ValueError, "learning_rate: expected a real number"),
        ({"gradient_aggregator": 3}, ValueError, "expected functions of a list of pairs"),
        ({"gradient_transformers": [3]}, ValueError, "expected functions of a list of pairs"),
        ({"gradient_transformers": 3}, ValueError, "expected functions of a list of pairs"),
        # As TensorFlow and Python do, whatever the document says of any invalid argument.
        ({"momentum": 0.9}, TypeError, "momentum: unknown option"),
    ],
)
@pytest.mark.filterwarnings("ignore:lr")
def test_invalid_arguments_are_refused(options, error, message):
    """Also those of a wrong type are ValueErrors, as the document says; TensorFlow's are of any kind, and late."""
    with pytest.raises(error, match=message):
        Adadelta(**options)


@pytest.mark.parametrize("epsilon", [None, 0, 0.0])
def test_no_epsilon_means_1e_7_as_in_tensorflow(epsilon):
    assert Adadelta(epsilon=epsilon).epsilon == 1e-7


@pytest.mark.feature("AB:tensor-hypers", "E:hyper-tensors")
def test_hyperparameters_as_arrays(lib):
    def scalar(value):
        return lib.param(np.array(value))

    opt = Adadelta(scalar(0.3), rho=scalar(0.7), epsilon=scalar(1e-3))
    x, v, u = 0.0, 0.0, 0.0
    for g in (1.0, 2.0):  # arrays keep their own precision, which is float64
        v = 0.7 * v + (1 - 0.7) * g * g
        d = math.sqrt(u + 1e-3) / math.sqrt(v + 1e-3) * g
        u = 0.7 * u + (1 - 0.7) * d * d
        x -= 0.3 * d
    assert descend(opt, [1.0, 2.0]) == pytest.approx(x, **CLOSE)
    config = json.loads(json.dumps(opt.get_config()))
    assert (config["learning_rate"], config["rho"], config["epsilon"]) == (0.3, 0.7, 1e-3)


@pytest.mark.feature("E:hyper-attributes")
def test_hyperparameters_are_attributes():
    opt = Adadelta(1.0)
    x = [descend(opt, [1.0])]
    opt.learning_rate = 0.5
    x.append(descend(opt, [1.0]))
    opt.learning_rate.assign(0.25)
    x.append(descend(opt, [1.0]))
    opt.lr = 2.0
    x.append(descend(opt, [1.0]))
    assert x == pytest.approx([after([1.0], rate)[0] for rate in (1.0, 0.5, 0.25, 2.0)], **CLOSE)
    assert float(opt.learning_rate) == float(opt.lr) == opt.learning_rate.numpy() == 2.0
    assert {"lr", "learning_rate", "rho", "decay"} <= set(dir(opt))
    with pytest.raises(ValueError, match="rho: expected a number in"):
        opt.rho = 2.0
    with pytest.raises(AttributeError, match="no attribute 'momentum'"):
        _ = opt.momentum


@pytest.mark.feature("E:hyper-attributes")
def test_a_schedule_may_give_way_to_a_number_and_back():
    opt = Adadelta(schedules.ExponentialDecay(1.0, 1, 0.5))
    v = Variable(np.array([0.0]))
    for change in (None, 0.3, schedules.PiecewiseConstantDecay([100], [0.7, 0.1]), lambda: 0.9):
        if change is not None:
            opt.learning_rate = change
        opt.apply_gradients([(np.array([1.0]), v)])
    assert v.numpy()[0] == pytest.approx(after([1.0] * 4, [1.0, 0.3, 0.7, 0.9])[0], **CLOSE)


@pytest.mark.feature("E:hyper-callables", "E:callable-learning_rate")
def test_callables_are_called_in_each_update():
    rates, rhos = iter([1.0, 0.5]), iter([0.9, 0.9])
    opt = Adadelta(lambda: next(rates), rho=lambda: next(rhos), epsilon=1e-6)
    assert descend(opt, [1.0, 1.0]) == pytest.approx(after([1.0, 1.0], [1.0, 0.5], 0.9, 1e-6)[0], **CLOSE)
    assert list(rates) == list(rhos) == []


def test_a_callable_out_of_range_is_refused_and_nothing_is_written():
    v = Variable(np.array([1.0]))
    for options in ({"learning_rate": lambda: -1.0}, {"rho": lambda: 2.0}):
        opt = Adadelta(**options)
        with pytest.raises(ValueError, match="expected a number in"):
            opt.apply_gradients([(np.array([1.0]), v)])
        assert (v.numpy()[0], int(opt.iterations)) == (1.0, 0)
    with pytest.raises(TypeError, match="learning_rate: expected a number at iteration 0, got 'x'"):
        Adadelta(lambda: "x").apply_gradients([(np.array([1.0]), v)])


class Halving(schedules.LearningRateSchedule):
    """A schedule of somebody's own; it remembers what it saw."""

    def __init__(self):
        self.seen = []

    def __call__(self, step):
        self.seen.append(step)
        return 0.5**step

    def get_config(self):
        return {}


@pytest.mark.feature("AE:schedule")
def test_schedules_are_called_with_the_iteration():
    schedule = Halving()
    x = descend(Adadelta(schedule), [1.0, 1.0, 1.0])
    assert schedule.seen == [0, 1, 2]
    expected = after([1.0] * 3, [1.0, 0.5, 0.25])[0]
    assert x == pytest.approx(expected, **CLOSE)
    assert descend(Adadelta(schedules.ExponentialDecay(1.0, 1, 0.5)), [1.0] * 3) == pytest.approx(expected, **CLOSE)


@pytest.mark.feature("AB:decay")
def test_decay_is_inverse_in_time_and_multiplies_on_a_schedule():
    gradients = [1.0] * 4
    # 1, .667, .5, .4: not rounded again after the division, which TensorFlow does in float64 too.
    x, v, u = 0.0, 0.0, 0.0
    for t in range(4):
        before = x
        x, v, u = after([1.0], 1.0, x=0.0, state=(v, u))
        x = before + x / (1 + 0.5 * t)
    assert descend(Adadelta(1.0, decay=0.5), gradients) == pytest.approx(x, **CLOSE)
    scheduled = Adadelta(schedules.InverseTimeDecay(1.0, 1, 0.5), decay=0.5)
    for t in range(3):
        scheduled.iterations.assign(t)
        assert scheduled._decayed_lr("float64") == pytest.approx(single(1 / (1 + 0.5 * t)) / (1 + 0.5 * t), rel=1e-15)


def test_setting_decay_has_an_effect_which_in_tensorflow_it_has_not():
    opt = Adadelta(1.0)
    opt.decay = 1.0
    opt.iterations.assign(3)
    assert opt._decayed_lr("float32") == 0.25
    assert opt.get_config()["decay"] == 1.0


@pytest.mark.feature("AB:lr")
def test_lr_wins_with_a_warning():
    with pytest.warns(UserWarning, match="use learning_rate"):
        opt = Adadelta(1.0, lr=0.25)
    assert float(opt.learning_rate) == 0.25
    assert opt.get_config()["learning_rate"] == 0.25
    assert float(Adadelta.from_config({"lr": 0.5}).learning_rate) == 0.5


# --- clipping, transformers, constraints ---


@pytest.mark.feature("ABE:clipvalue", "ABE:clipnorm", "E:global_clipnorm")
@pytest.mark.parametrize("as_attribute", [False, True])
@pytest.mark.parametrize(
    ("options", "first", "second"),
    [
        ({"clipvalue": 2.0}, [2, 2], [0.5]),
        ({"clipnorm": 2.5}, [1.5, 2], [0.5]),
        ({"clipvalue": 3.5, "clipnorm": 1.0}, [3 / math.hypot(3, 3.5), 3.5 / math.hypot(3, 3.5)], [0.5]),
        ({"global_clipnorm": 1.0}, [3 / math.sqrt(25.25), 4 / math.sqrt(25.25)], [0.5 / math.sqrt(25.25)]),
        ({"clipvalue": 0.0}, [0, 0], [0]),
        ({"clipnorm": 0.0}, [0, 0], [0]),
        ({"global_clipnorm": 0.0}, [0, 0], [0]),
        ({"clipnorm": 100.0}, [3, 4], [0.5]),
    ],
)
def test_clipping(lib, options, first, second, as_attribute):
    opt = Adadelta(1.0, **({} if as_attribute else options))
    for name, value in options.items():
        setattr(opt, name, value)
        assert getattr(opt, name) == value
    v, w = made(lib, [0, 0], np.float64), made(lib, [0], np.float64)
    given = lib.grad(np.array([3.0, 4.0]))
    opt.apply_gradients([(given, v), (lib.grad(np.array([0.5])), w)])
    np.testing.assert_array_equal(lib.back(given), [3, 4])  # the caller's gradient is left alone
    for variable, gradients in ((v, first), (w, second)):
        expected = [after([g], 1.0)[0] for g in gradients]
        # The factor of a norm brings one more rounding.
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-14)


@pytest.mark.feature("E:clipvalue", "E:clipnorm", "E:global_clipnorm")
def test_clips_are_checked_when_set():
    opt = Adadelta(clipnorm=1.0)
    with pytest.raises(ValueError, match="clipvalue: expected a number that is not negative"):
        opt.clipvalue = -1
    opt.clipnorm = None
    assert "clipnorm" not in opt.get_config()
    with_transformers = Adadelta(gradient_transformers=[lambda pairs: pairs])
    with pytest.raises(ValueError, match="expected None with gradient_transformers"):
        with_transformers.clipvalue = 1.0


@pytest.mark.feature("E:gradient_transformers")
def test_transformers_come_one_after_another(lib):
    def doubled(pairs):
        assert isinstance(pairs, list)
        return [(2.0 * g, v) for g, v in pairs]

    def plus_one(pairs):
        return ((g + 1.0, v) for g, v in pairs)

    opt = Adadelta(1.0, gradient_transformers=[doubled, plus_one])
    v = made(lib, [0.0], np.float64)
    opt.apply_gradients([(lib.grad(np.array([3.0])), v)])
    assert v.numpy()[0] == pytest.approx(after([7.0], 1.0)[0], **CLOSE)


def test_what_a_transformer_returns_is_checked_before_anything_is_written():
    v = Variable(np.zeros(2))
    opt = Adadelta(1.0, gradient_transformers=[lambda pairs: [(g[:1], v) for g, v in pairs]])
    with pytest.raises(ValueError, match=r"expected shape \(2,\)"):
        opt.apply_gradients([(np.ones(2), v)])
    assert not v.numpy().any()
    assert int(opt.iterations) == 0


@pytest.mark.feature("E:constraints")
def test_constraints_come_after_the_update(lib):
    v = made(lib, [0.5, 1e-9], np.float64, constraint=lambda x: x * (x >= 0))
    w = made(lib, [1e-9], np.float64)
    opt = Adadelta(1.0)
    opt.apply_gradients([(lib.grad(np.ones(2)), v), (lib.grad(np.ones(1)), w)])
    np.testing.assert_allclose(v.numpy(), [after([1.0], 1.0, x=0.5)[0], 0.0], rtol=1e-14)
    assert w.numpy()[0] < 0


@pytest.mark.feature("E:constraints-sparse")
def test_constraints_and_sparse_gradients_do_not_mix(lib):
    v = made(lib, np.ones((3, 2)), constraint=lambda x: x, name="table")
    w = made(lib, [1.0])
    opt = Adadelta(1.0)
    rows = IndexedSlices(lib.grad(np.ones((1, 2), np.float32)), [0])
    with pytest.raises(RuntimeError, match="gradient of 'table': it is sparse, and its variable has a constraint"):
        opt.apply_gradients([(lib.grad(np.ones(1, np.float32)), w), (rows, v)])
    assert (w.numpy() == 1).all()
    assert int(opt.iterations) == 0


# --- sparse gradients ---


def test_sparse_rows(lib):
    v = made(lib, np.zeros((4, 2)), np.float64)
    opt = Adadelta(1.0)
    for rows, values in [([0, 2, 0], [[1, 1], [2, 2], [3, 3]]), ([2], [[1, 1]])]:
        opt.apply_gradients([(IndexedSlices(lib.grad(np.array(values, np.float64)), rows), v)])
    expected = np.zeros((4, 2))
    expected[0] = after([4.0], 1.0)[0]  # 1 + 3; and not decayed by the second step
    expected[2] = after([2.0, 1.0], 1.0)[0]
    np.testing.assert_allclose(v.numpy(), expected, rtol=1e-14)
    accum = opt.get_slot(v, "accum_grad").numpy()[:, 0]
    np.testing.assert_allclose(accum, [after([4.0])[1], 0, after([2.0, 1.0])[1], 0], rtol=1e-14)


def test_sparse_and_dense_together(lib):
    table, bias = made(lib, np.zeros((3, 1)), np.float64), made(lib, [0.0], np.float64)
    opt = Adadelta(1.0, global_clipnorm=1.0)
    rows = IndexedSlices(lib.grad(np.array([[3.0], [4.0]])), [1, 1])
    opt.apply_gradients([(rows, table), (lib.grad(np.array([12.0])), bias)])
    # The norm is that of the rows before they are added up: 13.
    assert table.numpy()[1, 0] == pytest.approx(after([7 / 13], 1.0)[0], **CLOSE)
    assert bias.numpy()[0] == pytest.approx(after([12 / 13], 1.0)[0], **CLOSE)


def test_no_rows_change_nothing(lib):
    v = made(lib, np.ones((3, 2)))
    opt = Adadelta(1.0)
    opt.apply_gradients([(IndexedSlices(lib.grad(np.ones((0, 2), np.float32)), []), v)])
    assert (v.numpy() == 1).all()
    assert int(opt.iterations) == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_one_row_a_thousand_times_is_its_sum(lib, dtype):
    if not lib.mutable:
        pytest.skip("sums have the same bits on every library: test_variable.py")
    values = np.random.default_rng(0).standard_normal((1000, 2)).astype(dtype)
    total = list(values)
    while len(total) > 1:  # in pairs, so that the error grows with the logarithm of their number
        total = [sum(total[i : i + 2][1:], total[i]) for i in range(0, len(total), 2)]
    tables = [made(lib, np.ones((4, 2)), dtype) for _ in range(2)]
    for v, g, rows in zip(tables, (values, total[0][None]), ([2] * 1000, [2]), strict=True):
        Adadelta(1.0).apply_gradients([(IndexedSlices(lib.grad(g), rows), v)])
    np.testing.assert_array_equal(*(v.numpy() for v in tables))
    assert (tables[0].numpy()[[0, 1, 3]] == 1).all()
    assert (tables[0].numpy()[2] != 1).all()


def test_many_tables_and_dense_variables_in_one_call(lib):
    # Together, or each with an optimizer of its own: the same bits.
    rng = np.random.default_rng(0)
    starts = [rng.standard_normal(shape).astype(np.float32) for shape in ((6, 3), (4,), (5, 3), (2, 2))]
    one = [made(lib, x) for x in starts]
    each = [made(lib, x) for x in starts]
    together, alone = Adadelta(1.0), [Adadelta(1.0) for _ in starts]
    for turn in range(2):
        grads = []
        for i, x in enumerate(starts):
            g = rng.standard_normal(x.shape).astype(np.float32)
            rows = rng.integers(0, len(x), 3 * turn)
            grads.append(lib.grad(g) if (i + turn) % 2 else IndexedSlices(lib.grad(g[rows]), rows))
        together.apply_gradients(list(zip(grads, one, strict=True)))
        for opt, g, v in zip(alone, grads, each, strict=True):
            opt.apply_gradients([(g, v)])
        for v, w in zip(one, each, strict=True):
            np.testing.assert_array_equal(v.numpy(), w.numpy())


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_a_table_that_cannot_be_written_is_refused_before_anything_is_written(twice):
    bias, table = Variable(np.ones(2, np.float32)), Variable(np.ones((3, 2), np.float32), name="table")
    rows, opt = IndexedSlices(np.ones((2, 2), np.float32), [0, 1]), Adadelta(1.0)
    given = [(np.ones(2, np.float32), bias)] * (1 + twice) + [(rows, table)]
    opt.apply_gradients(given)
    weights, values = opt.get_weights(), bias.numpy()
    opt.get_slot(table, "accum_var").value.flags.writeable = False
    with pytest.raises(ValueError, match="acc_delta of table: expected an array that can be written to"):
        opt.apply_gradients(given)
    np.testing.assert_array_equal(bias.numpy(), values)
    for new, old in zip(opt.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(new, old)


def test_a_sparse_gradient_may_be_rows_of_its_table(lib):
    values = np.arange(1.0, 9.0, dtype=np.float32).reshape(4, 2)
    v, w = made(lib, values), made(lib, values)
    opt = Adadelta(1.0)
    opt.apply_gradients([(IndexedSlices(v.value[1:3], [2, 1]), v)])
    Adadelta(1.0).apply_gradients([(IndexedSlices(lib.grad(values[1:3].copy()), [2, 1]), w)])
    np.testing.assert_array_equal(v.numpy(), w.numpy())


def test_tables_that_are_not_in_c_order():
    g = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)
    tables = [np.ones((4, 2), np.float32), np.ones((4, 2), np.float32, order="F"), np.ones((4, 4), np.float32)[:, ::2]]
    for table in tables:
        opt = Adadelta(1.0)
        for rows in ([1, 3, 0], [2, 2, 1]):
            opt.apply_gradients([(IndexedSlices(g, rows), table)])
        np.testing.assert_array_equal(table, tables[0])
    assert (tables[0] != 1).all()


# --- apply_gradients ---


@pytest.mark.feature("ABE:apply_gradients", "ABE:apply_gradients-name", "ABE:iterations")
def test_apply_gradients(lib):
    v, w = made(lib, [1.0, 2.0]), made(lib, [3.0])
    opt = Adadelta(1.0, name="trainer")
    operation = opt.apply_gradients(zip([lib.grad(np.ones(2, np.float32)), None], [v, w], strict=True))
    assert operation == Operation("trainer", 1)
    assert opt.apply_gradients([(lib.grad(np.ones(1, np.float32)), w)], name="second") == Operation("second", 2)
    assert isinstance(opt.iterations, Variable)
    assert int(opt.iterations) == 2
    assert (v.numpy() < [1, 2]).all()
    assert opt.apply_gradients([]) == Operation("trainer", 2)  # nothing to do, as in TensorFlow


@pytest.mark.feature("ABE:apply_gradients-typeerror")
@pytest.mark.parametrize("wrong", [3, None, [1, 2], [(1, 2, 3)], "ab", [np.ones(2)[0]]])
def test_malformed_pairs_are_refused(wrong):
    with pytest.raises(TypeError, match=r"grads_and_vars: expected an iterable of \(gradient, variable\) pairs"):
        Adadelta().apply_gradients(wrong)


@pytest.mark.feature("ABE:apply_gradients-valueerror")
def test_no_gradient_for_any_variable_is_refused():
    opt = Adadelta()
    with pytest.raises(ValueError, match="expected a gradient for at least one of a, b, got none"):
        opt.apply_gradients([(None, Variable([1.0], name="a")), (None, Variable([1.0], name="b"))])
    assert int(opt.iterations) == 0


def test_a_missing_gradient_is_logged(caplog):
    v, w = Variable(np.ones(2), name="v"), Variable(np.ones(2), name="lonely")
    Adadelta(1.0).apply_gradients([(np.ones(2), v), (None, w)])
    assert "lonely" in caplog.text
    assert (w.numpy() == 1).all()


@pytest.mark.parametrize(
    ("gradient", "error", "message"),
    [
        (np.ones(3, np.float32), ValueError, r"gradient of 'v': expected shape \(2,\).*got \(3,\)"),
        (np.ones(2), TypeError, "gradient of 'v': expected dtype float32.*got float64"),
        ([1.0, 2.0], TypeError, "gradient of 'v': expected an array"),
        (IndexedSlices(np.ones((1, 2), np.float32), [0]), ValueError, "gradient of 'v': expected rows of shape"),
    ],
)
def test_a_gradient_that_does_not_fit_is_refused_and_nothing_is_written(gradient, error, message):
    w, v = Variable(np.ones(2, np.float32), name="w"), Variable(np.ones(2, np.float32), name="v")
    opt = Adadelta(1.0)
    with pytest.raises(error, match=message):
        opt.apply_gradients([(np.ones(2, np.float32), w), (gradient, v)])
    assert (w.numpy() == 1).all()
    assert int(opt.iterations) == 0


def test_wrong_libraries_and_dtypes_are_refused(torch):
    with pytest.raises(TypeError, match="expected a numpy array, as its parameter is, got a torch array"):
        Adadelta().apply_gradients([(torch.ones(2), Variable(np.ones(2, np.float32)))])
    with pytest.raises(TypeError, match="counts: expected one of the dtypes float16"):
        Adadelta().apply_gradients([(np.ones(2, np.int32), Variable([1, 2], name="counts"))])
    with pytest.raises(TypeError, match=r"variables\[0\]: expected a Variable or an array"):
        Adadelta().apply_gradients([(np.ones(2), "v")])


def test_a_variable_that_comes_twice_is_updated_twice(lib):
    v = made(lib, [0.0], np.float64)
    Adadelta(1.0).apply_gradients([(lib.grad(np.array([1.0])), v), (lib.grad(np.array([2.0])), v)])
    assert v.numpy()[0] == pytest.approx(after([1.0, 2.0], 1.0)[0], **CLOSE)


def test_plain_arrays_are_variables_too(torch):
    for x, ones in [(np.zeros(2), np.ones(2)), (torch.zeros(2), torch.ones(2))]:
        opt = Adadelta(1.0)
        opt.apply_gradients([(ones, x)])
        opt.apply_gradients([(ones, x)])
        np.testing.assert_allclose(np.asarray(x), after([1.0, 1.0], 1.0)[0], rtol=1e-6)  # float32's
        assert opt.get_slot(x, "accum_grad").shape == (2,)


def test_many_variables_of_several_dtypes_and_new_ones_later(lib):
    rng = np.random.default_rng(0)
    variables = [made(lib, rng.standard_normal(n), d) for n in range(1, 5) for d in (np.float32, np.float64)]
    opt, expected = Adadelta(1.0), {id(v): (v.numpy().astype(float), []) for v in variables}
    for some in (variables[:3], variables, variables[4:], variables[:1]):
        opt.apply_gradients([(lib.grad(np.ones(v.shape, v.dtype)), v) for v in some])
        for v in some:
            expected[id(v)][1].append(1.0)
    for v in variables:
        start, gradients = expected[id(v)]
        np.testing.assert_allclose(
            v.numpy(), start + after(gradients, 1.0)[0], rtol=1e-6 if v.dtype[-2:] == "32" else 1e-13
        )


def test_two_libraries_in_one_call(torch):
    v, w = Variable(np.zeros(2)), Variable(torch.zeros(2, dtype=torch.float64))
    Adadelta(1.0).apply_gradients([(np.ones(2), v), (torch.ones(2, dtype=torch.float64), w)])
    np.testing.assert_array_equal(v.numpy(), w.numpy())


# --- state ---


@pytest.mark.feature("ABE:weights", "ABE:variables", "ABE:get_slot_names", "ABE:get_weights", "ABE:get_slot")
def test_the_order_of_the_weights_is_tensorflows(lib):
    v, w = made(lib, [0.0, 0.0], name="v"), made(lib, [0.0], name="w")
    opt = Adadelta(1.0)
    assert opt.weights == []
    opt.apply_gradients([(lib.grad(np.ones(2, np.float32)), v), (lib.grad(np.ones(1, np.float32)), w)])
    names = ["iter", "v/accum_grad", "w/accum_grad", "v/accum_var", "w/accum_var"]
    assert [weight.name for weight in opt.weights] == names
    assert opt.variables() == opt.weights
    assert opt.weights[1] is opt.get_slot(v, "accum_grad")
    assert opt.get_slot_names() == ["accum_grad", "accum_var"]
    values = opt.get_weights()
    assert [type(value) for value in values] == [np.ndarray] * 5
    assert [value.shape for value in values] == [(), (2,), (1,), (2,), (1,)]
    assert values[0] == 1
    assert all(isinstance(weight, Variable) and not weight.trainable for weight in opt.weights)
    x = made(lib, [0.0], name="x")
    opt.apply_gradients([(lib.grad(np.ones(1, np.float32)), x)])
    assert [weight.name for weight in opt.weights] == [*names, "x/accum_grad", "x/accum_var"]
    with pytest.raises(KeyError, match="no slot 'momentum'"):
        opt.get_slot(v, "momentum")
    with pytest.raises(KeyError, match="no slot 'accum_grad'"):
        opt.get_slot(made(lib, [1.0]), "accum_grad")


@pytest.mark.feature("ABE:set_weights")
def test_set_weights_continues_a_run(lib):
    gradients = [np.array([g], np.float32) for g in (1.0, -2.0, 0.5, 3.0)]
    v = made(lib, [1.0])
    first = Adadelta(schedules.ExponentialDecay(1.0, 1, 0.9))
    for g in gradients[:2]:
        first.apply_gradients([(lib.grad(g), v)])
    middle, weights = v.numpy(), first.get_weights()
    for g in gradients[2:]:
        first.apply_gradients([(lib.grad(g), v)])

    w = made(lib, middle)
    second = Adadelta(schedules.ExponentialDecay(1.0, 1, 0.9))
    second._create_all_weights([w])
    second.set_weights(weights)
    assert int(second.iterations) == 2
    for g in gradients[2:]:
        second.apply_gradients([(lib.grad(g), w)])
    np.testing.assert_array_equal(w.numpy(), v.numpy())

    second.set_weights(weights[1:])  # as Keras 1 wrote it
    assert int(second.iterations) == 0
    with pytest.raises(ValueError, match="weights: expected 3 arrays, got 1"):
        second.set_weights(weights[:1])
    with pytest.raises(ValueError, match=r"expected shape \(1,\) for .*accum_var, got \(2,\)"):
        second.set_weights([np.array(9), np.zeros(1), np.zeros(2)])
    assert int(second.iterations) == 0


@pytest.mark.feature("ABE:add_slot")
def test_add_slot(lib):
    v = made(lib, np.zeros((2, 3)), np.float64, name="v")
    opt = Adadelta()
    slot = opt.add_slot(v, "memory", initializer="ones")
    assert (slot.name, slot.shape, slot.dtype, slot.trainable) == ("v/memory", (2, 3), "float64", False)
    assert slot.backend.name == lib.name
    assert (slot.numpy() == 1).all()
    assert opt.add_slot(v, "memory") is slot
    assert opt.add_slot(v, "row", shape=(3,)).shape == (3,)
    assert opt.get_slot_names() == ["memory", "row"]
    assert float(opt.add_slot(v, "count", initializer=lambda shape, dtype: 7, shape=())) == 7
    drawn = opt.add_slot(v, "drawn", initializer="glorot_uniform")
    assert drawn.dtype == "float64"
    assert 0 < abs(drawn.numpy()).max() <= (6 / 5) ** 0.5
    assert opt.add_slot(v, "eye", initializer="Identity").numpy().tolist() == [[1, 0, 0], [0, 1, 0]]
    assert opt.add_weight("w", [2, 2], initializer="orthogonal").shape == (2, 2)
    with pytest.raises(ValueError, match="initializer: expected one of zeros, "):
        opt.add_slot(v, "another", initializer="xavier")
    assert opt.weights[0] is slot  # and iterations is not first then, as in TensorFlow


@pytest.mark.feature("ABE:add_weight")
def test_add_weight(lib):
    opt = Adadelta()
    assert opt.add_weight("early", (2,)).backend.name == "numpy"
    opt.add_slot(made(lib, [1.0]), "accum_grad")
    weight = opt.add_weight("beta", shape=(2,), initializer="ones")
    assert (weight.name, weight.shape, weight.dtype, weight.trainable) == ("beta", (2,), "float32", True)
    assert weight.backend.name == lib.name
    assert opt.add_weight("n", (), dtype="float64", trainable=False).dtype == "float64"
    assert weight not in opt.weights
    assert opt.add_weight("each", (), synchronization="on_read").trainable is False
    with pytest.raises(ValueError, match="trainable: expected False with synchronization on_read"):
        opt.add_weight("each", (), synchronization="on_read", trainable=True)
    with pytest.raises(ValueError, match="synchronization: expected one of auto, none, on_write, on_read, got 'later'"):
        opt.add_weight("each", (), synchronization="later")
    with pytest.raises(ValueError, match="aggregation: expected one of none, sum, mean"):
        opt.add_weight("each", (), aggregation="median")


@pytest.mark.feature("ABE:iterations")
def test_iterations_may_be_set_before_their_first_use():
    opt = Adadelta(1.0, decay=1.0)
    opt.iterations = Variable(np.array(3, np.int64), trainable=False, name="global_step")
    assert opt._decayed_lr("float64") == 0.25
    assert [weight.name for weight in opt.weights] == ["global_step"]
    with pytest.raises(RuntimeError, match="before it is first used"):
        opt.iterations = Variable(np.array(0))
    with pytest.raises(TypeError, match="expected a Variable of one integer"):
        Adadelta().iterations = 5


def test_copies(lib):
    v = made(lib, [1.0, 2.0])
    opt = Adadelta(schedules.ExponentialDecay(1.0, 2, 0.9), clipnorm=1.0)
    gradient = lib.grad(np.ones(2, np.float32))
    opt.apply_gradients([(gradient, v)])
    twin = copy.deepcopy(opt)
    both = pickle.loads(pickle.dumps((opt, v)))
    start = v.numpy()
    opt.apply_gradients([(gradient, v)])
    moved = v.numpy()
    assert (int(twin.iterations), int(opt.iterations)) == (1, 2)
    v.assign(start)
    twin.apply_gradients([(gradient, v)])  # the same variable, its own state
    np.testing.assert_array_equal(v.numpy(), moved)
    again, w = both
    again.apply_gradients([(gradient, w)])
    np.testing.assert_array_equal(w.numpy(), moved)


# --- configuration ---


def fast():
    return 0.5


@pytest.mark.feature("AB:get_config", "ABE:from_config", "ABE:custom_objects")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"learning_rate": 0.3, "rho": 0.9, "epsilon": 1e-6, "name": "a", "clipnorm": 1.0, "clipvalue": 2.0},
        {"learning_rate": schedules.CosineDecay(1.0, 100), "decay": 0.1, "global_clipnorm": 1.0},
        {"learning_rate": fast},
    ],
)
def test_configuration(options):
    opt = Adadelta(**options)
    descend(opt, [1.0])
    config = json.loads(json.dumps(opt.get_config()))
    for name, value in options.items():
        if isinstance(value, (float, str)):
            assert config[name] == value  # not what float32 makes of it
    twin = Adadelta.from_config(config, custom_objects={"fast": fast})
    assert twin.get_config() == opt.get_config()
    assert int(twin.iterations) == 0
    assert descend(twin, [1.0, 2.0]) == descend(Adadelta(**options), [1.0, 2.0])


@pytest.mark.feature("ABE:custom_objects")
def test_a_function_that_is_not_known_is_refused():
    config = Adadelta(fast).get_config()
    assert config["learning_rate"] == "fast"
    with pytest.raises(ValueError, match="learning_rate: expected a number or a schedule, got 'fast'"):
        Adadelta.from_config(config)
    assert Adadelta(lambda: 0.25).get_config()["learning_rate"] == 0.25  # it has no name
    with pytest.raises(TypeError, match="beta: unknown option"):
        Adadelta.from_config({"beta": 1.0})


# --- an optimizer of one's own ---


class Descent(Optimizer):
    """Gradient descent, without state: dense gradients only, no use for apply_state."""

    def __init__(self, learning_rate=0.1, name="Descent", **kwargs):
        super().__init__(name, **kwargs)
        self._set_hyper("learning_rate", learning_rate)

    def _resource_apply_dense(self, grad, var):
        var.assign_sub(self._decayed_lr(var.dtype) * grad)

    def get_config(self):
        return {**super().get_config(), "learning_rate": self._serialize_hyperparameter("learning_rate")}


class Noted(Adadelta):
    """Adadelta that looks at each variable after its update."""

    def _create_slots(self, var_list):
        super()._create_slots(var_list)
        for var in var_list:
            self.add_slot(var, "largest")

    def _resource_apply_dense(self, grad, var, apply_state=None):
        super()._resource_apply_dense(grad, var, apply_state)
        self.get_slot(var, "largest").assign(abs(var.numpy()))

    def _prepare_local(self, device, dtype, apply_state):
        super()._prepare_local(device, dtype, apply_state)
        apply_state[device, dtype]["lr_t"] *= 2


@pytest.mark.feature("E:custom-dense", "E:custom-config")
def test_an_optimizer_of_ones_own(lib):
    v = made(lib, [1.0, 2.0], np.float64)
    opt = Descent(0.5, clipvalue=1.0, decay=1.0)
    for _ in range(2):
        opt.apply_gradients([(lib.grad(np.array([3.0, 0.5])), v)])
    np.testing.assert_allclose(v.numpy(), [1 - 0.5 - 0.25, 2 - 0.25 - 0.125], rtol=1e-15)
    assert Descent.from_config(opt.get_config()).get_config() == opt.get_config()
    assert [weight.name for weight in opt.weights] == ["iter"]
    with pytest.raises(TypeError, match="Descent has no _resource_apply_sparse"):
        opt.apply_gradients([(IndexedSlices(lib.grad(np.ones((1, 2))), [0]), made(lib, np.ones((3, 2)), np.float64))])


@pytest.mark.feature("E:custom-dense", "E:custom-slots")
def test_a_subclass_of_adadelta_has_its_say(lib):
    v, w = made(lib, [-3.0], np.float64), made(lib, [5.0], np.float64)
    opt = Noted(0.5)
    opt.apply_gradients([(lib.grad(np.array([1.0])), v), (lib.grad(np.array([1.0])), w)])
    assert v.numpy()[0] == pytest.approx(after([1.0], 1.0, x=-3.0)[0], **CLOSE)
    assert opt.get_slot(v, "largest").numpy()[0] == -v.numpy()[0]
    assert opt.get_slot_names() == ["accum_grad", "accum_var", "largest"]


@pytest.mark.feature("E:custom-dense", "E:custom-config")
def test_the_base_class_alone_does_nothing():
    with pytest.raises(TypeError, match="abstract"):
        Optimizer("base")


@pytest.mark.feature("E:custom-dense", "E:custom-sparse", "E:custom-slots", "E:custom-config")
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_the_example_runs(library):
    pytest.importorskip(library)
    lines = run_example("keras_custom_optimizer.py", library).splitlines()
    losses = [float(line.rsplit(maxsplit=1)[1]) for line in lines if line.startswith("step")]
    assert len(losses) == 5
    assert losses[0] > 1
    assert losses[-1] < 0.02
    assert lines[-1] == "Momentum again, from its configuration: True"


@pytest.mark.feature("E:custom-sparse")
def test_repeated_rows_may_be_taken_as_they_come(lib):
    seen = []

    class Rows(Descent):
        def _resource_apply_sparse_duplicate_indices(self, grad, var, indices):
            seen.append((lib.back(grad).tolist(), indices.tolist()))

    rows = IndexedSlices(lib.grad(np.array([[1.0], [2.0]])), [1, 1])
    Rows().apply_gradients([(rows, made(lib, np.zeros((3, 1)), np.float64))])
    assert seen == [([[1.0], [2.0]], [1, 1])]


# --- threads ---


@pytest.mark.feature("E:thread-compatible")
def test_each_thread_may_have_an_optimizer():
    expected = after([1.0] * 50, 1.0)[0]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: descend(Adadelta(1.0), [1.0] * 50), range(4)))
    assert results == pytest.approx([expected] * 4, rel=1e-12)
