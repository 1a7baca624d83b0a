"""The benchmarks: their floor, their contenders, their arithmetic and their tables. No test looks at a duration."""

import json
import sys
from contextlib import closing
from dataclasses import replace
from operator import methodcaller
from statistics import median

import numpy as np
import pytest
from multiopt.benchmarks import bench, cases
from multiopt.benchmarks.cases import CASES, alike, lines
from multiopt.benchmarks.contenders import CPU, choose, cuda, rows
from multiopt.benchmarks.contenders.numpy import multiopt_numpy, plain_numpy
from multiopt.benchmarks.harness import machine, process
from multiopt.benchmarks.harness.contender import Contender, Running
from multiopt.benchmarks.harness.figures import Point, Result, Row
from multiopt.benchmarks.harness.race import Entrant, Heat, Race
from multiopt.benchmarks.harness.workload import Table, Workload, gpt2, resnet50
from multiopt.benchmarks.output import plot, report
from multiopt.benchmarks.run import Run

from multiopt import ADADELTA, cli

pytest.importorskip("numba")
pytest.importorskip("rich")

SMALL = Workload([(7, 5), (11,), ()])


def run(*words):
    return cli.main(["bench", *words])


def example():
    rows = [
        Row("floor", "floor", [2.0, 1.0, 3.0], [2.0, 1.0, 3.0], 0.5),
        Row("multiopt-numpy", "multiopt, NumPy", [4.0, 3.0, 2.0], [2.0, 1.0, 3.0], 0.25),
        Row("torch-default", "torch.optim, default", [30.0, 20.0, 10.0], [4.0, 4.0, 4.0], 1.5),
        Row("optax", "optax, jitted", absent="optax not installed"),
    ]
    return Result("large", "An example", [Point("large", rows, 1000, 1, 28_000, "float32")], ["A note"])


# --- workloads and the floor ---


def test_models_have_the_tensors_and_parameters_they_are_known_for():
    assert (len(gpt2()), Workload(gpt2()).elements) == (148, 124_439_808)
    assert (len(resnet50()), Workload(resnet50()).elements) == (161, 25_557_032)


#: What moves how many bytes a parameter.
MOVED = [
    ({}, 28),
    ({"dtype": "float64"}, 56),
    ({"dtype": "bfloat16"}, 14),
    ({"dtype": "bfloat16", "state": "float32"}, 22),
    ({"state": "bfloat16"}, 20),
    ({"reads": 2}, 32),
    ({"dtype": "float16", "reads": 2}, 16),
    ({"average": True}, 36),
    ({"fresh": True}, 40),  # 28, and three lines fetched before they are written
    ({"stride": 2}, 40),  # parameter and gradient lie in twice their bytes, the state does not
]


@pytest.mark.parametrize("n", [1, (1 << 20) + 1])
@pytest.mark.parametrize(("changed", "each"), MOVED, ids=str)
def test_the_floor_moves_what_the_update_must_once_a_step(changed, each, n):
    workload = Workload([(n,)], **changed)
    assert workload.moved == n * each
    floor = CPU[0].start(workload)
    floor.sample(3)
    written = floor.params()
    # Each step adds 1 to each element of each array: once, or the count is off.
    assert all(a.shape == (n,) and np.all(a == 3) for a in written)
    states = 3 if workload.average else 2
    assert [a.itemsize for a in written] == [workload.widths[0], *[workload.widths[1]] * states]
    assert [a.strides[0] // a.itemsize for a in written] == [workload.stride, *[1] * states]


# --- contenders ---


@pytest.mark.parametrize(
    "contender",
    [c for c in CPU if c.whole and c.key not in ("floor", "torch-adam", "torch-compile")],
    ids=lambda c: c.key,
)
def test_contenders_do_adadelta(contender):
    if contender.absent():
        pytest.skip(contender.absent())
    if contender.environment:  # which must be there before its library is imported
        with closing(process.Process(contender, SMALL)) as there:  # which has done the first step when it is ready
            there.ready()
            there(Running.sample, 1)
            moved = there(methodcaller("params"))
    else:
        running = contender.start(SMALL)
        running.sample(2)
        moved = running.params()
    params, grads = ([np.float64(x) for x in arrays] for arrays in (SMALL.params(), SMALL.grads()))
    for x, g, got in zip(params, grads, moved, strict=True):
        state = np.zeros_like(x), np.zeros_like(x)
        for _ in range(2):
            x, *state = ADADELTA.function(np, x, g, *state, lr=1.0, rho=0.9, eps=1e-6)
        # The same start, and two steps of 3e-3 each: equal but for a few roundings of float32.
        np.testing.assert_allclose(got, x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["dtypes", "options", "paths"])
def test_contenders_that_take_turns_do_the_same(case):
    pytest.importorskip("ml_dtypes")
    found, ends = [], {}
    CASES[case](Run(choose("cpu", False, []), lambda *heats: found.extend(heats) or [], quick=True, device="cpu"))
    for _, workload, contenders in found:
        for contender in [c for c in contenders if c.key != "floor" and c.absent() is None]:
            # What the engine compiles of options has tests of its own.
            eager = {"engine": "eager"} if contender.build is multiopt_numpy else {}
            running = replace(contender, options={**contender.options, **eager}).start(workload)
            running.sample(2)
            end = running.params()
            assert [(x.shape, x.dtype.name) for x in end] == [(shape, workload.dtype) for shape in workload.shapes]
            if contender.key.startswith("multiopt"):
                what = contender.options, workload.dtype, workload.state, workload.shapes
                ends.setdefault(str(what), {})[b"".join(x.tobytes() for x in end)] = contender
    # From the same start, by the same formula with the same options: the same bits.
    assert {what: len(different) for what, different in ends.items()} == dict.fromkeys(ends, 1)


@pytest.mark.parametrize(
    ("build", "needs"),
    [(rows.legacy_numpy, ()), (rows.legacy_tensors, ("torch",)), (rows.tf_keras_legacy, ("tensorflow", "tf_keras"))],
    ids=["numpy", "torch", "tf_keras"],
)
def test_contenders_update_the_rows_of_a_table(build, needs):
    for name in needs:
        pytest.importorskip(name)
    table = Table([(50, 4)], rows=20)
    running, turns = build(table), table.turns()
    assert turns.shape == (2, 20)
    assert len(set(turns.flat)) == 40
    running.sample(1)
    (before,), (g,), (after,) = table.params(), table.grads(), running.params()
    x, *_ = ADADELTA.function(np, before[turns[0]].astype(float), g.astype(float), 0.0, 0.0, lr=1.0, rho=0.9, eps=1e-6)
    np.testing.assert_allclose(after[turns[0]], x, rtol=0, atol=1e-6)  # as above
    others = np.setdiff1d(np.arange(50), turns[0])
    np.testing.assert_array_equal(after[others], before[others])


def test_the_floor_of_rows_moves_these_rows_and_no_others():
    table = Table([(50, 4)], rows=20)
    assert table.moved == 7 * 20 * 4 * 4
    floor = rows.floor_of_rows(table)
    floor.sample(3)  # of two turns
    (written,), turns = floor.params(), table.turns()
    assert [written[turn].tolist() for turn in turns] == [[[2.0] * 4] * 20, [[1.0] * 4] * 20]
    assert written.sum() == 3 * 20 * 4


def test_steps_on_a_device_are_timed_by_its_events(monkeypatch):
    done, clock = [], iter([2.0, 8.0])

    class Event:
        def record(self):
            self.at = next(clock), len(done)

    running = cuda.OnDevice(
        lambda: done.append(1), list, 0.0, event=Event, allocations=lambda step: step() or 5,
        elapsed=lambda start, end: (end.at[0] - start.at[0]) * (end.at[1] - start.at[1]),
    )  # fmt: skip
    assert running.sample(3) == 6 * 3 / 1e3
    monkeypatch.setattr(cuda, "launches", lambda step: 1)
    assert running.counts() == {"allocations": 5, "launches": 1}
    assert len(done) == 4


# --- the race ---


def test_batches_keep_within_the_budget_and_lose_nobody():
    def entrant(key, size, floor=None):
        contender = Contender(key, key, plain_numpy, arrays=0)
        return Entrant(contender, Workload([(size,)]), floor, Row(key, key), "")

    plain, other = entrant("floor", 1), entrant("floor", 2)
    entrants = [plain, *(entrant(f"a{i}", 1, plain) for i in range(3)), other]
    entrants += [*(entrant(f"b{i}", 2, other) for i in range(2)), entrant("c", 3)]

    def split(processes):
        batches = Race(budget=processes * 200e6).batches(entrants)
        return [[f"{e.contender.key}{e.workload.elements}" for e in batch] for batch in batches]

    # The first floor is in every batch, and so is an entrant's own.
    assert split(8) == [["floor1", "a01", "a11", "a21", "floor2", "b02", "b12", "c3"]]
    assert split(3) == [
        ["floor1", "a01", "a11"],
        ["floor1", "a21", "floor2"],
        ["floor1", "floor2", "b02"],
        ["floor1", "floor2", "b12"],
        ["floor1", "c3"],
    ]
    # Those that are too large by themselves run all the same.
    assert [len(batch) for batch in Race(budget=1.0).batches(entrants)] == [2, 2, 2, 3, 3, 2]


def test_each_workload_has_its_own_floor_and_those_that_are_alike_share_one():
    floor, one, other = (Contender(key, key, plain_numpy) for key in ("floor", "one", "other"))
    wide = replace(SMALL, dtype="float64")
    given = Heat("a", SMALL, [floor, one]), Heat("b", wide, [floor, one]), Heat("c", SMALL, [floor, other])
    a, b, c, d = Race(rounds=3, sample=0.0005)(*given, Heat("d", wide, [other]))
    floors = [point.rows[0].samples for point in (a, b, c)]
    assert floors[0] is floors[2]
    assert floors[0] != floors[1]
    assert {len(row.samples) for point in (a, b, c, d) for row in point.rows} == {3}
    for point, own in zip((a, b, c), floors, strict=True):
        assert [(row.floor, row.plain) for row in point.rows] == [(own, floors[0])] * 2
        assert point.floor_ratio == median(own) / median(floors[0])
    assert [(row.floor, row.ratio, d.floor_ratio) for row in d.rows] == [([], None, None)]


def test_absent_and_failing_contenders_are_named_and_the_others_are_measured():
    contenders = [
        Contender("numpy", "plain", plain_numpy),
        Contender("missing", "missing", plain_numpy, ("no_such_library", "no.such.module")),
        Contender("failing", "failing", multiopt_numpy, options={"lr_": 1}),
        Contender("dying", "dying", sys.exit),
    ]
    (point,) = Race(rounds=3, sample=0.0005)(Heat("x", SMALL, contenders))
    plain, missing, failing, dying = point.rows
    assert len(plain.samples) == 3
    assert plain.absent is None
    assert missing.absent == "no_such_library and no.such.module not installed"
    assert failing.absent.startswith("failed: TypeError: ")
    assert "lr_" in failing.absent
    assert dying.absent == f"failed: its process ended with status 1 {SMALL}"
    assert [row.samples for row in (missing, failing, dying)] == [[], [], []]


def test_a_process_that_is_killed_between_two_samples_is_an_error_and_closes():
    there = process.Process(Contender("numpy", "plain", plain_numpy), SMALL)
    there.ready()
    there._process.kill()
    with pytest.raises(RuntimeError, match="its process ended with status -9"):
        there(Running.sample, 1)
    there.close()


@pytest.mark.skipif(not process.RESET.exists(), reason="this system does not tell a process its highest memory")
def test_the_peak_of_memory_sees_an_array_that_came_and_went():
    seen = process.peak(Running(lambda: float(np.ones(4_000_000).sum()), list, 0.0))
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
    assert (absent.time, absent.ratio, point.speedup(absent)) == (None,) * 3


def test_the_table_shows_these_figures():
    result = example()
    header, table = report.table(result)
    assert header == ["", "time", "÷ floor", "faster than torch.optim", "GB/s", "ready"]
    assert table[1] == ["multiopt, NumPy", "3.00 s", "1.50 ×", "3.33 ×", "0.00", "250 ms"]
    assert table[3] == ["optax, jitted", "absent", "–", "–", "–", "–"]
    assert report.notes(result) == ["A note", "optax, jitted: optax not installed"]
    text = report.as_markdown(result)
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {7}
    assert "| **multiopt, NumPy** | 3.00 s | 1.50 × | 3.33 × | 0.00 | 250 ms |" in text
    assert "optax not installed" in text
    result.points[0].rows[1].extra |= {"allocations": 0, "launches": None}
    header, table = report.table(result)
    assert header[6:] == ["launches", "allocations"]
    assert [line[6:] for line in table[:2]] == [["–", "–"], ["–", "0"]]


def test_the_table_of_turns_shows_each_against_its_own_floor():
    floor = Row("floor", "floor", [3.0], [3.0], plain=[2.0])
    rows = [floor, Row("a", "A", [3.2], [3.0]), Row("b", "B", [6.0], [3.0]), Row("c", "C", absent="not here")]
    groups = Point("groups", [Row("b", "B", [0.004])], 6400, 100, 6400 * 28, "float32", groups=20)
    result = Result("x", "X", [Point("wide", rows, 10, 1, 400, "float32"), groups], kind="turns")
    header, table = report.table(result)
    assert header == ["", "bytes", "own floor (÷ float32's)", "A", "B", "C"]
    assert table[0] == ["wide", "40", "3.00 s (1.50×)", "3.20 s (1.07×) ✓", "6.00 s (2.00×)", "absent"]
    assert table[1] == ["groups", "28", "–", "–", "4.00 ms (200 µs a group)", "–"]
    assert "| wide | 40 | 3.00 s (1.50×) | 3.20 s (1.07×) ✓ | " in report.as_markdown(result)
    assert report.notes(result)[0].endswith("that is, at most 10% above")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.0, "0.00 ns"), (3.21e-7, "321 ns"), (1.234e-5, "12.3 µs"), (0.0999, "99.9 ms"), (217, "217 s")],
)
def test_durations_have_three_digits_and_a_unit(seconds, text):
    assert report.duration(seconds) == text


def test_a_straight_line_is_found():
    points = [Point(str(n), [Row("a", "A", [5e-6 + 2e-6 * n])], 64 * n, n) for n in (1, 10, 100)]
    assert lines(points) == ["A: 5.0 µs + 2.00 µs a tensor, linear within 0%"]


def test_the_case_of_jax_says_when_the_first_step_is_done():
    def race(heat):
        rows = [
            Row(c.key, c.label, ready=2.0 if heat.workload.shapes == [(64,)] * 100 else 0.5) for c in heat.contenders
        ]
        rows[2] = replace(rows[2], absent="not here", ready=None)
        return [Point(heat.name, rows, **heat.workload.facts())]

    result = CASES["jax"](Run(choose("cpu", False, []), race, quick=True, device="cpu"))
    assert [(point.tensors, point.elements) for point in result.points] == [(1, 20_000), (100, 6400)]
    rows = result.points[0].rows
    assert [note.split(": ") for note in result.notes] == [
        [row.label, "the first step, compiled, is done after 0.50 and 2.00 s"] for row in (rows[1], *rows[3:])
    ]


# --- the whole, quick ---


def test_a_quick_run_has_a_measurement_behind_every_number(tmp_path, capsys):
    file = tmp_path / "figures.json"
    chosen = "multiopt-numpy,numpy,torch-compile"
    assert run("--quick", "--cases", "small", "--contenders", chosen, "--rounds", "2", "--json", str(file)) == 0
    shown = capsys.readouterr().out
    document = json.loads(file.read_text())
    assert document["command"] == f"multiopt bench --cases small --contenders {chosen} --rounds 2 --quick"
    assert shown.startswith(f"`{document['command']}`, on: processor ")
    assert document["machine"]["numpy"] == np.__version__
    assert [result["case"] for result in document["results"]] == ["small"]
    (point,) = document["results"][0]["points"]
    assert point["moved"] == 28 * point["elements"]
    assert [row["key"] for row in point["rows"]] == ["floor", "multiopt-numpy", "torch-compile", "numpy"]
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


def test_a_huge_tensor_is_compared_with_itself_and_refused_where_it_does_not_fit(monkeypatch, capsys):
    x = np.tile(np.arange(1 << 20, dtype=np.float32), 3)[:-7]
    assert alike(Running(lambda: None, lambda: [x], 0.0)) == {}
    x[-1] = -1
    with pytest.raises(ValueError, match=f"element {len(x) - 1} is not what its like has become"):
        alike(Running(lambda: None, lambda: [x], 0.0))
    monkeypatch.setattr(cases, "memory_of", lambda device: 9e9)
    assert run("--cases", "huge", "--rounds", "1", "--contenders", "multiopt-numpy") == 0
    said = capsys.readouterr().out
    assert "One tensor of 2,147,483,653 elements, bfloat16" in said
    assert "multiopt, NumPy: needs 17.4 GB of memory, and 9.0 GB are free" in said


def test_a_failing_contender_makes_the_run_fail(monkeypatch, capsys):
    broken = Contender("floor", "floor", multiopt_numpy, options={"no_such_option": 1})
    monkeypatch.setattr(bench, "choose", lambda *_: {"floor": broken})
    assert run("--quick", "--cases", "small", "--markdown") == 1
    assert "failed: TypeError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--cases", "large,none"], "--cases: expected some of large, large64"),
        (["--device", "cuda", "--cases", "memory"], "--cases: expected some of large"),
        (["--contenders", "nobody"], "--contenders: expected some of floor"),
        (["--rounds", "0"], "--rounds: expected at least 1, got 0"),
        (["--device", "cuda"], "--device cuda: no NVIDIA GPU is visible to this process"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(words, complaint, monkeypatch, capsys):
    monkeypatch.setattr(bench, "gpu", list)
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"multiopt bench: {complaint}")
    assert error.count("\n") == 1


def test_a_gpu_is_found_by_nvidias_tool(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "NVIDIA H100 80GB HBM3, 580.65.06, 81000"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.describe("cuda")["gpu"] == "NVIDIA H100 80GB HBM3, driver 580.65.06"
    assert machine.memory("cuda") == 81000 * 2**20
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.gpu() == []


def test_the_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    one = example()
    many = Result("sweep", "A sweep", [Point(str(n), one.points[0].rows, n, 1) for n in (10, 100)])
    turns = Result("x", "Turns", many.points, kind="turns")
    path = tmp_path / "figures.png"
    plot.draw([one, many, turns, Result("import", "Imports", [one.points[0]], kind="import")], path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
