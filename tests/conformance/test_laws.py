"""The laws hold for multiopt on every library, more cases than `multiopt check` tries; and broken ones are noticed."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("hypothesis")

from multiopt.conformance.checks.law import OPTIONS, SHAPES, BrokenError, make_case
from multiopt.conformance.checks.laws import LAWS, agree, back
from multiopt.conformance.mutation.formulas import assembled, update
from multiopt.conformance.mutation.mutants import MUTANTS, build
from multiopt.conformance.targets.run import run_target
from multiopt.conformance.targets.target import all_targets

import multiopt
from multiopt import ADADELTA, Rule

EAGER = all_targets()["numpy-eager"]
FAST = ("numpy-eager", "functional", "strict")


COSTLY = ("sign symmetry", "split", "missing gradient", "save and resume")


@pytest.mark.parametrize(
    ("target", "law", "examples"),
    [(target, law, 25) for target in FAST for law in LAWS]
    + [(t, law, 2) for t in ("numpy", "torch", "jax", "jax-jit", "dask", "keras-face") for law in COSTLY],
)
def test_laws_hold(target, law, examples):
    target = all_targets()[target]
    if target.absent():
        pytest.skip(target.absent())
    if not LAWS[law].concerns(target):
        pytest.skip(f"{target.name} does not support it")
    verdict = LAWS[law].verdict(target, examples)
    assert verdict.outcome == "passed", verdict


def test_every_law_says_what_it_says_of_numpy():
    found = [law.verdict(EAGER, 1) for law in LAWS.values() if law.concerns(EAGER)]
    assert [v.kind for v in found] == list(LAWS)
    assert all(v.reason and v.note.endswith("cases") for v in found)


def test_the_same_cases_in_every_run():
    # By another arithmetic, the same first failure.
    target = MUTANTS["one-v-per-tensor"].target()
    first, second = (str(LAWS["split"].verdict(target)) for _ in range(2))
    assert first == second
    assert "failed" in first


def test_cases_are_of_every_kind():
    q = make_case("plain", "float32", SHAPES, 3, 1)
    values = np.concatenate([np.asarray(g).ravel() for row in q.gradients for g in row])
    assert (values == 0).any()
    size = np.abs(values[values != 0])
    assert size.max() / size.min() > 1e3
    assert {c.decay_kind for c in OPTIONS.values()} == {None, "coupled", "decoupled"}


# --- each law can be broken ---


def lopsided(case):
    wrong = assembled(update=lambda xp, g, v, u, eps: update(xp, xp.where(g > 0, g, g * 1.5), v, u, eps))
    return build(case, "eager", Rule("lopsided", wrong, ADADELTA.slots, ADADELTA.hypers))


def other_for_columns(case):
    columns = any(len(shape) == 2 and shape[1] == 1 for shape in case.shapes)
    return build(case.with_options(eps=2 * case.config.eps) if columns else case, "eager")


#: Names of mutants, or functions that make an optimizer.
BROKEN_BY = {
    "sign symmetry": lopsided,
    "permutation": "one-v-per-tensor",
    "reshape": other_for_columns,
    "split": "norm-of-each-for-norm-of-all",
    "zero gradient": "rho-swapped",
    "learning rate": "lr-inside-u",
    "missing gradient": "missing-gradient-is-zero",
    "maximize": "maximize-ignored",
    "accumulation": "sum-for-mean",
}


@pytest.mark.parametrize("law", BROKEN_BY)
def test_mistakes_break_laws(law):
    wrong = BROKEN_BY[law]
    target = replace(EAGER, optimizer=wrong) if callable(wrong) else MUTANTS[wrong].target()
    verdict = LAWS[law].verdict(target, examples=25)
    assert verdict.failed, verdict
    assert verdict.place is not None
    assert "seed" in verdict.note


def test_a_law_that_says_nothing_of_a_mistake_holds():
    assert not LAWS["reshape"].verdict(replace(EAGER, optimizer=lopsided)).failed


class Spoiled(multiopt.Adadelta):
    """An optimizer that breaks one promise."""

    spoil = ""

    def step(self, grads):
        if self.spoil == "gradients":
            grads[0] *= 2
        if self.spoil == "early":
            self.params[0][...] = 7
        return super().step(grads)

    def load_state_dict(self, state):
        super().load_state_dict(state)
        if self.spoil == "state":
            for slot in self.state:
                slot["acc_delta"] *= 2


@pytest.mark.parametrize(
    ("law", "spoil"),
    [("gradients untouched", "gradients"), ("refusal changes nothing", "early"), ("save and resume", "state")],
)
def test_broken_promises_are_noticed(law, spoil, monkeypatch):
    import multiopt.conformance.checks.promises as promises

    monkeypatch.setattr(Spoiled, "spoil", spoil)
    monkeypatch.setattr(promises, "Adadelta", Spoiled)
    verdict = LAWS[law].verdict(EAGER)
    assert verdict.failed
    monkeypatch.setattr(Spoiled, "spoil", "")
    assert not LAWS[law].verdict(EAGER).failed


def test_a_broken_law_says_where():
    case = make_case("plain", "float64", ((3,),), 2, 0)
    one = run_target(EAGER, case)

    def bend(kind, series):
        bent = [a.copy() for a in series]
        bent[0][2, 1] *= 2
        return bent

    with pytest.raises(BrokenError, match="square_avg is another one when bent") as caught:
        agree(EAGER, one, back(one, one, bend), "when bent")
    assert (caught.value.place.step, caught.value.place.tensor, caught.value.place.element) == (2, "p0", 1)
