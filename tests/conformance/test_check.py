"""``multiopt check``: it passes on what is right, and says where it went wrong on what is not."""

import json
import math
import re
import socket
import struct
from collections import Counter
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("rich")

from multiopt.conformance.check import notes
from multiopt.conformance.checks.judge import Judge
from multiopt.conformance.checks.run import FRAMEWORKS, Findings, Selection, run
from multiopt.conformance.checks.same_bits import OPTIONS, runs
from multiopt.conformance.checks.verdict import ONE_STEP, WHOLE_RUN
from multiopt.conformance.data.deviations import deviations_in, followed
from multiopt.conformance.data.traces import FOLDER, load, load_all, path_of, save
from multiopt.conformance.reference.accuracy import accuracy_of
from multiopt.conformance.targets.arrays import Arrays
from multiopt.conformance.targets.build import core_optimizer, rejection, unsupported
from multiopt.conformance.targets.run import run_target
from multiopt.conformance.targets.target import Target, all_targets

from multiopt.cli import main as command

FILES = load_all()
EAGER = all_targets()["numpy-eager"]


def trace_of(system, scenario):
    return FILES[system].traces[scenario]


def quiet(name):
    pass


def wrong(make=None, **changes):
    """The core, told other options than it was asked with; or what `make` makes."""
    other = make or (lambda case: core_optimizer(Arrays("numpy"), case.with_options(**changes), "eager"))
    return Target("wrong", "made for this test", "numpy", engine="eager", optimizer=other)


def outcomes(verdicts):
    return {v.outcome for v in verdicts}


def checked(*words):
    """`multiopt check` of one backend, in this process."""
    return command(["check", "--backend", "numpy-eager", "--processes", "1", *map(str, words)])


# --- The whole of it, on NumPy ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A check of one backend: the exit code, and everything it writes."""
    folder = tmp_path_factory.mktemp("check")
    data, page, records = (folder / name for name in ("all.json", "page.html", "records"))
    status = checked("--verbose", "--json", data, "--report", page, "--record", records)
    return status, json.loads(data.read_text()), page.read_text(), list(records.iterdir())


def test_numpy_passes_and_json_holds_every_comparison(whole):
    status, results, *_ = whole
    assert status == results["counts"]["failed"] == 0
    assert results["counts"]["passed"] > 2000
    assert results["format"] == "multiopt-check 2"
    rows = results["verdicts"]
    traces = {(r["system"], r["scenario"]) for r in rows if r["what"] == "trace"}
    recorded = {(s, n) for s, f in FILES.items() for n, t in f.traces.items() if t.refusal is None}
    assert traces == recorded
    for row in rows:
        if row["outcome"] == "passed" and row["what"] in ("trace", "oracle", "explained", "bits"):
            assert row["observed"] <= row["tolerance"]
            assert row["reason"]
        if row["outcome"] in ("deviation", "unsupported"):
            assert row["reason"], row
    assert {r["kind"] for r in rows if r["what"] == "oracle" and r["outcome"] == "passed"} == {
        "square_avg", "acc_delta", "x", "average",
    }  # fmt: skip
    assert len([r for r in rows if r["what"] == "bits"]) == 2 * len(OPTIONS)
    assert results["traces"]["optax"]["digest"] == FILES["optax"].digest()


def test_records_say_what_machine_and_nothing_private(whole):
    (path,) = whole[-1]
    text = path.read_text()
    content = json.loads(text)
    assert content["machine"]["python"].startswith("3.")
    assert content["machine"]["versions"]["numpy"] == np.__version__
    assert content["figures"]["numpy-eager"]["trace"]["optax"]["paper"]["square_avg"] >= 0
    assert content["worst"]
    assert not re.search(r"(?<![\w.])/(home|root|tmp|usr|work|opt|Users)\b", text)
    assert socket.gethostname() not in text
    assert path.stat().st_size < 500_000


def test_page_is_whole_and_needs_nothing_else(whole):
    text = whole[2]
    # But for tags that HTML never closes, it is XML.
    elements = list(ElementTree.fromstring(re.sub("<(!doctype|meta)[^>]*>", "", text)).iter())
    assert not any({"src", "href", "action", "data"} & {*element.keys()} for element in elements)
    assert not any(mark in text for mark in ("url(", "@import", "$"))
    tags = Counter(element.tag.rpartition("}")[-1] for element in elements)
    assert (tags["svg"], tags["table"]) == (8, 7)
    for system, content in FILES.items():
        assert system in text
        assert content.digest() in text
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert "nan" not in svg.lower().replace("multiopt", "")


def test_nothing_is_dropped_in_silence():
    """What the core does not support, and what it rejects, is known by name; all else is judged."""
    cases = [(name, t.case.published()) for f in FILES.values() for name, t in f.traces.items() if t.refusal is None]
    without = {name for name, case in cases if unsupported(EAGER, case)}
    rejected = {name for name, case in cases if not unsupported(EAGER, case) and rejection(EAGER, case)}
    assert without == {"sparse", "sparse-clipvalue", "constraint", "constraint-ema", "ema-overwrite"}
    assert rejected == {
        "zero-eps", "subnormals-dyadic-float32", "clipvalue-zero", "clipvalue-negative", "none-at-all",
    }  # fmt: skip
    face = all_targets()["keras-face"]
    for name in ("sparse", "constraint-ema", "ema-overwrite"):
        assert outcomes(Judge().against_trace(face, trace_of("tf-keras", name))) == {"passed"}, name


# --- What is wrong, is found, and where -------------------------------------------------------------------------------


def test_rho_wrong_by_one_ulp_changes_bits_at_the_first_step():
    nearly = math.nextafter(0.9, 1.0)
    judge, case = Judge(), runs(EAGER, brief=True)["float64, plain"]
    (verdict,) = judge.against_bits(wrong(rho=nearly), case)
    assert verdict.outcome == "failed"
    g = case.gradients[0][0]
    # 1 − rho is another number, so that the first gradient whose square is not lost shows it.
    differs = (1 - 0.9) * (g * g) != (1 - nearly) * (g * g)
    assert (verdict.place.step, verdict.place.tensor) == (1, "square_avg/p0")
    assert verdict.place.element == int(np.argmax(differs))
    assert verdict.place.theirs == (1 - 0.9) * float(g[verdict.place.element]) ** 2
    (right,) = judge.against_bits(all_targets()["functional"], case)
    assert right.outcome == "passed"


@pytest.mark.parametrize(
    ("changes", "kind"),
    [({"rho": 0.9 + 1e-13}, "square_avg"), ({"eps": 1e-6 * (1 + 1e-12)}, "acc_delta"), ({"lr": 0.3 + 1e-13}, "x")],
    ids=["rho", "eps", "lr"],
)
def test_a_slightly_wrong_number_is_found_by_oracle_and_trace(changes, kind):
    judge, trace = Judge(), trace_of("torch-forloop", "learning-rate")
    target = wrong(**changes)
    found = judge.against_oracle(target, trace.case.published()) + judge.against_trace(target, trace)
    failed = {(v.what, v.kind): v.place.step for v in found if v.failed}
    assert {("oracle", kind), ("trace", kind)} <= failed.keys()
    assert min(failed.values()) >= 1


@pytest.fixture
def copied(tmp_path):
    """A folder with a copy of all traces."""
    for system in FILES:
        path_of(system, tmp_path).write_bytes(path_of(system, FOLDER).read_bytes())
    return tmp_path


def test_a_forged_trace_fails_where_it_was_forged(copied, capsys):
    # One number of one step of torch is another, and the hashes agree.
    content = load(path_of("torch-forloop"))
    trace = content.traces["learning-rate"]
    states = {kind: [values.copy() for values in column] for kind, column in trace.states.items()}
    states["acc_delta"][1][5].flat[3] *= 1 + 1e-12
    traces = {**content.traces, "learning-rate": replace(trace, states=states)}
    save(replace(content, traces=traces), path_of("torch-forloop", copied))
    out, words = copied / "all.json", ("--against", "torch-forloop", "--scenario", "learning-rate")
    assert checked(*words, "--traces", copied, "--json", out) == 1
    failed = [r for r in json.loads(out.read_text())["verdicts"] if r["outcome"] == "failed"]
    assert {r["what"] for r in failed} == {"trace", "explained"}
    for row in failed:
        assert (row["place"]["step"], row["place"]["tensor"], row["place"]["element"]) == (5, "p1", 3)
        assert row["kind"] == "acc_delta"
    said = " ".join(capsys.readouterr().out.split())
    assert "p1[3] after step 5" in said
    assert "FAILED" in said
    assert checked(*words) == 0


def test_a_damaged_file_is_rejected_before_the_work(copied, capsys):
    path = path_of("optax", copied)
    raw = bytearray(path.read_bytes())
    raw[struct.unpack("<Q", raw[:8])[0] + 8 + 100] ^= 1
    path.write_bytes(bytes(raw))
    assert checked("--traces", copied) == 2
    assert "differs from its recorded hash" in capsys.readouterr().err


def test_other_inputs_are_not_compared():
    # A trace with other inputs is another case: ours then answers that one, and theirs does not fit it.
    trace = trace_of("torch-forloop", "paper")
    doubled = [[g * 2 for g in row] for row in trace.case.gradients]
    verdicts = Judge().against_trace(EAGER, replace(trace, case=replace(trace.case, gradients=doubled)))
    assert any(v.failed for v in verdicts)


def test_an_exception_is_a_finding_not_the_end():
    def make(case):
        raise RuntimeError("no such thing")

    (verdict,) = Judge().against_trace(wrong(make), trace_of("torch-forloop", "paper"))
    assert verdict.outcome == "failed"
    assert "RuntimeError: no such thing" in verdict.reason


def test_a_target_that_must_reject_and_does_not_fails():
    case = trace_of("torch-forloop", "zero-eps").case.published()
    (verdict,) = Judge().against_oracle(wrong(eps=1e-6), case)
    assert verdict.outcome == "failed"
    assert "expected a ValueError" in verdict.reason
    assert outcomes(Judge().against_oracle(EAGER, case)) == {"unsupported"}


# --- Runs -----------------------------------------------------------------------------------------------------------


def test_deviations_of_options_are_followed_and_both_numbers_told():
    trace = trace_of("tf-keras-legacy", "learning-rate")
    assert {"lr-through-float32", "rho-through-float32"} <= set(deviations_in(trace))
    case, left = followed(trace)
    assert left == ()
    assert case.rates[0] == float(np.float32(0.3))
    assert case.config.rho == float(np.float32(0.9))
    judge = Judge()
    verdicts = judge.against_trace(EAGER, trace)
    assert outcomes(verdicts) == {"passed"}
    assert re.search(r"they \S+e\+0[0-9] ulp .* we [0-9.]+ ulp", verdicts[0].note), verdicts[0].note
    # Not followed, the same comparison fails by far.
    published = judge.answer(EAGER, trace.case.published())
    assert judge.accuracy(published, ours=True).published["square_avg"].units < 16
    assert judge.accuracy(trace).published["square_avg"].units > 1e6


def test_one_yardstick_for_ours_and_theirs():
    # With optax' bits ours is as far from the paper as optax is: from rho = 0.95, which float32 does not hold.
    trace, judge = trace_of("optax", "float32"), Judge()
    assert max(v.observed for v in judge.against_trace(EAGER, trace)) == 0
    theirs = {v.kind: (v.observed, v.published) for v in judge.explained(trace)}
    found = judge.against_oracle(EAGER, trace.case.published())
    assert {v.kind: (v.observed, v.published) for v in found if v.over == WHOLE_RUN} == theirs
    assert any(judged != published for judged, published in theirs.values())
    # What is held as it was asked for is measured once.
    assert accuracy_of(trace).followed is not accuracy_of(trace).published
    exact = trace_of("torch-forloop", "learning-rate")
    assert (found := accuracy_of(exact)).followed is found.published


def test_deviations_of_arithmetic_are_told_and_judged_by_the_rule():
    trace = trace_of("torch-forloop", "float16")
    verdicts = Judge().against_trace(EAGER, trace)
    assert outcomes(verdicts) == {"deviation"}
    assert all("half-arithmetic" in v.reason for v in verdicts)
    mine = Judge().against_oracle(EAGER, trace.case.published())
    assert outcomes(mine) == {"passed"}
    # Rounded once: half a unit. The framework's own step is further away.
    assert max(v.observed for v in mine if v.over == ONE_STEP) <= 0.51


def test_schedules_in_single_precision_are_seen_in_the_rates():
    trace = trace_of("optax", "schedule-exponential")
    assert trace.deviations == ()
    assert deviations_in(trace) == ("schedule-in-float32",)
    assert deviations_in(replace(trace, lr=trace.lr * 1.001)) == ()


def test_a_run_holds_every_state_after_every_step():
    trace = trace_of("tf-keras", "accumulation-ema" if "accumulation-ema" in FILES["tf-keras"].traces else "ema")
    mine = run_target(EAGER, trace.case.published())
    for kind in ("x", "square_avg", "acc_delta", "average"):
        for shape, series in zip(trace.case.shapes, mine.states[kind], strict=True):
            assert series.shape == (trace.steps + 1, *shape)
    assert not any(series[0].any() for series in mine.states["square_avg"])
    again = run_target(all_targets()["functional"], trace.case.published())
    assert mine.bits() == again.bits() or trace.config.ema_momentum
    assert mine.first(3).steps == 3
    assert len(mine.first(3).states["x"][0]) == 4
    assert mine.first(99) is mine


@pytest.mark.parametrize("name", [n for n in all_targets() if all_targets()[n].device == "cpu"])
def test_each_target_is_right_in_one_scenario(name):
    target = all_targets()[name]
    if reason := target.absent():
        pytest.skip(reason)
    judge = Judge()
    # Two steps and more: a state that comes back in another order shows from the second on.
    for trace in (trace_of("torch-forloop", "by-hand"), trace_of("tf-keras", "several-shapes")):
        assert outcomes(judge.against_trace(target, trace)) == {"passed"}
    found = judge.against_oracle(target, trace_of("optax", "by-hand").case.published())
    assert outcomes(v for v in found if v.kind == "x" and v.over == ONE_STEP) == {"passed"}


# --- The command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--backend", "nunpy"], "--backend: expected one of numpy, numpy-eager"),
        (["--against", "caffe"], "--against: expected one of torch-forloop"),
        (["--scenario", "all"], "--scenario: expected one of by-hand"),
        (["--device", "cuda", "--backend", "numpy"], "no backend is left"),
    ],
)
def test_wrong_names_are_told(words, said, capsys):
    assert command(["check", *words]) == 2
    assert said in capsys.readouterr().err


def test_what_is_not_installed_is_told(monkeypatch, capsys):
    monkeypatch.setattr(Target, "absent", lambda self: "it is not here" if self.name == "torch" else None)
    assert command(["check", "--backend", "torch"]) == 2
    assert "--backend torch: it is not here" in capsys.readouterr().err
    assert "torch: it is not here" in notes(Findings(Selection(("numpy",)), FILES, []))


def test_list(capsys):
    assert command(["check", "--list"]) == 0
    out = capsys.readouterr().out
    for name in (*all_targets(), *FILES, "schedule-piecewise"):
        assert name in out


def test_processes_find_the_same():
    selection = Selection(("numpy-eager", "functional"), ("optax", "tf-v1"), ("paper", "by-hand", "clipvalue"))
    told = []
    alone = run(selection, told.append, processes=1)
    together = run(selection, quiet, processes=2)
    assert alone == together
    assert told == ["numpy-eager", "functional", FRAMEWORKS]


def test_quick_shortens_and_says_so():
    selection = Selection(("numpy-eager",), ("torch-forloop",), ("long-float64",), quick=True)
    verdicts = run(selection, quiet, processes=1)
    assert all("the first 40 of 1000 steps" in v.note for v in verdicts if v.what == "trace")
    assert not any(v.what == "explained" for v in verdicts)
    assert any("--quick" in note for note in notes(Findings(selection, FILES, verdicts)))
