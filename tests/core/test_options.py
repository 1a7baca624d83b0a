"""Options: the table, their ranges, and what becomes of values that are assigned while training."""

import math
from pathlib import Path

import numpy as np
import pytest
from exact import draw, exactly
from hypothesis import given
from hypothesis import strategies as st
from libraries import refused

from multiopt import ADADELTA, Adadelta, options

TABLE = {**options.options_of(ADADELTA), **options.OPTIONS}
GROUP, STEP, FIXED = ([o.name for o in TABLE.values() if o.scope == scope] for scope in ("group", "step", "fixed"))
#: Values out of range, and values of another type, of every option.
POSITIVE = [0.0, -1.0, math.nan, math.inf]
BAD = {
    "lr": [-1.0, math.nan, math.inf, -math.inf],
    "rho": [-0.1, 1.5, math.nan, math.inf],
    "eps": POSITIVE,
    "weight_decay": [-0.1, math.nan, math.inf],
    **{name: [] for name in ("decoupled", "maximize")},
    "clip_value": POSITIVE,
    **{name: [0.0, -1.0, math.nan, -math.inf] for name in ("clip_norm", "clip_global_norm")},
    "loss_scale": POSITIVE,
    "nonfinite": ["ignore", None, True],
    "ema": [-0.1, 1.0, 1.5, math.nan],
    "accumulate": [0, -1, 1.5, True, "2", None],
    "state_dtype": ["int32", "float8", np.float32, 4],
    "state_rounding": ["up", None, True],
    "seed": [-1, 2**64, 1.0, True, "0", None],
    "engine": ["gpu", None, 3],
    "donate": [True],  # of arrays that are updated in place
}
OF_ANOTHER_TYPE = {
    **{name: ["0.5", None, True, [1.0], 1j, b"1", {}] for name in ("lr", "rho", "eps", "weight_decay")},
    **{name: ["0.5", True, [1.0]] for name in ("clip_value", "clip_norm", "clip_global_norm", "loss_scale", "ema")},
    **{name: [1, 0, None, "yes", np.True_] for name in ("decoupled", "maximize", "donate")},
}


def train(**changed):
    opt = Adadelta([np.ones(2), np.ones(3)], **{"ema": 0.5, "accumulate": 2, "clip_global_norm": 1.0, **changed})
    for _ in range(3):
        opt.step([np.ones(2), np.ones(3)])
    return opt


def test_the_page_is_the_table():
    page = Path(__file__).parents[2] / "docs" / "options.md"
    assert f"\n\n{options.table(ADADELTA)}\n\n" in page.read_text()


def test_the_table_is_what_the_optimizer_has():
    lines = options.table(ADADELTA).splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == list(TABLE) == list(BAD)
    opt = Adadelta([np.ones(2)])
    assert {name: getattr(opt, name) for name in TABLE} == {name: o.default for name, o in TABLE.items()}
    assert list(opt.groups[0].options()) == GROUP
    assert opt.settings == {"rule": ADADELTA, **{name: TABLE[name].default for name in (*STEP, *FIXED)}}


@pytest.mark.parametrize("name", TABLE)
def test_bad_values_are_refused_before_anything_changes(name):
    opt = train()
    for kind, values in [(ValueError, BAD[name]), (TypeError, OF_ANOTHER_TYPE.get(name, []))]:
        for value in values:
            with pytest.raises(kind, match=rf"^{name}: expected .*got"):
                Adadelta(np.ones(2), **{name: value})
            if name not in FIXED:
                with refused(opt, kind, f"^{name}: expected .*got"):
                    setattr(opt, name, value)
            if name in GROUP:
                with refused(opt, kind, f"^{name}: expected .*got"):
                    opt.groups[0][name] = value
                with refused(opt, kind, rf"^groups\[1\]\.{name}: expected .*got"):
                    opt.add_param_group({"params": np.ones(1), name: value})
                assert len(opt.groups) == 1
    assert BAD[name] or OF_ANOTHER_TYPE[name]


def test_what_cannot_be_assigned_says_so():
    opt, plain = train(), Adadelta([np.ones(2)])
    for name in (*FIXED, "rule"):
        with refused(opt, AttributeError, f"{name}: fixed when the optimizer was made"):
            setattr(opt, name, getattr(opt, name))
    with pytest.raises(AttributeError):
        opt.params = [np.zeros(2)]
    with refused(opt, TypeError, "params: cannot be replaced"):
        opt.groups[0]["params"] = [np.zeros(2)]
    with refused(opt, TypeError, "lr: options cannot be removed"):
        del opt.groups[0]["lr"]
    with refused(opt, ValueError, "ema: expected a momentum, as when the optimizer was made, got None"):
        opt.ema = None
    opt.ema = 0.25
    opt.step([np.ones(2), np.ones(3)])
    with refused(plain, ValueError, r"ema: expected None, .*got 0\.5"):
        plain.ema = 0.5
    with pytest.raises(AttributeError, match="ema_params: expected an optimizer made with ema"):
        plain.ema_params  # noqa: B018
    for act in (lambda: plain.learning_rate, lambda: setattr(plain, "learning_rate", 1.0)):
        with pytest.raises(AttributeError, match="no attribute 'learning_rate'"):
            act()
    for unknown in ("learning_rate", "betas"):
        with pytest.raises(TypeError, match=f"{unknown}: unknown option; expected one of lr, .*, engine"):
            Adadelta(np.ones(2), **{unknown: 1})


@pytest.mark.parametrize("name", ["lr", "rho", "eps", "weight_decay"])
def test_schedules_that_return_nonsense_or_raise(plain, name):
    good = {"lr": 0.5, "rho": 0.5, "eps": 0.5, "weight_decay": 0.5}[name]
    for bad, kind in [(-1.0, ValueError), (math.nan, ValueError), ("x", TypeError), (None, TypeError)]:
        opt = Adadelta(plain.param(np.ones(2)), engine=plain.engine, **{name: lambda t, bad=bad: bad if t else good})
        opt.step(plain.grad(np.ones(2)))
        with refused(opt, kind, f"{name} at step 1: expected a (real )?number"):
            opt.step(plain.grad(np.ones(2)))
    setattr(opt, name, lambda step: 1 // (step - 1))
    with refused(opt, ZeroDivisionError, "zero"):
        opt.step(plain.grad(np.ones(2)))


def test_attributes_that_differ_between_groups():
    opt = Adadelta([{"params": np.ones(1), "lr": 0.5}, {"params": np.ones(1)}])
    with pytest.raises(AttributeError, match=r"lr differs between groups \(\[0.5, 1.0\]\); see groups"):
        opt.lr  # noqa: B018
    opt.lr = 0.25
    assert opt.lr == 0.25
    assert [group["lr"] for group in opt.groups] == [0.25, 0.25]


def test_assigned_numbers_are_used():
    rng = np.random.default_rng(2)
    params, batches = draw(rng), [draw(rng) for _ in range(4)]
    values = {
        "lr": lambda t: 0.5 / (1 + t),
        "rho": lambda t: 0.5 + 0.1 * t,
        "eps": lambda t: 10.0**-t,
        "weight_decay": lambda t: 0.1 * t,
        "clip_value": lambda t: 2.0 / (1 + t),
    }
    want = exactly(params, batches, **values)
    opt = Adadelta(params)
    for step, batch in enumerate(batches):
        for name, value in values.items():
            setattr(opt, name, value(step))
        opt.step(batch)
    for got, expected in zip(opt.params, want["params"], strict=True):
        np.testing.assert_allclose(got, expected, rtol=3e-14, atol=1e-15)  # as in test_adadelta.py


NUMBERS = st.one_of(st.floats(), st.integers(-(10**400), 10**400), st.none(), st.booleans(), st.text(max_size=2))


@given(st.dictionaries(st.sampled_from([*BAD, "betas"]), NUMBERS, min_size=1, max_size=3))
def test_any_options_make_an_optimizer_or_an_error(chosen):
    x = np.ones(2)
    try:
        opt = Adadelta(x, **{"engine": "eager", **chosen})
    except (TypeError, ValueError) as error:
        assert any(name in str(error) for name in chosen)  # noqa: PT017
    else:
        # What was accepted makes sense, and works.
        assert opt.lr >= 0
        assert 0 <= opt.rho <= 1
        assert opt.eps > 0
        opt.step(np.ones(2))
        assert not np.isnan(x).any() or opt.lr > 1e150 or opt.weight_decay > 1e150 or opt.loss_scale < 1e-150
