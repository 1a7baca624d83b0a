"""Every wrong optimizer dies by the suite's own checks, and the right one does not."""

import json
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("hypothesis")
pytest.importorskip("safetensors")

from multiopt.conformance.data.traces import load_all
from multiopt.conformance.mutation.hunt import HUNTERS, Hunter
from multiopt.conformance.mutation.mutants import MUTANTS, TRUE, fma

from multiopt.cli import main


@pytest.fixture(scope="module")
def hunter():
    return Hunter(load_all())


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_dies(name, hunter):
    hunt = hunter.hunt(MUTANTS[name], until_dead=True)
    assert not hunt.survived
    verdict = hunt.verdict()
    assert verdict.outcome == "passed"
    assert "killed by" in verdict.note


def test_the_true_rule_survives(hunter):
    hunt = hunter.hunt(TRUE["true"])
    assert hunt.survived, hunt.verdict()


def test_a_check_that_kills_the_true_rule_is_wrong(hunter):
    # Judged as the true rule, a mutant dies: then the hunt has failed.
    import dataclasses

    impostor = dataclasses.replace(MUTANTS["ascends"], name="true")
    # Answers are kept by name: this one needs a hunter of its own.
    assert Hunter(hunter.files).hunt(impostor, until_dead=True).verdict().failed


@pytest.mark.parametrize("hunter_name", HUNTERS)
def test_each_kind_of_check_kills(hunter_name, hunter):
    # Not one kind of check is idle; and the bits see what no tolerance can.
    victim = {"oracle": "eps-twice", "trace": "eps-twice", "bits": "fused-multiply-add", "law": "lr-inside-u"}
    assert any(v.failed for v in hunter.verdicts(hunter_name, MUTANTS[victim[hunter_name]]))
    assert not any(v.failed for v in hunter.verdicts("oracle", MUTANTS["fused-multiply-add"]))


def test_there_are_enough_and_each_says_what_it_does():
    assert len(MUTANTS) >= 15
    assert all(mutant.about and not mutant.about.endswith(".") for mutant in MUTANTS.values())
    assert len({mutant.about for mutant in MUTANTS.values()}) == len(MUTANTS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_emulated_multiply_add_rounds_once(dtype):
    rng = np.random.default_rng(0)
    a = dtype(0.9)
    b, c = (rng.standard_normal(300).astype(dtype) * dtype(10) ** rng.integers(-6, 6, 300).astype(dtype) for _ in "bc")
    got = fma(a, b, c)
    assert (got != a * b + c).any()
    for value, x, y in zip(got, b, c, strict=True):
        exact = Fraction(float(a)) * Fraction(float(x)) + Fraction(float(y))
        below, above = (np.nextafter(value, dtype(s * np.inf)) for s in (-1, 1))
        # Nothing representable is nearer.
        assert abs(Fraction(float(value)) - exact) <= min(abs(Fraction(float(v)) - exact) for v in (below, above))


def test_the_command_prints_a_table(capsys, monkeypatch, tmp_path):
    pytest.importorskip("rich")
    import multiopt.conformance.mutation.hunt as hunt

    few = {name: MUTANTS[name] for name in ("eps-outside-root", "lr-inside-u")}
    monkeypatch.setattr(hunt, "MUTANTS", few)
    path = tmp_path / "mutants.json"
    assert main(["check", "--mutants", "--json", str(path)]) == 0
    said = capsys.readouterr().out
    assert "2 of 2 mutants killed" in said
    assert "lr-inside-u" in said
    assert "learning rate" in said
    assert [entry["kind"] for entry in json.loads(path.read_text())] == ["eps-outside-root", "lr-inside-u", "true"]
