"""What a check has to say: verdicts, tables and charts."""

import json
import math
import re
from dataclasses import replace
from html import escape
from xml.etree import ElementTree

import pytest

pytest.importorskip("safetensors")
pytest.importorskip("rich")

from multiopt.conformance.checks.verdict import Verdict, count
from multiopt.conformance.reference import tolerances
from multiopt.conformance.reference.compare import Distance
from multiopt.conformance.report import tables
from multiopt.conformance.report.charts import Curve, line_chart
from multiopt.conformance.report.table import Cell, Table, short, to_html, to_rich
from rich.console import Console


def test_verdicts():
    blank = Verdict("trace", "numpy", "optax", "paper", "x", "failed")
    allowed = tolerances.Tolerance(8.0, "motion", "why")
    assert blank.judged(Distance("x", 8.0), allowed).outcome == "passed"
    assert blank.judged(Distance("x", math.nan), replace(allowed, limit=1e300)).outcome == "failed"
    verdict = blank.judged(Distance("x", math.inf, 3, "p1", 2, math.inf, 1.0), allowed)
    assert json.loads(json.dumps(verdict.as_json()))["observed"] == "inf"
    assert "note" not in verdict.as_json()
    assert verdict.id == "trace/optax/paper/x"
    assert str(verdict) == (
        "numpy · optax · paper · x: failed, inf motion (8 allowed) at p1[2] after step 3: inf against 1.0; why"
    )
    assert count([verdict])["failed"] == 1
    with pytest.raises(ValueError, match="outcome: expected one of passed"):
        replace(verdict, outcome="fine")


def test_every_tolerance_has_a_reason():
    everything = tolerances.everything().values()
    assert len(everything) > 15
    assert all(len(entry.reason) > 5 and entry.unit and entry.limit >= 0 for entry in everything)


def test_the_worst_of_each_tolerance_is_kept_and_nan_is_worse_than_any():
    seen = {"a": 1.0, "b": 3.0, "c": 2.0}.items()
    verdicts = [Verdict("trace", "numpy", "optax", name, "x", "passed", u, "motion", 8.0, "why") for name, u in seen]
    ((_, found),) = tables.worst(verdicts)
    assert (found.observed, found.where) == (3.0, "numpy · optax · b")
    ((_, found),) = tables.worst([*verdicts, replace(verdicts[0], scenario="d", observed=math.nan)])
    assert found.where.endswith("d")


def test_the_matrix_counts_scenarios_by_their_worst_outcome():
    row = Verdict("trace", "numpy", "optax", "paper", "x", "passed", 1.0, None, "motion", 8.0)
    rows = [row, replace(row, kind="square_avg", observed=9.0, unit="ulp", outcome="failed")]
    tally = tables.tallies(rows, ("trace",), lambda v: v.system)["optax"]["numpy"]
    assert (tally.outcomes, tally.judged, tally.worst) == ({"failed": 1}, 1, {"ulp": 9.0, "motion": 1.0})


def test_a_table_is_the_same_in_a_terminal_and_on_a_page():
    cells = [Cell("<1>", "2 · 3", "bad", "more", 0.5), "plain"]
    shown = Table("A title", "a caption", ("one", "two"), [["row", *cells[:1]], cells])
    console = Console(width=80)
    with console.capture() as capture:
        console.print(to_rich(shown))
    said, page = capture.get(), to_html(shown)
    for text in ("A title", "a caption", "one", "two", "row", "<1>", "2 · 3", "plain"):
        assert text in said
        assert escape(text) in page
    assert '<td class="bad" style="--share:0.50" title="more">&lt;1&gt;<small>2 · 3</small></td>' in page


@pytest.mark.parametrize(
    ("number", "text"), [(0.0, "0"), (0.001, "<.01"), (1.234, "1.2"), (33.3, "33"), (2e9, "2e+09"), (math.inf, "∞")]
)
def test_short_numbers(number, text):
    assert short(number) == text


@pytest.mark.parametrize("log", [False, True])
def test_charts_name_their_curves_and_take_the_pages_colours(log):
    curves = [Curve(f"tf-keras {i}", [1, 2, 3], [1e-6, 1e-3, 1.0 + i]) for i in range(14)]
    svg = line_chart([*curves, Curve("multiopt", [1, 2, 3], [math.nan, 1.0, 2.0])], "x < y", log=log)
    tree = ElementTree.fromstring(svg)
    assert tree.get("role") == "img"
    assert tree.get("aria-label").startswith("x < y over steps: tf-keras 0, ")
    texts = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]
    legend = [text for text in texts if text.startswith(("tf-keras", "multiopt"))]
    # In the order in which the curves end.
    assert (len(legend), legend[0], legend[-1]) == (15, "tf-keras 13", "tf-keras 0")
    assert "var(--tf-keras)" in svg
    assert not re.search("#[0-9a-f]{6}", svg)
