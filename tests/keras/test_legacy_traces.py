"""`multiopt.keras.legacy.Adadelta` against the recorded traces of TensorFlow's own, step by step."""

from functools import partial

import numpy as np
import pytest

pytest.importorskip("safetensors")

from libraries import LIBRARIES, library_of
from multiopt.conformance.data.case import Sparse
from multiopt.conformance.data.traces import FOLDER, load, path_of
from multiopt.conformance.reference.compare import differences
from multiopt.conformance.reference.tolerances import RUN
from multiopt.conformance.targets.arguments import keras_options
from multiopt.conformance.targets.run import record

from multiopt.keras import IndexedSlices, Variable, schedules
from multiopt.keras.legacy import Adadelta

FILE = load(path_of("tf-keras-legacy", FOLDER))
#: Where ours does what the document says and TensorFlow does not, or where the core's rule is another on purpose.
DIFFERENT = {
    "schedule-late-float16": "TensorFlow rounds the iteration to float16, and sees 2048 for 2049",
    "float16-small-eps": "TensorFlow rounds eps to float16, where 1e-8 is 0; the engines compute float16 in float32",
    "infinities-global-clipnorm": "TensorFlow makes every gradient NaN, ours only the infinite ones",
    "by-hand-complex": "TensorFlow squares complex numbers; ours takes real and imaginary parts apart",
    "complex64": "as by-hand-complex",
    "complex128": "as by-hand-complex",
}
SAME = [name for name, trace in FILE.traces.items() if trace.refusal is None and name not in DIFFERENT]
REFUSED = [name for name, trace in FILE.traces.items() if trace.refusal is not None]


class Replay:
    """Our optimizer on the arrays of one library, for the case of a trace: a target's optimizer."""

    name = "multiopt"

    def __init__(self, trace, library):
        self.dtype, self.library = trace.dtype, library
        self.clock = [0]
        constraint = (lambda x: x * (x >= 0)) if trace.config.constraint else None
        self.variables = [
            Variable(self.param(x), name=f"p{i}", constraint=constraint if i == 0 else None)
            for i, x in enumerate(trace.at("x", 0))
        ]
        self.optimizer = Adadelta(**keras_options(trace.config, schedules, self.clock, legacy=True))
        self.optimizer.iterations.assign(trace.config.first_iteration)

    def held(self, values):
        if self.dtype == "bfloat16":
            import ml_dtypes

            return np.asarray(values).astype(ml_dtypes.bfloat16)
        return np.asarray(values).astype(self.dtype)

    def param(self, values):
        return self.library.param(self.held(values))

    def gradient(self, gradient, like):
        if gradient is None:
            return None
        if isinstance(gradient, Sparse):
            return IndexedSlices(self.library.grad(self.held(gradient.values)), gradient.indices, like.shape)
        return self.library.grad(self.held(gradient))

    def states(self):
        names = self.optimizer.get_slot_names()
        states = {"x": [v.numpy() for v in self.variables], "iterations": [int(self.optimizer.iterations)]}
        for kind, name in (("square_avg", "accum_grad"), ("acc_delta", "accum_var")):
            known = self.optimizer._slots if names else {}
            states[kind] = [
                self.optimizer.get_slot(v, name).numpy() if v in known else np.zeros_like(v.numpy())
                for v in self.variables
            ]
        return states

    def step(self, number, gradients):
        self.clock[0] = number
        used = self.optimizer._decayed_lr(self.dtype)
        given = [self.gradient(g, v) for g, v in zip(gradients, self.variables, strict=True)]
        self.optimizer.apply_gradients(zip(given, self.variables, strict=True))
        return used


def replayed(name, library="numpy"):
    with library_of(LIBRARIES[library]) as held, np.errstate(all="ignore"):
        return record(Replay(FILE.traces[name], held), FILE.traces[name].case)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("name", SAME)
def test_the_recorded_numbers(name, library):
    trace = FILE.traces[name]
    mine = replayed(name, library)
    assert np.array_equal(mine.iterations, trace.iterations)
    # TensorFlow computes schedules in float32, ours in float64, rounded to float32 once: 2^-23 of the largest rate for
    # the few operations of a schedule. Then TensorFlow rounds to the dtype of the variables.
    rounding = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(trace.dtype, 0.0)
    np.testing.assert_allclose(mine.lr, trace.lr, rtol=rounding, atol=2.0**-23 * max(mine.lr))
    if "flushes-subnormals" in trace.deviations:
        # TensorFlow loses at most the smallest normal number in each step; the sum of that over steps fades with rho.
        tiny = np.finfo(trace.dtype).tiny / (1 - trace.config.rho)
        for kind in ("square_avg", "acc_delta", "x"):
            for theirs, ours in zip(trace.states[kind], mine.states[kind], strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=16 * np.finfo(trace.dtype).eps, atol=tiny)
        return
    within = {kind: tolerance.limit for kind, tolerance in RUN.items()}
    if "lr-through-float32" in trace.deviations and trace.config.schedule is not None:
        # The same float32 roundings of the schedule, in units of float64's motion.
        within["x"] += 4 * 2.0**-23 / np.finfo(np.float64).eps
    for kind, difference in differences(trace, mine).items():
        assert difference.units <= within[kind], str(difference)


def test_jax_gives_the_recorded_numbers_too():
    pytest.importorskip("jax")
    for name in ("several-shapes", "sparse-clipvalue", "clipvalue-global-clipnorm", "none-gradients", "constraint"):
        mine = replayed(name, "jax")
        for kind, difference in differences(FILE.traces[name], mine).items():
            assert difference.units <= RUN[kind].limit, f"{name}: {difference}"


@pytest.mark.parametrize("name", REFUSED)
def test_what_tensorflow_refuses_is_refused(name):
    trace = FILE.traces[name]
    error = {"ValueError": ValueError, "TypeError": TypeError}[trace.refusal]
    act = partial(Adadelta, weight_decay=0.1) if trace.config.weight_decay else partial(replayed, name)
    with pytest.raises(error):
        act()


def test_every_recorded_scenario_is_judged():
    assert set(DIFFERENT) <= set(FILE.traces)
    assert len(SAME) >= 40  # how many there are to express; fewer would mean that somebody has shortened the table


def test_a_schedule_sees_every_iteration_in_float16():
    mine = replayed("schedule-late-float16")
    assert mine.iterations[:, 0].tolist() == [2046, 2047, 2048, 2049, 2050, 2051, 2052]
    assert mine.lr.tolist() == [1.0, 1.0, 1.0, 0.25, 0.25, 0.25]
    assert FILE.traces["schedule-late-float16"].lr.tolist() == [1.0, 1.0, 1.0, 1.0, 0.25, 0.25]


def test_a_small_eps_counts_in_float16():
    mine = replayed("float16-small-eps")
    assert np.isnan(FILE.traces["float16-small-eps"].at("x", 1)[0]).any()
    assert all(np.isfinite(mine.at("x", step)[0]).all() for step in range(4))


def test_an_infinite_norm_leaves_finite_gradients_finite():
    mine = replayed("infinities-global-clipnorm")
    gradients = mine.case.gradients[0]
    for before, after, gradient in zip(mine.at("x", 0), mine.at("x", 1), gradients, strict=True):
        assert np.isfinite(after[np.isfinite(gradient)]).all()
        assert np.isnan(after[np.isinf(gradient)]).all()
        assert (after[np.isfinite(gradient)] == before[np.isfinite(gradient)]).all()
