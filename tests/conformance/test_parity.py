"""Parity for other people's tests: what agrees passes, what differs is told where, and known differences are named."""

from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from multiopt.conformance import (
    TrajectoryError,
    assert_published_rule,
    assert_same_bits,
    assert_same_trajectory,
    record_trajectory,
)
from multiopt.conformance.data.case import Case
from multiopt.conformance.data.traces import load, path_of
from multiopt.conformance.mutation.mutants import MUTANTS
from multiopt.conformance.targets.optimizers import adapt, options_of
from processes import run_python

import multiopt


def ours(**options):
    return lambda params: multiopt.Adadelta(params, **options)


def torchs(**options):
    torch = pytest.importorskip("torch")
    return lambda params: torch.optim.Adadelta([torch.tensor(p, requires_grad=True) for p in params], **options)


def different(a, b, **options):
    with pytest.raises(TrajectoryError) as caught:
        assert_same_trajectory(a, b, **options)
    return caught.value


def causes(error):
    return [explanation.cause for explanation in error.explanations]


F64 = [np.linspace(-1, 1, 5), np.full((3, 2), 0.7), np.array(0.3)]


# --- what agrees ---


@pytest.mark.parametrize(
    "options", [{}, {"lr": 0.3, "rho": 0.95, "eps": 1e-4}, {"weight_decay": 0.1}, {"maximize": True}]
)
@pytest.mark.parametrize("params", [None, F64], ids=["float32", "float64"])
def test_ours_and_torch_agree(options, params):
    worst = assert_same_trajectory(ours(**options), torchs(**options), params=params)
    assert set(worst) == {"square_avg", "acc_delta", "x"}
    assert max(worst.values()) < 20


def test_bound_optimizers_of_any_structure():
    pytest.importorskip("optree")
    params, copy = ({"b": np.ones(3), "a": [np.zeros((2, 2)), np.array(1.0)]} for _ in range(2))
    assert_same_bits(multiopt.Adadelta(params), multiopt.Adadelta(copy, engine="eager"))
    groups = [{"params": [np.ones(3)]}, {"params": np.zeros(2)}]
    again = [np.ones(3), np.zeros(2)]
    assert_same_bits(multiopt.Adadelta(groups, ema=0.5), multiopt.Adadelta(again, ema=0.5))


def test_none_gradients_and_groups_of_torch():
    torch = pytest.importorskip("torch")
    tensors = [torch.ones(3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]
    theirs = torch.optim.Adadelta([{"params": [t]} for t in tensors])
    gradients = [[np.ones(3), None], [None, np.ones(2)], [np.ones(3), np.full(2, 0.5)]]
    assert_same_trajectory(multiopt.Adadelta([np.ones(3), np.zeros(2)]), theirs, gradients=gradients)


def test_optax_agrees_and_is_named_where_it_ascends():
    optax = pytest.importorskip("optax")
    params = [np.linspace(-1, 1, 5, dtype=np.float32), np.array(0.5, np.float32)]
    assert_same_trajectory(optax.adadelta(0.5, rho=0.95), ours(lr=0.5, rho=0.95), params=params)
    error = different(optax.adadelta(), ours(), params=params)
    assert "maximize True in a and False in b" in str(error)
    error = different(optax.adadelta(0.5, rho=0.95, eps=1e-5), ours(), params=params)
    assert "lr 0.5 in a and 1.0 in b, rho 0.95 in a and 0.9 in b, eps 1e-05 in a and 1e-06 in b" in str(error)


@pytest.mark.skipif(find_spec("keras") is None or find_spec("torch") is None, reason="needs Keras on PyTorch")
def test_keras_agrees_and_its_defaults_are_named():
    said = run_python(
        """
import warnings
warnings.simplefilter("ignore")  # Keras on PyTorch reads tensors by a protocol that NumPy has given up
import numpy as np, keras, multiopt, multiopt.keras
from multiopt.conformance import assert_same_trajectory
ones = [np.ones((3, 2), "float32")]
assert_same_trajectory(keras.optimizers.Adadelta(0.5), multiopt.keras.Adadelta(0.5), params=ones)
assert_same_trajectory(keras.optimizers.Adadelta(0.5, use_ema=True, ema_momentum=0.75, weight_decay=0.1, clipnorm=1.0),
                       multiopt.keras.Adadelta(0.5, use_ema=True, ema_momentum=0.75, weight_decay=0.1, clipnorm=1.0),
                       params=ones, limits={"x": 16, "square_avg": 32, "acc_delta": 128})
for theirs, ours, start in [
    (keras.optimizers.Adadelta(), lambda p: multiopt.Adadelta(p), np.ones(3, "float32")),
    (keras.optimizers.Adadelta(0.3), lambda p: multiopt.Adadelta.keras(p, lr=0.3), np.linspace(-1, 1, 3)),
]:
    try:
        assert_same_trajectory(theirs, ours, params=[start])
    except AssertionError as error:
        print(error)
""",
        KERAS_BACKEND="torch",
    )
    assert "those of a are the defaults of Keras" in said
    assert "those of b are the defaults of PyTorch" in said
    assert "passed through float32" in said


def test_recorded_traces_and_plain_sequences():
    pytest.importorskip("safetensors")
    trace = load(path_of("torch-forloop")).traces["learning-rate"]
    assert_same_trajectory(trace, ours(lr=0.3))
    error = different(trace, ours(lr=0.25))
    assert "lr 0.3 in a and 0.25 in b" in str(error)
    gradients = [[np.array([1.0, -2.0])], [np.array([0.5, 0.0])]]
    recorded = record_trajectory(multiopt.Adadelta([np.ones(2)]), gradients)
    plain = [[recorded.states["x"][0][t]] for t in range(3)]
    assert assert_same_trajectory(plain, ours(), gradients=gradients) == {"x": 0.0}
    # Without gradients one can be compared, but not explained.
    wrong = [plain[0], plain[1], [plain[2][0] + 1e-3]]
    error = different(plain, wrong)
    assert error.explanations == []
    assert error.differences[0].step == 2


# --- where they differ ---


def test_says_where():
    gradients = [[np.zeros((2, 3)), np.array([1.0])] for _ in range(4)]
    gradients[2][0] = np.array([[0, 0, 0], [0, 2.0, 0]])
    states = [record_trajectory(multiopt.Adadelta([np.zeros((2, 3)), np.ones(1)]), gradients) for _ in range(2)]
    states[1].states["acc_delta"][0][3, 1, 1] *= 1.5
    error = different(*states)
    (wrong,) = [p for p in error.differences if p.units > p.allowed]
    assert (wrong.kind, wrong.step, wrong.tensor, wrong.index) == ("acc_delta", 3, 0, (1, 1))
    assert "differ after step 3 of 4" in str(error)
    assert "acc_delta of params[0][1, 1]" in str(error)
    assert "x and square_avg" in str(error) or "square_avg and x still agree" in str(error)
    assert "the gradient there was 2.0, the parameter 0.0" in str(error)
    assert "none of the differences that are known" in str(error)


def test_nan_is_infinitely_far_and_agrees_with_nan():
    gradients = [[np.array([1.0, np.nan])]]
    a, b = (record_trajectory(multiopt.Adadelta([np.zeros(2)]), gradients) for _ in range(2))
    assert_same_bits(a, b)
    b.states["x"][0][1, 1] = 0.0
    assert different(a, b).differences[-1].units == np.inf


def test_refuses_what_cannot_be_compared():
    with pytest.raises(ValueError, match="start from different values"):
        assert_same_trajectory(multiopt.Adadelta([np.ones(2)]), multiopt.Adadelta([np.zeros(2)]))
    with pytest.raises(ValueError, match="one dtype"):
        assert_same_trajectory(multiopt.Adadelta([np.ones(2)]), multiopt.Adadelta([np.ones(2, np.float32)]))
    with pytest.raises(ValueError, match="same shapes"):
        assert_same_trajectory([[np.ones(2)]] * 3, [[np.ones(2)]] * 4)
    with pytest.raises(TypeError, match=r"got builtins\.object"):
        assert_same_trajectory(object(), ours(), params=[np.ones(2)])
    with pytest.raises(ValueError, match="limits: expected some of"):
        assert_same_trajectory(ours(), ours(), limits={"velocity": 1.0})
    with pytest.raises(ValueError, match="at least two entries"):
        assert_same_trajectory([[np.ones(2)]], [[np.ones(2)]])


# --- what it looks like ---

DECOUPLED = {"weight_decay": 0.1, "decoupled": True}
VALUES = {
    "lr": ({"lr": 0.3}, {"lr": 0.25}, "lr 0.3 in a and 0.25 in b"),
    "rho": ({"rho": 0.95}, {}, "rho 0.95 in a and 0.9 in b"),
    "eps": ({"eps": 1e-7}, {}, "eps 1e-07 in a and 1e-06 in b"),
    "weight decay": ({"weight_decay": 0.01}, {}, "weight_decay 0.01 in a and 0.0 in b"),
    "decay coupling": (DECOUPLED, {"weight_decay": 0.1}, "weight decay decoupled in a and coupled in b"),
    "sign": ({"maximize": True}, {}, "maximize True in a and False in b"),
    "defaults": ({"lr": 0.001, "rho": 0.95, "eps": 1e-7}, {}, "those of a are the defaults of Keras"),
    "float32": ({"lr": float(np.float32(0.3))}, {"lr": 0.3}, "a's has passed through float32"),
}


@pytest.mark.parametrize("case", VALUES)
def test_other_options_are_found(case):
    mine, theirs, expected = VALUES[case]
    error = different(ours(**mine), torchs(**theirs), params=[np.linspace(-1, 1, 7), np.full((3, 2), 0.7)])
    assert causes(error) == ["options"]
    assert expected in str(error)


@pytest.mark.parametrize("case", VALUES)
@pytest.mark.parametrize("kinds", [("x", "square_avg", "acc_delta"), ("x",)], ids=["all states", "parameters only"])
def test_other_options_are_found_where_nothing_is_known_but_the_numbers(case, kinds):
    mine, theirs, expected = VALUES[case]
    params, rng = [np.linspace(-1, 1, 7), np.full((3, 2), 0.7)], np.random.default_rng(3)
    gradients = [[rng.standard_normal(p.shape) for p in params] for _ in range(8)]
    seen = [record_trajectory(make([p.copy() for p in params]), gradients) for make in (ours(**mine), torchs(**theirs))]
    a, b = ([{k: [s[t] for s in made.states[k]] for k in kinds} for t in range(made.steps + 1)] for made in seen)
    error = different(a, b, gradients=gradients)
    # Without a name for its options, only frameworks' defaults and one number apart from them are looked for.
    if case in ("lr", "float32", "decay coupling"):
        assert causes(error) == ["options"]
        assert case != "float32" or "float32" in str(error)
    else:
        assert expected.partition(" in a")[0] in str(error)


SCHEDULE = {"lr": lambda step: 0.5 * 0.8**step}
OPTIONS = {
    "lr-inside-u": {"lr": 0.5},
    "lr-through-float32": {"lr": 0.3},
    "decay-without-lr": DECOUPLED | {"lr": 0.5},
    "coupled-for-decoupled": DECOUPLED,
    "decay-before-maximize": {"weight_decay": 0.1, "maximize": True},
    "maximize-ignored": {"maximize": True},
    "clip-after-decay": {"weight_decay": 0.5, "clip_value": 0.5},
    "clip-ignored": {"clip_value": 0.5},
    "norm-clipped-before-value": {"clip_value": 0.5, "clip_global_norm": 1.0},
    "small-norms-raised": {"clip_global_norm": 3.0},
    "clip-before-accumulation": {"accumulate": 2, "clip_value": 0.5},
    **{key: {"weight_decay": 0.1} for key in ("decoupled-for-coupled", "decay-ignored")},
    **{key: {"clip_global_norm": 1.0} for key in ("norm-of-each-for-norm-of-all", "norm-plus-1e-6")},
    **{key: {"accumulate": 2} for key in ("sum-for-mean", "last-gradient-only")},
    **{key: {"ema": 0.75} for key in ("average-before-update", "average-momentum-swapped")},
    **dict.fromkeys(("schedule-one-late", "schedule-one-early", "schedule-frozen"), SCHEDULE),
}
#: Some look the same as another option, which then is what is said.
AS_OPTIONS = {
    "ascends", "clip-ignored", "coupled-for-decoupled", "decay-ignored", "decay-without-lr", "decoupled-for-coupled",
    "lr-through-float32", "maximize-ignored", "rho-swapped", "schedule-frozen",
}  # fmt: skip
#: Only bits tell, or other gradients than these.
BITS_ONLY = {"fused-multiply-add", "reciprocal-root", "one-root-of-the-quotient", "squares-scaled-first"}
ELSEWHERE = {"subnormals-flushed", "complex-squares", "missing-gradient-is-zero"}


def wrong(name, params, gradients, **options):
    """A mutant as an optimizer of one's own, which does not say what it was asked for."""
    config, rates = options_of(adapt(multiopt.Adadelta([p.copy() for p in params], **options)), len(gradients) + 1)
    case = Case("", params[0].dtype.name, config, params, gradients, rates=rates)
    made = MUTANTS[name].build(case, "eager")
    return SimpleNamespace(name=name, dtype=made.dtype, step=made.step, states=made.states)


def case(dtype=np.float64, steps=8):
    rng = np.random.default_rng(11)
    params = [rng.uniform(-1, 1, shape).astype(dtype) for shape in ((6,), (2, 3))]
    return params, [[rng.standard_normal(p.shape).astype(dtype) for p in params] for _ in range(steps)]


@pytest.mark.parametrize("name", [name for name in MUTANTS if name not in BITS_ONLY | ELSEWHERE])
def test_mistakes_are_recognised(name):
    options = OPTIONS.get(name, {"rho": 0.95, "eps": 1e-5} if "float32" in name else {})
    params, gradients = case()
    error = different(ours(**options), wrong(name, params, gradients, **options), params=params, gradients=gradients)
    told = causes(error)
    expected = "options" if name in AS_OPTIONS else name
    assert expected in told, error
    assert "It looks like this:" in str(error)


@pytest.mark.parametrize("name", sorted(BITS_ONLY))
def test_other_bits_are_recognised(name):
    params, gradients = case(steps=20)
    given = {"params": params, "gradients": gradients}
    assert_same_trajectory(ours(), wrong(name, params, gradients), **given)
    with pytest.raises(TrajectoryError) as caught:
        assert_same_bits(ours(), wrong(name, params, gradients), **given)
    assert causes(caught.value) == [name]


def test_a_mistake_in_torch_code_is_recognised():
    torch = pytest.importorskip("torch")

    class Mine(torch.optim.Adadelta):
        """Somebody's Adadelta, with ε outside the roots."""

        @torch.no_grad()
        def step(self, closure=None):
            (group,) = self.param_groups
            rho, eps = group["rho"], group["eps"]
            for p in group["params"]:
                state = self.state[p]
                v, u = (state.setdefault(slot, torch.zeros_like(p)) for slot in ("square_avg", "acc_delta"))
                v.mul_(rho).addcmul_(p.grad, p.grad, value=1 - rho)
                d = (u.sqrt() + eps) / (v.sqrt() + eps) * p.grad
                u.mul_(rho).addcmul_(d, d, value=1 - rho)
                p.sub_(group["lr"] * d)

    def mine(params):
        return Mine([torch.tensor(p, requires_grad=True) for p in params], lr=0.5)

    error = different(torchs(lr=0.5), mine, params=F64)
    assert causes(error)[0] == "eps-outside-root"
    assert "ε is added outside the square roots" in str(error)


@pytest.fixture
def tensor():
    torch = pytest.importorskip("torch")
    return torch.linspace(-1, 1, 5, dtype=torch.float64)


def test_a_scheduler_one_step_late_is_recognised(tensor):
    torch = pytest.importorskip("torch")
    mine = multiopt.Adadelta([tensor.numpy().copy()], lr=lambda step: 0.5 * 0.8**step)
    theirs = torch.optim.Adadelta([tensor], lr=0.5)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(theirs, 0.8)
    late = adapt(theirs, after_step=lambda step: scheduler.step() if step > 0 else None)
    assert "schedule-one-late" in causes(different(mine, late, steps=6))


def test_torch_clipping_goes_between(tensor):
    torch = pytest.importorskip("torch")
    mine = multiopt.Adadelta([tensor.numpy().copy()], clip_global_norm=0.5)
    clip = lambda step: torch.nn.utils.clip_grad_norm_([tensor], 0.5)  # noqa: E731
    assert "norm-plus-1e-6" in causes(different(mine, adapt(torch.optim.Adadelta([tensor]), before_step=clip)))


# --- one alone ---


def test_the_published_rule():
    assert max(assert_published_rule(torchs(lr=0.5)).values()) < 64
    assert max(assert_published_rule(ours(rho=0.95, weight_decay=0.1), params=F64).values()) < 10
    optax = pytest.importorskip("optax")
    params = [np.ones(3, np.float32)]
    assert_published_rule(optax.adadelta(0.5), params=params, lr=0.5, rho=0.9, eps=1e-6)
    with pytest.raises(TrajectoryError, match="maximize") as caught:
        assert_published_rule(optax.adadelta(), params=params, lr=1.0, rho=0.9, eps=1e-6)
    assert "does not follow the published rule" in str(caught.value)
    with pytest.raises(ValueError, match="does not say what it was asked for"):
        assert_published_rule(optax.adadelta(), params=params)
