"""The command line: what it prints, how it fails, the demo, and info."""

import re
import subprocess
import sys

import numpy as np
import pytest
from processes import run_python

from multiopt import backends
from multiopt.cli import command, info, main, picture
from multiopt.cli.digits import Config, Run, batches, load, loss_and_gradients, replay, train
from multiopt.cli.libraries import find

PNG = b"\x89PNG\r\n"


# --- the command line itself ---


def test_help_names_every_command_and_each_has_its_own(capsys):
    assert main([]) == 2
    shown = capsys.readouterr().out
    for words in (["--help"], *([name, "--help"] for name in command.COMMANDS)):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0
        if words == ["--help"]:
            assert capsys.readouterr().out == shown
        else:
            assert capsys.readouterr().out.startswith(f"usage: multiopt {words[0]} ")
            assert f"\n  {words[0]}" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_commands_are_imported_when_chosen():
    names = "multiopt.cli.demo multiopt.cli.info multiopt.benchmarks multiopt.conformance rich matplotlib sklearn torch"
    code = "import sys, multiopt; before = 'multiopt.cli' in sys.modules; import multiopt.cli as c; c.main([]); "
    assert run_python(code + f"print(before, [m for m in {names.split()} if m in sys.modules])").endswith("\nFalse []")


def test_version_of_the_module_run_as_a_program():
    code = "import runpy, sys; sys.argv[1:] = ['--version']; runpy.run_module('multiopt', run_name='__main__')"
    assert run_python(code).startswith("multiopt 0.")


def test_a_reader_that_goes_away():
    code = """
from multiopt.cli import command
command._run = lambda *_: print("x" * 100000) or 0
raise SystemExit(command.main(["demo"]))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(600) == 141


def error_line(capsys):
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [("demo", "rich", "demo"), ("demo", "sklearn", "demo"), ("demo", "matplotlib", "demo"), ("info", "rich", "cli")],
)
def test_a_missing_extra_is_named(name, missing, extra, monkeypatch, capsys, tmp_path):
    for module in [missing, *(m for m in sys.modules if m.startswith(f"{missing}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "multiopt.cli.picture")
    monkeypatch.delattr("multiopt.cli.picture")
    monkeypatch.chdir(tmp_path)
    assert main([name]) == 2
    assert error_line(capsys) == f'multiopt {name}: {missing} is not installed: pip install "multiopt[{extra}]"\n'


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backend", "no_such_library"], "--backend: no_such_library is not installed: pip install no_such_library"),
        (["--backend", "json"], "--backend: json does not work here: AttributeError"),
        (["--device", "cuda"], "--device: numpy has cpu here, got 'cuda'"),
        (["--all", "--device", "cpu"], "--device: goes with --backend"),
        (["--eps", "0"], "eps: expected a number in (0, inf), got 0.0"),
        (["--rho", "1.5"], "rho: expected a number in [0, 1], got 1.5"),
        (["--lr", "nan"], "lr: expected a number in [0, inf), got nan"),
        (["--out", "no/such/folder/x.png"], "--out: there is no folder"),
        (["--backend=jax", "--dtype=float64"], "--dtype: jax has no float64 here; set JAX_ENABLE_X64=1"),
    ],
)
def test_wrong_options_are_one_line(words, message, capsys, monkeypatch, tmp_path):
    if "--backend=jax" in words and pytest.importorskip("jax").config.jax_enable_x64:
        pytest.skip("this process has float64 in JAX")
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *words]) == 2
    assert message in error_line(capsys)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=re.escape(message)):
        main(["--traceback", "demo", *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fly"], "there is no command 'fly'; choose from demo, info, bench, check, record"),
        (["demo", "--epochs", "0"], "--epochs: expected an integer of at least 1, got '0'"),
        (["demo", "--batch", "x"], "--batch: expected an integer of at least 1, got 'x'"),
        (["demo", "--seed", "-1"], "--seed"),
        (["demo", "--preset", "optax"], "--preset: invalid choice: 'optax'"),
    ],
)
def test_words_that_argparse_rejects(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


# --- the demo ---


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_gradients_are_those_of_the_loss(activation):
    config = Config(dtype="float64", activation=activation)
    x, y = (array[:20] for array in load(config)[0].values())
    params = config.initial()
    loss, grads = loss_and_gradients(np, params, x, y, activation)
    assert loss == pytest.approx(np.log(10), rel=0.5)  # not far from guessing
    rng, h = np.random.default_rng(0), 1e-6
    for name, value in params.items():
        direction = rng.normal(size=value.shape)
        up, down = (
            loss_and_gradients(np, {**params, name: value + s * h * direction}, x, y, activation)[0] for s in (1, -1)
        )
        # Central differences: an error of h² for tanh, and of 1e-16 / h by rounding. A kink of ReLU within h of a
        # point would show; there is none for this seed.
        assert np.sum(grads[name] * direction) == pytest.approx((up - down) / (2 * h), rel=1e-5, abs=1e-8), name


def test_digits_are_split_and_scaled():
    training, test = load(Config())
    shapes = [data[name].shape for data in (training, test) for name in "xy"]
    assert shapes == [(1437, 64), (1437, 10), (360, 64), (360, 10)]
    assert training["x"].dtype == np.float32
    assert (training["x"].min(), training["x"].max()) == (0, 1)
    assert (training["y"].sum(axis=1) == 1).all()
    found = list(batches(Config(epochs=2, batch=100), training))
    assert len(found) == 30
    assert np.concatenate([batch["x"] for batch in found[:15]]).sum() == training["x"].sum()  # each digit once


@pytest.mark.parametrize(
    ("preset", "activation", "seed"), [("torch", "tanh", 0), ("paper", "tanh", 1), ("torch", "relu", 2)]
)
def test_the_default_size_learns_the_digits(preset, activation, seed):
    config = Config(preset=preset, activation=activation, seed=seed)
    run = train("numpy", find("numpy").places[0], config, load(config))
    assert run.losses[-29:].mean() < 0.1 * run.losses[:29].mean()
    assert run.accuracy > 0.95


def test_the_digits_are_learned_as_well_with_half_the_state():
    def right(**options):
        config = Config(epochs=10, options=options)
        return train("numpy", find("numpy").places[0], config, load(config)).accuracy

    # Of 360 digits; the difference of two such shares has a standard deviation of 1.5 points where 96 % are right.
    assert right(state_dtype="bfloat16", state_rounding="stochastic", seed=1) > right() - 0.03


@pytest.mark.parametrize("name", [library.name for library in backends.libraries()])
def test_libraries_are_found_train_alike_and_update_with_the_same_bits(name):
    config = Config(epochs=2, batch=479)  # equal batches: JAX compiles anew for each shape
    found = find(name)
    if found.problem:
        assert found.problem.startswith(("is not installed: pip install", "does not work here: "))
        pytest.skip(f"{name} {found.problem}")
    assert found.version
    assert all(place.engine in backends.ENGINES for place in found.places)
    numpy, other = find("numpy").places[0], found.places[0]
    first = train("numpy", numpy, config, load(config), keep=5)
    second = train(name, other, config, load(config))
    # Six steps of float32: sums of 479 terms in another order differ by some 1e-7, and little is carried on.
    np.testing.assert_allclose(second.losses, first.losses, rtol=1e-5)
    assert len(first.gradients) == 5
    values = replay(numpy, config, first.gradients)
    np.testing.assert_array_equal(replay(other, config, first.gradients), values)
    assert values.size == 3 * 12060


@pytest.mark.parametrize(
    ("words", "result"),
    [
        (["--epochs=3", "--rho=0.95", "--seed=3"], "numpy, host engine: 87 steps in "),
        (
            ["--backend=array-api-strict", "--dtype=float64", "--epochs=1", "--batch=500"],
            "array_api_strict, eager engine: 3 steps in ",
        ),
        (["--device=cpu", "--preset=paper", "--epochs=1", "--batch=500"], "numpy on cpu, host engine: 3 steps in "),
    ],
)
def test_demo_reports_and_draws(words, result, tmp_path, capsys):
    pytest.importorskip("array_api_strict")
    out = tmp_path / "curve.png"
    assert main(["demo", *words, "--out", str(out)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert result in shown
    assert "of the test digits right" in shown
    assert out.read_bytes().startswith(PNG)


def registered(monkeypatch, *libraries):
    monkeypatch.setattr(backends.registry, "_libraries", {library.name: library for library in libraries})


def test_demo_on_all_libraries(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    pytest.importorskip("array_api_strict")
    chosen = [library for library in backends.libraries() if library.name in ("numpy", "torch", "array_api_strict")]
    registered(monkeypatch, *chosen, backends.Library("no_such_library", "x", "x"))
    out = tmp_path / "all.png"
    assert main(["demo", "--all", "--epochs=1", "--batch=300", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Skipped: no_such_library is not installed: pip install no-such-library" in shown
    rows = [line.split() for line in shown.splitlines() if line.strip().startswith(("numpy ", "torch ", "array_api_"))]
    rows = [row for row in rows if row[1] in ("host", "eager")]
    assert [row[0] for row in rows] == ["numpy", "torch", "array_api_strict"]
    assert all(row[-2:] == ["same", "bits"] for row in rows)
    assert out.read_bytes().startswith(PNG)


@pytest.mark.parametrize("differences", [[0.0], [0.0, 1e-6, 1e-5], [0.0, 0.0], [0.0] * 10])
def test_pictures(differences, tmp_path):
    losses = np.geomspace(2, 0.01, 12)
    runs = [Run(f"library {i}", losses * (1 + d), 0.9, 1.0, []) for i, d in enumerate(differences)]
    picture.draw(runs, 4, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(PNG)


# --- info ---


def test_info_shows_engines_and_what_is_missing(monkeypatch, capsys, tmp_path):
    (tmp_path / "broken_library.py").write_text("raise RuntimeError('its compiler\\nis not the right one')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    absent = backends.Library("no_such_library", "x", "x", extra="no-such")
    registered(monkeypatch, *backends.libraries(), backends.Library("broken_library", "x", "broken_library"), absent)
    monkeypatch.setattr(info, "MODULES", {"numba": ("x", "speed"), "broken_library": ("y", "nothing")})
    monkeypatch.setenv("MULTIOPT_NUM_THREADS", "3")
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert ["numpy", np.__version__, "cpu", "host"] in [line.split() for line in shown.splitlines()]
    flat = " ".join(shown.split())
    assert "broken_library does not work here: RuntimeError: its compiler is not the right one" in flat
    assert 'no_such_library is not installed: pip install "multiopt[no-such]"' in flat
    assert "threads of the host engine: 3, from MULTIOPT_NUM_THREADS" in flat


def test_info_says_why_not_a_faster_engine():
    code = """
import os, sys
os.environ["MULTIOPT_NUM_THREADS"] = "many"
sys.modules["numba"] = None
from multiopt.cli import info, main
info.libraries = lambda keep=info.libraries: keep()[:1]
raise SystemExit(main(["info"]))
"""
    flat = " ".join(run_python(code).split())
    assert 'numpy on cpu, no host engine: the host engine needs Numba: pip install "multiopt[numba]"' in flat
    assert "numba is not installed" in flat
    assert "expected a positive integer, got 'many'" in flat


def test_info_says_that_numbas_compiler_is_off(numba):
    code = """
from multiopt.cli import info, main
info.libraries = lambda keep=info.libraries: keep()[:1]
raise SystemExit(main(["info"]))
"""
    flat = " ".join(run_python(code, NUMBA_DISABLE_JIT="1").split())
    assert "numpy on cpu, no host engine: Numba's compiler is off: NUMBA_DISABLE_JIT is set" in flat
