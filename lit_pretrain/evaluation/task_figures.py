"""Pictures of how a model did on a test: confusion matrix, reliability diagram, scatter of numbers.

The reliability diagram shows accuracy over confidence in 15 bins (Guo et al. 2017, arXiv:1706.04599), the bins of the
expected calibration error.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy

if TYPE_CHECKING:
    from PIL.Image import Image

BINS = 15
# Above so many classes the numbers in the cells, above more their names, could not be read.
MOST_NUMBERED, MOST_NAMED = 20, 60


def confusion_figure(labels: numpy.ndarray, predicted: numpy.ndarray, classes: Sequence[str]) -> "Image":
    """Shares of each true class that were told as each class.

    Args:
        labels: (N,) true classes.
        predicted: (N,) told classes.
        classes: Their names.
    """
    from sklearn.metrics import confusion_matrix

    count = len(classes)
    counts = confusion_matrix(labels, predicted, labels=range(count))
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    side = min(18.0, max(4.5, 1.8 + 0.55 * min(count, 30)))
    figure, axes = new_figure(side, side)
    drawn = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    figure.colorbar(drawn, ax=axes, label="share of the true class", fraction=0.046)
    if count <= MOST_NAMED:
        axes.set_xticks(range(count), classes, rotation=45, ha="right")
        axes.set_yticks(range(count), classes)
    if count <= MOST_NUMBERED:
        for row in range(count):
            for column in range(count):
                if counts[row, column]:
                    colour = "white" if shares[row, column] > 0.5 else "black"
                    axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=colour, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true", title=f"accuracy {float((labels == predicted).mean()):.3f}")
    return to_picture(figure)


def reliability_figure(confidence: numpy.ndarray, right: numpy.ndarray, error: float) -> "Image":
    """Accuracy over confidence, and how often each confidence occurs.

    Args:
        confidence: (N,) probability of the told class.
        right: (N,) whether it was the true one.
        error: The expected calibration error, for the title.
    """
    edges = numpy.linspace(0.0, 1.0, BINS + 1)
    bins = numpy.clip(numpy.digitize(confidence, edges[1:-1], right=True), 0, BINS - 1)
    counts = numpy.bincount(bins, minlength=BINS)
    accuracy = numpy.bincount(bins, weights=right, minlength=BINS) / counts.clip(min=1)
    figure, axes = new_figure(5.0, 4.6)
    axes.bar(edges[:-1], accuracy, width=1 / BINS, align="edge", color="#4477aa", edgecolor="white", label="accuracy")
    share = counts / max(1, counts.sum())
    axes.plot((edges[:-1] + edges[1:]) / 2, share, color="#cc6677", marker="o", label="share of the samples")
    axes.plot([0, 1], [0, 1], color="black", linestyle=":", label="as sure as right")
    axes.set(xlabel="confidence", ylim=(0, 1), xlim=(0, 1), title=f"expected calibration error {error:.3f}")
    axes.legend(loc="upper left")
    return to_picture(figure)


def scatter_figure(labels: numpy.ndarray, values: numpy.ndarray, pearson: float, spearman: float) -> "Image":
    """Predicted over true numbers.

    Args:
        labels: (N,) true numbers.
        values: (N,) predicted numbers.
        pearson: Their correlation, for the title.
        spearman: Their ranks' correlation.
    """
    figure, axes = new_figure(5.0, 4.8)
    axes.scatter(labels, values, s=10, alpha=0.4, color="#4477aa", edgecolors="none")
    low, high = float(min(labels.min(), values.min())), float(max(labels.max(), values.max()))
    axes.plot([low, high], [low, high], color="black", linestyle=":")
    axes.set(xlabel="true", ylabel="predicted", title=f"Pearson {pearson:.3f}, Spearman {spearman:.3f}")
    return to_picture(figure)


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches that no window or global state knows of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def to_picture(figure: Any) -> "Image":
    """A figure as an RGB picture."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")
