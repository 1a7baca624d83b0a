"""Line charts as SVG that takes its colours from the page's style sheet, so that it fits light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from .growth import Curve

WIDTH, HEIGHT = 576, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 146, 14, 38
_GAP = 13


def colour(who: str) -> str:
    """Return the style sheet's class for a framework's curves."""
    if who.startswith("multiopt"):
        return "ours"
    for name in ("torch", "optax", "tf-v1", "tf-raw", "tf-keras-legacy", "tf-keras-dtensor", "tf-keras", "keras"):
        if who.startswith(name):
            return name
    return "other"


def line_chart(curves: Sequence[Curve], axis: str, *, log: bool = False, across: str = "steps") -> str:
    """Return a chart of `curves`, each named at its end."""
    xs = [step for curve in curves for step in curve.steps]
    ys = [value for curve in curves for value in curve.values if math.isfinite(value) and (value > 0 or not log)]
    low, high = min(ys), max(ys)
    ticks = _decades(low, high) if log else _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = min(xs), max(xs)
    scale = math.log10 if log else float

    def x(step: float) -> float:
        return _LEFT + (step - first) / max(last - first, 1) * (WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        part = (scale(value) - scale(low)) / ((scale(high) - scale(low)) or 1.0)
        return HEIGHT - _BOTTOM - part * (HEIGHT - _TOP - _BOTTOM)

    drawn = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(axis)} over {escape(across)}">']
    for tick in ticks:
        drawn.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        drawn.append(
            f'<text class="tick" x="{_LEFT - 7}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{_say(tick, log)}</text>'
        )
    for step in [t for t in _ticks(first, last) if first <= t <= last and t == int(t)]:
        drawn.append(f'<text class="tick" x="{x(step):.1f}" y="{HEIGHT - 20}" text-anchor="middle">{step:g}</text>')
    middle = (WIDTH - _RIGHT + _LEFT) / 2
    drawn.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(across)}</text>')
    upright = (HEIGHT - _BOTTOM + _TOP) / 2
    drawn.append(
        f'<text class="axis" transform="translate(12 {upright}) rotate(-90)" text-anchor="middle">{escape(axis)}</text>'
    )
    ends = []
    for curve in curves:
        points = [
            f"{x(step):.1f},{y(value):.1f}"
            for step, value in zip(curve.steps, curve.values, strict=True)
            if math.isfinite(value) and (value > 0 or not log)
        ]
        if not points:
            continue
        line = f'<polyline class="curve {colour(curve.who)}" points="{" ".join(points)}">'
        drawn.append(f"{line}<title>{escape(curve.who)}</title></polyline>")
        ends.append((float(points[-1].split(",")[1]), curve.who))
    for place, (true, who) in zip(_apart([end for end, _ in sorted(ends)]), sorted(ends), strict=True):
        edge = WIDTH - _RIGHT
        drawn.append(f'<path class="lead {colour(who)}" d="M{edge} {true:.1f} L{edge + 8} {place:.1f}"/>')
        drawn.append(f'<text class="name {colour(who)}" x="{edge + 11}" y="{place + 3.5:.1f}">{escape(who)}</text>')
    return "".join([*drawn, "</svg>"])


def _apart(places: Sequence[float]) -> list[float]:
    """Move sorted labels apart until none covers another, and keep them on the picture."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + _GAP) if moved else place)
    over = (moved[-1] - (HEIGHT - _BOTTOM)) if moved else 0
    if over > 0:
        for i in range(len(moved) - 1, -1, -1):
            limit = HEIGHT - _BOTTOM - (len(moved) - 1 - i) * _GAP
            moved[i] = min(moved[i], limit)
    return moved


def _decades(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, math.ceil((last - first) / 6))
    return [float(f"1e{k}") for k in range(first, last + 1, every)]


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 4 or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough)
    first = math.floor(low / step + 1e-9)
    count = math.ceil((high - first * step) / step - 1e-9)
    return [round((first + i) * step, 12) for i in range(count + 1)]


def _say(value: float, log: bool) -> str:
    if log and not 1e-3 < value < 1e4:
        return f'10<tspan dy="-4" font-size="8">{round(math.log10(value))}</tspan>'
    return f"{value:g}".replace("-", "−")
