"""The MNIST program: the same losses with either optimizer, and it learns."""

import re
import runpy
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
pytest.importorskip("numba", reason="the host engine needs numba")
PROGRAM = Path(__file__).parent.parent.parent / "examples" / "torch_mnist.py"


def test_same_losses_with_either_optimizer(monkeypatch, capsys):
    def run(optimizer):
        options = "--double --epochs 1 --log-interval 1 --images 320 --batch-size 32 --optimizer"
        monkeypatch.setattr(sys, "argv", [str(PROGRAM), *options.split(), optimizer])
        try:
            runpy.run_path(str(PROGRAM), run_name="__main__")
        finally:
            torch.set_default_dtype(torch.float32)
        return capsys.readouterr().out.splitlines()

    ours, theirs = run("multiopt"), run("torch")
    assert len(ours) == 12
    # The last line says how long it took.
    assert ours[:-1] == theirs[:-1]
    losses = [float(text) for text in re.findall(r"Loss: ([\d.]+)", "\n".join(ours))]
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
