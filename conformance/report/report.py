"""``multiopt check --report``: one page of HTML that needs nothing but itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from ..checks.run import Selection
from ..checks.verdict import Verdict, count
from ..data.systems import SYSTEMS
from ..data.traces import TraceFile
from ..reference.tolerances import RUN, TRACE
from ..targets.target import all_targets
from . import summary
from .charts import line_chart
from .growth import error_growth, side_by_side
from .records import describe
from .summary import Accuracy, Cell
from .tables import short

_TEMPLATE = Path(__file__).with_name("report.html")


def write(
    path: Path, selection: Selection, files: Mapping[str, TraceFile], verdicts: Sequence[Verdict], notes: Sequence[str]
) -> None:
    """Write the page to `path`.

    Parameters
    ----------
    path : Path
    selection : Selection
        What was checked.
    files : mapping
        The traces, for curves and provenance.
    verdicts : sequence of Verdict
        What was found.
    notes : sequence of str
        What a reader must know besides.
    """
    path.write_text(page(selection, files, verdicts, notes), encoding="utf-8")


def page(
    selection: Selection, files: Mapping[str, TraceFile], verdicts: Sequence[Verdict], notes: Sequence[str]
) -> str:
    """Return the page."""
    ours = all_targets()["numpy-eager"]
    growth = [
        _chart(f"{dtype}, the paper’s settings", "", line_chart(curves, "ulps", across="steps"), "chart many")
        for dtype in ("float64", "float32")
        for curves in [error_growth(files, f"long-{dtype}", ours)]
    ]
    differences = [_chart(d.title, d.text, line_chart(d.curves, d.axis, log=d.log)) for d in side_by_side(files, ours)]
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        lead=_lead(selection, files),
        facts=_facts(selection, verdicts),
        failures=_failures(verdicts),
        matrix=_matrix(selection, verdicts),
        notes="".join(f"<li>{escape(note)}</li>" for note in notes),
        bits=_bits(selection, verdicts),
        laws=_laws(selection, verdicts),
        accuracy=_accuracy(verdicts),
        growth="".join(growth),
        differences="".join(differences),
        habits=_habits(files, verdicts),
        limits=_limits(verdicts),
        provenance=_provenance(selection, files),
        machine=_machine(),
    )


def _lead(selection: Selection, files: Mapping[str, TraceFile]) -> str:
    names = {name for system in selection.systems for name in files[system].traces if name in selection.scenarios}
    return (
        f"{len(selection.systems)} optimizers of TensorFlow, Keras, PyTorch and optax were recorded in {len(names)} "
        f"scenarios, every state after every step. multiopt was given the same gradients on {len(selection.backends)} "
        "backends and faces, and compared with each of them, with the published rule in 50 digits, and with itself."
    )


def _facts(selection: Selection, verdicts: Sequence[Verdict]) -> str:
    totals = count(verdicts)
    same = [cell for cell in summary.bits(verdicts).values() if cell.judged and not (cell.state or cell.motion)]
    facts = [
        ("good" if not totals["failed"] else "bad", str(totals["failed"]), "failures"),
        ("", f"{totals['passed']:,}", "comparisons within tolerance"),
        ("", f"{sum(not cell.failed for cell in same)} of {len(same)}", "long runs with NumPy’s bits"),
        ("", str(len({(v.system, v.scenario) for v in verdicts if v.what == "explained"})), "recorded traces"),
        ("", str(len(summary.limits(verdicts))), "tolerances, each with its reason"),
    ]
    return "".join(f'<div class="fact {kind}"><b>{number}</b><span>{text}</span></div>' for kind, number, text in facts)


def _failures(verdicts: Sequence[Verdict], most: int = 40) -> str:
    found = summary.failures(verdicts)
    if not found:
        return ""
    rows = "".join(f"<li>{escape(str(v))}</li>" for v in found[:most])
    more = f"<p>and {len(found) - most} more</p>" if len(found) > most else ""
    return f'<h2>Failures</h2><div class="failures"><ul>{rows}</ul>{more}</div>'


def _heat(cell: Cell, system: str) -> float:
    """Return 0 to 1: how near the worst is to what is allowed, on a scale of logarithms."""
    allowed = TRACE if system else RUN
    ratio = max(cell.state / allowed["acc_delta"].limit, cell.motion / allowed["x"].limit)
    return min(1.0, max(0.0, 1 + math.log10(ratio) / 3)) if ratio > 0 else 0.0


def _matrix(selection: Selection, verdicts: Sequence[Verdict]) -> str:
    cells = summary.matrix(verdicts)
    rows = []
    for system in (*selection.systems, ""):
        row = []
        for backend in selection.backends:
            cell = cells.get((system, backend))
            if cell is None or not cell.judged:
                row.append('<td class="none">–</td>')
                continue
            kind = "fail" if cell.failed else "pass"
            told = f" ~{cell.outcomes['habit']}" if cell.outcomes["habit"] else ""
            mark = f"✗ {cell.failed}" if cell.failed else f"✓ {cell.outcomes['passed']}"
            title = f"{backend} against {system or 'the published rule'}: " + ", ".join(
                f"{number} {outcome}" for outcome, number in cell.outcomes.items() if number
            )
            row.append(
                f'<td class="{kind}" style="--heat:{_heat(cell, system):.2f}" title="{escape(title)}">{mark}{told}'
                f"<small>{short(cell.state)} · {short(cell.motion)}</small></td>"
            )
        about = escape(SYSTEMS[system].about) if system else "Zeiler 2012, in 50 digits"
        head = f'<th title="{about}">{escape(system) or "the published rule"}</th>'
        rows.append(f"<tr{'' if system else ' class=rule'}>{head}{''.join(row)}</tr>")
    return _table("heat", ["", *selection.backends], rows)


def _bits(selection: Selection, verdicts: Sequence[Verdict]) -> str:
    cells = summary.bits(verdicts)
    if not cells:
        return "<p>Not run: only a check of everything does it.</p>"
    rows = []
    for run in dict.fromkeys(run for run, _ in cells):
        row = []
        for backend in selection.backends:
            cell = cells.get((run, backend))
            if cell is None or not cell.judged:
                row.append('<td class="none">–</td>')
            elif cell.failed:
                row.append(f'<td class="fail">✗ {short(cell.values or cell.state)}</td>')
            elif cell.state or cell.motion:
                row.append(f'<td class="told">≈<small>{short(cell.state)} · {short(cell.motion)}</small></td>')
            else:
                row.append('<td class="pass" style="--heat:.35">=</td>')
        rows.append(f"<tr><th>{escape(run)}</th>{''.join(row)}</tr>")
    return _table("heat", ["", *selection.backends], rows)


def _laws(selection: Selection, verdicts: Sequence[Verdict]) -> str:
    found = summary.laws(verdicts)
    if not found:
        return "<p>Not tried: only a check of everything does it.</p>"
    rows = []
    for law in dict.fromkeys(law for law, _ in found):
        row = []
        for backend in selection.backends:
            verdict = found.get((law, backend))
            if verdict is None or verdict.outcome == "inexpressible":
                row.append('<td class="none">–</td>')
                continue
            kind, mark = {"passed": ("pass", "✓"), "failed": ("fail", "✗")}.get(verdict.outcome, ("told", "x"))
            title = escape(verdict.note or verdict.reason)
            row.append(f'<td class="{kind}" style="--heat:.35" title="{title}">{mark}</td>')
        about = escape(next(v.reason for (name, _), v in found.items() if name == law))
        rows.append(f'<tr><th title="{about}">{escape(law)}</th>{"".join(row)}</tr>')
    return _table("heat", ["", *selection.backends], rows)


def _accuracy(verdicts: Sequence[Verdict]) -> str:
    rows = []
    for who, found in summary.accuracy(verdicts).items():
        label = f"multiopt: {who}" if who.split(", ")[0] in all_targets() else who
        row = "".join(_accuracy_cell(found.get(dtype)) for dtype in summary.FAIR)
        rows.append(f'<tr><th class="long">{escape(label)}</th>{row}</tr>')
    return _table("heat", ["", *summary.FAIR], rows)


def _accuracy_cell(found: Accuracy | None) -> str:
    if found is None:
        return '<td class="none">–</td>'
    published, arithmetic = (f"{short(a)} · {short(b)}" for a, b in (found.published, found.arithmetic))
    kind = "told" if found.published[0] > 1e3 or found.published[1] > 1e3 else "pass"
    second = "" if published == arithmetic else f"<small>{arithmetic}</small>"
    return f'<td class="{kind}" style="--heat:.2">{published}{second}</td>'


def _habits(files: Mapping[str, TraceFile], verdicts: Sequence[Verdict]) -> str:
    rows = []
    for habit in summary.habits(files, verdicts):
        pairs = [f"{short(p[0])} · {short(p[1])}" if p else "refused" for p in (habit.apart, habit.ours)]
        numbers = "".join(f'<td class="num">{pair}</td>' for pair in pairs)
        rows.append(
            f"<tr><th><code>{escape(habit.name)}</code></th><td>{escape(habit.about)}</td>"
            f'<td class="soft">{escape(", ".join(habit.systems))}</td>{numbers}</tr>'
        )
    return _table("rows", ["habit", "what", "who", "they", "we"], rows)


def _limits(verdicts: Sequence[Verdict]) -> str:
    rows = []
    for limit in summary.limits(verdicts):
        part = limit.observed / limit.allowed if limit.allowed else float(limit.observed > 0)
        over = " over" if not limit.observed <= limit.allowed else ""
        bar = f'<span class="bar{over}"><i style="width:{min(1.0, part):.0%}"></i></span>'
        rows.append(
            f"<tr><td>{escape(limit.about)}</td><th>{escape(limit.kind)}</th>"
            f'<td class="num">{short(limit.observed)}</td><td>{bar}</td><td class="num">{short(limit.allowed)}</td>'
            f'<td>{escape(limit.unit)}</td><td class="soft">{escape(limit.reason)}</td>'
            f'<td class="soft">{escape(limit.where)}</td></tr>'
        )
    return _table("rows", ["comparison", "of", "worst", "", "allowed", "unit", "why", "worst where"], rows)


def _provenance(selection: Selection, files: Mapping[str, TraceFile]) -> str:
    rows = []
    for name in selection.systems:
        content = files[name]
        versions = ", ".join(f"{package} {version}" for package, version in content.versions.items())
        machine = ", ".join(f"{key} {value}" for key, value in content.provenance.items())
        refused = sum(trace.refusal is not None for trace in content.traces.values())
        rows.append(
            f"<tr><th>{escape(name)}</th><td>{escape(SYSTEMS[name].about)}</td><td>{escape(versions)}</td>"
            f'<td class="soft">{escape(machine)}</td><td class="num">{len(content.traces) - refused} + {refused}</td>'
            f'<td class="num hash" title="{content.digest()}">{content.digest()[:16]}…</td></tr>'
        )
    return _table("rows", ["system", "what it is", "versions", "recorded on", "traces + refusals", "SHA-256"], rows)


def _machine() -> str:
    machine = describe()
    gpus = ", ".join(f"{gpu['name']} (driver {gpu['driver']})" for gpu in machine["gpus"]) or "no GPU"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return escape(f"Checked on {machine['processor']}, {gpus}, Python {machine['python']}: {versions}.")


def _table(kind: str, heads: Iterable[str], rows: Iterable[str]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _chart(title: str, text: str, svg: str, kind: str = "chart") -> str:
    words = f"<p>{escape(text)}</p>" if text else ""
    return f'<figure class="{kind}" style="margin:0"><h3>{escape(title)}</h3>{words}{svg}</figure>'
