"""Line charts and small graphs as SVG within a page: their colours are the page's, so they are right in the dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

# Of a chart, in its own units; the page scales it.
WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 34
# How many colours the page has; then they begin again, dashed.
COLORS = 7
MOST_POINTS = 240
# A line of so few values shows each of them.
MOST_MARKERS = 40


@dataclass(frozen=True)
class Curve:
    """A line of a chart.

    Attributes:
        name: What it is called.
        points: (x, y) by rising x.
        color: Its place in the page's colours.
        dashed: Whether it is broken, as what is seen in training is beside validations.
    """

    name: str
    points: list[tuple[float, float]] = field(default_factory=list)
    color: int = 0
    dashed: bool = False


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_label(value: float, step: float) -> str:
    """A number on an axis, with as many digits as its neighbours need."""
    if value == 0:
        return "0"
    for power, letter in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power:
            return f"{value / 10**power:g}{letter}"
    if abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 3
    return f"{value:.{min(digits, 6)}f}"


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """So many points at most: of each stretch the lowest and the highest, so that no peak is lost, and both ends."""
    finite = [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]
    if len(finite) <= most:
        return finite
    size = math.ceil(len(finite) / (most // 2 - 1))
    kept = {0, len(finite) - 1}
    for start in range(0, len(finite), size):
        part = range(start, min(start + size, len(finite)))
        kept |= {min(part, key=lambda place: finite[place][1]), max(part, key=lambda place: finite[place][1])}
    return [finite[place] for place in sorted(kept)]


def limits(values: Sequence[float]) -> tuple[float, float]:
    """Where an axis begins and ends, with a little room; that of zeros alone from 0 to 1."""
    low, high = min(values), max(values)
    if low == high == 0:
        return 0.0, 1.0
    room = (high - low) * 0.05 or abs(high) * 0.05
    return low - room, high + room


def line_chart(curves: Sequence[Curve], title: str, x_name: str) -> str:
    """A chart as an SVG element; a sentence where there is nothing to draw.

    Args:
        curves: What is drawn; values that are not finite are left out.
        title: What it shows, for those who do not see it.
        x_name: Beneath the horizontal axis.
    """
    drawn = [(curve, thinned(curve.points)) for curve in curves]
    drawn = [(curve, points) for curve, points in drawn if points]
    if not drawn:
        return '<p class="none">Nothing was logged that could be drawn over this.</p>'
    (x_low, x_high), (y_low, y_high) = (
        limits([point[axis] for _, points in drawn for point in points]) for axis in (0, 1)
    )
    x_low = 0.0 if x_low >= -0.1 * x_high else x_low

    def x_of(value: float) -> float:
        return LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y_of(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    y_ticks, x_ticks = ticks(y_low, y_high), ticks(x_low, x_high)
    for value in y_ticks:
        label = tick_label(value, y_ticks[1] - y_ticks[0] if len(y_ticks) > 1 else abs(value))
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_of(value):.1f}" y2="{y_of(value):.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y_of(value) + 4:.1f}" text-anchor="end">{label}</text>'
        )
    for value in x_ticks:
        label = tick_label(value, x_ticks[1] - x_ticks[0] if len(x_ticks) > 1 else abs(value))
        parts.append(f'<text x="{x_of(value):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{label}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_name)}</text>')
    for curve, points in drawn:
        style = f"line c{curve.color % COLORS}" + (" dashed" if curve.dashed or curve.color >= COLORS else "")
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        if len(points) > 1:
            parts.append(f'<polyline class="{style}" points="{path}"><title>{escape(curve.name)}</title></polyline>')
        if len(points) == 1 or len(points) <= MOST_MARKERS and not curve.dashed:
            for x, y in points:
                parts.append(
                    f'<circle class="dot c{curve.color % COLORS}" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="2.6">'
                    f"<title>{escape(curve.name)}: {y:.5g} at {x:,.6g} {escape(x_name)}</title></circle>"
                )
    return "".join([*parts, "</svg>"])


@dataclass(frozen=True)
class Box:
    """A box of a graph.

    Attributes:
        title: Its first line.
        lines: Those beneath it.
        here: Whether it is the one that the page is about.
        indent: How far it stands to the right.
        above: Places of the boxes that it comes from: one as far to the right, or several that are less so.
    """

    title: str
    lines: tuple[str, ...] = ()
    here: bool = False
    indent: int = 0
    above: tuple[int, ...] = ()


def graph(boxes: Sequence[Box], title: str) -> str:
    """Boxes beneath each other, each tied to the one that it comes from: an SVG element, narrow enough for a phone."""
    width, indent, gap, line_height = 340, 24, 16, 16
    parts: list[str] = []
    places: list[tuple[int, int]] = []
    top = 4
    for box in boxes:
        left = 4 + indent * box.indent
        height = 12 + line_height * (1 + len(box.lines))
        for origin in box.above:
            above_left, above_bottom = places[origin]
            x, y = above_left + 12, top + height / 2
            if left - above_left < 12:
                path = f"M{x} {above_bottom}V{top}"
            else:
                path = f"M{x} {above_bottom}V{y:.0f}H{left}"
            parts.append(f'<path class="tie" d="{path}" marker-end="url(#arrow)"/>')
        here = " here" if box.here else ""
        parts.append(
            f'<rect class="box{here}" x="{left}" y="{top}" width="{width - left - 4}" height="{height}" rx="6"/>'
            f'<text class="title" x="{left + 10}" y="{top + 19}">{escape(box.title)}</text>'
        )
        for place, line in enumerate(box.lines, 1):
            parts.append(f'<text x="{left + 10}" y="{top + 19 + place * line_height}">{escape(line)}</text>')
        places.append((left, top + height))
        top += height + gap
    arrow = (
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="head" d="M0 0L8 4L0 8z"/></marker></defs>'
    )
    return (
        f'<svg class="graph" viewBox="0 0 {width} {top - gap + 4}" role="img" aria-label="{escape(title)}">'
        f"{arrow}{''.join(parts)}</svg>"
    )
