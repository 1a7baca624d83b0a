"""Arrays that get other memory, another shape or a lock between steps, and gradients that lie where a step writes."""

import numpy as np
import pytest
from libraries import refused

from multiopt import Adadelta, Hyper, Rule
from multiopt.binding import Binding

START = np.linspace(1, 2, 4, dtype=np.float32)


def become(array, other):
    """Give an array the memory, shape and dtype of another, as unpickling into it does; its old memory is freed."""
    array.__setstate__((1, other.shape, other.dtype, False, other.tobytes()))


#: What may be done to an array behind the optimizer's back, and what the refusal says.
CHANGES = {
    "grown": (lambda a: a.resize(10, refcheck=False), r"\(4,\)\), as when the optimizer was made, got .*\(10,\)"),
    "shrunk": (lambda a: a.resize(2, refcheck=False), r"\(4,\)\), as when the optimizer was made, got .*\(2,\)"),
    "reshaped": (lambda a: become(a, a.reshape(2, 2)), r"\(4,\)\), as when the optimizer was made, got .*\(2, 2\)"),
    "retyped": (lambda a: become(a, a.astype("f2")), "float32.*, as when the optimizer was made, got .*float16"),
    "made complex": (lambda a: become(a, a + 1j), "float32.*, as when the optimizer was made, got .*complex64"),
    "read-only": (lambda a: a.setflags(write=False), "expected an array that can be written to, got a read-only one"),
}
#: Where an optimizer's arrays are, and what messages call them.
ARRAYS = {
    "parameter": (lambda opt: opt.params[1][0], r"groups\[1\]\.params\[0\]: "),
    "state": (lambda opt: opt.state[1][0]["acc_delta"], r"acc_delta of groups\[1\]\.params\[0\]: "),
    "average": (lambda opt: opt.ema_params[1][0], r"groups\[1\]\.params\[0\]: "),
    "sum": (lambda opt: opt.accumulators[1].binding.params[0], r"groups\[1\]\.params\[0\]: "),
}


def made(engine, **options):
    groups = [{"params": [START.copy()]}, {"params": [START.copy()], "rho": 0.5}]
    return Adadelta(groups, engine=engine, **options)


GRADS = [[START * 3], [START * 5]]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("place", ARRAYS)
def test_what_an_engine_was_told_is_asked_again_in_each_step(engine, place, change):
    opt = made(engine, ema=0.9, accumulate=2)
    for _ in range(3):
        opt.step(GRADS)
    (find, name), (act, message) = ARRAYS[place], CHANGES[change]
    act(find(opt))
    with refused(opt, ValueError, name + ".*" + message):
        opt.step(GRADS)


@pytest.mark.parametrize("place", ARRAYS)
def test_arrays_may_move(engine, place):
    opt, other = made(engine, ema=0.9, accumulate=2), made("eager", ema=0.9, accumulate=2)
    addresses, kept = set(), []
    for _ in range(5):
        array = ARRAYS[place][0](opt)
        kept.append(array.copy())
        become(array, np.zeros(10_000))
        kept.append(kept[-1].copy())  # takes the memory that has become free
        become(array, kept[-1])
        addresses.add(array.ctypes.data)
        for each in (opt, other):
            each.step(GRADS)
    assert len(addresses) > 1
    for k in range(2):
        assert opt.params[k][0].tobytes() == other.params[k][0].tobytes()
        assert opt.ema_params[k][0].tobytes() == other.ema_params[k][0].tobytes()


def test_arrays_that_come_to_share_memory_are_refused(torch):
    opt = Adadelta([torch.ones(4), torch.ones(4)])
    opt.step([torch.ones(4)] * 2)
    opt.state[1]["square_avg"].data = opt.params[0][:]
    with refused(opt, ValueError, r"square_avg of params\[1\]: expected memory of its own, .* overlaps params\[0\]"):
        opt.step([torch.ones(4)] * 2)


# --- state that is given ---


def pair(**changes):
    x, own = START.copy(), {"square_avg": np.zeros(4, np.float32), "acc_delta": np.zeros(4, np.float32)}
    from multiopt import ADADELTA

    return Binding(ADADELTA, [x], ["x"], state=[own | changes])


@pytest.mark.parametrize(
    ("other", "kind", "message"),
    [
        (np.zeros(3, np.float32), ValueError, r"acc_delta of x: expected shape \(4,\)"),
        (np.zeros(4), TypeError, "acc_delta of x: expected dtype float32, got float64"),
        (np.zeros(4, np.complex64), TypeError, "acc_delta of x: expected dtype float32, got complex64"),
        (np.zeros(4, np.int32), TypeError, "acc_delta of x: expected one of the dtypes"),
        ([0.0] * 4, TypeError, "acc_delta of x: .*list"),
    ],
)
def test_state_agrees_with_its_parameter(other, kind, message):
    pair()
    with pytest.raises(kind, match=message):
        pair(acc_delta=other)


@pytest.mark.parametrize(("x", "state"), [(np.complex64, np.float32), (np.float32, np.complex64)])
def test_state_is_complex_where_its_parameter_is(x, state):
    """A kernel writes as many numbers to the state as to the parameter."""
    sgd = Rule("momentum", lambda xp, x, g, m, *, lr: (x - lr * g, m), {"m": 0.0}, {"lr": Hyper(1.0)})
    with pytest.raises(TypeError, match="m of x: expected complex state for a complex parameter and no other"):
        Binding(sgd, [np.zeros(4, x)], ["x"], state=[{"m": np.zeros(4, state)}])


# --- gradients in memory that is written to ---


def under_another_owner(array):
    """A view of an array's memory which NumPy does not know to be one."""
    return np.frombuffer((np.ctypeslib.as_ctypes(array)), array.dtype)


#: Gradients for `made`'s optimizer that lie in its own memory.
ALIASES = {
    "another parameter": lambda opt: [[opt.params[1][0]], [opt.params[0][0]]],
    "its own, a part": lambda opt: [[under_another_owner(opt.params[0][0])[::-1]], [START]],
    "under another owner": lambda opt: [[START], [under_another_owner(opt.params[0][0])]],
    "both under another owner": lambda opt: [
        [under_another_owner(opt.params[1][0])],
        [under_another_owner(opt.params[0][0])],
    ],
    "state of another": lambda opt: [[START], [opt.state[0][0]["square_avg"]]],
    "its own state": lambda opt: [[opt.state[0][0]["acc_delta"]], [opt.state[0][0]["acc_delta"]]],
    "an average": lambda opt: [[opt.ema_params[1][0]], [opt.ema_params[0][0]]],
}


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("options", [{}, {"clip_global_norm": 0.5}, {"accumulate": 2}], ids=["plain", "norm", "sums"])
def test_aliases_give_what_copies_give(engine, alias, options):
    ours, theirs = (made(engine, ema=0.5, **options) for _ in range(2))
    for opt in (ours, theirs):
        opt.step(GRADS)
        opt.step(GRADS)
    for _ in range(3):
        ours.step(ALIASES[alias](ours))
        theirs.step([[g.copy() for g in group] for group in ALIASES[alias](theirs)])
    for k in range(2):
        for a, b in zip([ours.params[k][0], *ours.state[k][0].values()],
                        [theirs.params[k][0], *theirs.state[k][0].values()], strict=True):  # fmt: skip
            assert a.tobytes() == b.tobytes()


def test_aliases_within_a_bucket(engine):
    ours, theirs = (Adadelta([START.copy(), START.copy(), START.copy()], engine=engine) for _ in range(2))
    for k in range(4):
        ours.step([ours.params[1], ours.state[2]["square_avg"], ours.params[2]] if k else [START] * 3)
        own = [theirs.params[1], theirs.state[2]["square_avg"], theirs.params[2]] if k else [START] * 3
        theirs.step([g.copy() for g in own])
    assert [x.tobytes() for x in ours.params] == [x.tobytes() for x in theirs.params]


# --- a refused micro-batch ---


@pytest.mark.parametrize("refusal", ["bad gradient", "locked parameter", "schedule"])
def test_a_refused_last_micro_batch_can_be_repeated(engine, refusal):
    failing = [False]

    def lr(step):
        if failing[0]:
            raise OSError("no rate today")
        return 0.5

    ours, theirs = (Adadelta([START.copy(), START.copy()], lr=lr, accumulate=2, engine=engine) for _ in range(2))
    for _ in range(3):
        for last in (False, True):
            theirs.step([START, -START])
            if last and refusal == "schedule":
                failing[0] = True
                with pytest.raises(OSError, match="no rate"):
                    ours.step([START, -START])
                failing[0] = False
            elif last and refusal == "locked parameter":
                ours.params[1].setflags(write=False)
                with refused(ours, ValueError, r"params\[1\]: .*read-only"):
                    ours.step([START, -START])
                ours.params[1].setflags(write=True)
            elif last:
                with refused(ours, ValueError, r"grads\[1\]: expected shape"):
                    ours.step([START, START[:2]])
            ours.step([START, -START])
    assert [x.tobytes() for x in ours.params] == [x.tobytes() for x in theirs.params]
    assert ours.steps == 3


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_fails_leaves_immutable_arrays_as_they_were(jax, accumulate):
    calls = [0]

    def function(xp, x, g, m, *, lr):
        calls[0] += 1
        if calls[0] == failing:
            raise OSError("in the middle")
        return x - lr * g, m + g

    failing = 0
    rule = Rule("failing", function, {"m": 0.0}, {"lr": Hyper(1.0)})
    from multiopt import Optimizer

    def make():
        x = [jax.numpy.asarray(START), jax.numpy.asarray(START)]
        return Optimizer(rule, x, engine="eager", accumulate=accumulate, ema=0.5)

    g = [jax.numpy.asarray(START)] * 2
    ours, theirs = make(), make()
    for k in range(2 * accumulate):
        theirs.step(g)
        if (k + 1) % accumulate == 0:
            failing = calls[0] + 2
            with refused(ours, OSError, "in the middle"):
                ours.step(g)
        failing = 0
        ours.step(g)
    assert [np.asarray(x).tobytes() for x in ours.params] == [np.asarray(x).tobytes() for x in theirs.params]
