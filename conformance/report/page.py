"""``multiopt check --report``: one page of HTML that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

from ..checks.run import Findings
from ..checks.verdict import Verdict, count
from . import tables
from .charts import Chart, error_growth, line_chart, side_by_side
from .records import describe
from .table import to_html

_TEMPLATE = Path(__file__).with_name("page.html")


def write(path: Path, findings: Findings, notes: Sequence[str]) -> None:
    """Write the page to `path`; ``notes`` are what a reader must know besides the tables."""
    verdicts, files = findings.verdicts, findings.files
    shown = [tables.failures(verdicts), *tables.found(findings), tables.provenance(findings)]
    text = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        systems=len(findings.selection.systems),
        scenarios=len({trace.scenario for trace in findings.selection.chosen(files)}),
        targets=len(findings.selection.targets),
        facts=_facts(verdicts),
        tables="".join(to_html(table) for table in shown if table.rows),
        notes="".join(f"<li>{escape(note)}</li>" for note in notes),
        growth=_charts(error_growth(files)),
        differences=_charts(side_by_side(files)),
        machine=escape(_machine()),
    )
    path.write_text(text, encoding="utf-8")


def _facts(verdicts: Sequence[Verdict]) -> str:
    totals = count(verdicts)
    promised = [v for v in verdicts if v.what == "bits" and v.kind == "all states" and v.outcome != "unsupported"]
    facts = [
        ("bad" if totals["failed"] else "good", str(totals["failed"]), "failures"),
        ("", f"{totals['passed']:,}", "comparisons within tolerance"),
        ("", f"{sum(not v.failed for v in promised)} of {len(promised)}", "long runs with NumPy’s bits"),
        ("", str(len({v.where for v in verdicts if v.what == "explained"})), "recorded traces"),
        ("", str(len(tables.worst(verdicts))), "tolerances, each with its reason"),
    ]
    return "".join(f'<div class="fact {mood}"><b>{number}</b><span>{text}</span></div>' for mood, number, text in facts)


def _machine() -> str:
    machine = describe()
    gpus = ", ".join(f"{gpu['name']} (driver {gpu['driver']})" for gpu in machine["gpus"]) or "no GPU"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"Checked on {machine['processor']}, {gpus}, Python {machine['python']}: {versions}."


def _charts(charts: Iterable[Chart]) -> str:
    drawn = []
    for chart in charts:
        text = f"<p>{escape(chart.text)}</p>" if chart.text else ""
        svg = line_chart(chart.curves, chart.axis, log=chart.log)
        drawn.append(f'<figure class="chart"><h3>{escape(chart.title)}</h3>{text}{svg}</figure>')
    return "".join(drawn)
