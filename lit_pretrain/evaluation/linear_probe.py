"""A linear probe on frozen features: multinomial logistic regression on standardised features.

Standardising (a batch norm without gain and shift: He et al. 2022, arXiv:2111.06377, appendix A.1) makes encoders with
features of different sizes comparable at one strength of regularisation. With many features and few labels no strength
is right for all; it can be chosen by cross-validation, as CLIP's probes are (Radford et al. 2021, arXiv:2103.00020,
appendix A.3).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as functional
from torch import Tensor

from lit_pretrain.errors import UserError

# A feature that varies less than this share of the largest one is constant but for rounding.
LEAST_VARIATION = 1e-6
# Largest entry of the mean loss's gradient at which L-BFGS stops.
GRADIENT_TOLERANCE = 2e-4
# A strength of regularisation, scikit-learn's C, or that it is chosen by `choose_regularization`.
Regularization = float | Literal["chosen"]
CANDIDATES = (10.0, 1.0, 0.1, 0.01, 0.001)
FOLDS = 5
# More labels tell little more of the strength, and take long.
MOST_SAMPLES_TO_CHOOSE = 2_000


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe, on the device of the features that it was fitted to.

    Attributes:
        mean: (D,) of the training features.
        scale: (D,) their standard deviations; 1 where a feature is constant.
        classes: (C,) the labels that occurred, in order.
        weight: (C, D) on standardised features.
        bias: (C,).
    """

    mean: Tensor
    scale: Tensor
    classes: Tensor
    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """(M, C) of features (M, D)."""
        return functional.linear((features.float() - self.mean) / self.scale, self.weight, self.bias)

    def predict(self, features: Tensor) -> Tensor:
        """Classes (M,) of features (M, D)."""
        return self.classes[self.logits(features).argmax(dim=1)]

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Share of the features (M, D) that are named as the labels (M,) say."""
        return float((self.predict(features) == labels).float().mean())


def fit_linear_probe(
    features: Tensor, labels: Tensor, regularization: Regularization = 1.0, max_iterations: int = 300
) -> LinearProbe:
    """Fit a probe by L-BFGS, several times faster than scikit-learn's and on any device.

    Args:
        features: (N, D) float.
        labels: (N,) integers, on the same device; classes that do not occur are never predicted.
        regularization: The inverse of the strength of the L2 penalty, scikit-learn's C; `chosen` by
            cross-validation.
        max_iterations: Steps of L-BFGS at most.

    Raises:
        UserError: If there are fewer than two classes.
    """
    if regularization == "chosen":
        regularization = choose_regularization(features, labels)
    classes, targets = labels.long().unique(return_inverse=True)
    if len(classes) < 2:
        raise UserError("A linear probe needs labels of at least two classes: give more labelled samples.")
    # Lightning validates in inference mode, whose tensors take no part in gradients: these are copies.
    with torch.inference_mode(False), torch.enable_grad():
        values, targets = features.detach().float().clone(), targets.clone()
        mean, scale = values.mean(dim=0), values.std(dim=0, correction=0)
        scale = torch.where(scale <= LEAST_VARIATION * scale.max().clamp(min=1e-12), 1.0, scale)
        standardised = (values - mean) / scale
        weight = values.new_zeros(len(classes), values.shape[1]).requires_grad_()
        bias = values.new_zeros(len(classes)).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=max_iterations,
            tolerance_grad=GRADIENT_TOLERANCE,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            penalty = weight.square().sum() / (2 * regularization * len(values))
            loss = functional.cross_entropy(functional.linear(standardised, weight, bias), targets) + penalty
            loss.backward()
            return loss

        optimizer.step(closure)
    return LinearProbe(mean, scale, classes, weight.detach(), bias.detach())


def choose_regularization(features: Tensor, labels: Tensor, seed: int = 0) -> float:
    """The strength of `CANDIDATES` whose probes have the lowest cross-entropy on what they were not fitted to.

    Few samples tell it better by cross-entropy than by accuracy, which moves in steps.

    Args:
        features: (N, D) float.
        labels: (N,) integers; classes are spread evenly over the folds, of at most 2,000 samples.
        seed: Of the folds.

    Returns:
        C; 1.0 where no class has a second sample to be told.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(labels), generator=generator)[:MOST_SAMPLES_TO_CHOOSE].to(labels.device)
    features, labels = features[drawn], labels[drawn]
    counts = labels.unique(return_counts=True)[1]
    if len(counts) < 2 or int(counts.max()) < 2:
        return 1.0
    folds = torch.empty_like(labels, dtype=torch.long)
    folds[labels.argsort(stable=True)] = torch.arange(len(labels), device=labels.device) % FOLDS
    losses = dict.fromkeys(CANDIDATES, 0.0)
    for fold in range(FOLDS):
        known = folds != fold
        asked = ~known & torch.isin(labels, labels[known])  # the others' class is unknown to every candidate
        if not asked.any() or len(labels[known].unique()) < 2:
            continue
        for candidate in CANDIDATES:
            probe = fit_linear_probe(features[known], labels[known], candidate)
            targets = torch.searchsorted(probe.classes, labels[asked])
            losses[candidate] += float(
                functional.cross_entropy(probe.logits(features[asked]), targets, reduction="sum")
            )
    return min(losses, key=losses.__getitem__) if any(losses.values()) else 1.0


def parse_regularization(text: str) -> Regularization:
    """A strength as it is given on a command line.

    Raises:
        UserError: If it is none.
    """
    try:
        value: Regularization = "chosen" if text == "chosen" else float(text)
    except ValueError:
        value = 0.0
    check_regularization(value, f"--regularization is '{text}'")
    return value


def check_regularization(value: Regularization, what: str) -> None:
    """Refuse what is no strength.

    Args:
        value: The strength.
        what: Begins the sentence that says what is wrong.

    Raises:
        UserError: In one sentence.
    """
    if value != "chosen" and not 0.0 < value < float("inf"):
        raise UserError(f"{what}: give a number above 0, scikit-learn's C, or chosen, by cross-validation.")
