"""multiopt.torch.Adadelta in several processes, over gloo: see torch_ranks.py for what each of them checks."""

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("numba", reason="the host engine needs numba")
if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no distributed package", allow_module_level=True)


def test_ranks(tmp_path):
    """Four ranks, then two, which load what the four have saved; then this process alone."""
    program = Path(__file__).parent.parent / "support" / "torch_ranks.py"
    done = subprocess.run([sys.executable, program, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-9000:]
    assert done.stdout.strip() == "all checks passed"
