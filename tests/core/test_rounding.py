"""`state_rounding="stochastic"`: what it asks for, what is saved, and the functional form."""

import ml_dtypes
import numpy as np
import pytest

from multiopt import Adadelta
from multiopt.functional import init, update

STOCHASTIC = {"state_dtype": "bfloat16", "state_rounding": "stochastic"}
SHAPES = [(3, 50), (7,), ()]


def draw(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape)).astype(dtype) for shape in SHAPES]


def train(opt, steps):
    for step in steps:
        grads = draw(100 + step)
        opt.step([grads] if opt.grouped and len(opt.groups) == 1 else [grads[:1], grads[1:]] if opt.grouped else grads)
    return bits(opt)


def bits(opt):
    groups = opt.state if opt.grouped else [opt.state]
    return [own[slot].tobytes() for group in groups for own in group for slot in opt.rule.slots]


@pytest.mark.parametrize(
    ("params", "options", "got"),
    [
        (np.ones(2, np.float32), {}, "float32 for params"),
        (np.ones(2, np.float32), {"state_dtype": "float16"}, "float16 for params"),
        (np.ones(2, np.complex64), {"state_dtype": "bfloat16"}, "complex64 for params"),
    ],
)
def test_state_that_is_not_bfloat16_is_refused(params, options, got):
    with pytest.raises(
        ValueError, match=rf"^state_rounding: expected state in bfloat16 for 'stochastic' .*, got {got}"
    ):
        Adadelta(params, state_rounding="stochastic", **options)


def test_a_group_of_another_dtype_is_refused():
    opt = Adadelta([{"params": np.ones(2, ml_dtypes.bfloat16)}], state_rounding="stochastic")
    with pytest.raises(ValueError, match=r"got float32 for groups\[1\]\.params"):
        opt.add_param_group({"params": np.ones(2, np.float32)})
    assert len(opt.groups) == 1


def test_a_seed_is_refused_where_nothing_is_drawn():
    with pytest.raises(ValueError, match=r"^seed: expected 0 without state_rounding='stochastic', got 3"):
        Adadelta(np.ones(2), seed=3)
    with pytest.raises(ValueError, match=r"^seed: expected 0 without"):
        update(np.ones(2), np.ones(2), init(np.ones(2)), seed=3)


def test_seeds_differ_and_steps_differ():
    seen = {tuple(train(Adadelta(draw(0), seed=seed, **STOCHASTIC), range(2))) for seed in (0, 1, 2**32, 2**64 - 1)}
    assert len(seen) == 4
    opt = Adadelta(np.zeros(1000, np.float32), rho=0.999, **STOCHASTIC)
    changed = []
    for _ in range(3):
        before = opt.state["square_avg"].copy()
        opt.step(np.full(1000, 1e-3, np.float32))
        changed.append(opt.state["square_avg"] != before)
    assert (changed[1] != changed[2]).any()


def test_parameters_are_numbered_over_all_groups():
    flat = train(Adadelta(draw(0), **STOCHASTIC), range(3))
    first, *rest = draw(0)
    opt = Adadelta([{"params": [first]}], **STOCHASTIC)
    opt.add_param_group({"params": rest})
    assert train(opt, range(3)) == flat
    with pytest.raises(AssertionError):
        assert train(Adadelta([*draw(0)[:1], *draw(0)[:0:-1]], **STOCHASTIC), []) == flat


def test_a_parameter_without_a_gradient_keeps_its_state():
    opt = Adadelta(draw(0), **STOCHASTIC)
    train(opt, range(2))
    before = bits(opt)
    opt.step([None, *draw(7)[1:]])
    assert bits(opt)[:2] == before[:2]
    assert bits(opt)[2:] != before[2:]


@pytest.mark.parametrize("how", ["file", "state_dict"])
def test_training_goes_on_with_the_same_bits(how, tmp_path):
    whole = Adadelta(draw(0), seed=11, ema=0.99, **STOCHASTIC)
    train(whole, range(3))
    resumed = Adadelta(draw(5), seed=4, ema=0.99, **STOCHASTIC)
    if how == "file":
        whole.save(tmp_path / "state")
        resumed.load(tmp_path / "state")
    else:
        resumed.load_state_dict(whole.state_dict())
        for own, other in zip(resumed.params, whole.params, strict=True):
            own[...] = other
    assert (resumed.seed, resumed.steps) == (11, 3)
    assert train(whole, range(3, 6)) == train(resumed, range(3, 6))
    assert [a.tobytes() for a in resumed.ema_params] == [a.tobytes() for a in whole.ema_params]


def test_a_file_without_a_seed_leaves_the_optimizers_own(tmp_path):
    nearest = Adadelta(draw(0), state_dtype="bfloat16")
    train(nearest, range(2))
    nearest.save(tmp_path / "state")
    opt = Adadelta(draw(0), seed=4, **STOCHASTIC)
    opt.load(tmp_path / "state")
    assert (opt.seed, opt.steps, opt.state_rounding) == (4, 2, "stochastic")
    snapshot = nearest.state_dict()
    del snapshot["about"]["state_rounding"], snapshot["about"]["seed"]  # as of 0.1
    opt.load_state_dict(snapshot)
    assert opt.seed == 4
    snapshot = opt.state_dict()
    snapshot["about"]["seed"] = -1
    with pytest.raises(ValueError, match="state: seed: expected an integer from 0"):
        opt.load_state_dict(snapshot)


# --- the functional form ---

OPTIONS = {"rho": 0.99, "state_rounding": "stochastic", "seed": 2**40 + 1}


def functional(place, back, run, step=0):
    params = [place(a) for a in draw(0)]
    state = init(params, state_dtype="bfloat16")._replace(step=step)
    for k in range(3):
        params, state = run(params, [place(g) for g in draw(100 + k)], state)
    return [back(state.slots[slot][i]).tobytes() for i in range(len(params)) for slot in ("square_avg", "acc_delta")]


@pytest.fixture(scope="module")
def optimizers():
    return train(Adadelta(draw(0), **OPTIONS, state_dtype="bfloat16"), range(3))


def run(params, grads, state):
    return update(params, grads, state, **OPTIONS)


def test_functional_on_numpy(optimizers):
    assert functional(np.copy, np.asarray, run) == optimizers


def test_functional_on_jax_and_inside_jit(optimizers):
    jax = pytest.importorskip("jax")
    assert functional(jax.numpy.asarray, np.asarray, run) == optimizers
    # The compiler contracts to FMA; of these numbers, that changes the last bit of some in float32, and of none here.
    assert functional(jax.numpy.asarray, np.asarray, jax.jit(run)) == optimizers


def test_functional_on_torch(optimizers):
    torch = pytest.importorskip("torch")
    assert functional(torch.from_numpy, lambda t: t.view(torch.int16).numpy(), run) == optimizers


def test_functional_state_that_is_not_bfloat16_is_refused():
    x = np.ones(2, np.float32)
    with pytest.raises(ValueError, match=r"^state_rounding: expected state in bfloat16 .*, got float32 for params"):
        update(x, x, init(x), state_rounding="stochastic")
