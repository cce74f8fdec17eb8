"""What fine-tuning is for: one class, several classes, or a number for each sample; its loss, its metrics, its answers.

Metrics are torchmetrics': accuracy, macro-averaged F1 and the expected calibration error over 15 bins (Guo et al. 2017,
arXiv:1706.04599) for one class; F1 of both averages and mean average precision for several; Pearson's and Spearman's
correlation and the mean squared error for numbers (the GLUE tasks' own: Wang et al. 2018, arXiv:1804.07461).
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as functional
from torch import Tensor
from torchmetrics import MeanSquaredError, MetricCollection, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MultilabelAveragePrecision,
    MultilabelExactMatch,
    MultilabelF1Score,
)

from lit_pretrain.data.labelled.label_facts import LabelFacts
from lit_pretrain.errors import UserError
from lit_pretrain.objectives.chance import chance_of_classes
from lit_pretrain.objectives.objective import global_mean
from lit_pretrain.required import required


class MacroF1(MulticlassF1Score):
    """torchmetrics' F1, the mean over the classes, without waiting for the device at each update.

    There a confusion matrix is counted by `bincount`, which asks the device how large its result is to be, and labels
    are checked by value; here they are the data module's.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes, average="macro", validate_args=False)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count a batch: probabilities (B, C) and labels (B,)."""
        predicted = preds.argmax(dim=1)
        right = (predicted == target).long()
        none = torch.zeros(required(self.num_classes), dtype=torch.long, device=target.device)
        true_positives = none.scatter_add(0, target, right)
        false_positives = none.scatter_add(0, predicted, 1 - right)
        false_negatives = none.scatter_add(0, target, 1 - right)
        true_negatives = len(target) - true_positives - false_positives - false_negatives
        self._update_state(true_positives, false_positives, true_negatives, false_negatives)


class ExactAccuracy(MultilabelExactMatch):
    """torchmetrics' share of the samples all of whose classes are right, counted without waiting for the device."""

    correct: Tensor
    total: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__(classes, validate_args=False)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count a batch: probabilities and labels (B, C)."""
        self.correct += ((preds > self.threshold) == target.bool()).all(dim=1).sum()
        self.total += len(target)


class Losses:
    """What all tasks have in common: a loss that is a mean, whose sum and weight batches can add up."""

    def total(self, logits: Tensor, labels: Tensor, training: bool = False) -> Tensor:
        """Sum of the losses of a batch."""
        raise NotImplementedError

    def weight(self, labels: Tensor, training: bool = False) -> Tensor:
        """What the sum is divided by: the number of samples, or the sum of their weights."""
        return torch.full((), len(labels), device=labels.device)

    def loss(self, logits: Tensor, labels: Tensor, training: bool = False) -> Tensor:
        """Mean over a batch; see `total`."""
        return global_mean(self.total(logits, labels, training), self.weight(labels, training), training=False)


class Classes(Losses):
    """What one class and several of each sample have in common.

    Args:
        facts: What is known of the labels.
        label_smoothing: Share of a label that is spread over all classes; of several classes each, by which targets
            move towards one half.
        class_weights: (C,) factors of each class's loss, of several classes each where a class is present; null for 1.
    """

    def __init__(self, facts: LabelFacts, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> None:
        self.facts = facts
        self.outputs = len(facts.classes)
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights

    def weights_on(self, device: torch.device) -> Tensor | None:
        """Factors (C,) of the classes, float32, on a device, where they are brought once: a copy is waited for."""
        if self.class_weights is None:
            return None
        self.class_weights = self.class_weights.to(device)
        return self.class_weights


class SingleLabel(Classes):
    """One class of each sample; see `Classes` for the arguments."""

    monitor, mode = "accuracy", "max"

    def metrics(self) -> MetricCollection:
        """Fresh metrics of one stage."""
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(self.outputs, average="micro", validate_args=False),
                "f1": MacroF1(self.outputs),
                "expected_calibration_error": MulticlassCalibrationError(self.outputs, n_bins=15, validate_args=False),
            },
            compute_groups=False,  # none share their counts, and to look whether they do waits for the device
        )

    def total(self, logits: Tensor, labels: Tensor, training: bool = False) -> Tensor:
        """Sum of the cross-entropies.

        Args:
            logits: (B, C) float32.
            labels: (B,) integers, or (B, C) probabilities of mixed pictures.
            training: Whether labels are smoothed and classes weighted.
        """
        if not training:
            return functional.cross_entropy(logits, labels, reduction="sum")
        weights, smoothing = self.weights_on(logits.device), self.label_smoothing
        weights = None if weights is None else weights.to(logits.dtype)
        return functional.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=smoothing)

    def weight(self, labels: Tensor, training: bool = False) -> Tensor:
        """The samples, or in training the weights of their classes, of mixed pictures in the shares of both."""
        weights = self.weights_on(labels.device) if training else None
        if weights is None:
            return super().weight(labels)
        return (weights[labels] if labels.dim() == 1 else labels.to(weights.dtype) @ weights).sum()

    def for_metrics(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (B, C) and labels, as the metrics take them."""
        return logits.softmax(dim=-1), labels

    def chance(self) -> dict[str, float]:
        """Metrics of telling always the most frequent class, and the loss of telling how often each occurs."""
        if not sum(self.facts.counts):
            return {}
        shares = [count / sum(self.facts.counts) for count in self.facts.counts]
        most = max(shares)
        # Of that class precision is its share and recall 1; all others have an F1 of 0. Who tells how often each class
        # occurs is right as often as that.
        return chance_of_classes(shares) | {
            "f1": 2 * most / (1 + most) / self.outputs,
            "expected_calibration_error": 0.0,
        }

    def correct(self, logits: Tensor, labels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """(sum, count) of the accuracy of a training batch."""
        right = (logits.argmax(dim=-1) == labels).sum()
        return {"accuracy": (right, torch.full((), len(labels), device=right.device))}

    def answers(self, logits: Tensor) -> dict[str, Any]:
        """`label`: a name each; `probability`: (B, C)."""
        probabilities = logits.softmax(dim=-1)
        names = [self.facts.classes[index] for index in probabilities.argmax(dim=-1).tolist()]
        return {"label": names, "probability": probabilities}


class MultiLabel(Classes):
    """Any number of classes of each sample, told from a probability of one half on; see `Classes` for the arguments."""

    monitor, mode = "average_precision", "max"

    def metrics(self) -> MetricCollection:
        """Fresh metrics of one stage."""
        return MetricCollection(
            {
                "average_precision": MultilabelAveragePrecision(self.outputs, average="macro", validate_args=False),
                "f1": MultilabelF1Score(self.outputs, average="macro", validate_args=False),
                "f1_micro": MultilabelF1Score(self.outputs, average="micro", validate_args=False),
                "exact_accuracy": ExactAccuracy(self.outputs),
            },
            compute_groups=False,  # none share their counts, and to look whether they do waits for the device
        )

    def total(self, logits: Tensor, labels: Tensor, training: bool = False) -> Tensor:
        """Sum of the samples' binary cross-entropies, each the mean over the classes: logits and labels (B, C)."""
        targets, weights = labels.to(logits.dtype), None
        if training:
            targets = targets * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing
            weights = self.weights_on(logits.device)
            weights = None if weights is None else weights.to(logits.dtype)
        total = functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="sum")
        return total / self.outputs

    def chance(self) -> dict[str, float]:
        """Metrics of telling of every sample how often each class is present."""
        if not self.facts.samples or len(self.facts.counts) != self.outputs:
            return {}
        shares = [count / self.facts.samples for count in self.facts.counts]
        losses = [chance_of_classes([share, 1 - share])["loss"] for share in shares]
        # Classes of more than half of the samples are told of every sample, so that all of their samples are found.
        told = [share for share in shares if share > 0.5]
        return {
            "average_precision": sum(shares) / self.outputs,
            "f1": sum(2 * share / (1 + share) for share in told) / self.outputs,
            "f1_micro": 2 * sum(told) / (len(told) + sum(shares)) if told else 0.0,
            "loss": sum(losses) / self.outputs,
        }

    def for_metrics(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (B, C) and integer labels (B, C)."""
        return logits.sigmoid(), labels.long()

    def correct(self, logits: Tensor, labels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Nothing is counted in training but the loss."""
        return {}

    def answers(self, logits: Tensor) -> dict[str, Any]:
        """`label`: a list of names each; `probability`: (B, C)."""
        probabilities = logits.sigmoid()
        names = [
            [name for name, probability in zip(self.facts.classes, row, strict=True) if probability >= 0.5]
            for row in probabilities.tolist()
        ]
        return {"label": names, "probability": probabilities}


class Regression(Losses):
    """A number of each sample. The head learns standardised numbers, so that their unit does not matter.

    Args:
        facts: With the mean and the standard deviation of the training labels.
    """

    monitor, mode = "spearman", "max"
    outputs = 1

    def __init__(self, facts: LabelFacts) -> None:
        self.facts = facts

    def metrics(self) -> MetricCollection:
        """Fresh metrics of one stage."""
        return MetricCollection(
            {"pearson": PearsonCorrCoef(), "spearman": SpearmanCorrCoef(), "mse": MeanSquaredError()},
            compute_groups=False,  # none share their counts, and to look whether they do waits for the device
        )

    def values(self, logits: Tensor) -> Tensor:
        """Numbers (B,) in the labels' own unit, of a head's outputs (B, 1)."""
        return logits[:, 0] * self.facts.std + self.facts.mean

    def total(self, logits: Tensor, labels: Tensor, training: bool = False) -> Tensor:
        """Sum of the squared errors of the standardised numbers: logits (B, 1), labels (B,)."""
        standard = (labels.to(logits.dtype) - self.facts.mean) / self.facts.std
        return functional.mse_loss(logits[:, 0], standard, reduction="sum")

    def chance(self) -> dict[str, float]:
        """Metrics of telling always the mean."""
        return {"pearson": 0.0, "spearman": 0.0, "mse": self.facts.std**2, "loss": 1.0}

    def for_metrics(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers in the labels' own unit."""
        return self.values(logits), labels.to(logits.dtype)

    def correct(self, logits: Tensor, labels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Nothing is counted in training but the loss."""
        return {}

    def answers(self, logits: Tensor) -> dict[str, Any]:
        """`value`: (B,)."""
        return {"value": self.values(logits)}


Task = SingleLabel | MultiLabel | Regression


def make_task(facts: LabelFacts, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> Task:
    """The task that labels ask for.

    Args:
        facts: What is known of the labels.
        label_smoothing: See the tasks; not used for numbers.
        class_weights: As `label_smoothing`.
    """
    if facts.task == "regression":
        return Regression(facts)
    return (SingleLabel if facts.task == "single_label" else MultiLabel)(facts, label_smoothing, class_weights)


def count_none(metrics: MetricCollection) -> None:
    """Make metrics ready to be put together with other processes' where this one has no samples.

    torchmetrics (1.9) takes a list that nothing was added to for one of numbers, and rows cannot be added to those.
    """
    for metric in metrics.values():
        if isinstance(metric, MultilabelAveragePrecision) and not metric.preds:
            metric.preds.append(torch.zeros(0, metric.num_labels, device=metric.device, dtype=torch.float32))
            metric.target.append(torch.zeros(0, metric.num_labels, dtype=torch.long, device=metric.device))


def class_weights_of(setting: list[float] | Literal["balanced"], facts: LabelFacts) -> Tensor:
    """Factors (C,) of the classes' losses.

    Args:
        setting: The factors, or `balanced`: of one class each, the inverse of its frequency, 1 on average over the
            samples; of several classes each, how much more often a class is absent than present.
        facts: What is known of the labels.

    Raises:
        UserError: If they cannot be told, or do not fit the classes.
    """
    if facts.task == "regression":
        raise UserError("model.class_weights weighs classes, and the labels are numbers: leave it out.")
    classes = len(facts.classes)
    if setting == "balanced":
        counts = torch.tensor(facts.counts, dtype=torch.float32)
        absent = [name for name, count in zip(facts.classes, facts.counts, strict=False) if count == 0]
        if absent or len(counts) != classes:
            raise UserError(
                "model.class_weights: balanced needs a training sample of every class, and there is none of "
                f"{', '.join(absent[:8]) or 'any'}: give a list of weights, or raise data.label_budget."
            )
        if facts.task == "multi_label":
            return (facts.samples - counts) / counts
        return counts.sum() / (classes * counts)
    if len(setting) != classes:
        raise UserError(f"model.class_weights has {len(setting)} values for {classes} classes: give one each.")
    if min(setting) < 0 or not all(map(math.isfinite, setting)):
        raise UserError(f"model.class_weights is {setting}: give numbers from 0.")
    return torch.tensor(setting, dtype=torch.float32)
