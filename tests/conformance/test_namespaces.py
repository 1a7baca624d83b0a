"""Other people's array namespaces: judged by import name, with a strict list of expected failures; also by pytest."""

import subprocess
import sys
from dataclasses import replace
from importlib.metadata import entry_points

import numpy as np
import pytest

pytest.importorskip("hypothesis")
pytest.importorskip("safetensors")
pytest.importorskip("rich")

import toyarrays
from multiopt.backends import registry
from multiopt.conformance.checks import judge
from multiopt.conformance.checks.judge import Judge
from multiopt.conformance.checks.same_bits import runs
from multiopt.conformance.checks.verdict import Verdict, expect, read_xfails
from multiopt.conformance.targets import target as targets

from multiopt import backends
from multiopt.cli import main


@pytest.fixture
def toy(monkeypatch):
    """A namespace that multiopt has never heard of."""
    for name in ("_libraries", "_backends"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    monkeypatch.setattr(registry, "_by_type", {})
    monkeypatch.setattr(targets, "_namespaces", {})
    return toyarrays


@pytest.fixture
def broken(toy, monkeypatch):
    """The same with a square root that is off by one unit in the last place."""

    def sqrt(array):
        root = np.sqrt(array.values)
        return toy.Array(np.where(root > 0, np.nextafter(root, root.dtype.type(np.inf)), root))

    monkeypatch.setattr(toy, "sqrt", sqrt)


#: Enough scenarios to see something, few enough to be quick.
NAMES = "paper", "large-eps", "float32", "clipvalue-global-clipnorm", "coupled-decay", "none-gradients"
FEW = [f"--scenario={name}" for name in NAMES]


def check(capsys, *arguments):
    status = main(["check", "--processes", "1", "--quick", *arguments])
    return status, capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [["--namespace"], ["--processes", "2", "--backend", "functional", "--backend"]],
    ids=["named", "registered"],
)
def test_a_library_from_outside_passes(options, toy, capsys):
    """By its import name alone; or registered, so that it is a target like any other, on the fastest engine."""
    if "--backend" in options:
        assert "toyarrays" not in targets.all_targets()
        backends.register(toy.LIBRARY)
        assert targets.all_targets()["toyarrays"].about == "ToyArrays"
    # Processes that are begun for the work know it too.
    status, said = check(capsys, *options, "toyarrays", *FEW)
    assert status == 0, said
    assert "toyarrays" in said


def test_a_broken_root_is_seen_and_can_be_expected(broken, tmp_path):
    # One unit is within the tolerance for another framework; it is the bits that tell.
    target = targets.find("toyarrays")
    cases = [runs(target)[f"float64, {name}"] for name in ("plain", "accumulate 3, average")]
    verdicts = [verdict for case in cases for verdict in Judge().against_bits(target, case)]
    assert [v.outcome for v in verdicts] == ["failed", "failed"]
    assert [v.id for v in verdicts] == [
        "bits/float64, plain/all states",
        "bits/float64, accumulate 3, average/all states",
    ]
    assert 0 < float(verdicts[0].note.rpartition("; ")[2].partition(" ulp")[0]) < 64
    path = tmp_path / "xfails.txt"
    path.write_text("# known\nbits/float64, plain/all states  # its root\n")
    judged = expect(verdicts, read_xfails(path))
    assert [v.outcome for v in judged] == ["expected failure", "failed"]
    assert judged[0].reason == "expected: its root"


def test_the_command_lists_ids_and_takes_them_back(broken, capsys, tmp_path, monkeypatch):
    # With tolerances of 0 the broken root shows in every scenario.
    strict = {kind: replace(tolerance, limit=0.0) for kind, tolerance in judge.TRACE.items()}
    monkeypatch.setattr(judge, "TRACE", strict)
    arguments = ("--namespace", "toyarrays", "--scenario", "paper", "--against", "tf-raw", "--against", "torch-forloop")
    status, said = check(capsys, *arguments)
    assert status == 1
    ids = [line for line in said.splitlines() if line.startswith("trace/")]
    assert "trace/tf-raw/paper/acc_delta" in ids
    path = tmp_path / "xfails.txt"
    path.write_text("\n".join(ids))
    status, said = check(capsys, *arguments, "--xfails", str(path))
    assert status == 0, said
    assert "failed as expected" in said
    # The list is strict: what passes may not stand in it.
    path.write_text("\n".join([*ids, "oracle/paper/x/one step"]))
    status, said = check(capsys, *arguments, "--xfails", str(path))
    assert status == 1
    assert "expected to fail, but it passes" in said


def test_strict_expectations():
    good, bad = (Verdict("law", "mine", "", "", name, outcome) for name, outcome in (("a", "passed"), ("b", "failed")))
    assert [v.outcome for v in expect([good, bad], {"law/b": ""})] == ["passed", "expected failure"]
    *_, extra = expect([good, bad], {"law/b": "", "law/a": ""})
    assert (extra.what, extra.kind, extra.outcome) == ("xfail", "law/a", "failed")
    *_, extra = expect([good, bad], {"law/b": "", "law/c": ""})
    assert "there is no such check" in extra.reason
    assert len(expect([good, bad], {"law/c": ""}, complete=False)) == 2


def test_the_list_of_expected_failures(tmp_path):
    path = tmp_path / "xfails.txt"
    path.write_text("# a comment\n\nlaw/split # why\ntrace/optax/paper/x\n")
    assert read_xfails(path) == {"law/split": "why", "trace/optax/paper/x": ""}
    path.write_text("law/split\nlaw/split\n")
    with pytest.raises(ValueError, match="2: 'law/split' is listed twice"):
        read_xfails(path)


def test_what_is_no_namespace_is_refused(capsys):
    assert main(["check", "--namespace", "json"]) == 2
    assert "expected an array API namespace" in capsys.readouterr().err
    assert main(["check", "--xfails", "x.txt"]) == 2
    assert "expected --namespace with it" in capsys.readouterr().err


def test_array_api_strict_by_pytest():
    pytest.importorskip("array_api_strict")
    done = run_pytest("--namespace", "array_api_strict", "--scenario", "paper", "--scenario", "zero-eps")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert "skipped" in done.stdout


def test_pytest_refuses_an_unknown_backend():
    done = run_pytest("--backend", "abacus")
    assert done.returncode == 2
    assert "--backend: expected one of" in done.stdout + done.stderr


def run_pytest(*arguments):
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--pyargs", "multiopt.conformance"]
    if "multiopt-conformance" not in entry_points(group="pytest11").names:
        # An editable install from before the entry point was added.
        words += ["-p", "multiopt.conformance.plugin"]
    return subprocess.run([*words, *arguments], capture_output=True, text=True, timeout=300, check=False)
