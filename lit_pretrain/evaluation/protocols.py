"""Protocols on frozen features: k nearest neighbours and linear probes, for any number of labels and several seeds."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy
import torch
from torch import Tensor

from lit_pretrain.errors import UserError
from lit_pretrain.evaluation.features import FeaturePooling, features_of_batches
from lit_pretrain.evaluation.labelled_data import BATCH_SIZE, Part, draw
from lit_pretrain.evaluation.progress_bar import with_bar
from lit_pretrain.evaluation.subjects import Subject
from lit_pretrain.measures.knn import knn_mean, knn_predict
from lit_pretrain.measures.linear_probe import Regularization, fit_linear_probe
from lit_pretrain.measures.ridge import correlations, ridge_predict
from lit_pretrain.required import required

Protocol = Literal["knn", "linear"]
NEIGHBORS, TEMPERATURE = 20, 0.07
# Features that are held at a time; of more layers than fit in, the encoder runs again for the rest.
HELD_BYTES = 2**30


@dataclass(frozen=True)
class Setting:
    """How it is measured.

    Attributes:
        protocols: Which ones.
        pooling: How a sample's tokens become one vector.
        budgets: Numbers of labels to learn from; null among them for all.
        seeds: Of the draws of labels, and of fresh weights.
        classes: Number of classes; null if the labels are numbers.
        device: Where the encoder runs.
        bf16: Whether it multiplies in bf16.
        regularization: Of linear probes.
    """

    protocols: Sequence[Protocol]
    pooling: FeaturePooling
    budgets: Sequence[int | None]
    seeds: Sequence[int]
    classes: int | None
    device: torch.device
    bf16: bool
    regularization: Regularization = 1.0


@dataclass
class Measurement:
    """One number, measured once for every seed.

    Attributes:
        protocol: `knn` or `linear`.
        metric: `accuracy`, `pearson` or `spearman`.
        layer: Block, counted from 1.
        labels: Number of labels that were learned from.
        seeds: The seeds of the values; empty if nothing was drawn, and there is one value then.
        values: One for each seed.
    """

    protocol: Protocol
    metric: str
    layer: int
    labels: int
    seeds: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return sum(self.values) / len(self.values)

    @property
    def interval(self) -> float | None:
        """Half the width of the 95 % confidence interval of the mean, by Student's t; null for a single value."""
        from lit_pretrain.measures.intervals import mean_of

        return mean_of(self.values).half_width


def layer_groups(layers: Sequence[int], samples: int, width: int) -> Iterator[list[int]]:
    """Layers in groups whose features of all samples may be held together."""
    size = max(1, HELD_BYTES // (4 * samples * width))
    for start in range(0, len(layers), size):
        yield list(layers[start : start + size])


def layer_features(
    subject: Subject, parts: Sequence[Part], layers: Sequence[int], setting: Setting
) -> Iterator[tuple[int, list[Tensor]]]:
    """Every layer with the features (N, D) of each part, on the setting's device, few layers being held at a time."""
    encoder = subject.encoder.to(setting.device)
    for group in layer_groups(layers, sum(map(len, parts)), encoder.width):
        features = [
            features_of_batches(
                encoder,
                with_bar(part.batches(), math.ceil(len(part) / BATCH_SIZE), f"{subject.name}, {part.name} samples"),
                group,
                setting.pooling,
                setting.bf16,
                subject.causal,
            )
            for part in parts
        ]
        for layer in group:
            pairs = zip(parts, features, strict=True)
            yield layer, [part.in_order(pair.pop(layer)).to(setting.device) for part, pair in pairs]
    encoder.cpu()


def measure(
    make: Callable[[int], Subject] | Subject, train: Part, test: Part, layers: Sequence[int], setting: Setting
) -> list[Measurement]:
    """Learn from the training part's labels and be tried on the other's.

    Args:
        make: What is measured, or what makes it from a seed.
        train: With labels.
        test: With labels.
        layers: Blocks, counted from 1.
        setting: Protocols, label budgets, seeds.
    """
    measurements: dict[tuple[int, str, str, int], Measurement] = {}
    fixed = make if isinstance(make, Subject) else None
    for seeds in [setting.seeds] if fixed is not None else [[seed] for seed in setting.seeds]:
        subject = make if isinstance(make, Subject) else make(seeds[0])
        # Without a draw all seeds would give the same number.
        draws = [
            (None if budget is None and fixed else seed, numpy.arange(len(train)) if budget is None else chosen)
            for budget in setting.budgets
            for seed in (seeds[:1] if budget is None else seeds)
            for chosen in [None if budget is None else draw(required(train.labels), budget, seed)]
        ]
        needed = numpy.unique(numpy.concatenate([chosen for _, chosen in draws]))
        for layer, (train_features, test_features) in layer_features(
            subject, [train.at(needed), test], layers, setting
        ):
            for seed, chosen in draws:
                places = torch.from_numpy(numpy.searchsorted(needed, required(chosen))).to(setting.device)
                labels = required(train.labels)[torch.from_numpy(chosen)].to(setting.device)
                truth = required(test.labels).to(setting.device)
                for protocol in setting.protocols:
                    # Not a copy of all of them.
                    labelled_features = train_features if len(places) == len(train_features) else train_features[places]
                    scores = score(protocol, labelled_features, labels, test_features, truth, setting)
                    for metric, value in scores.items():
                        key = (layer, protocol, metric, len(required(chosen)))
                        measurement = measurements.setdefault(
                            key, Measurement(protocol, metric, layer, len(required(chosen)))
                        )
                        measurement.values.append(value)
                        measurement.seeds += [] if seed is None else [seed]
    return list(measurements.values())


def score(
    protocol: Protocol, train: Tensor, labels: Tensor, test: Tensor, truth: Tensor, setting: Setting
) -> dict[str, float]:
    """What one protocol gives on features of one layer.

    Args:
        protocol: `knn` or `linear`.
        train: (N, D) features.
        labels: (N,) classes or values.
        test: (M, D) features.
        truth: (M,) classes or values.
        setting: How it is measured.
    """
    if setting.classes is None:
        predicted = (
            knn_mean(train, labels, test, NEIGHBORS) if protocol == "knn" else ridge_predict(train, labels, test)
        )
        return correlations(predicted, truth)
    if protocol == "knn":
        predicted = knn_predict(train, labels, test, setting.classes, NEIGHBORS, TEMPERATURE)
    else:
        predicted = fit_linear_probe(train, labels, setting.regularization).predict(test)
    return {"accuracy": int((predicted == truth).sum()) / len(truth)}


def budget_of(text: str, available: int, classes: int | None) -> int | None:
    """A label budget: "all", a number, or a share below 1.

    Args:
        text: As given.
        available: Labelled training samples.
        classes: How many classes they have; null if the labels are numbers.

    Returns:
        A number, or null for all there are.

    Raises:
        UserError: If it is none of these, or cannot be drawn.
    """
    if text == "all":
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    count = round(number * available) if 0 < number < 1 else number
    if not math.isfinite(number) or count != int(count) or count < 1:
        raise UserError(f"--train-samples is '{text}': give a whole number of samples, a share below 1, or all.")
    if classes is not None and count < classes:
        raise UserError(
            f"--train-samples {text} is {int(count)} samples, fewer than the {classes} classes: give one a class."
        )
    if count > available:
        raise UserError(f"--train-samples is {text}, and there are {available} training samples: lower it.")
    return None if count == available else int(count)


def share_of_most_frequent(labels: Tensor) -> float:
    """Accuracy of telling always the class that occurs most: labels (N,)."""
    return int(labels.unique(return_counts=True)[1].max()) / len(labels)


def row_of(subject: Subject, measurement: Measurement, setting: Setting, test: Part, resolution: str) -> dict[str, Any]:
    """A measurement with all that must be said of it, for tables and JSON."""
    finite = math.isfinite(measurement.mean)
    return {
        "checkpoint": subject.name,
        "step": subject.step,
        "protocol": measurement.protocol,
        "metric": measurement.metric,
        "layer": measurement.layer,
        "layers": subject.encoder.config.readable_layers,
        "pooling": setting.pooling,
        "resolution": resolution,
        "train_samples": measurement.labels,
        "stage": test.name,
        "stage_samples": len(test),
        "seeds": measurement.seeds,
        "values": measurement.values if finite else None,
        "mean": measurement.mean if finite else None,
        "interval": measurement.interval if finite else None,
        # Numbers that are not looked at correlate with nothing.
        "chance": 0.0 if setting.classes is None else share_of_most_frequent(required(test.labels)),
        "precision": "bf16-mixed" if setting.bf16 else "32-true",
        "source": subject.tags.get("source.checkpoint"),
        "run_id": subject.tags.get("source.run_id"),
    }
