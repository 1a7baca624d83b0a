"""The recorded traces: whole, complete, true to the published formula, and hard to forge."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("safetensors")

from multiopt.conformance.data.deviations import DEVIATIONS, NOT_FOLLOWED, SCHEDULE, deviations_in, deviations_of
from multiopt.conformance.data.floats import from_bfloat16_bits, spacing, to_bfloat16_bits, ulps
from multiopt.conformance.data.inputs import case_of
from multiopt.conformance.data.rates import rates_of
from multiopt.conformance.data.scenarios import SCENARIOS, scenarios_of
from multiopt.conformance.data.systems import KERAS, SYSTEMS
from multiopt.conformance.data.traces import FOLDER, TraceError, load, load_all, path_of, save
from multiopt.conformance.data.trajectory import STATES
from multiopt.conformance.recording.record import judge
from multiopt.conformance.recording.record import record as record_again
from multiopt.conformance.reference.accuracy import accuracy_of, distances
from multiopt.conformance.reference.arithmetic import Digits
from multiopt.conformance.reference.compare import differences, inputs_agree, same_bits
from multiopt.conformance.reference.reference import Reference
from multiopt.conformance.reference.tolerances import RUN, STEP
from multiopt.conformance.targets.build import rejection, unsupported
from multiopt.conformance.targets.run import record, run_target
from multiopt.conformance.targets.target import find

from multiopt.cli import main

FILES = load_all()
STATED = [trace for content in FILES.values() for trace in content.traces.values() if not trace.refusal]


def trace_of(system, scenario):
    return FILES[system].traces[scenario]


def explained(found, *, stepwise):
    """Whether rounding explains a distance from the reference."""
    return found.units <= (STEP if stepwise else RUN)[found.kind].limit


# --- Whole and complete -----------------------------------------------------------------------------------------------


def test_every_system_has_its_traces():
    assert set(FILES) == set(SYSTEMS)


@pytest.mark.parametrize("system", SYSTEMS)
def test_traces_are_those_of_the_table(system):
    content = FILES[system]
    assert set(content.versions) == set(SYSTEMS[system].packages)
    assert content.provenance["device"] == "CPU"
    assert content.provenance["python"]
    assert set(content.traces) == {s.name for s in scenarios_of(system)}
    for scenario in scenarios_of(system):
        trace, case = content.traces[scenario.name], case_of(scenario)
        assert (trace.name, trace.dtype, trace.steps) == (system, scenario.dtype, scenario.steps)
        assert trace.deviations == deviations_of(system, scenario)
        assert trace.refusal == scenario.refusals.get(system)
        chosen = {"lr": 0.5, "rho": 0.9, "eps": 1e-6} if scenario.config.defaults else {}
        assert replace(trace.config, **chosen) == scenario.config
        # Initial values and gradients are those that the seed gives.
        assert all(map(same_bits, case.start, trace.at("x", 0)))
        assert case.inputs.keys() == trace.case.inputs.keys()
        assert all(same_bits(values, trace.case.inputs[key]) for key, values in case.inputs.items())
        # Every state after every step, or none at all.
        averaged = trace.config.ema_momentum is not None
        kinds = {"x"} if trace.refusal else set(STATES) - (set() if averaged else {"average"})
        assert set(trace.states) - {"finalized"} == kinds
        assert trace.refusal is None or trace.lr is None
        for kind in kinds:
            shapes = [(1 if trace.refusal else trace.steps + 1, *shape) for shape in scenario.shapes]
            assert [values.shape for values in trace.states[kind]] == shapes


def test_files_are_small_and_hold_nothing_that_runs():
    paths = sorted(FOLDER.glob("*"))
    assert [p.suffix for p in paths] == [".safetensors"] * len(SYSTEMS)
    assert sum(p.stat().st_size for p in paths) < 6_000_000
    for path in paths:
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        assert len(raw) == 8 + length + max(ends)


# --- True to the formula ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_reference_explains_every_state(system):
    for trace in STATED:
        if trace.name == system and not NOT_FOLLOWED & set(trace.deviations):
            for stepwise in (True, False):
                for found in distances(trace, stepwise=stepwise).values():
                    assert explained(found, stepwise=stepwise), f"{system}, {trace.scenario}: {found}"


@pytest.mark.parametrize("system", ["torch-forloop", "torch-foreach", "tf-raw", "optax"])
def test_systems_without_rounding_of_options_meet_the_formula_itself(system):
    trace = trace_of(system, "learning-rate")
    assert trace.deviations == ()
    for found in accuracy_of(trace).published.values():
        assert explained(found, stepwise=False), str(found)
    # Where lr and rho pass through float32, the published rule is about 1e-7 away: 1e8 units of a double.
    rounded = accuracy_of(trace_of("tf-keras-legacy", "learning-rate"))
    assert rounded.published["square_avg"].units > 1e7 > 1e3 > rounded.followed["square_avg"].units


@pytest.mark.parametrize("deviation", DEVIATIONS.values(), ids=lambda deviation: deviation.name)
def test_every_deviation_is_seen_in_some_trace(deviation):
    """Without the deviation, the reference or the published schedule does not explain the trace."""
    shown = [trace for trace in STATED if deviation.name in deviations_in(trace)]
    assert shown
    if deviation is SCHEDULE:
        return  # it is found in the learning rates, and in no table of systems
    assert {trace.name for trace in shown} == set(deviation.systems)
    for system in deviation.systems:
        assert any(_shows(trace, deviation.name) for trace in shown if trace.name == system), system


def _shows(trace, deviation):
    if deviation == "half-arithmetic":
        # Computed in float32 and rounded once, everything would be within half a unit, plus a little.
        return max(found.units for found in distances(trace).values()) > 0.6
    if deviation in NOT_FOLLOWED:
        # 1e6 units are 1e-10 of a double and nothing that rounding explains in any type.
        return not all(found.units < 1e6 for found in distances(trace).values())
    published = rates_of(trace.config, trace.steps)
    if trace.lr is not None and None not in published:
        # Schedules in float32 are good to 1e-6 of the rate; float32's own rounding of a rate shows above 1e-10.
        fine = 1e-10 if deviation == "lr-through-float32" else 1e-6
        if np.max(np.abs(trace.lr - published) / np.abs(published)) > fine:
            return True
    without = [name for name in trace.deviations if name != deviation]
    return not all(explained(found, stepwise=True) for found in distances(trace, deviations=without).values())


def test_schedules_give_the_published_rates():
    changed = {name for name, deviation in DEVIATIONS.items() if deviation.of_rate} - {"lr-through-float32"}
    checked = 0
    for trace in STATED:
        if trace.lr is not None and not changed & set(trace.deviations):
            # Frameworks compute schedules in float32 (float16 where the parameters are): its epsilon, a few times.
            close = 2e-3 if trace.dtype in ("float16", "bfloat16") else 1e-6
            np.testing.assert_allclose(trace.lr, rates_of(trace.config, trace.steps), rtol=close)
            checked += trace.config.schedule is not None
    assert checked > 20


def test_results_by_hand():
    # Rounded to the digits that are quoted; −1/√2 is the result that TensorFlow once had wrong.
    results = {"": -0.70710678, "-coupled": 1.615889, "-decoupled": 1.546447, "-maximize": 2.312348}
    for kind, expected in results.items():
        for system in SCENARIOS[f"by-hand{kind}"].systems:
            found = trace_of(system, f"by-hand{kind}").at("x", 1)[0]
            assert found == pytest.approx(expected, abs=5e-7), (system, kind)


def test_complex_numbers_by_hand():
    g, rho, eps = 1 + 2j, 0.5, 0.25

    def step(square, root):
        v = (1 - rho) * square(g)
        return (1 + 1j) - root(eps) / root(v + eps) * g

    as_one = step(lambda z: z * z, lambda z: np.sqrt(complex(z)))
    x = 1 - np.sqrt(eps) / np.sqrt(0.5 * 1 + eps) * 1
    y = 1 - np.sqrt(eps) / np.sqrt(0.5 * 4 + eps) * 2
    for system in SCENARIOS["by-hand-complex"].systems:
        expected = as_one if "complex-arithmetic" in trace_of(system, "by-hand-complex").deviations else complex(x, y)
        # complex128, or complex64 inside Keras on TensorFlow.
        assert complex(trace_of(system, "by-hand-complex").at("x", 1)[0]) == pytest.approx(expected, abs=1e-7)


def test_dtensor_average_restores_the_initial_parameters():
    for trace in STATED:
        if trace.has("finalized"):
            last = trace.states["finalized"]
            assert all(map(same_bits, trace.at("average", trace.steps), last))
            assert trace.name != "tf-keras-dtensor" or all(map(same_bits, trace.at("x", 0), last))


# --- Hard to forge ----------------------------------------------------------------------------------------------------


def forged(trace, kind, factor):
    first, *others = trace.states[kind]
    values = first.copy()
    values[5] *= factor
    return replace(trace, states={**trace.states, kind: [values, *others]})


@pytest.mark.parametrize("kind", ["square_avg", "acc_delta", "x"])
def test_the_reference_catches_a_forged_state(kind):
    # 1e-14 of a double is 45 to 90 units.
    found = distances(forged(trace_of("torch-forloop", "learning-rate"), kind, 1 + 1e-14))[kind]
    assert not explained(found, stepwise=True)
    assert "after step" in str(found)


@pytest.mark.parametrize("change", [{"rho": 0.91}, {"eps": 1e-7}, {"weight_decay": 0.1, "decay_kind": "coupled"}])
def test_the_reference_catches_another_configuration(change):
    trace = trace_of("torch-forloop", "learning-rate")
    other = replace(trace, case=trace.case.with_options(**change))
    assert not all(explained(found, stepwise=True) for found in distances(other).values())


def test_the_reference_runs_by_itself():
    """Its trajectory needs no recorded state."""
    trace = trace_of("torch-forloop", "paper")
    reference = Reference(trace.case, Digits(trace.dtype))
    reference.step(0, trace.case.gradients[0])
    g, x = (float(v.ravel()[0]) for v in (trace.case.gradients[0][0], trace.at("x", 0)[0]))
    v = 0.05 * g * g
    expected = x - (1e-6 / (v + 1e-6)) ** 0.5 * g
    assert float(reference.x[0][0]) == pytest.approx(expected, rel=1e-14)  # the test's own double arithmetic


def test_the_reference_in_floats_has_the_bits_of_the_library():
    """Where no norm is clipped, whose sums are the library's own; and it shares no code with the library."""
    compared, target = 0, find("numpy-eager")
    for system in ("torch-forloop", "tf-keras", "keras-jax", "optax"):
        for trace in FILES[system].traces.values():
            case = trace.case.published()
            c = case.config
            clipped = c.clipnorm is not None or c.global_clipnorm is not None
            if trace.refusal or trace.steps > 20 or clipped or unsupported(target, case) or rejection(target, case):
                continue
            for found in differences(record(Reference(case), case), run_target(target, case)).values():
                assert found.same_bits, f"{system}, {case.scenario}: {found}"
                compared += 1
    assert compared > 300


def altered(tmp_path, change):
    path = tmp_path / "torch-forloop.safetensors"
    raw = bytearray(path_of("torch-forloop").read_bytes())
    change(raw)
    path.write_bytes(bytes(raw))
    return path


def test_an_alteration_is_noticed(tmp_path):
    def other_rho(raw):
        place = raw.index(rb"\"rho\":0.95")
        raw[place : place + 12] = rb"\"rho\":0.96"

    for change in (lambda raw: raw.__setitem__(-1, raw[-1] ^ 1), other_rho):
        with pytest.raises(TraceError, match="content differs from its recorded hash"):
            load(altered(tmp_path, change))


def test_a_torn_or_foreign_file_is_refused(tmp_path):
    with pytest.raises(TraceError, match="expected a safetensors file"):
        load(altered(tmp_path, lambda raw: raw.__delitem__(slice(100, None))))
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(TraceError, match="expected format"):
        load(tmp_path / "other.safetensors")


def test_saved_and_loaded_is_the_same(tmp_path):
    content = FILES["keras-torch"]
    path = tmp_path / "again.safetensors"
    save(content, path)
    again = load(path)
    assert path.read_bytes() == path_of("keras-torch").read_bytes()
    assert again.digest() == content.digest()


# --- Side by side, and again ------------------------------------------------------------------------------------------


def test_differences_say_where():
    trace = trace_of("torch-forloop", "learning-rate")
    assert all(found.same_bits for found in differences(trace, trace).values())
    found = differences(trace, forged(trace, "square_avg", 1 + 1e-14))["square_avg"]
    assert (found.step, found.tensor) == (5, "p0")
    assert 40 < found.units < 100  # 1e-14 in units of a double
    with pytest.raises(ValueError, match="different inputs"):
        differences(trace, trace_of("torch-forloop", "paper"))


def test_frameworks_were_given_the_same_inputs():
    for name, scenario in SCENARIOS.items():
        first, *others = (trace_of(system, name) for system in scenario.everyone)
        assert all(inputs_agree(first, other) for other in others)


def test_keras_agrees_with_itself_on_three_backends():
    for name in ("float32", "paper", "accumulation", "ema"):
        first, *others = (trace_of(system, name) for system in KERAS)
        for other in others:
            for found in differences(first, other).values():
                # Two sound implementations may be as far apart as both are from the oracle.
                assert found.units <= 64, f"{other.name}, {name}: {found}"


def test_a_made_up_trace_is_different():
    content = FILES["torch-forloop"]
    assert judge(content, content).outcome == "same"
    # 1e-13 is 450 units and more; 64 are allowed.
    for factor, outcome, note in ((1 + 1e-13, "different", "learning-rate: acc_delta/p0"), (1 + 3e-16, "close", "")):
        made_up = forged(content.traces["learning-rate"], "acc_delta", factor)
        verdict = judge(content, replace(content, traces={**content.traces, "learning-rate": made_up}))
        assert verdict.outcome == outcome
        assert note in verdict.note
    fewer = {name: trace for name, trace in content.traces.items() if name != "paper"}
    assert judge(content, replace(content, traces=fewer)).outcome == "different"


def test_a_system_that_is_not_installed_is_passed_over(monkeypatch, tmp_path, capsys):
    pytest.importorskip("rich")
    monkeypatch.setattr("multiopt.conformance.recording.record.versions_of", lambda system: {})
    assert record_again("tf-raw", tmp_path).outcome == "absent"
    assert main(["record", "--system", "tf-raw"]) == 0
    assert main(["record", "--system", "tf-raw", "--require", "tf-raw"]) == 1
    assert "tensorflow" in capsys.readouterr().out


def test_torch_records_again(tmp_path):
    torch = pytest.importorskip("torch")
    if torch.__version__.split("+")[0] != FILES["torch-forloop"].versions["torch"].split("+")[0]:
        pytest.skip("the traces are of another PyTorch")
    verdict = record_again("torch-forloop", tmp_path)
    assert verdict.outcome in ("same", "close"), verdict.note


# --- Floating-point formats -------------------------------------------------------------------------------------------


def test_bfloat16_rounds_to_even():
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -0.0, np.inf, np.nan, 3.4e38], dtype=np.float32)
    back = from_bfloat16_bits(to_bfloat16_bits(values))
    np.testing.assert_array_equal(back, [1.0, 1.0, 1 + 2**-6, -0.0, np.inf, np.nan, np.inf])


@pytest.mark.parametrize(
    ("a", "b", "dtype", "apart"),
    [
        (1.0, 1.0 + 2.0**-52, "float64", 1),
        (-(2.0**-1074), 2.0**-1074, "float64", 2),
        (0.0, -0.0, "float32", 0),
        (np.nan, -np.nan, "float32", 0),
        (np.inf, 3.4e38, "float32", np.inf),
        (np.nan, 1.0, "float16", np.inf),
        (1.0, 1.0 + 2.0**-7, "bfloat16", 1),
    ],
)
def test_units_in_the_last_place(a, b, dtype, apart):
    holder = "float32" if dtype == "bfloat16" else dtype
    assert ulps(np.array([a], holder), np.array([b], holder), dtype) == [apart]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_spacing_is_numpys(dtype):
    values = np.array([1.0, 1.5, 2.0, 0.1, 6.1e-5, 1e-7, 0.0], dtype=dtype)
    np.testing.assert_array_equal(spacing(values, dtype), np.spacing(np.abs(values)))
