"""A study's figures: lines with bands, named where they end, in colours that all eyes tell apart."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from lit_pretrain.required import required

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito 2008, yellow left out, which is too light for lines on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# Characters of a panel's width.
TITLE_WIDTH = 70
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass
class Line:
    """A line of a panel.

    Attributes:
        name: Written at its end.
        x: Rising.
        y: There.
        low: Lower end of the interval at each; null for none.
        high: Upper end.
        dashed: For what is fitted, not measured; without markers.
        color: Place in the list of colours, the same in all panels.
    """

    name: str
    x: list[float]
    y: list[float]
    low: list[float | None] = field(default_factory=list)
    high: list[float | None] = field(default_factory=list)
    dashed: bool = False
    color: int = 0


@dataclass
class Panel:
    """A chart.

    Attributes:
        title: Above it.
        x: Name of its horizontal axis, which is logarithmic.
        y: Name of its vertical axis.
        lines: What is drawn.
        level: Height of a thin line across, and its name; null for none.
        ticks: Whether each x is written out, as of few numbers of labels.
        log_y: Whether the vertical axis is logarithmic too.
        share: Whether y is a share, so that wide intervals need not be seen beyond 0 and 1.
    """

    title: str
    x: str
    y: str
    lines: list[Line]
    level: tuple[float, str] | None = None
    ticks: bool = False
    log_y: bool = False
    share: bool = False


def draw(panels: Sequence[Panel], title: str, path: Path) -> None:
    """Draw panels side by side into a PNG file."""
    # Not pyplot, which may look for a screen and keeps figures.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2 * len(panels), 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    for axes, panel in zip(numpy.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        draw_panel(figure, axes, panel)
    figure.savefig(path)


def draw_panel(figure: "Figure", axes: "Axes", panel: Panel) -> None:
    """Draw one chart."""
    from matplotlib.ticker import LogFormatter, NullLocator

    labels = []
    for line in panel.lines:
        color, marker = COLORS[line.color % len(COLORS)], MARKERS[line.color % len(MARKERS)]
        style: dict[str, Any] = {"marker": marker, "linewidth": 1.8}
        if line.dashed:
            style = {"linestyle": "--", "linewidth": 1.2}
        axes.plot(line.x, line.y, color=color, markersize=5, **style)
        banded = [place for place, low in enumerate(line.low) if low is not None]
        if banded:
            x = [line.x[place] for place in banded]
            low, high = ([required(ends[place]) for place in banded] for ends in (line.low, line.high))
            axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
            # A band over a single x has no area.
            axes.vlines(x, low, high, color=color, alpha=0.5, linewidth=1.0)
        # The only one is named by the axis.
        if line.x and not line.dashed and line.name != panel.y:
            labels.append((line.x[-1], line.y[-1], line.name, color))
    axes.set_xscale("log")
    if panel.log_y:
        axes.set_yscale("log")
        # Within one decade its own format would write no number but a power of ten.
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
    if panel.share:
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(bottom, -0.02), min(top, 1.02))
    if panel.level is not None:
        height, name = panel.level
        axes.axhline(height, color="#777777", linewidth=0.8, linestyle=":")
        axes.annotate(
            name, (0.01, height), xycoords=("axes fraction", "data"), fontsize=8, color="#555555", va="bottom"
        )
    if panel.ticks:
        numbers = sorted({x for line in panel.lines for x in line.x})
        axes.set_xticks(numbers, [f"{number:,.0f}" for number in numbers])
        axes.xaxis.set_minor_locator(NullLocator())
    title = [part for line in panel.title.splitlines() for part in textwrap.wrap(line, TITLE_WIDTH)]
    axes.set_title("\n".join(title), fontsize=10, loc="left")
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    name_ends(figure, axes, labels)


def name_ends(figure: "Figure", axes: "Axes", ends: list[tuple[float, float, str, str]]) -> None:
    """Write each line's name beside its end, moved up or down where two would meet."""
    if not ends:
        return
    figure.canvas.draw()
    heights = [axes.transData.transform((x, y))[1] for x, y, _, _ in ends]
    spread_out = spread(heights, 11 * figure.dpi / 72, (axes.bbox.y0, axes.bbox.y1))
    for (x, y, name, color), height, wanted in zip(ends, heights, spread_out, strict=True):
        offset = (8, (wanted - height) * 72 / figure.dpi)
        axes.annotate(
            name, (x, y), xytext=offset, textcoords="offset points", color=color, fontsize=9, va="center",
            annotation_clip=False,
        )  # fmt: skip


def spread(heights: Sequence[float], least: float, limits: tuple[float, float] = (-math.inf, math.inf)) -> list[float]:
    """Heights moved so that neighbours are `least` apart, around where they were, and within limits if they fit."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    # Clusters of [members, centre]: those that overlap are joined.
    clusters: list[list[int]] = []
    for index in order:
        clusters.append([index])
        while len(clusters) > 1 and bottom(clusters[-1], heights, least) - top(clusters[-2], heights, least) < least:
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    result = [0.0] * len(heights)
    for cluster in clusters:
        for place, index in enumerate(cluster):
            result[index] = bottom(cluster, heights, least) + place * least
    lowest, highest = limits
    for index in reversed(order):
        result[index] = min(result[index], highest)
        highest = result[index] - least
    for index in order:
        result[index] = max(result[index], lowest)
        lowest = result[index] + least
    return result


def bottom(cluster: list[int], heights: Sequence[float], least: float) -> float:
    """Where the lowest of a cluster goes."""
    return sum(heights[index] for index in cluster) / len(cluster) - least * (len(cluster) - 1) / 2


def top(cluster: list[int], heights: Sequence[float], least: float) -> float:
    """Where the highest of a cluster goes."""
    return bottom(cluster, heights, least) + least * (len(cluster) - 1)
