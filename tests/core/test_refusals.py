"""What is refused has changed nothing: no parameter, state, counter, option, and no bit of what comes after."""

import math
import re
from itertools import count

import numpy as np
import pytest
from libraries import refused, snapshot

from multiopt import Adadelta, schedules

#: Schedules of a second group that end a step, and what is raised then.
BAD_SCHEDULES = {
    "raises": ("lr", lambda step: 1 // 0, ZeroDivisionError, "zero"),
    "none": ("lr", lambda step: None, TypeError, r"groups\[1\].lr at step 2: expected a real number in .*got None"),
    "nan": ("rho", lambda step: math.nan, ValueError, r"groups\[1\].rho at step 2: expected a number in .*got nan"),
    "two": ("eps", lambda step: np.ones(2), TypeError, r"groups\[1\].eps at step 2: expected a real number"),
    "text": (
        "weight_decay",
        lambda step: "1",
        TypeError,
        r"groups\[1\].weight_decay at step 2: expected a real number",
    ),
    "range": (
        "rho",
        lambda step: 1.5,
        ValueError,
        r"groups\[1\].rho at step 2: expected a number in \[0, 1\], got 1.5",
    ),
    "large": ("lr", lambda step: 1e300, ValueError, r"groups\[1\].lr at step 2: expected a size of at most 3\.4"),
    "small": ("eps", lambda step: 1e-46, ValueError, r"groups\[1\].eps at step 2: expected a size of at least 1\.4"),
}
#: Gradients of the second group's arrays, of shapes (2,) and (3,), that are refused.
BAD_GRADIENTS = {
    "shape": (lambda one, two: [one, two[:2]], ValueError, r"groups\[1\].grads\[1\]: expected shape"),
    "kind": (lambda one, two: [one, "g"], TypeError, r"groups\[1\].grads\[1\]: "),
    "number": (lambda one, two: [one], ValueError, r"grads\[1\]: expected 2 entries"),
}


def two_groups(plain, **options):
    """An optimizer in the middle of a training: two steps done and, if it accumulates, one micro-batch of the next."""
    values = [np.linspace(-1, 1, n, dtype=np.float32) for n in (4, 2, 3)]
    groups = [{"params": plain.params(values[:1]), "lr": 0.5}, {"params": plain.params(values[1:])}]
    opt = Adadelta(groups, engine=plain.engine, **{"ema": 0.5, "clip_global_norm": 1.0, **options})
    for _ in range(3 * opt.accumulate - 1 if opt.accumulate > 1 else 2):
        opt.step(gradients(plain))
    return opt


def gradients(plain):
    one, two, three = plain.grads([np.linspace(-2, 1, n, dtype=np.float32) for n in (4, 2, 3)])
    return [[one], [two, three]]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_refused_step_changes_nothing(plain, accumulate):
    opt, other = (two_groups(plain, accumulate=accumulate) for _ in range(2))
    for name, schedule, kind, message in BAD_SCHEDULES.values():
        good = opt.groups[1][name]
        opt.groups[1][name] = schedule
        with refused(opt, kind, message):
            opt.step(gradients(plain))
        opt.groups[1][name] = good
    for make, kind, message in BAD_GRADIENTS.values():
        first, second = gradients(plain)
        with refused(opt, kind, message):
            opt.step([first, make(*second)])
    for each in (opt, other):
        each.step(gradients(plain))
    assert snapshot(opt)[0] == snapshot(other)[0]


def test_memory_that_runs_out_while_a_group_is_added(plain, monkeypatch):
    """At each allocation; for the groups that there are, it never happened."""
    opt, other = (
        Adadelta(plain.params([np.ones(3, np.float32)]), engine=plain.engine, ema=0.5, accumulate=2) for _ in range(2)
    )
    opt.step(plain.grads([np.ones(3, np.float32)]))
    other.step(plain.grads([np.ones(3, np.float32)]))
    new = {"params": plain.params([np.ones(2, np.float32), np.ones(4, np.float32)]), "lr": 0.5}
    for k in count():
        left = [k]

        def failing(allocate, left=left):
            def call(*arguments):
                left[0] -= 1
                if left[0] < 0:
                    raise MemoryError
                return allocate(*arguments)

            return call

        with monkeypatch.context() as patch:
            for name in ("full_like", "empty_like", "copy", "cast"):
                patch.setattr(opt.backend, name, failing(getattr(opt.backend, name)))
            before = snapshot(opt)
            try:
                opt.add_param_group(new)
            except MemoryError:
                pass
            else:
                break
        assert snapshot(opt) == before
        if k == 0:
            for each in (opt, other):
                each.step(plain.grads([np.ones(3, np.float32)]))
            assert snapshot(opt)[0] == snapshot(other)[0]
    assert k >= 4
    # Nothing is left of the attempts that failed.
    other.add_param_group({**new, "params": plain.params([np.ones(2, np.float32), np.ones(4, np.float32)])})
    for _ in range(2):
        for each in (opt, other):
            each.step([plain.grads([np.ones(3, np.float32)]), plain.grads([np.ones(n, np.float32) for n in (2, 4)])])
    assert snapshot(opt) == snapshot(other)


def test_what_a_schedule_assigns_holds_from_the_next_step_on(plain):
    """Whichever group it belongs to: a step is done with the options that it began with."""

    def meddle(step):
        if step == 2:
            opt.groups[0].update(lr=0.25, weight_decay=0.0, clip_norm=None)
            opt.groups[1].update(clip_norm=0.125, clip_value=0.5)
            opt.clip_global_norm, opt.ema = None, 0.75
        return 1.0

    opt, other = two_groups(plain, clip_norm=2.0), two_groups(plain, clip_norm=2.0)
    for each, rate in ((opt, meddle), (other, 1.0)):
        each.groups[0].update(lr=rate, weight_decay=lambda step: 0.1)
    for each in (opt, other):
        each.step(gradients(plain))
    assert snapshot(opt)[0] == snapshot(other)[0]
    other.groups[0].update(lr=0.25, weight_decay=0.0, clip_norm=None)
    other.groups[1].update(clip_norm=0.125, clip_value=0.5)
    other.clip_global_norm, other.ema = None, 0.75
    for each in (opt, other):
        each.step(gradients(plain))
    assert snapshot(opt)[0] == snapshot(other)[0]


# --- numbers that are none in the dtype that computes ---

#: Each with the option, and the least or the most that works in float32.
NOT_IN_FLOAT32 = [
    *((name, 1e-46, "at least 1.401298464324817e-45") for name in ("lr", "rho", "eps", "weight_decay", "ema")),
    *((name, 1e-50, "at least 1.401298464324817e-45") for name in ("clip_value", "clip_norm", "clip_global_norm")),
    *((name, 1e300, "at most 3.4028234663852886e+38") for name in ("lr", "eps", "weight_decay")),
]


@pytest.mark.parametrize(("name", "value", "bound"), NOT_IN_FLOAT32)
def test_numbers_that_float32_does_not_hold(name, value, bound):
    message = rf"{name}: expected a size of {bound.replace('+', '.')}, the (smallest|largest) number of float32"
    x, wide = np.ones(2, np.float32), np.ones(2)
    with pytest.raises(ValueError, match=f"^{message}"):
        Adadelta(x, **{name: value})
    opt = Adadelta([{"params": wide}, {"params": x}], ema=0.5)
    with refused(opt, ValueError, message):
        setattr(opt, name, value)
    if name not in opt.settings:
        with refused(opt, ValueError, rf"^groups\[1\]\.{message}"):
            opt.groups[1].update({"maximize": True, name: value})
        with refused(opt, ValueError, rf"^groups\[2\]\.{message}"):
            opt.add_param_group({"params": np.ones(1, np.float16), name: value})
        opt.groups[0][name] = value
        with refused(opt, ValueError, message):
            opt.load_state_dict(swapped(opt.state_dict()))
    # float64 takes them, be it the parameter's or the state's.
    for taken in (Adadelta(wide, ema=0.5), Adadelta(x, ema=0.5, state_dtype="float64")):
        setattr(taken, name, value)
        taken.step(np.ones(2, x.dtype if taken.params is x else wide.dtype))


def swapped(state):
    """A state_dict with the groups' options exchanged."""
    one, two = state["about"]["groups"]
    groups = [{**two, "names": one["names"]}, {**one, "names": two["names"]}]
    return {**state, "about": {**state["about"], "groups": groups}}


def test_numbers_that_float32_holds():
    x = np.ones(2, np.float32)
    least, most = float(np.finfo(np.float32).smallest_subnormal), float(np.finfo(np.float32).max)
    Adadelta(x, lr=least, eps=least, weight_decay=least, clip_value=least, clip_norm=least)
    Adadelta(x, lr=most, eps=most, weight_decay=most)
    # A threshold beyond all numbers is never met.
    Adadelta(x, clip_value=1e300, clip_norm=1e300, clip_global_norm=1e300).step(np.ones(2, np.float32))
    Adadelta(x, lr=0, rho=0, weight_decay=0)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_loss_scales_whose_inverse_vanishes_or_overflows(accumulate):
    for dtype, refusals in [(np.float32, [5e-324, 1e-40, 1e300]), (np.float64, [5e-324, 1e-310])]:
        opt = Adadelta(np.ones(2, dtype), accumulate=accumulate)
        for value in refusals:
            message = re.escape(f"is one in {np.dtype(dtype)}, in which it is computed, got {value}")
            with pytest.raises(ValueError, match=message):
                Adadelta(np.ones(2, dtype), loss_scale=value, accumulate=accumulate)
            with refused(opt, ValueError, message):
                opt.loss_scale = value
            # The bounds that it names work.
            with pytest.raises(ValueError, match=message) as error:
                opt.loss_scale = value
            lowest, highest = re.search(
                r"loss_scale: expected a number from (\S+) to (\S+),", str(error.value)
            ).groups()
            for bound in (float(lowest), float(highest)):
                opt.loss_scale = bound
                factor = np.dtype(dtype).type(1 / (bound * accumulate))
                assert 0 < factor < np.inf
                opt.loss_scale = 1.0


def test_a_schedule_that_decays_to_nothing_ends_no_training():
    """What it yields is 0 once it is that small in float32, as it would be a little later in any dtype."""
    x = np.ones(2, np.float32)
    opt = Adadelta(x, lr=schedules.Exponential(1e-44, 1, 0.1), weight_decay=lambda step: 1e-44 * 0.1**step)
    for _ in range(4):
        opt.step(np.ones(2, np.float32))
    assert opt.steps == 4
