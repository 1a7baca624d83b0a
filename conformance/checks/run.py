"""The whole check, in units that may run side by side in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from ..data.scenarios import SCENARIOS
from ..data.systems import SYSTEMS
from ..data.traces import FOLDER, TraceFile, load_all
from ..data.trajectory import Trajectory
from ..targets.target import Target, all_targets, find
from .across import OPTIONS, WIDE, Across
from .judge import Judge, cases_of
from .law import Law
from .laws import LAWS
from .verdict import Verdict

#: Tells that a part of a unit is done: the unit's title, parts done, parts in all.
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Selection:
    """What is checked.

    ``quick`` takes no run further than 40 steps and leaves out the frameworks' own accuracy.
    """

    backends: tuple[str, ...] = tuple(all_targets())
    systems: tuple[str, ...] = tuple(SYSTEMS)
    scenarios: tuple[str, ...] = tuple(SCENARIOS)
    quick: bool = False
    traces: Path = FOLDER

    @property
    def whole(self) -> bool:
        """Whether no system and no scenario is left out."""
        return set(self.systems) == set(SYSTEMS) and set(self.scenarios) == set(SCENARIOS)


#: A small part of the work.
Part = Callable[[], list[Verdict]]


@dataclass(frozen=True)
class Unit:
    """A large part of the work: its title, and a function of a module's top level that divides it into small ones.

    ``function(selection, *arguments)`` is called in the process that does the work.
    """

    title: str
    function: Callable[..., list[Part]]
    arguments: tuple[Any, ...] = ()


@cache
def _files(folder: Path) -> dict[str, TraceFile]:
    return load_all(folder)


@cache
def _judge(quick: bool) -> Judge:
    # One a process: what is equal to the bit is judged once.
    return Judge(brief=quick)


def frameworks(selection: Selection) -> list[Part]:
    """Judge the traces themselves, and our schedules, by the published rule."""
    files, judge = _files(selection.traces), _judge(selection.quick)
    cases = cases_of(files, selection.systems, selection.scenarios)
    rates: Part = lambda: [judge.rates(case) for case in cases]  # noqa: E731
    return [rates, *(partial(judge.explained, trace) for trace in _traces(files, selection))]


def target(selection: Selection, name: str) -> list[Part]:
    """Judge one of ours by the rule, by every framework's traces, by NumPy's bits and by the laws."""
    return list(checks(selection, name).values())


def checks(selection: Selection, name: str) -> dict[str, Part]:
    """Return what `target` does, part by part, each with an id such as ``trace/torch-forloop/paper``."""
    files, judge, one = _files(selection.traces), _judge(selection.quick), find(name)
    parts: dict[str, Part] = {}
    for case in cases_of(files, selection.systems, selection.scenarios):
        key = f"oracle/{case.scenario}"
        # Frameworks were asked different things under one name where that is `defaults`.
        same = [found for found in parts if found.partition("#")[0] == key]
        parts[f"{key}#{len(same) + 1}" if same else key] = partial(judge.against_oracle, one, case)
    for trace in _traces(files, selection):
        parts[f"trace/{trace.name}/{trace.scenario}"] = partial(judge.against_trace, one, trace)
    if selection.whole:
        across = Across(judge, brief=selection.quick)
        for dtype in WIDE:
            for options in OPTIONS:
                parts[f"bits/{dtype}, {options}"] = partial(across.verdicts, one, dtype, options)
        for law in LAWS.values():
            if law.concerns(one):
                parts[f"law/{law.name}"] = partial(_by_law, law, one)
    return parts


def _by_law(law: Law, one: Target) -> list[Verdict]:
    return [law.verdict(one)]


def _traces(files: dict[str, TraceFile], selection: Selection) -> list[Trajectory]:
    return [
        trace
        for system in selection.systems
        for name, trace in files[system].traces.items()
        if name in selection.scenarios
    ]


def units(selection: Selection) -> list[Unit]:
    """Return what is to be done, the longest first."""
    slow = sorted(selection.backends, key=lambda name: (not find(name).slow, find(name).bits))
    made = [Unit(name, target, (name,)) for name in slow]
    return made if selection.quick else [*made, Unit("frameworks", frameworks)]


def run(selection: Selection, tell: Tell, *, processes: int | None = None) -> list[Verdict]:
    """Do all of a selection.

    Parameters
    ----------
    selection : Selection
    tell : callable
        Is told of progress.
    processes : int, optional
        How many work side by side; by default two, or one where there is one processor or little to do.

    Returns
    -------
    list of Verdict
        In the order of `units`.
    """
    todo = units(selection)
    count = min(2, os.cpu_count() or 1, len(todo)) if processes is None else processes
    if count == 1:
        return [verdict for unit in todo for verdict in _do(unit, selection, tell)]
    # Fresh processes: a forked one would share the threads and locks of array libraries.
    context = multiprocessing.get_context("spawn")
    news = context.Queue()
    with ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(news,)) as pool:
        futures = [pool.submit(_work, unit, selection) for unit in todo]
        _listen(news, futures, tell)
        return [verdict for future in futures for verdict in future.result()]


def _do(unit: Unit, selection: Selection, tell: Tell) -> list[Verdict]:
    found: list[Verdict] = []
    parts = unit.function(selection, *unit.arguments)
    for done, part in enumerate(parts, start=1):
        found += part()
        tell(unit.title, done, len(parts))
    return found


_news: Any = None


def _begin(news: Any) -> None:
    global _news
    _news = news


def _work(unit: Unit, selection: Selection) -> list[Verdict]:
    return _do(unit, selection, lambda *news: _news.put(news))


def _listen(news: Any, futures: Sequence[Future[Any]], tell: Tell) -> None:
    while not all(future.done() for future in futures):
        try:
            tell(*news.get(timeout=0.1))
        except queue.Empty:
            continue
