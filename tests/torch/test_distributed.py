"""multiopt.torch.Adadelta in several processes, over gloo: see torch_ranks.py for what each of them checks."""

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("numba", reason="the host engine needs numba")
if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no distributed package", allow_module_level=True)


def run_ranks(count, task, folder, store):
    program = Path(__file__).parent.parent / "support" / "torch_ranks.py"
    ranks = [
        subprocess.Popen(
            [sys.executable, program, str(rank), str(count), str(store), task, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        outputs = [rank.communicate(timeout=900) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    failed = [i for i, rank in enumerate(ranks) if rank.returncode != 0]
    # The others fail because one did; show them all.
    assert not failed, "\n".join(f"--- rank {i} ---\n{outputs[i][1][-3000:]}" for i in failed)
    assert all("all checks passed" in out for out, _ in outputs)


@pytest.mark.parametrize(("save", "load"), [(4, 2)])
def test_ranks(save, load, tmp_path):
    """Four ranks, then two, which load what the four have saved; then this process alone."""
    run_ranks(save, "save", tmp_path / "checkpoint", tmp_path / "first")
    run_ranks(load, "load", tmp_path / "checkpoint", tmp_path / "second")
