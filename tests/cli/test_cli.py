"""The command line: what it prints, how it fails, the demo, and info."""

import subprocess
import sys

import numpy as np
import pytest

from multiopt import backends, cli, demo_picture, info
from multiopt.demo_digits import Config, Digits, Run, loss_and_gradients, replay, train

PNG = b"\x89PNG\r\n"


def python(*words, **options):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, **options)


# --- the command line itself ---


def test_help_names_every_command(capsys):
    assert cli.main([]) == 2
    shown = capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out == shown
    for name in cli.COMMANDS:
        assert f"\n  {name}" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("multiopt 0.")


def test_unknown_command(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["fly"])
    assert end.value.code == 2
    assert "there is no command 'fly'; there are demo, info, bench" in capsys.readouterr().err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: multiopt {command} ")


def test_commands_are_imported_when_chosen():
    code = "import sys, multiopt.cli as c; c.main([]); print([m for m in {} if m in sys.modules])"
    names = ["multiopt.demo", "multiopt.info", "multiopt.benchmarks", "rich", "matplotlib", "sklearn", "torch", "jax"]
    assert python("-c", code.format(names)).stdout.endswith("\n[]\n")


def test_runs_as_a_module():
    done = python("-m", "multiopt", "--version")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_goes_away():
    code = "import multiopt.cli as c; c._run = lambda *_: print('x' * 100000) or 0; raise SystemExit(c.main(['demo']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


def error_line(capsys):
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("missing", ["rich", "sklearn", "matplotlib"])
def test_a_missing_extra_is_named(missing, monkeypatch, capsys, tmp_path):
    for name in [m for m in sys.modules if m == missing or m.startswith(f"{missing}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "multiopt.demo_picture")
    monkeypatch.delattr("multiopt.demo_picture")
    assert cli.main(["demo", "--out", str(tmp_path / "x.png")]) == 2
    assert error_line(capsys) == f'multiopt demo: {missing} is not installed: pip install "multiopt[demo]"\n'


def test_info_names_its_own_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich", None)
    assert cli.main(["info"]) == 2
    assert error_line(capsys) == 'multiopt info: rich is not installed: pip install "multiopt[cli]"\n'


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backend", "no_such_library"], "--backend: no_such_library is not installed: pip install"),
        (["--backend", "json"], "--backend: json does not work here: AttributeError"),
        (["--device", "cuda"], "--device: numpy has cpu here, got 'cuda'"),
        (["--all", "--device", "cpu"], "--device: goes with --backend"),
        (["--eps", "0"], "eps: expected a number in (0, inf), got 0.0"),
        (["--rho", "1.5"], "rho: expected a number in [0, 1], got 1.5"),
        (["--lr", "nan"], "lr: expected a number in [0, inf), got nan"),
        (["--out", "no/such/folder/x.png"], "--out: there is no folder"),
    ],
)
def test_wrong_options_are_one_line(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", *words]) == 2
    assert message in error_line(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--epochs", "0"], ["--batch", "x"], ["--seed", "-1"], ["--preset", "optax"]])
def test_words_that_argparse_refuses(words, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["demo", *words])
    assert end.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_traceback_on_request(tmp_path):
    with pytest.raises(ValueError, match="eps: expected"):
        cli.main(["--traceback", "demo", "--eps=0", "--out", str(tmp_path / "x.png")])


def test_float64_where_jax_has_none(capsys, tmp_path):
    jax = pytest.importorskip("jax")
    if jax.config.jax_enable_x64:
        pytest.skip("this process has float64 in JAX")
    assert cli.main(["demo", "--backend=jax", "--dtype=float64", "--out", str(tmp_path / "x.png")]) == 2
    assert "--dtype: jax has no float64 here; set JAX_ENABLE_X64=1" in error_line(capsys)


# --- the demo ---


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_gradients_are_those_of_the_loss(activation):
    config = Config(dtype="float64", activation=activation)
    digits = Digits.load(config)
    params, x, y = config.initial(), digits.train_x[:20], digits.train_y[:20]
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
    digits = Digits.load(Config())
    assert digits.train_x.shape == (1437, 64)
    assert digits.test_x.shape == (360, 64)
    assert digits.train_x.dtype == np.float32
    assert (digits.train_x.min(), digits.train_x.max()) == (0, 1)
    assert (digits.train_y.sum(axis=1) == 1).all()
    batches = list(digits.batches(Config(epochs=2, batch=100)))
    assert len(batches) == digits.steps(Config(epochs=2, batch=100)) == 30
    assert np.concatenate([x for x, _ in batches[:15]]).sum() == digits.train_x.sum()  # each digit once


@pytest.mark.parametrize(
    ("preset", "activation", "seed"), [("torch", "tanh", 0), ("paper", "tanh", 1), ("torch", "relu", 2)]
)
def test_the_default_size_learns_the_digits(preset, activation, seed):
    config = Config(preset=preset, activation=activation, seed=seed)
    library = info.find("numpy")
    run = train("numpy", library.backend, library.places[0], config, Digits.load(config))
    assert run.losses[-29:].mean() < 0.1 * run.losses[:29].mean()
    assert run.accuracy > 0.95


@pytest.mark.parametrize("name", ["torch", "jax", "dask", "array_api_strict"])
def test_libraries_train_alike_and_update_with_the_same_bits(name):
    config = Config(epochs=2, batch=479)  # equal batches: JAX compiles anew for each shape
    digits = Digits.load(config)
    numpy, other = info.find("numpy"), info.find(name)
    if other.backend is None:
        pytest.skip(f"{name} {other.problem}")
    first = train("numpy", numpy.backend, numpy.places[0], config, digits, keep=5)
    second = train(name, other.backend, other.places[0], config, digits)
    # Six steps of float32: sums of 479 terms in another order differ by some 1e-7, and little is carried on.
    np.testing.assert_allclose(second.losses, first.losses, rtol=1e-5)
    assert len(first.gradients) == 5
    values = replay(numpy.backend, numpy.places[0], config, first.gradients)
    np.testing.assert_array_equal(replay(other.backend, other.places[0], config, first.gradients), values)
    assert values.size == 3 * 12060


def test_demo_tells_and_draws(tmp_path, capsys):
    out = tmp_path / "curve.png"
    assert cli.main(["demo", "--epochs=3", "--rho=0.95", "--seed=3", "--out", str(out)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "numpy, host engine: 87 steps in" in shown
    assert "of the test digits right" in shown
    assert out.read_bytes().startswith(PNG)


def test_demo_takes_any_namespace(tmp_path, capsys):
    pytest.importorskip("array_api_strict")
    words = ["--backend=array-api-strict", "--dtype=float64", "--epochs=1", "--batch=500"]
    assert cli.main(["demo", *words, "--out", str(tmp_path / "x.png")]) == 0
    assert "array_api_strict, eager engine: 3 steps" in " ".join(capsys.readouterr().out.split())


def test_demo_on_all_libraries(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    pytest.importorskip("array_api_strict")
    monkeypatch.setattr(
        info, "LIBRARIES", dict.fromkeys(["numpy", "torch", "array_api_strict", "no_such_library"], "x")
    )
    out = tmp_path / "all.png"
    assert cli.main(["demo", "--all", "--epochs=1", "--batch=300", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Left out: no_such_library is not installed: pip install x" in shown
    rows = [line.split() for line in shown.splitlines() if line.strip().startswith(("numpy ", "torch ", "array_api_"))]
    rows = [row for row in rows if row[1] in ("host", "eager")]
    assert [row[0] for row in rows] == ["numpy", "torch", "array_api_strict"]
    assert all(row[-2:] == ["same", "bits"] for row in rows)
    assert out.read_bytes().startswith(PNG)


@pytest.mark.parametrize("differences", [[0.0], [0.0, 1e-6, 1e-5], [0.0, 0.0], [0.0] * 10])
def test_pictures(differences, tmp_path):
    losses = np.geomspace(2, 0.01, 12)
    runs = [Run(f"library {i}", losses * (1 + d), 0.9, 1.0, []) for i, d in enumerate(differences)]
    demo_picture.draw(runs, 4, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(PNG)


# --- info ---


def test_info_shows_engines_and_what_is_missing(monkeypatch, capsys, tmp_path):
    (tmp_path / "broken_library.py").write_text("raise RuntimeError('its compiler\\nis not the right one')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(
        info, "LIBRARIES", {"numpy": "numpy", "broken_library": "x", "no_such_library": '"multiopt[no-such]"'}
    )
    monkeypatch.setattr(info, "HELPERS", {"numba": ("x", "speed"), "broken_library": ("y", "nothing")})
    monkeypatch.setenv("MULTIOPT_NUM_THREADS", "3")
    assert cli.main(["info"]) == 0
    shown = capsys.readouterr().out
    assert ["numpy", np.__version__, "cpu", "host"] in [line.split() for line in shown.splitlines()]
    flat = " ".join(shown.split())
    assert "broken_library does not work here: RuntimeError: its compiler is not the right one" in flat
    assert 'no_such_library is not installed: pip install "multiopt[no-such]"' in flat
    assert "threads of the host engine: 3, as MULTIOPT_NUM_THREADS says" in flat


def test_info_with_a_wrong_number_of_threads(monkeypatch, capsys):
    monkeypatch.setattr(info, "LIBRARIES", {"numpy": "numpy"})
    monkeypatch.setenv("MULTIOPT_NUM_THREADS", "many")
    assert cli.main(["info"]) == 0
    assert "expected a positive integer, got 'many'" in " ".join(capsys.readouterr().out.split())


def test_info_says_why_not_a_faster_engine():
    code = """
import sys
sys.modules["numba"] = None
from multiopt import cli, info
info.LIBRARIES = {"numpy": "numpy"}
raise SystemExit(cli.main(["info"]))
"""
    done = python("-c", code)
    assert done.returncode == 0
    flat = " ".join(done.stdout.split())
    assert 'numpy on cpu, no host engine: the host engine needs Numba: pip install "multiopt[numba]"' in flat
    assert "numba is not installed" in flat


def test_every_library_here_is_found_or_explained():
    for name in info.LIBRARIES:
        library = info.find(name)
        if library.backend is None:
            assert library.problem.startswith(("is not installed: pip install", "does not work here: ")), name
        else:
            assert library.version
            assert all(place.engine in backends.ENGINES for place in library.places)
