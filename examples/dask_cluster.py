"""Train on data larger than a worker's memory, with Adadelta on the arrays of a Dask cluster: a complete program.

Two processes on this machine stand for the cluster; each may use 512 MiB, and the data are 650 MiB. Every step reads
them once, chunk by chunk. Run it with ``python examples/dask_cluster.py`` (needs ``pip install distributed``).
"""

import argparse

import dask
import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

import multiopt

FEATURES = 64
#: Of a chunk: 8 MiB.
ROWS = 2**15


def rows(block_id: tuple[int, ...] = (0,)) -> np.ndarray:
    """One chunk of the data, as a file of them would give it: features, and in the last column 0 or 1."""
    rng = np.random.default_rng(block_id[0])
    x = rng.standard_normal((ROWS, FEATURES + 1), np.float32)
    x[:, -1] = x[:, :-1] @ np.linspace(-1, 1, FEATURES, dtype=np.float32) > 0.5
    return x


def gradients(params: dict[str, da.Array], data: da.Array) -> dict[str, da.Array]:
    """Gradients of the mean cross-entropy of a logistic regression. Nothing is computed here."""
    x, label = data[:, :-1], data[:, -1]
    p = 1 / (1 + da.exp(-(x @ params["w"] + params["b"])))
    error = (p - label) / np.float32(len(data))
    return {"w": x.T @ error, "b": error.sum(keepdims=True)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--chunks", type=int, default=80, help="chunks of the data, 8 MiB each")
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit="512 MiB", dashboard_address=None) as cluster,
        Client(cluster),
    ):
        sizes = ((ROWS,) * arguments.chunks, (FEATURES + 1,))
        data = da.map_blocks(rows, chunks=sizes, dtype=np.float32, meta=np.empty((0, 0), np.float32))
        print(f"{data.nbytes / 2**20:.0f} MiB of data")
        params = {"w": da.zeros(FEATURES, dtype=np.float32), "b": da.zeros(1, dtype=np.float32)}
        optimizer = multiopt.Adadelta(params, rho=0.9, eps=1e-3, clip_global_norm=1.0)
        for step in range(arguments.steps):
            # Done on the workers when it returns. Clipping reads the gradients twice; they are made once, in one pass.
            optimizer.step(gradients(optimizer.params, data))
            if step % 5 == 4:
                test, (now,) = rows((arguments.chunks,)), dask.compute(optimizer.params)
                right = (test[:, :-1] @ now["w"] + now["b"] > 0) == test[:, -1]
                print(f"step {step + 1:3}: {right.mean():.1%} of the test points right")


if __name__ == "__main__":
    main()
