"""Every wrong optimizer dies by the suite's own checks, and the right one does not."""

import dataclasses
import json
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("hypothesis")
pytest.importorskip("safetensors")

from multiopt.conformance.checks.law import make_case
from multiopt.conformance.data.traces import load_all
from multiopt.conformance.mutation.formulas import ELEMENTWISE, FORMULAS, contracted
from multiopt.conformance.mutation.mutants import MUTANTS, TRUE
from multiopt.conformance.mutation.testing import CHECKS, MutationTest
from multiopt.conformance.targets.run import run_target

from multiopt.cli import main


@pytest.fixture(scope="module")
def test():
    return MutationTest(load_all())


@pytest.fixture(scope="module")
def eager():
    """Without compiling anything for each mutant: engines run the same formula, see below."""
    return MutationTest(load_all(), "eager")


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_dies(name, eager):
    # The quickest first; `multiopt check --mutants` tells what each of them finds.
    result = eager.run(MUTANTS[name], ("bits", "oracle", "trace", "law"), until_dead=True)
    assert not result.survived
    verdict = result.verdict()
    assert verdict.outcome == "passed"
    assert "killed by" in verdict.note


def test_the_true_rule_survives(test):
    result = test.run(TRUE)
    assert result.survived, result.verdict()


def test_a_check_that_rejects_the_true_rule_is_wrong():
    # Judged as the true rule, a mutant dies: then the mutation test has failed. Answers are kept by name.
    impostor = dataclasses.replace(MUTANTS["ascends"], name="true")
    assert MutationTest(load_all()).run(impostor, until_dead=True).verdict().failed


@pytest.mark.parametrize("check", CHECKS)
def test_each_kind_of_check_kills(check, test):
    # Not one kind of check is idle; and the bits see what no tolerance can.
    victim = {"oracle": "eps-twice", "trace": "eps-twice", "bits": "fused-multiply-add", "law": "lr-inside-u"}
    assert any(v.failed for v in test.verdicts(check, MUTANTS[victim[check]]))


def test_rounding_alone_is_within_the_tolerances(test):
    assert not any(v.failed for v in test.verdicts("oracle", MUTANTS["fused-multiply-add"]))


@pytest.mark.parametrize("name", FORMULAS)
def test_wrong_formulas_run_on_the_engine_that_users_run(name):
    case = make_case("plain", "float32", ((5,), (2, 3)), 3, 0)
    host, eager = (run_target(MUTANTS[name].target(engine), case) for engine in ("host", "eager"))
    assert host.bits() == eager.bits()
    assert MUTANTS[name].build(case, "host").opt.engine == ("host" if name in ELEMENTWISE else "eager")


def test_there_are_enough_and_each_says_what_it_does():
    assert len(MUTANTS) >= 15
    assert all(mutant.about and not mutant.about.endswith(".") for mutant in MUTANTS.values())
    assert len({mutant.about for mutant in MUTANTS.values()}) == len(MUTANTS)


def test_the_multiply_add_rounds_once():
    rng = np.random.default_rng(0)
    old, new = rng.standard_normal(300), rng.standard_normal(300) * 10.0 ** rng.integers(-6, 6, 300)
    got = contracted(np, 0.9, 1 - 0.9, old, new)
    added = (1 - 0.9) * (new * new)
    assert (got != 0.9 * old + added).any()
    for value, x, y in zip(got, old, added, strict=True):
        exact = Fraction(0.9) * Fraction(float(x)) + Fraction(float(y))
        below, above = (np.nextafter(value, s * np.inf) for s in (-1, 1))
        # Nothing representable is nearer.
        assert abs(Fraction(float(value)) - exact) <= min(abs(Fraction(float(v)) - exact) for v in (below, above))
    with np.errstate(invalid="ignore"):
        assert contracted(np, 0.9, 1 - 0.9, np.array(np.inf), np.array(1.0)) == np.inf


def test_the_command_prints_a_table(capsys, monkeypatch, tmp_path):
    pytest.importorskip("rich")
    import multiopt.conformance.mutation.testing as testing

    few = {name: MUTANTS[name] for name in ("eps-outside-root", "lr-inside-u")}
    monkeypatch.setattr(testing, "MUTANTS", few)
    path = tmp_path / "mutants.json"
    assert main(["check", "--mutants", "--json", str(path)]) == 0
    said = capsys.readouterr().out
    assert "2 of 2 mutants killed" in said
    assert "lr-inside-u" in said
    assert "learning rate" in said
    assert [entry["kind"] for entry in json.loads(path.read_text())] == ["eps-outside-root", "lr-inside-u", "true"]
