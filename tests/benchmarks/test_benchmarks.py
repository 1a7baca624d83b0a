"""The benchmarks: their floor, their contenders, their arithmetic and their tables. No test looks at a duration."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from importlib import import_module
from statistics import median

import numpy as np
import pytest
from multiopt.benchmarks import add_arguments, bench, main, plot, race, report, worker
from multiopt.benchmarks.contender import Contender
from multiopt.benchmarks.field import CPU, CUDA, contenders
from multiopt.benchmarks.figures import Point, Result, Row
from multiopt.benchmarks.race import Pace
from multiopt.benchmarks.workload import Workload, gpt2, resnet50

from multiopt.rule import adadelta

pytest.importorskip("numba")
pytest.importorskip("rich")

SMALL = Workload([(7, 5), (11,), ()])
QUICK = Pace(rounds=3, sample=0.0005)


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return main(parser.parse_args(list(words)))


def quiet(words: str) -> None:
    """Told what is going on, say nothing."""


def example() -> Result:
    rows = [
        Row("floor", "floor", [2.0, 1.0, 3.0], [2.0, 1.0, 3.0], 0.5),
        Row("multiopt-numpy", "multiopt, NumPy", [4.0, 3.0, 2.0], [2.0, 1.0, 3.0], 0.25),
        Row("torch-default", "torch.optim, default", [30.0, 20.0, 10.0], [4.0, 4.0, 4.0], 1.5),
        Row("optax", "optax, jitted", absent="optax not installed"),
    ]
    return Result("large", "An example", [Point("large", 1000, 1, 28_000, "float32", rows)], ["A note"])


# --- workloads and the floor ---


def test_models_have_the_tensors_and_parameters_they_are_known_for():
    assert (len(gpt2()), Workload(gpt2()).elements) == (148, 124_439_808)
    assert (len(resnet50()), Workload(resnet50()).elements) == (161, 25_557_032)


@pytest.mark.parametrize(("dtype", "each"), [("float32", 28), ("float64", 56)])
def test_an_update_moves_seven_numbers_a_parameter(dtype, each):
    assert Workload([(10, 10), (5,)], dtype).moved == 105 * each


@pytest.mark.parametrize("n", [1, 100, (1 << 17) + 3, (1 << 20) + 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_floor_reads_four_arrays_and_writes_three_all_of_them_once_a_step(n, dtype):
    floor = Contender(**_fields("floor")).prepare()(Workload([(n,)], dtype), {})
    floor.sample(3)
    written = floor.params()
    # Each step adds the gradient, 1, to each element of each array: once, or the count is off.
    assert [a.dtype.name for a in written] == [dtype] * 3
    assert all(a.shape == (n,) and np.all(a == 3) for a in written)
    assert 7 * sum(a.nbytes for a in written) // 3 == Workload([(n,)], dtype).moved


def _fields(key: str) -> dict:
    contender = next(c for c in CPU if c.key == key)
    return {"key": key, "label": contender.label, "build": contender.build, "needs": contender.needs}


# --- contenders ---

REFERENCE = [x.astype(np.float64) for x in SMALL.params()]
STATE = [(np.zeros_like(x), np.zeros_like(x)) for x in REFERENCE]
for _ in range(2):
    for i, g in enumerate(SMALL.grads()):
        REFERENCE[i], *STATE[i] = adadelta(np, REFERENCE[i], np.float64(g), *STATE[i], lr=1.0, rho=0.9, eps=1e-6)

# The timed steps are Adadelta's, from the same start: float32 after two steps, each of 3e-3, to a few roundings.
TOLERANCE = 1e-6
IN_HERE = [c for c in CPU if c.key not in ("floor", "torch-adam", "torch-compile", "keras-torch", "keras-jax")]


@pytest.mark.parametrize("contender", IN_HERE, ids=lambda c: c.key)
def test_contenders_do_adadelta(contender):
    if contender.absent():
        pytest.skip(contender.absent())
    running = contender.prepare()(SMALL, dict(contender.options))
    running.sample(2)
    for got, expected in zip(running.params(), REFERENCE, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("contender", [c for c in CPU if c.key.startswith("keras")], ids=lambda c: c.key)
def test_keras_does_adadelta(contender):
    if contender.absent():
        pytest.skip(contender.absent())
    program = (
        "from multiopt.benchmarks.keras_rows import keras_adadelta; import json\n"
        "from multiopt.benchmarks.workload import Workload\n"
        f"running = keras_adadelta(Workload({SMALL.shapes}), {{}}); running.sample(2)\n"
        "print(json.dumps([x.tolist() for x in running.params()]))"
    )
    environment = {**os.environ, **contender.environment}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for got, expected in zip(json.loads(done.stdout.splitlines()[-1]), REFERENCE, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("contender", CPU + CUDA, ids=lambda c: f"{c.label} {dict(c.options)}")
def test_every_contender_has_a_function(contender):
    module, function = contender.build.split(":")
    assert callable(getattr(import_module(f"multiopt.benchmarks.{module}"), function))


def test_an_unknown_row_is_refused_by_name():
    with pytest.raises(ValueError, match=r"--rows: expected some of floor, .*got nobody"):
        contenders("cpu", False, ["nobody"])


# --- the race ---


def test_batches_keep_within_the_budget_and_lose_nobody():
    field = [Contender("floor", "f", "", arrays=4)] + [Contender(f"c{i}", "c", "", arrays=8) for i in range(5)]
    workload = Workload([(1000,)])
    split = race.batches(field, field[0], workload, budget=20 * 4000.0)
    assert [[c.key[-1] for c in batch[1:]] for batch in split] == [["0", "1"], ["2", "3"], ["4"]]
    assert all(batch[0].key == "floor" for batch in split)
    # One that is too large by itself runs all the same.
    assert [len(batch) for batch in race.batches(field, field[0], workload, budget=1.0)] == [2] * 5


def test_absent_and_failing_contenders_are_named_and_the_others_are_measured():
    field = [
        Contender("numpy", "plain", "host_rows:plain_numpy"),
        Contender("missing", "missing", "host_rows:plain_numpy", ("no_such_library", "no.such.module")),
        Contender("failing", "failing", "host_rows:multiopt_numpy", options={"lr_": 1}),
        Contender("dying", "dying", "host_rows:plain_numpy", environment={"PYTHONPATH": "", "PYTHONHOME": "/nowhere"}),
    ]
    plain, missing, failing, dying = race.race("x", SMALL, field, QUICK, quiet).rows
    assert len(plain.samples) == QUICK.rounds
    assert plain.absent is None
    assert missing.absent == "no_such_library and no.such.module not installed"
    assert failing.absent is not None
    assert "lr_" in failing.absent
    assert dying.absent is not None
    assert dying.absent.startswith("failed: its process ended with status")
    assert [row.samples for row in (missing, failing, dying)] == [[], [], []]


def test_a_process_that_is_killed_between_two_samples_is_an_error_and_closes():
    process = race.Process(Contender("numpy", "plain", "host_rows:plain_numpy"))
    process.open(SMALL)
    process._process.kill()
    process._process.wait()
    with pytest.raises(RuntimeError, match="its process ended with status -9"):
        process("sample", n=1)
    process.close()


@pytest.mark.skipif(not worker.RESET.exists(), reason="this system does not tell a process its highest memory")
def test_the_peak_of_memory_sees_an_array_that_came_and_went():
    seen = worker.peak(lambda n: float(np.ones(4_000_000).sum()))
    # 32 MB are touched; what else the process does meanwhile is small.
    assert 31e6 < seen["resident"] < 64e6
    assert 32e6 <= seen["traced"] < 33e6


# --- figures and tables ---


def test_ratios_are_computed_from_the_samples():
    point = example().points[0]
    floor, ours, torch, absent = point.rows
    assert (floor.time, floor.ratio) == (2.0, 1.0)
    assert (ours.time, ours.ratio) == (3.0, 1.5)
    # torch ran in a batch of its own, where the floor took 4: it is 5 floors, and ours is 1.5 floors.
    assert torch.ratio == 5.0
    assert point.speedup(ours) == 5.0 / 1.5
    assert point.bandwidth(ours) == 28_000 / 3.0
    assert (absent.time, absent.ratio, point.speedup(absent), point.bandwidth(absent)) == (None,) * 4


def test_the_table_shows_these_figures():
    header, lines = report.table(example())
    assert header == ["", "time", "÷ floor", "faster than torch.optim", "GB/s", "ready"]
    assert lines[1] == ["multiopt, NumPy", "3.00 s", "1.50 ×", "3.33 ×", "0.00", "250 ms"]
    assert lines[3] == ["optax, jitted", "absent", "–", "–", "–", "–"]
    assert report.notes(example()) == ["A note", "optax, jitted: optax not installed"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.0, "0.00 ns"), (3.21e-7, "321 ns"), (1.234e-5, "12.3 µs"), (0.0999, "99.9 ms"), (217, "217 s")],
)
def test_durations_have_three_digits_and_a_unit(seconds, text):
    assert report.duration(seconds) == text


def test_markdown_is_a_table():
    text = report.as_markdown(example())
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {7}
    assert report.heading({"numpy": "2"}, "multiopt bench") == "`multiopt bench`, on: numpy 2"
    assert "optax not installed" in text


def test_a_straight_line_is_found():
    from multiopt.benchmarks.cases import lines

    def point(n: int) -> Point:
        return Point(str(n), 64 * n, n, 1, "float32", [Row("a", "A", [5e-6 + 2e-6 * n], ready=0.0)])

    assert lines([point(1), point(10), point(100)]) == ["A: 5.0 µs + 2.00 µs a tensor, straight within 0%"]


# --- the whole, quick ---


def test_a_quick_run_has_a_measurement_behind_every_number(tmp_path, capsys):
    file = tmp_path / "figures.json"
    rows = "multiopt-numpy,numpy,torch-compile"
    assert run("--quick", "--cases", "small", "--rows", rows, "--rounds", "2", "--json", str(file)) == 0
    shown = capsys.readouterr().out
    document = json.loads(file.read_text())
    assert document["command"] == f"multiopt bench --cases small --rows {rows} --rounds 2 --quick"
    assert document["machine"]["numpy"] == np.__version__
    assert [result["case"] for result in document["results"]] == ["small"]
    for result in document["results"]:
        for point in result["points"]:
            assert point["moved"] == 28 * point["elements"]
            for row in point["rows"]:
                if row["key"] == "torch-compile":
                    assert (row["samples"], row["time"]) == ([], None)
                    assert "--compile" in row["absent"]
                    continue
                assert len(row["samples"]) == len(row["floor"]) == 2
                assert min(row["samples"]) > 0
                assert row["time"] == median(row["samples"])
                assert row["ratio"] == median(row["samples"]) / median(row["floor"])
                assert row["ready"] > 0
                assert report.duration(row["time"]) in shown


def test_quick_memory_and_imports(tmp_path, capsys):
    file = tmp_path / "figures.json"
    words = ["--cases", "memory,import", "--rows", "multiopt-numpy", "--rounds", "1", "--json", str(file), "--markdown"]
    assert run("--quick", *words) == 0
    assert "| **multiopt, NumPy, global norm clipped** | " in capsys.readouterr().out
    memory, imports = json.loads(file.read_text())["results"]
    assert all(row["extra"]["traced"] > 0 for point in memory["points"] for row in point["rows"])
    rows = {row["key"]: row for row in imports["points"][0]["rows"]}
    assert len(rows["import-multiopt"]["samples"]) == 1
    assert all(row["samples"] or row["absent"] for row in rows.values())


def test_a_failing_contender_makes_the_run_fail(monkeypatch, capsys):
    broken = Contender("floor", "floor", "host_rows:multiopt_numpy", options={"no_such_option": 1})
    monkeypatch.setattr(bench, "contenders", lambda *_: {"floor": broken})
    assert run("--quick", "--cases", "small", "--markdown") == 1
    assert "failed: TypeError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--cases", "large,none"], "--cases: expected some of large, large64"),
        (["--device", "cuda", "--cases", "memory"], "--cases: expected some of large"),
        (["--rows", "nobody"], "--rows: expected some of floor"),
        (["--rounds", "0"], "--rounds: expected at least 1, got 0"),
        (["--device", "cuda"], "--device cuda: no NVIDIA GPU is visible to this process"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(words, complaint, monkeypatch, capsys):
    monkeypatch.setattr(bench, "gpus", lambda: [])
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"multiopt bench: {complaint}")
    assert error.count("\n") == 1


def test_the_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    one = example()
    many = Result("sweep", "A sweep", [Point(str(n), n, 1, 1, "float32", one.points[0].rows) for n in (10, 100)])
    path = tmp_path / "figures.png"
    plot.draw([one, many, Result("import", "Imports", [one.points[0]], kind="import")], path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
