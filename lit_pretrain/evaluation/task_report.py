"""What a test of a fine-tuned model tells beyond its metrics: a table by class, figures, and the worst mistakes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from lit_pretrain.data.labelled.label_facts import LabelFacts
from lit_pretrain.evaluation.task_figures import confusion_figure, reliability_figure, scatter_figure

if TYPE_CHECKING:
    from PIL.Image import Image

Row = dict[str, Any]


@dataclass
class TaskReport:
    """Tables and pictures by name, and which samples were worst.

    Attributes:
        tables: Name -> rows.
        figures: Name -> picture.
        worst: Places of the worst samples, the worst first.
        told: What is said of each of them.
    """

    tables: dict[str, list[Row]] = field(default_factory=dict)
    figures: dict[str, "Image"] = field(default_factory=dict)
    worst: list[int] = field(default_factory=list)
    told: list[Row] = field(default_factory=list)


def report_of(facts: LabelFacts, outputs: Tensor, labels: Tensor, mistakes: int = 20) -> TaskReport:
    """Look at a whole test set.

    Args:
        facts: The task.
        outputs: (N, C) probabilities, or (N,) numbers.
        labels: (N,) classes, (N, C) zeros and ones, or (N,) numbers.
        mistakes: How many of the worst are told.
    """
    if facts.task == "regression":
        return regression_report(outputs.double().numpy(), labels.double().numpy(), mistakes)
    if facts.task == "multi_label":
        return multi_label_report(facts.classes, outputs, labels, mistakes)
    return single_label_report(facts.classes, outputs, labels, mistakes)


def single_label_report(classes: Sequence[str], probabilities: Tensor, labels: Tensor, mistakes: int) -> TaskReport:
    """Of one class each; the worst are the mistakes that were surest."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    confidence, predicted = probabilities.max(dim=1)
    right = predicted == labels
    error = float(multiclass_calibration_error(probabilities, labels, len(classes), n_bins=15))
    report = TaskReport(tables={"classes": class_rows(classes, labels.numpy(), predicted.numpy())})
    report.figures["confusion_matrix"] = confusion_figure(labels.numpy(), predicted.numpy(), classes)
    report.figures["calibration"] = reliability_figure(confidence.numpy(), right.numpy(), error)
    true = probabilities.gather(1, labels[:, None])[:, 0]
    order = torch.argsort(torch.where(right, 2.0, true), stable=True)[: min(mistakes, int((~right).sum()))]
    for place in order.tolist():
        report.worst.append(place)
        report.told.append(
            {
                "label": classes[int(labels[place])],
                "predicted": classes[int(predicted[place])],
                "probability_of_predicted": round(float(confidence[place]), 4),
                "probability_of_label": round(float(true[place]), 4),
            }
        )
    return report


def class_rows(classes: Sequence[str], labels: numpy.ndarray, predicted: numpy.ndarray) -> list[Row]:
    """Precision, recall and F1 of each class, of one class each or of several."""
    from sklearn.metrics import precision_recall_fscore_support

    if labels.ndim == 2 and labels.shape[1] == 1:
        # A single column is a binary task to scikit-learn, whose class 1 alone is wanted.
        columns, labels, predicted = [1], labels[:, 0], predicted[:, 0]
    else:
        columns = list(range(len(classes)))
    figures = precision_recall_fscore_support(labels, predicted, labels=columns, zero_division=0)
    names = ("precision", "recall", "f1", "samples")
    return [
        {"class": name, **{key: round(float(value), 4) for key, value in zip(names, row, strict=True)}}
        for name, row in zip(classes, zip(*figures, strict=True), strict=True)
    ]


def multi_label_report(classes: Sequence[str], probabilities: Tensor, labels: Tensor, mistakes: int) -> TaskReport:
    """Of several classes each; the worst have the largest cross-entropy."""
    predicted = probabilities >= 0.5
    report = TaskReport(tables={"classes": class_rows(classes, labels.long().numpy(), predicted.long().numpy())})
    losses = torch.nn.functional.binary_cross_entropy(
        probabilities, labels.to(probabilities.dtype), reduction="none"
    ).mean(dim=1)
    for place in losses.argsort(descending=True, stable=True)[:mistakes].tolist():
        report.worst.append(place)
        report.told.append(
            {
                "label": " ".join(
                    name for name, present in zip(classes, labels[place].tolist(), strict=True) if present
                ),
                "predicted": " ".join(
                    name for name, present in zip(classes, predicted[place].tolist(), strict=True) if present
                ),
                "loss": round(float(losses[place]), 4),
            }
        )
    return report


def regression_report(values: numpy.ndarray, labels: numpy.ndarray, mistakes: int) -> TaskReport:
    """Of a number each; the worst are furthest off."""
    from scipy.stats import pearsonr, spearmanr

    report = TaskReport()
    if len(values) > 1 and values.std() > 0 and labels.std() > 0:
        pearson, spearman = pearsonr(labels, values).statistic, spearmanr(labels, values).statistic
    else:
        pearson = spearman = float("nan")
    report.figures["scatter"] = scatter_figure(labels, values, float(pearson), float(spearman))
    errors = numpy.abs(values - labels)
    for place in numpy.argsort(-errors, kind="stable")[:mistakes].tolist():
        report.worst.append(place)
        row = {"label": labels[place], "predicted": values[place], "error": errors[place]}
        report.told.append({name: round(float(value), 4) for name, value in row.items()})
    return report
