"""The examples run, in a fresh process each, and do what they say."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, folder, *arguments):
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(folder.iterdir()) == []  # it leaves nothing behind
    return done.stdout


def rates(output):
    return [float(text) for text in re.findall(r"([\d.]+)% of the test points", output)]


def test_numpy_training(tmp_path):
    found = rates(run("numpy_training.py", tmp_path))
    assert len(found) == 5
    assert found[-1] > 95


def test_state_rounding(tmp_path):
    output = run("state_rounding.py", tmp_path, "--steps", "600", "--elements", "512")
    means = {
        line[:28].strip(): float(line.split()[-1])
        for line in output.splitlines()
        if "bfloat16" in line or "float32  " in line
    }
    rows = re.findall(r"off float32's by ([\d.]+)%; theory: at most ([\d.]+)%", output)
    assert len(means) == 9
    assert len(rows) == 3
    assert all(float(off) < float(most) for off, most in rows)
    # The mean over 512 elements is off by a 22nd of what each is; five standard deviations.
    assert means["0.99  bfloat16, stochastic"] == pytest.approx(means["0.99  float32"], rel=5 * 0.0277 / 22)
    # To nearest, it stands where the gradients were large.
    assert means["0.999  bfloat16, to nearest"] > 1.05 * means["0.999  float32"]


def test_cupy_training(tmp_path):
    output = run("cupy_training.py", tmp_path)
    found = rates(output)
    assert len(found) == (1 if "On the CPU alone" in output else 2)  # where there is no GPU, or there is one
    assert min(found) > 95


def test_dask_cluster(tmp_path):
    pytest.importorskip("distributed", reason="distributed is not installed")
    output = run("dask_cluster.py", tmp_path, "--chunks", "3", "--steps", "10")
    found = rates(output)
    assert output.startswith("24 MiB of data")
    assert len(found) == 2
    assert found[-1] > 95


@pytest.mark.parametrize(
    ("name", "package", "models", "arrays"), [("flax_nnx.py", "flax", 1, 13), ("equinox_training.py", "equinox", 2, 4)]
)
def test_frameworks_on_jax(name, package, models, arrays, tmp_path):
    for needed in (package, "optax"):
        if not find_spec(needed):
            pytest.skip(f"{needed} is not installed")
    output = run(name, tmp_path)
    found = rates(output)
    assert len(found) == models
    assert min(found) > 95
    assert f"{arrays} of {arrays} arrays" in output.splitlines()[-1]


def test_custom_rule(tmp_path):
    rows = [line.rsplit(maxsplit=4) for line in run("custom_rule.py", tmp_path).splitlines()[1:]]
    assert [row[0] for row in rows] == ["rmsprop"] * 2 + ["sgd with momentum"] * 2 + ["adagrad"] * 2
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first[1] == "numpy"
        assert second[1] in ("torch", "array_api_strict")
        assert first[2:] == second[2:]
    for _, _, loss, slope, offset in rows:
        assert float(loss) < 0.011  # the noise has a variance of 0.01
        assert float(slope) == pytest.approx(3, abs=0.1)
        assert float(offset) == pytest.approx(-2, abs=0.1)
