"""Line charts: matplotlib's SVG, with colours from the page's style sheet, so that they fit light and dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from .curves import Curve

#: Names of curves begin with one of these; the style sheet has a colour of the name. The first that fits counts.
FAMILIES = (
    "multiopt", "torch", "optax", "tf-v1", "tf-raw", "tf-keras-legacy", "tf-keras-dtensor", "tf-keras", "keras",
)  # fmt: skip
_NEUTRAL = ("ink", "soft", "faint")
#: What stands for each of these colours until the style sheet's variable replaces it: matplotlib takes numbers only.
_STANDS_FOR = {name: f"#0102{i:02x}" for i, name in enumerate((*FAMILIES, *_NEUTRAL))}
#: Curves of one family differ in their lines.
_LINES = ("solid", "dashed", "dotted", "dashdot")


def line_chart(curves: Sequence[Curve], axis: str, *, log: bool = False, across: str = "steps") -> str:
    """Return a chart of the curves as an SVG element; their names are in a legend, in the order of their ends."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    soft, faint = _STANDS_FOR["soft"], _STANDS_FOR["faint"]
    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "multiopt", "font.size": 11, "text.color": soft, "grid.color": faint,
        "axes.labelcolor": soft, "axes.edgecolor": faint, "xtick.color": soft, "ytick.color": soft,
        "xtick.bottom": False, "ytick.left": False, "ytick.minor.left": False,
        "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    }  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(6.8, 3.6))
        axes = figure.subplots()
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(axis="y")
        seen: dict[str, int] = {}
        ends = []
        for curve in curves:
            family = next(name for name in FAMILIES if curve.who.startswith(name))
            line = _LINES[seen.setdefault(family, 0) % len(_LINES)]
            seen[family] += 1
            ours = family == "multiopt"
            (drawn,) = axes.plot(
                curve.steps, curve.values, color=_STANDS_FOR[family], linestyle=line, label=curve.who,
                # Ours is wide and pale, beneath the others: where they agree both are seen.
                linewidth=4.5 if ours else 1.4, alpha=0.55 if ours else 1.0, zorder=1 if ours else 2,
            )  # fmt: skip
            ends.append((curve.values[-1] if math.isfinite(curve.values[-1]) else math.inf, drawn))
        axes.set_xlabel(across)
        axes.set_ylabel(axis)
        lines = [drawn for _, drawn in sorted(ends, key=lambda end: -end[0])]
        axes.legend(handles=lines, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    return _for_the_page(file.getvalue(), f"{axis} over {across}: {', '.join(curve.who for curve in curves)}")


def _for_the_page(text: str, label: str) -> str:
    """Return the SVG element alone, with a name for those who do not see it, and the style sheet's colours."""
    drop = r"<metadata>.*?</metadata>|<defs>.*?</defs>|<!--.*?-->"
    svg = re.sub(drop, "", text[text.index("<svg") :], flags=re.DOTALL)
    # Nothing is outside the axes, and several charts on one page would have the same ids.
    svg = re.sub(r' (id|clip-path)="[^"]*"', "", svg)
    for name, colour in _STANDS_FOR.items():
        svg = svg.replace(colour, f"var(--{name})")
    opening = svg.index(">") + 1
    name = f"<title>{escape(label)}</title>"
    return f'<svg role="img" aria-label="{escape(label)}"{svg[4:opening]}{name}{svg[opening:]}'
