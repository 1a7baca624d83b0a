"""The laws hold for multiopt on every library, more cases than `multiopt check` tries; and broken ones are noticed."""

import numpy as np
import pytest

pytest.importorskip("hypothesis")

from multiopt.conformance.checks.examples import OPTIONS, SHAPES, make_case
from multiopt.conformance.checks.law import BrokenError
from multiopt.conformance.checks.laws import LAWS, verdicts
from multiopt.conformance.mutation.mutants import JUDGED_AS, MUTANTS
from multiopt.conformance.targets.run import run_target
from multiopt.conformance.targets.target import all_targets

import multiopt

FAST = ("numpy-eager", "functional", "strict")


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("target", FAST)
def test_laws_hold(target, law):
    target = all_targets()[target]
    if target.absent():
        pytest.skip(target.absent())
    if not LAWS[law].concerns(target):
        pytest.skip(f"{target.name} has no words for it")
    verdict = LAWS[law].verdict(target, examples=25)
    assert verdict.outcome == "passed", verdict


@pytest.mark.parametrize("target", ["numpy", "torch", "jax", "jax-jit", "dask", "keras-face"])
@pytest.mark.parametrize("law", ["sign symmetry", "split", "missing gradient", "save and resume"])
def test_laws_hold_where_cases_are_costly(target, law):
    target = all_targets()[target]
    if target.absent():
        pytest.skip(target.absent())
    if not LAWS[law].concerns(target):
        pytest.skip(f"{target.name} has no words for it")
    verdict = LAWS[law].verdict(target, examples=2)
    assert verdict.outcome == "passed", verdict


def test_every_law_says_what_it_says_of_numpy():
    found = list(verdicts(all_targets()["numpy-eager"], examples=1))
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

BROKEN_BY = {
    "permutation": "one-v-per-tensor",
    "split": "norm-of-each-for-norm-of-all",
    "zero gradient": "rho-swapped",
    "learning rate": "lr-inside-u",
    "missing gradient": "missing-gradient-is-zero",
    "maximize": "maximize-ignored",
    "accumulation": "sum-for-mean",
}


@pytest.mark.parametrize("law", BROKEN_BY)
def test_mutants_break_laws(law):
    verdict = LAWS[law].verdict(MUTANTS[BROKEN_BY[law]].target(), examples=25)
    assert verdict.failed, verdict
    assert verdict.place is not None
    assert "seed" in verdict.note


def test_an_asymmetry_breaks_the_mirror():
    class Lopsided(JUDGED_AS.optimizer):
        def delta(self, g, v, u):
            return super().delta(np.where(g > 0, g, g * 1.5), v, u)

    from dataclasses import replace

    target = replace(JUDGED_AS, optimizer=Lopsided)
    assert LAWS["sign symmetry"].verdict(target).failed
    assert not LAWS["reshape"].verdict(target).failed


def test_a_dependence_on_shape_breaks_reshaping():
    from dataclasses import replace

    class Shaped(JUDGED_AS.optimizer):
        def __init__(self, case):
            super().__init__(case)
            if any(len(shape) == 2 and shape[1] == 1 for shape in case.shapes):
                self.eps *= 2

    assert LAWS["reshape"].verdict(replace(JUDGED_AS, optimizer=Shaped)).failed


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
    verdict = LAWS[law].verdict(all_targets()["numpy-eager"])
    assert verdict.failed
    monkeypatch.setattr(Spoiled, "spoil", "")
    assert not LAWS[law].verdict(all_targets()["numpy-eager"]).failed


def test_a_broken_law_says_where():
    case = make_case("plain", "float64", ((3,),), 2, 0)
    one = run_target(all_targets()["numpy-eager"], case)
    from multiopt.conformance.checks.laws import agree, back

    def bend(kind, series):
        bent = [a.copy() for a in series]
        bent[0][2, 1] *= 2
        return bent

    with pytest.raises(BrokenError, match="square_avg is another one when bent") as caught:
        agree(all_targets()["numpy-eager"], one, back(one, one, bend), "when bent")
    assert (caught.value.place.step, caught.value.place.tensor, caught.value.place.element) == (2, "p0", 1)
