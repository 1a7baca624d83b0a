"""The whole check, divided so that its parts may run side by side in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from multiopt import backends

from ..data.scenarios import SCENARIOS
from ..data.systems import SYSTEMS
from ..data.traces import FOLDER, TraceFile, load_all
from ..data.trajectory import Trajectory
from ..targets.target import Target, all_targets, find
from .judge import Judge, cases_of
from .law import Law
from .laws import LAWS
from .same_bits import runs
from .verdict import Verdict

#: A small part of the work.
Part = Callable[[], list[Verdict]]
#: The part of the work that is no target's: the frameworks themselves.
FRAMEWORKS = ""


@dataclass(frozen=True)
class Selection:
    """What is checked.

    ``quick`` takes no run further than 40 steps and leaves out the frameworks' own accuracy.
    """

    targets: tuple[str, ...] = field(default_factory=lambda: tuple(all_targets()))
    systems: tuple[str, ...] = tuple(SYSTEMS)
    scenarios: tuple[str, ...] = tuple(SCENARIOS)
    quick: bool = False
    traces: Path = FOLDER

    @property
    def whole(self) -> bool:
        """Whether no system and no scenario is left out."""
        return set(self.systems) == set(SYSTEMS) and set(self.scenarios) == set(SCENARIOS)

    def chosen(self, files: Mapping[str, TraceFile]) -> Iterator[Trajectory]:
        """Yield the traces of these systems and scenarios."""
        for system in self.systems:
            yield from (trace for name, trace in files[system].traces.items() if name in self.scenarios)


@dataclass(frozen=True)
class Findings:
    """What was checked, the traces that it was checked with, every verdict, and how long it took."""

    selection: Selection
    files: Mapping[str, TraceFile]
    verdicts: Sequence[Verdict]
    seconds: float = 0.0


# Once in each process.
_files = cache(load_all)


@cache
def _judge(quick: bool) -> Judge:
    # What is equal to the bit is judged once.
    return Judge(brief=quick)


def checks(selection: Selection, name: str) -> dict[str, Part]:
    """Return what there is to check of a target, part by part, each with an id such as ``trace/torch-forloop/paper``.

    For `FRAMEWORKS`: the traces themselves, and our schedules, are judged by the published rule.
    """
    files, judge = _files(selection.traces), _judge(selection.quick)
    traces = list(selection.chosen(files))
    cases = cases_of(traces)
    if name == FRAMEWORKS:
        rates: dict[str, Part] = {"rates": lambda: [judge.rates(case) for case in cases]}
        return rates | {f"explained/{t.name}/{t.scenario}": partial(judge.explained, t) for t in traces}
    target = find(name)
    parts: dict[str, Part] = {}
    times: Counter[str] = Counter()
    for case in cases:
        # Frameworks were asked different things under one name where that is `defaults`.
        times[case.scenario] += 1
        number = f"#{times[case.scenario]}" if times[case.scenario] > 1 else ""
        parts[f"oracle/{case.scenario}{number}"] = partial(judge.against_oracle, target, case)
    for trace in traces:
        parts[f"trace/{trace.name}/{trace.scenario}"] = partial(judge.against_trace, target, trace)
    if selection.whole:
        for run_name, case in runs(target, brief=selection.quick).items():
            parts[f"bits/{run_name}"] = partial(judge.against_bits, target, case)
        for law in LAWS.values():
            if law.concerns(target):
                parts[f"law/{law.name}"] = partial(_by_law, law, target)
    return parts


def _by_law(law: Law, target: Target) -> list[Verdict]:
    return [law.verdict(target)]


def run(selection: Selection, tell: Callable[[str], None], *, processes: int | None = None) -> list[Verdict]:
    """Return all verdicts on a selection, by target, in an order that does not depend on `processes`.

    ``tell`` is told the name of each target whose checks are done, and `FRAMEWORKS` after the frameworks'.
    By default two processes work side by side, or one where there is one processor or little to do.
    """
    # The longest first.
    todo = sorted(selection.targets, key=lambda name: (not find(name).slow, find(name).bits))
    todo += [] if selection.quick else [FRAMEWORKS]
    count = min(2, os.cpu_count() or 1, len(todo)) if processes is None else processes
    found: dict[str, list[Verdict]] = {}
    if count == 1:
        for name in todo:
            found[name] = _do(selection, name)
            tell(name)
    else:
        # Fresh processes: a forked one would share the threads and locks of array libraries.
        context = multiprocessing.get_context("spawn")
        known = (backends.libraries(),)
        with ProcessPoolExecutor(count, mp_context=context, initializer=_register, initargs=known) as pool:
            names = {pool.submit(_do, selection, name): name for name in todo}
            for done in as_completed(names):
                found[names[done]] = done.result()
                tell(names[done])
    return [verdict for name in todo for verdict in found[name]]


def _register(libraries: Sequence[backends.Library]) -> None:
    """Make array libraries known to a process that were registered in another one."""
    for library in libraries:
        backends.register(library)


def _do(selection: Selection, name: str) -> list[Verdict]:
    return [verdict for part in checks(selection, name).values() for verdict in part()]
