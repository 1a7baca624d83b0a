"""Cases whose lines take turns in one race, each against the floor of what it must move itself."""

from __future__ import annotations

from typing import Any

from .contenders.numpy import functional_numpy, multiopt_dask
from .contenders.torch import functional_tensors
from .harness.figures import FLOOR, Result
from .harness.race import Heat
from .harness.workload import Workload
from .run import Run

__all__ = ["OURS", "dtypes", "options", "paths"]

#: Elements of the one tensor: too many for any cache.
ELEMENTS = 16_000_000
#: Contenders whose arrays are NumPy's and PyTorch's.
OURS = ("multiopt-numpy", "multiopt-tensors", "multiopt-torch")
#: Dtypes of parameters and gradients, and of the state, if it is another; how that is rounded, if not to the nearest.
DTYPES: list[tuple[str, str | None, dict[str, Any]]] = [
    ("float32", None, {}),
    ("float64", None, {}),
    ("float16", None, {}),
    ("bfloat16", None, {}),
    ("bfloat16", "float32", {}),
    ("float32", "bfloat16", {}),
    ("float32", "bfloat16", {"state_rounding": "stochastic"}),
]
PASS = {"weight_decay": 0.01, "maximize": True, "clip_value": 1.0}
TWICE, AVERAGED = {"reads": 2}, {"average": True}
#: What options are called, what they are, and what they have the update move beyond its own.
OPTIONS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("no option", {}, {}),
    ("weight decay, maximize, clip by value", PASS, {}),
    ("decoupled weight decay", {"weight_decay": 0.01, "decoupled": True}, {}),
    ("clip by norm", {"clip_norm": 1.0}, TWICE),
    ("clip by global norm", {"clip_global_norm": 1.0}, TWICE),
    ("weight decay, maximize, clip by value and by global norm", PASS | {"clip_global_norm": 1.0}, TWICE),
    ("skip steps that are not finite", {"nonfinite": "skip"}, TWICE),
    ("skip steps that are not finite, clip by norm", {"nonfinite": "skip", "clip_norm": 1.0}, TWICE),
    ("moving average of the parameters", {"ema": 0.99}, AVERAGED),
]


def dtypes(run: Run) -> Result:
    """Parameters and state of every dtype."""
    n = run.size(ELEMENTS)
    heats = []
    for dtype, state, rounding in DTYPES:
        contenders = [*run.some(FLOOR), *run.some(*OURS, options=rounding)]
        if state is None:  # that of PyTorch's optimizers is as wide as the parameters
            contenders += run.some("torch-adam")
        name = ", ".join([dtype, *([f"{state} state"] if state else []), *rounding.values()])
        heats.append(Heat(name, Workload([(n,)], dtype, state), contenders))
    return Result("dtypes", f"One tensor of {n:,} elements, by dtype", run.race(*heats), kind="turns")


def options(run: Run) -> Result:
    """Multiopt with its options on."""
    n = run.size(ELEMENTS)
    heats = []
    for dtype in ("float32", "bfloat16"):
        for name, chosen, moved in OPTIONS:
            if dtype == "bfloat16" and chosen and not moved:  # such options cost arithmetic, here as there
                continue
            contenders = [*run.some(FLOOR), *run.some("multiopt-numpy", options=chosen)]
            if not chosen:
                contenders += run.some("multiopt-torch", "torch-adam")
            if chosen.keys() == {"clip_global_norm"}:  # in PyTorch a function that is called before the step
                contenders += run.some("multiopt-torch", "torch-adam", options={"clip": 1.0})
            heats.append(Heat(f"{name}, {dtype}", Workload([(n,)], dtype, **moved), contenders))
    title = f"Options, one tensor of {n:,} elements; multiopt.torch and torch.optim clip by `clip_grad_norm_`"
    return Result("options", title, run.race(*heats), kind="turns")


def paths(run: Run) -> Result:
    """Other ways into the step than one array without gaps; and small tensors, for which there is no floor."""
    n = run.size(ELEMENTS)
    count, groups = (20, 4) if run.quick else (1000, 400)
    in_place, fresh, gaps = Workload([(n,)]), Workload([(n,)], fresh=True), Workload([(n,)], stride=2)
    many, grouped = Workload([(64,)] * count), Workload([(64,)] * 10 * groups, groups=groups)
    numpy, tensors, _ = OURS
    array = (FLOOR, *OURS, "torch-adam")
    small = (*OURS, "torch-foreach", "torch-adam")
    by_torch: dict[str, Any] = {"options": {"new": "torch"}, "needs": ("numba", "torch")}
    on_dask: dict[str, Any] = {"build": multiopt_dask, "needs": ("dask",), "arrays": 8}
    new_arrays = [*run.some(FLOOR), *run.some(numpy, build=functional_numpy)]
    new_tensors = [*run.some(FLOOR, **by_torch), *run.some(tensors, build=functional_tensors)]
    points = run.race(
        Heat("one array, in place", in_place, run.some(*array)),
        Heat("every second element, `x[::2]`", gaps, run.some(*array)),
        Heat("`functional.update`, NumPy's new arrays", fresh, new_arrays),
        Heat("`functional.update`, PyTorch's new tensors", fresh, new_tensors),
        Heat("Dask, 4 chunks", in_place, [*run.some(FLOOR), *run.some(numpy, **on_dask)]),
        Heat(f"{count:,} tensors of 64", many, run.some(*small)),
        Heat(f"{groups} groups of 10 tensors of 64", grouped, run.some(*small)),
    )
    return Result("paths", f"Paths, one tensor of {n:,} elements or small ones, float32", points, kind="turns")
