"""The later optimizer API of Keras: its numbers against the recorded systems, and each feature of document D."""

import copy
import json
import pickle
from contextlib import nullcontext
from functools import cache

import numpy as np
import pytest
from keras_arrays import made
from libraries import LIBRARIES
from multiopt.conformance.data import traces as files
from multiopt.conformance.targets.arguments import keras_options
from multiopt.conformance.targets.optimizers import Keras
from multiopt.conformance.targets.run import record
from processes import run_python

from multiopt import keras
from multiopt.keras import Adadelta, GradientTape, IndexedSlices, Optimizer, Variable, schedules

SYSTEMS = ["tf-keras", "tf-keras-dtensor", "keras-torch", "keras-jax", "keras-tensorflow"]
#: What the systems do otherwise than ours, by what their documents say, by what the core says, or by mistake.
OTHERWISE = {
    "nonpositive-clip-ignored": "a bound of 0 or below is refused here",
    "norm-clip-wins": "clipvalue and a norm clip both act here",
    "callable-lr-frozen": "a callable learning rate is called at each step here",
    "ema-never-updates": "averages move here",
    "ema-starts-after-first-step": "averages start at the initial values here",
    "complex-arithmetic": "real and imaginary parts are stepped apart here, as in PyTorch",
    "complex128-in-complex64": "complex128 is computed in complex128 here",
    "half-arithmetic": "half precision is computed in float32 here and rounded once",
    "flushes-subnormals": "subnormal numbers are kept here",
    "squares-scaled-first": "g is squared first here",
    "infinite-norm-gives-nan": "only infinite elements become NaN here",
    "sparse-duplicates-squared-apart": "rows that occur twice are added up first here",
    "sparse-clipped-before-summed": "rows that occur twice are added up before they are clipped here",
}
#: Rounding on the way to float64; the difference is bounded by what float32 can tell.
COARSE = {
    "lr-through-float32",
    "weight-decay-through-float32",
    "decay-factor-through-float32",
    "norm-through-float32",
}


@cache
def traces(system):
    pytest.importorskip("safetensors")
    return files.load(files.path_of(system)).traces


def nonnegative(x):
    return np.maximum(x, 0)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.feature("D:learning_rate", "D:epsilon", "D:clipnorm", "D:clipvalue", "D:global_clipnorm", "D:schedule")
@pytest.mark.feature("D:use_ema", "D:ema_momentum", "D:ema_overwrite_frequency", "D:finalize_variable_values")
def test_numbers_of_the_real_systems(system):
    """Every recorded scenario, each state after each step."""
    judged = set()
    for name, trace in traces(system).items():
        if trace.refusal or OTHERWISE.keys() & set(trace.deviations) or trace.dtype not in ("float32", "float64"):
            continue
        judged.add(name)
        c, clock = trace.config, [0]
        start = [np.array(x) for x in trace.at("x", 0)]
        constraint = nonnegative if c.constraint else None
        variables = [Variable(x, constraint=None if i else constraint) for i, x in enumerate(start)]
        averaged = c.accumulate if c.accumulate > 1 else None
        opt = Adadelta(**keras_options(c, schedules, clock), gradient_accumulation_steps=averaged)
        opt.build(variables)
        if c.first_iteration:
            opt.iterations.assign(c.first_iteration)
        # A float64 run differs by lr's float32 rounding at most: 6e-8 of it; a float32 run by a few roundings a step.
        # Keras' cosine has a float32 pi on JAX, whatever the rest is.
        rough = trace.dtype == "float32" or COARSE & set(trace.deviations) or name == "schedule-cosine"
        rtol = 2e-6 * np.sqrt(trace.steps / 10) if rough else 1e-13
        absent = any(g is None for row in trace.case.gradients for g in row)
        with missing() if absent else nullcontext():
            mine = record(Keras(opt, variables, keras, trace.dtype, clock=clock), trace.case)
        for kind, arrays in mine.states.items():
            for i, (ours, theirs) in enumerate(zip(arrays, trace.states[kind], strict=True)):
                # Near a zero crossing, the parameter is judged by what it has moved.
                sizes = np.where(np.isfinite(theirs), np.abs(theirs), 0).reshape(len(theirs), -1).max(1, initial=0)
                atol = rtol * np.maximum.accumulate(sizes) + np.finfo(ours.dtype).tiny
                atol = atol.reshape(-1, *[1] * (ours.ndim - 1))
                close = np.isclose(ours, theirs, rtol=rtol, atol=atol, equal_nan=True)
                assert np.all(close[1:]), (name, kind, i, ours, theirs)
        if trace.has("finalized"):
            opt.finalize_variable_values(variables)
            for i, box in enumerate(variables):
                np.testing.assert_allclose(box.numpy(), trace.states["finalized"][i], rtol=max(rtol, 1e-12), atol=1e-12)
    assert len(judged) > 30, judged


def missing():
    return pytest.warns(UserWarning, match="no gradient for the variables")


def one(opt, g=1.0, x=2.0):
    variable = Variable(np.array([x]), name="w")
    opt.apply_gradients([(np.array([g]), variable)])
    return variable


@pytest.mark.feature("D:defaults", "D:name", "D:get_config", "D:from_config")
def test_defaults_and_configuration():
    config = Adadelta().get_config()
    assert config == {
        "name": "Adadelta", "learning_rate": 0.001, "rho": 0.95, "epsilon": 1e-7, "weight_decay": None,
        "clipnorm": None, "clipvalue": None, "global_clipnorm": None, "use_ema": False, "ema_momentum": 0.99,
        "ema_overwrite_frequency": None, "jit_compile": True, "loss_scale_factor": None,
        "gradient_accumulation_steps": None,
    }  # fmt: skip
    opt = Adadelta(schedules.ExponentialDecay(0.5, 10, 0.9), 0.5, 0.25, 0.1, clipvalue=2.0, use_ema=True, name="mine")
    again = Adadelta.from_config(json.loads(json.dumps(opt.get_config())))
    assert again.get_config() == opt.get_config()
    assert again.name == "mine"


@pytest.mark.feature("D:kwargs")
def test_arguments_of_other_generations():
    Adadelta(is_legacy_optimizer=False)
    with pytest.warns(UserWarning, match=r"lr: 0\.3 is ignored, as in tf_keras; use learning_rate") as caught:
        assert float(Adadelta(0.5, lr=0.3).learning_rate) == 0.5
    assert caught[0].filename == __file__
    for name in ("decay", "gradient_aggregator", "gradient_transformers"):
        with pytest.raises(ValueError, match=f"{name}: only multiopt.keras.legacy"):
            Adadelta(**{name: 0.5})
    with pytest.raises(TypeError, match="momentum: unknown"):
        Adadelta(momentum=0.9)
    with pytest.raises(ValueError, match="is_legacy_optimizer"):
        Adadelta(is_legacy_optimizer=True)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        *[({name: -1.0}, ValueError) for name in ("learning_rate", "rho", "epsilon", "weight_decay", "clipvalue")],
        *[({name: 0.0}, ValueError) for name in ("clipnorm", "global_clipnorm", "loss_scale_factor")],
        ({"clipnorm": 1.0, "global_clipnorm": 1.0}, ValueError),
        *[({name: 1.5}, ValueError) for name in ("rho", "ema_momentum", "gradient_accumulation_steps")],
        ({"ema_overwrite_frequency": 0}, ValueError),
        ({"gradient_accumulation_steps": 1}, ValueError),
        *[({name: "yes"}, TypeError) for name in ("learning_rate", "use_ema", "jit_compile", "mesh")],
    ],
    ids=str,
)
def test_options_out_of_range_or_of_another_type(options, error):
    with pytest.raises(error, match=next(iter(options))):
        Adadelta(**options)


@pytest.mark.feature("D:learning_rate-attribute", "D:iterations")
def test_learning_rate_and_iterations():
    opt = Adadelta(1.0, rho=0.0, epsilon=1.0)
    variable = one(opt, x=0.0)
    assert variable.numpy() == pytest.approx(-np.sqrt(0.5), rel=1e-15)  # one rounding
    assert int(opt.iterations) == 1
    opt.learning_rate = 0.25
    assert float(opt.learning_rate) == 0.25
    opt.learning_rate.assign(0.0)
    before = variable.numpy()
    opt.apply_gradients([(np.array([1.0]), variable)])
    assert variable.numpy() == before
    opt.learning_rate.assign(-1.0)
    with pytest.raises(ValueError, match="learning_rate"):
        opt.apply_gradients([(np.array([1.0]), variable)])
    assert int(opt.iterations) == 2
    opt.lr = 0.125  # the old name
    assert opt.lr is opt.learning_rate
    assert float(opt.learning_rate) == 0.125


@pytest.mark.feature("D:iterations")
def test_iterations_may_be_set_before_the_optimizer_is_built(lib):
    opt, count = Adadelta(schedules.InverseTimeDecay(1.0, 1, 1.0)), Variable(np.array(3), trainable=False, name="steps")
    opt.iterations = count
    assert opt.variables[0] is opt.iterations is count
    v = made(lib, [0.0])
    opt.apply([lib.grad(np.ones(1, np.float32))], [v])
    assert (int(count), opt.learning_rate) == (4, 0.25)
    with pytest.raises(RuntimeError, match="before the optimizer is built"):
        opt.iterations = count
    for wrong in (5, Variable(np.array(1.0)), Variable(np.array([1]))):
        with pytest.raises(TypeError, match="iterations: expected a Variable of one integer"):
            Adadelta().iterations = wrong


def test_iterations_under_accumulation_cannot_be_assigned():
    """They are a quotient, in Keras a tensor."""
    opt = Adadelta(gradient_accumulation_steps=2)
    opt.build([np.ones(1)])
    for _ in range(3):
        opt.apply([np.ones(1)])
    assert int(opt.iterations) == opt.iterations.numpy() == 1
    for change in (opt.iterations.assign, opt.iterations.assign_add, opt.iterations.assign_sub):
        with pytest.raises(AttributeError, match=r"iterations: .* cannot be assigned"):
            change(1)
    with pytest.raises(AttributeError, match="iterations: cannot be set"):
        Adadelta(gradient_accumulation_steps=2).iterations = Variable(np.array(1))
    assert int(opt.variables[0]) == 3


@pytest.mark.feature("D:schedule")
def test_schedules_and_callables():
    opt = Adadelta(schedules.PiecewiseConstantDecay([0, 1], [1.0, 0.5, 0.25]))
    seen = [opt.learning_rate]
    variable = Variable(np.zeros(2))
    for _ in range(3):
        opt.apply([np.ones(2)], [variable])
        seen.append(opt.learning_rate)
    assert seen == [1.0, 1.0, 0.5, 0.25]
    with pytest.raises(TypeError, match="learning_rate: expected a schedule"):
        opt.learning_rate = 0.5
    rates = iter([1.0, 0.0])
    opt = Adadelta(lambda: next(rates), rho=0.0, epsilon=1.0)
    variable = one(opt)
    moved = variable.numpy()
    opt.apply([np.ones(1)], [variable])
    assert variable.numpy() == moved
    assert moved != 2.0
    # A schedule under accumulation counts calls; what it shows is that of the last update.
    opt = Adadelta(schedules.PiecewiseConstantDecay([0, 1, 2], [1.0, 0.5, 0.25, 0.125]), gradient_accumulation_steps=2)
    variable, seen = Variable(np.zeros(2)), []
    for _ in range(4):
        opt.apply([np.ones(2)], [variable])
        seen.append(opt.learning_rate)
    assert seen == [1.0, 0.5, 0.5, 0.125]
    assert int(opt.iterations) == 2


@pytest.mark.feature("D:rho")
def test_rho_may_be_a_tensor(torch):
    expected = one(Adadelta(1.0, rho=0.5)).numpy()
    for rho in (np.float32(0.5), np.array(0.5), torch.tensor(0.5), Variable(np.array(0.5))):
        assert one(Adadelta(1.0, rho=rho)).numpy() == expected
    opt = Adadelta(1.0)
    opt.rho = 0.5
    assert one(opt).numpy() == expected


def test_plain_arrays_are_written_in_place(torch):
    jax = pytest.importorskip("jax")
    for x, g in [(np.ones(3), np.ones(3)), (torch.ones(3), torch.ones(3))]:
        same = x
        opt = Adadelta(1.0, rho=0.5, epsilon=1.0)
        opt.apply_gradients([(g, x)])
        opt.apply_gradients([(g, x)])
        assert same is x
        assert float(x[0]) < 0
    with pytest.raises(TypeError, match="immutable"):
        Adadelta().apply_gradients([(jax.numpy.ones(3), jax.numpy.ones(3))])


@pytest.mark.feature("D:apply_gradients", "D:apply_gradients-typeerror")
def test_what_apply_gradients_refuses_changes_nothing():
    a, b = Variable(np.ones(2), name="a"), Variable(np.ones(3), name="b")
    opt = Adadelta(1.0, gradient_accumulation_steps=2, use_ema=True)
    assert opt.apply_gradients([]) is None
    assert int(opt._iterations) == 0
    opt.build([a, b])
    state = [v.numpy() for v in opt.variables]
    good = (np.ones(2), a)
    cases = [
        (3, TypeError, "pairs"),
        ([np.ones(2)], TypeError, "pair"),
        ([(np.ones(2), a, 1)], TypeError, "pair"),
        ([(None, a), (None, b)], ValueError, "a gradient for at least one of a, b"),
        ([good, (np.ones(2), b)], ValueError, "gradient of 'b'"),
        ([good, (np.ones(3, np.float32), b)], TypeError, "gradient of 'b'"),
        ([good, ([1.0, 2.0, 3.0], b)], TypeError, "gradient of 'b'"),
        ([good, good], ValueError, "once"),
        ([good, (np.ones(2), Variable(np.ones(2), name="c"))], KeyError, "c: expected one of the 2"),
        ([good, (np.ones(2), "c")], TypeError, r"variables\[1\]: expected a Variable"),
    ]
    for pairs, error, message in cases:
        with pytest.raises(error, match=message):
            opt.apply_gradients(pairs)
    with pytest.raises(ValueError, match="grads: expected one for each of 2"):
        opt.apply([np.ones(2)])
    for v, old in zip(opt.variables, state, strict=True):
        np.testing.assert_array_equal(v.numpy(), old)
    assert a.numpy().tolist() == [1, 1]
    with pytest.warns(UserWarning, match="no gradient for the variables \\['b'\\]"):
        assert opt.apply_gradients([good, (None, b)]) is None


def test_weight_decay_spares_some_variables():
    def run(exclude, names=None):
        variables = [Variable(np.array([2.0]), name=n) for n in ("dense/kernel", "dense/bias", "norm/gamma")]
        opt = Adadelta(0.5, rho=0.0, epsilon=1.0, weight_decay=0.1, global_clipnorm=100.0)
        opt.exclude_from_weight_decay(var_list=[variables[i] for i in exclude], var_names=names)
        opt.apply([np.ones(1)] * 3, variables)
        with pytest.raises(ValueError, match="before the optimizer is built"):
            opt.exclude_from_weight_decay(var_names=["x"])
        return [float(v.numpy()[0]) for v in variables]

    # 1.546447 and 1.646447 by hand; see SEMANTICS of decoupled decay: x -= lr wd x first.
    decayed, plain = 2 - 0.5 * 0.1 * 2 - 0.5 * np.sqrt(0.5), 2 - 0.5 * np.sqrt(0.5)
    assert run([1]) == pytest.approx([decayed, plain, decayed], rel=1e-15)
    assert run([], ["bias$", "ga.ma"]) == pytest.approx([decayed, plain, plain], rel=1e-15)


@pytest.mark.feature("D:clipnorm", "D:clipvalue", "D:global_clipnorm")
def test_both_clips_act():
    def step(**options):
        x = [np.zeros(2), np.zeros(1)]
        opt = Adadelta(1.0, rho=0.5, epsilon=1.0, **options)
        opt.apply([np.array([3.0, 4.0]), np.array([12.0])], x)
        return [v.numpy() for v in opt._accumulated_grads]  # half the squares of the gradients, as they were used

    def squares(*grads):
        return [0.5 * np.square(g) for g in grads]

    for options, expected in [
        ({"clipvalue": 1.0}, ([1.0, 1.0], [1.0])),
        ({"clipnorm": 1.0}, ([0.6, 0.8], [1.0])),
        ({"global_clipnorm": 1.3}, ([0.3, 0.4], [1.2])),
        ({"clipvalue": 4.0, "clipnorm": 1.0}, ([0.6, 0.8], [1.0])),
        ({"clipvalue": 2.0, "global_clipnorm": 1.0}, ([1 / 3**0.5] * 2, [1 / 3**0.5])),
    ]:
        for ours, theirs in zip(step(**options), squares(*expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-15)  # two roundings


@pytest.mark.feature("D:use_ema", "D:ema_overwrite_frequency", "D:finalize_variable_values")
def test_averages_as_the_document_says():
    """new_average = ema_momentum * old_average + (1 - ema_momentum) * current_variable_value, from the first value."""
    x, average, momentum = np.array([1.0, -2.0]), None, 0.75
    opt = Adadelta(1.0, rho=0.5, epsilon=1.0, use_ema=True, ema_momentum=momentum)
    average = x.copy()
    for _ in range(3):
        opt.apply([np.array([1.0, -0.5])], [x])
        average = momentum * average + (1 - momentum) * x
    opt.finalize_variable_values([x])
    np.testing.assert_array_equal(x, average)
    y = np.array([1.0, -2.0])
    opt = Adadelta(1.0, rho=0.5, epsilon=1.0, use_ema=True, ema_momentum=momentum, ema_overwrite_frequency=3)
    for _ in range(3):
        opt.apply([np.array([1.0, -0.5])], [y])
    np.testing.assert_array_equal(y, average)
    without = Adadelta(1.0)
    without.build([y])
    without.finalize_variable_values([y])
    np.testing.assert_array_equal(y, average)


def test_accumulation_averages_what_came():
    """A variable without a gradient in the last micro-batch is updated too, unlike in Keras."""
    a, b = np.zeros(2), np.zeros(2)
    opt = Adadelta(1.0, rho=0.5, epsilon=1.0, gradient_accumulation_steps=2)
    opt.apply([np.ones(2), np.ones(2)], [a, b])
    assert not a.any()
    with missing():
        opt.apply([np.ones(2) * 3, None], [a, b])
    np.testing.assert_array_equal([v.numpy()[0] for v in opt._accumulated_grads], [0.5 * 4, 0.5 * 0.25])
    assert not any(v.numpy().any() for v in opt._accumulated_gradients)
    assert int(opt.iterations) == 1


def test_sums_of_gradients_are_without_the_loss_scale(lib):
    """As in Keras: what one of the two has begun, the other may end; and float16 overflows later."""
    opt = Adadelta(1.0, rho=0.5, epsilon=1.0, gradient_accumulation_steps=2, loss_scale_factor=4.0)
    v, g = made(lib, [0.0, 0.0]), np.array([4.0, 8.0], np.float32)
    opt.build([v])
    pure = opt.stateless_apply
    if lib.name == "jax":
        import jax

        pure = jax.jit(pure)
    _, state = pure([box.value for box in opt.variables], [lib.grad(g)], [v.value])
    opt.apply([lib.grad(g)], [v])
    sums = [box.numpy() for box in opt.variables[1:2]]
    assert [sums[0].tolist(), np.asarray(state[1]).tolist()] == [[1, 2], [1, 2]]
    opt.apply([lib.grad(3 * g)], [v])
    assert opt._accumulated_grads[0].numpy().tolist() == [0.5 * 4, 0.5 * 16]


def test_loss_scale_comes_off_before_clipping():
    opt = Adadelta(1.0, rho=0.0, epsilon=1.0, loss_scale_factor=4.0, clipvalue=1.0)
    assert opt.scale_loss(3.0) == 12.0
    one(opt, g=2.0)
    assert opt._accumulated_grads[0].numpy() == 0.25


@pytest.mark.feature("D:jit_compile")
def test_jit_compile_chooses_the_engine():
    pytest.importorskip("numba")
    found = {}
    for jit in (True, False):
        opt, x = Adadelta(1.0, jit_compile=jit, global_clipnorm=1.0), np.linspace(-1, 1, 100)
        for t in range(3):
            opt.apply([np.sin(x + t)], [x])
        found[jit] = x, opt._adadelta_step().engines
    assert [found[True][1], found[False][1]] == [["host"], ["eager"]]
    np.testing.assert_array_equal(found[True][0], found[False][0])


class Momentum(Optimizer):
    """SGD with momentum: as the document of Keras writes it, with two arguments."""

    def __init__(self, learning_rate=0.1, momentum=0.9, name="Momentum", **kwargs):
        super().__init__(learning_rate, name, **kwargs)
        self.momentum = momentum

    def build(self, var_list):
        super().build(var_list)
        if hasattr(self, "_built") and self._built:
            return
        self._built = True
        self.momentums = [self.add_variable_from_reference(v, "m") for v in var_list]

    def update_step(self, gradient, variable):
        m = self.momentums[self._index_dict[self._var_key(variable)]]
        m.assign(self.momentum * m - gradient * float(self.learning_rate))
        variable.assign_add(m)

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum}


class Momentum3(Momentum):
    """The same as Keras 3 writes it."""

    def update_step(self, gradient, variable, learning_rate):
        m = self.momentums[self._get_variable_index(variable)]
        self.assign(m, m * self.momentum - gradient * learning_rate)
        self.assign_add(variable, m)


@pytest.mark.parametrize("kind", [Momentum, Momentum3])
@pytest.mark.feature("D:update_step", "D:build")
def test_an_optimizer_of_ones_own(kind, lib):
    a, b = made(lib, [1.0, 2.0], name="a"), made(lib, [3.0], name="b")
    opt = kind(0.5, 0.5, weight_decay=0.125, clipvalue=1.0, use_ema=True, ema_momentum=0.5)
    opt.exclude_from_weight_decay(var_names=["b"])
    x, m, average = [np.array([1.0, 2.0]), np.array([3.0])], [0.0, 0.0], [np.array([1.0, 2.0]), np.array([3.0])]
    for g in ([2.0, -0.5], [-0.25, 0.5]):
        opt.apply([lib.grad(np.array(part, np.float32)) for part in (g, g[:1])], [a, b])
        for i, own in enumerate((np.array(g), np.array(g[:1]))):
            x[i] = x[i] - 0.5 * 0.125 * x[i] * (i == 0)
            m[i] = 0.5 * m[i] - 0.5 * np.clip(own, -1, 1)
            x[i] = x[i] + m[i]
            average[i] = 0.5 * average[i] + 0.5 * x[i]
    # All numbers are small dyadic ones but for rounding in the last bit of float32.
    np.testing.assert_allclose(a.numpy(), x[0], rtol=2e-7)
    np.testing.assert_allclose(b.numpy(), x[1], rtol=2e-7)
    np.testing.assert_allclose(opt._model_variables_moving_average[0].numpy(), average[0], rtol=2e-7)
    again = kind.from_config(opt.get_config())
    assert again.momentum == 0.5
    assert [v.name for v in opt.variables] == ["iteration", "average/a", "average/b", "m/a", "m/b"]


def test_a_subclass_of_adadelta_may_change_the_step():
    class Doubled(Adadelta):
        def update_step(self, gradient, variable):
            super().update_step(2 * gradient, variable)

    options = {"weight_decay": 0.1, "global_clipnorm": 1.0, "gradient_accumulation_steps": 2, "use_ema": True}
    x, y = np.array([1.0, -2.0]), np.array([1.0, -2.0])
    doubled = Doubled(0.5, **options)
    twice = Adadelta(0.5, **{**options, "global_clipnorm": 2.0, "loss_scale_factor": 0.5})
    for t in range(4):
        g = np.array([3.0 + t, -1.0])
        doubled.apply([g], [x])
        twice.apply([g], [y])
    np.testing.assert_array_equal(x, y)  # the norms are exact, and 2 is a power of 2
    with pytest.raises(TypeError, match="abstract"):
        Optimizer()


@pytest.mark.feature("D:add_variable", "D:add_variable_from_reference")
def test_variables_of_an_optimizer(torch):
    opt = Momentum()
    early = opt.add_variable()
    assert (early.shape, early.dtype, early.backend.name) == ((), "float32", "numpy")
    reference = Variable(torch.ones(2, 3, dtype=torch.bfloat16), name="dense/kernel")
    opt.build([reference])
    late = opt.add_variable([2], "float64", initializer=lambda shape, dtype: np.full(shape, 3.0, dtype), name="late")
    assert (late.name, late.dtype, late.backend.name, late.numpy().tolist()) == ("late", "float64", "torch", [3, 3])
    assert opt.add_variable((2,), initializer="ones").numpy().tolist() == [1, 1]
    slot = opt.add_variable_from_reference(reference, "moment", initial_value=2.0)
    assert (slot.name, slot.shape, slot.dtype) == ("moment/dense/kernel", (2, 3), "bfloat16")
    assert slot.numpy().tolist() == [[2] * 3] * 2
    assert opt.add_variable_from_reference(reference, "row", shape=[3]).shape == (3,)
    twin = opt.add_variable_from_reference(reference, "copy", initial_value=reference)
    twin.assign_add(torch.ones(2, 3, dtype=torch.bfloat16))
    assert reference.numpy().max() == 1
    with pytest.raises(ValueError, match="initializer"):
        opt.add_variable((2,), initializer="glorot")
    assert len(opt.variables) == 8


@pytest.mark.feature("D:add_variable")
def test_shapes_and_initializers_of_variables(lib):
    opt = Momentum()
    opt.build([made(lib, [1.0])])
    assert opt.add_variable().shape == ()
    for shape in ([0], np.array([0]), lib.param(np.array([0], np.int32)), Variable([0])):
        assert opt.add_variable(shape).shape == (0,)
    assert opt.add_variable(lib.param(np.array([2, 3], np.int32)), initializer="GlorotUniform").numpy().std() > 0
    assert opt.add_variable_from_reference(opt._trainable_variables[0], "m", shape=np.array([0])).shape == (0,)


def test_the_api_of_tf_keras():
    opt, a, b = Adadelta(1.0), Variable(np.zeros(2), name="a"), np.zeros(2)
    assert opt.variables() == opt.variables == [opt.iterations]
    opt.apply_gradients([(np.ones(2), a)], name="scope", skip_gradients_aggregation=True)
    opt.apply_gradients([(np.ones(2), a)], None, False, experimental_aggregate_gradients=False)
    assert [v.name for v in opt.variables()] == [
        "iteration", "scope/accumulated_grad/a", "scope/accumulated_delta_var/a"
    ]  # fmt: skip
    plain = Adadelta(1.0)
    for _ in range(2):
        plain.apply_gradients([(np.ones(2), b)])
    np.testing.assert_array_equal(a.numpy(), b)
    assert plain.variables[1].name == "accumulated_grad/array_0"
    with pytest.raises(ValueError, match="name: expected a string"):
        opt.apply_gradients([(np.ones(2), a)], name=3)
    assert int(opt.iterations) == 2


@pytest.mark.feature("D:compute_gradients", "D:minimize", "D:minimize-tape")
def test_gradients_of_a_loss(torch):
    jax = pytest.importorskip("jax")
    moved = []
    for array in (torch.tensor([2.0, 3.0]), jax.numpy.asarray([2.0, 3.0])):
        v, unused = Variable(array, name="v"), Variable(array * 1, name="unused")
        opt = Adadelta(1.0, rho=0.5, epsilon=1.0)
        ((g, box), *_) = opt.compute_gradients(lambda v=v: (v * v).sum(), [v])
        assert np.asarray(g).tolist() == [4, 6]
        assert box is v
        assert opt.minimize(lambda v=v: (v * v).sum(), [v]) is None
        moved.append(v.numpy())
        if isinstance(array, torch.Tensor):
            assert opt.compute_gradients(lambda v=v: (v * v).sum(), [v, unused])[1] == (None, unused)
            with GradientTape() as tape:
                loss = (v * v).sum()
            opt.minimize(loss, [v], tape=tape)
            assert int(opt.iterations) == 2
            with pytest.raises(ValueError, match="tape"):
                opt.minimize(loss, [v])
    np.testing.assert_allclose(*moved, rtol=3e-7)  # torch's float32 square root may be off by one unit
    x = np.array([2.0, 3.0])
    opt = Adadelta(1.0, rho=0.5, epsilon=1.0)
    with pytest.raises(ValueError, match="grad_fn"):
        opt.minimize(lambda: (x * x).sum(), [x])
    opt.minimize(None, [x], grad_fn=lambda x: [2 * x])
    np.testing.assert_allclose(x, moved[0], rtol=3e-7)


OPTIONS = [
    {},
    {"weight_decay": 0.1, "clipvalue": 1.0, "clipnorm": 1.5},
    {"gradient_accumulation_steps": 2, "global_clipnorm": 1.0, "loss_scale_factor": 2.0},
    {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2, "gradient_accumulation_steps": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("library", ["numpy", "torch", "jax", "jax-jit"])
def test_stateless_apply_is_apply(library, options):
    held = LIBRARIES[library.removesuffix("-jit")]
    pytest.importorskip(held.library.namespace)
    make = held.param
    starts = [np.array([1.0, -2.0], np.float32), np.array([[0.5]], np.float32)]
    variables = [Variable(make(s), name=f"v{i}", constraint=abs) for i, s in enumerate(starts)]
    rate = schedules.ExponentialDecay(1.0, 2, 0.5)
    opt, pure = (Adadelta(rate, rho=0.5, epsilon=0.25, **options) for _ in range(2))
    pure.build([Variable(make(s), constraint=abs) for s in starts])
    apply = pure.stateless_apply
    if library == "jax-jit":
        import jax

        apply = jax.jit(apply)
    values, state = [make(s) for s in starts], [v.value for v in pure.variables]
    for t in range(5):
        grads = [make((np.cos(s + t) * 3).astype(np.float32)) for s in starts]
        opt.apply(grads, variables)
        before = [np.asarray(a).copy() for a in (*values, *state)]
        new = apply(state, grads, values)
        for array, old in zip((*values, *state), before, strict=True):
            np.testing.assert_array_equal(np.asarray(array), old)  # the inputs are left alone
        values, state = new
        for box, value in zip((*variables, *opt.variables), (*values, *state), strict=True):
            if library == "jax-jit":
                # XLA contracts to FMA, and norms are added up in float32; a few units in the last place a step.
                np.testing.assert_allclose(box.numpy(), np.asarray(value), rtol=2e-6, atol=1e-7)
            else:
                np.testing.assert_array_equal(box.numpy(), np.asarray(value))
    assert [v.numpy().any() for v in pure.variables if "accumulated" in v.name] == [False] * 4
    with pytest.raises(ValueError, match="stateless_apply: expected 2"):
        pure.stateless_apply(state[1:], grads, values)
    with pytest.raises(ValueError, match="built"):
        Adadelta().stateless_apply([], [], [])


def test_state_moves_between_libraries(lib):
    options = {"gradient_accumulation_steps": 2, "use_ema": True, "clipnorm": 1.0}
    rng = np.random.default_rng(0)
    grads = rng.normal(size=(7, 5)).astype(np.float32)
    source, x = Adadelta(1.0, **options), np.ones(5, np.float32)
    for g in grads[:3]:
        source.apply([g], [x])
    store = {}
    source.save_own_variables(store)
    v, target = made(lib, x), Adadelta(1.0, **options)
    with pytest.raises(ValueError, match="store: expected 1 arrays"):
        target.load_own_variables(store)
    with pytest.raises(ValueError, match="built"):
        target.set_weights([])
    target.build([v])
    target.load_own_variables(store)
    for g in grads[3:]:
        source.apply([g], [x])
        target.apply([lib.grad(g)], [v])
    np.testing.assert_array_equal(v.numpy(), x)
    for a, b in zip(source.variables, target.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    with pytest.raises(ValueError, match="accumulated_grad"):
        target.set_weights([np.zeros(s.shape if i < 3 else 4) for i, s in enumerate(target.variables)])


def test_copies_go_their_own_way():
    v = Variable(np.ones(3), name="v")
    opt = Adadelta(1.0, weight_decay=0.1)
    opt.exclude_from_weight_decay(var_list=[v])
    opt.apply([np.ones(3)], [v])
    twin, w = copy.deepcopy((opt, v))
    third, u = pickle.loads(pickle.dumps((opt, v)))
    opt.apply([np.ones(3)], [v])
    assert (w.numpy() != v.numpy()).all()
    for other, x in ((twin, w), (third, u)):
        other.apply([np.ones(3)], [x])
        np.testing.assert_array_equal(x.numpy(), v.numpy())
    with pytest.raises(KeyError):
        twin.apply([np.ones(3)], [v])


def test_the_constraint_comes_last():
    v = Variable(np.array([0.1, 5.0]), constraint=nonnegative)
    opt = Adadelta(1.0, rho=0.5, epsilon=1.0, use_ema=True, ema_momentum=0.0)
    opt.apply([np.array([1.0, 1.0])], [v])
    assert v.numpy()[0] == 0
    assert opt._model_variables_moving_average[0].numpy()[0] < 0  # it has seen the value before


def test_sparse_rows_are_the_dense_gradient(lib):
    rows = np.array([[1.0, 2.0], [3.0, 4.0], [-1.0, 0.5]], np.float32)
    dense = np.zeros((4, 2), np.float32)
    np.add.at(dense, [2, 0, 2], rows)
    expected = np.ones((4, 2), np.float32)
    Adadelta(1.0, clipvalue=1.5).apply([dense], [expected])
    v, opt = made(lib, np.ones((4, 2))), Adadelta(1.0, clipvalue=1.5)
    opt.apply([IndexedSlices(lib.grad(rows), [2, 0, 2])], [v])
    np.testing.assert_array_equal(v.numpy(), expected)
    with pytest.raises(ValueError, match="gradient of"):
        opt.apply([IndexedSlices(lib.grad(rows), [2, 0, 9])], [v])


@pytest.mark.parametrize(
    "options",
    [
        {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3},
        {"gradient_accumulation_steps": 2},
        {"global_clipnorm": 0.5, "weight_decay": 0.1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_see_sparse_rows_as_the_dense_gradient(options):
    # As in tf_keras and Keras 3, the rows without a gradient decay, and are averaged, like all others.
    tables, rng = [np.ones((4, 2), np.float32) for _ in range(2)], np.random.default_rng(0)
    opts = [Adadelta(1.0, **options) for _ in tables]
    for _ in range(4):
        rows, values = rng.integers(0, 3, 2), rng.standard_normal((2, 2)).astype(np.float32)
        whole = np.zeros((4, 2), np.float32)
        np.add.at(whole, rows, values)
        for opt, table, g in zip(opts, tables, (whole, IndexedSlices(values, rows)), strict=True):
            opt.apply([g], [table])
    for one, other in zip(*(opt.variables for opt in opts), strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    np.testing.assert_array_equal(*tables)


def test_norms_are_exact_for_optimizers_of_ones_own(lib):
    """In float32, the squares of these would overflow."""
    options = {"learning_rate": 1.0, "momentum": 0.0, "clipnorm": 5.0}
    big, v = np.array([3e30, 4e30], np.float32), made(lib, [0.0, 0.0])
    opt = Momentum3(**options)
    opt.build([v])
    (pure,), _ = opt.stateless_apply([box.value for box in opt.variables], [lib.grad(big)], [v.value])
    opt.apply([lib.grad(big)], [v])
    np.testing.assert_allclose(v.numpy(), [-3.0, -4.0], rtol=2e-7)  # the factor, and the product with it
    np.testing.assert_array_equal(lib.back(pure), v.numpy())


def test_tensorflow_is_not_imported():
    code = (
        "import sys, numpy as np; from multiopt.keras import Adadelta\n"
        "x = np.ones(3); Adadelta(1.0).apply([x.copy()], [x])\n"
        "print([m for m in ('tensorflow', 'keras', 'torch', 'jax', 'cupy') if m in sys.modules])"
    )
    assert run_python(code) == "[]"
