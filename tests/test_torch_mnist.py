"""The MNIST program: the same losses with either optimizer, and it learns."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
pytest.importorskip("numba", reason="the host engine needs numba")
PROGRAM = Path(__file__).parent.parent / "examples" / "torch_mnist.py"


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "-W", "error", PROGRAM, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout.splitlines()


def test_same_losses_with_either_optimizer():
    ours = run("--double", "--epochs", "1", "--log-interval", "1")
    theirs = run("--double", "--epochs", "1", "--log-interval", "1", "--optimizer", "torch")
    assert len(ours) == 26
    # The last line says how long it took.
    assert ours[:-1] == theirs[:-1]
    losses = [float(text) for text in re.findall(r"Loss: ([\d.]+)", "\n".join(ours))]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
