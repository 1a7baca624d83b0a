"""Adadelta's state in bfloat16, rounded to nearest and stochastically, beside float32's.

Every element of an array gets random gradients, whose size falls to a third midway. The state is to follow their mean
square, with a memory of ``1 / (1 - rho)`` steps. Run it with ``python examples/state_rounding.py``; with ``--plot
FILE`` (``pip install "multiopt[plot]"``) it draws what it prints: the picture in docs/options.md is of 10,000 steps.
"""

import argparse
from pathlib import Path

import numpy as np

import multiopt

RHOS = (0.9, 0.99, 0.999)
KINDS = {
    "float32": {},
    "bfloat16, to nearest": {"state_dtype": "bfloat16"},
    "bfloat16, stochastic": {"state_dtype": "bfloat16", "state_rounding": "stochastic", "seed": 1},
}


def follow(rho: float, steps: int, elements: int, every: int) -> tuple[dict[str, np.ndarray], float]:
    """The mean of ``square_avg`` over the elements after each `every` steps, of each kind of state.

    Also how far stochastic rounding's elements are from float32's at the end: the root of the mean squared relative
    difference.
    """
    rng = np.random.default_rng(0)
    optimizers = {
        kind: multiopt.Adadelta(np.zeros(elements, np.float32), lr=1e-3, rho=rho, **options)
        for kind, options in KINDS.items()
    }
    means: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for step in range(steps):
        size = np.float32(1 if step < steps // 2 else 1 / 3)
        gradient = size * rng.standard_normal(elements, dtype=np.float32)
        for optimizer in optimizers.values():
            optimizer.step(gradient)
        if step % every == every - 1:
            for kind, optimizer in optimizers.items():
                means[kind].append(float(optimizer.state["square_avg"].astype(np.float64).mean()))
    exact, held = (optimizers[kind].state["square_avg"].astype(np.float64) for kind in ("float32", list(KINDS)[-1]))
    return {kind: np.array(values) for kind, values in means.items()}, float(np.sqrt(np.mean((held / exact - 1) ** 2)))


def bound(rho: float) -> float:
    """What theory says of that difference, at most.

    One rounding adds an error without bias, of a variance of at most a quarter of the squared distance between
    neighbours, 2**-7 of a number at most; a share of ``rho**2`` of the variance is left a step later.
    """
    return 2**-8 / (1 - rho**2) ** 0.5


def draw(found: dict[float, dict[str, np.ndarray]], every: int, path: Path) -> None:
    """Draw the means, a panel for each rho."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), dpi=120, layout="constrained")
    styles = [("black", 3.0, "-"), ("#D55E00", 1.6, "--"), ("#56B4E9", 1.3, "-")]
    for axes, (rho, means) in zip(figure.subplots(1, len(found), sharey=True), found.items(), strict=True):
        for (kind, values), (color, width, line) in zip(means.items(), styles, strict=True):
            steps = every * np.arange(1, len(values) + 1)
            axes.plot(steps, values, color=color, linewidth=width, linestyle=line, label=kind)
        axes.set_title(f"rho = {rho}", loc="left")
        axes.set_xlabel("step")
        axes.grid(True, color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("mean of square_avg")
    figure.axes[0].legend(frameon=False, fontsize="small", loc="center left")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000, help="steps (default: 10000)")
    parser.add_argument("--elements", type=int, default=4096, help="elements of the array (default: 4096)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the means to a picture")
    args = parser.parse_args()
    every = max(args.steps // 100, 1)
    found = {}
    print(f"{'rho':>6}  {'state':<22}{'midway':>8}{'end':>8}   (the gradients' mean square: 1, then 0.111)")
    for rho in RHOS:
        means, off = follow(rho, args.steps, args.elements, every)
        found[rho] = means
        for kind, values in means.items():
            print(f"{rho:>6}  {kind:<22}{values[len(values) // 2 - 1]:>8.3f}{values[-1]:>8.3f}")
        print(f"        each element off float32's by {off:.2%}; theory: at most {bound(rho):.2%}")
    if args.plot:
        draw(found, every, args.plot)


if __name__ == "__main__":
    main()
