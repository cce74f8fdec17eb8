"""A linear probe on frozen features: multinomial logistic regression on standardised features.

Standardising (a batch norm without gain and shift: He et al. 2022, arXiv:2111.06377, appendix A.1) makes encoders with
features of different sizes comparable at one strength of regularisation. With many features and few labels no strength
is right for all; it can be chosen by cross-validation, as CLIP's probes are (Radford et al. 2021, arXiv:2103.00020,
appendix A.3).
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as functional
from torch import Tensor

from lit_pretrain.errors import UserError
from lit_pretrain.measures.finite import check_finite

# A feature that varies less than this share of the most varied one, or of what half of them reach, is constant but for
# rounding.
LEAST_OF_LARGEST, LEAST_OF_MEDIAN = 1e-6, 1e-4
# Largest entry of the objective's gradient at which L-BFGS stops, as a share of the objective: where classes can be
# told apart and the penalty is weak, the objective is small, and an absolute bound would stop far from its minimum.
GRADIENT_TOLERANCE = 1e-4
# A strength of regularisation, scikit-learn's C, or that it is chosen by `choose_regularization`.
Regularization = float | Literal["chosen"]
CANDIDATES = (10.0, 1.0, 0.1, 0.01, 0.001)
FOLDS = 5
# Steps of L-BFGS between two looks at the objective.
ROUND = 50
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
    features: Tensor, labels: Tensor, regularization: Regularization = 1.0, max_iterations: int = 2000
) -> LinearProbe:
    """Fit a probe by L-BFGS on any device: the minimum that scikit-learn's LogisticRegression(C) has.

    Of two classes the penalty is that of one weight vector, the difference of both classes', as in scikit-learn.


    Args:
        features: (N, D) float.
        labels: (N,) integers, on the same device; classes that do not occur are never predicted.
        regularization: The inverse of the strength of the L2 penalty, scikit-learn's C; `chosen` by
            cross-validation.
        max_iterations: Steps of L-BFGS at most; it is said if they were not enough.

    Raises:
        UserError: If there are fewer than two classes, or features that are not finite.
    """
    if regularization == "chosen":
        regularization = choose_regularization(features, labels)
    classes, targets = labels.long().unique(return_inverse=True)
    if len(classes) < 2:
        raise UserError("A linear probe needs labels of at least two classes: give more labelled samples.")
    check_finite(features)
    # Lightning validates in inference mode, whose tensors take no part in gradients: these are copies.
    with torch.inference_mode(False), torch.enable_grad():
        values, targets = features.detach().float().clone(), targets.clone()
        mean, scale = values.mean(dim=0), values.std(dim=0, correction=0)
        scale = divisors(scale)
        standardised = values.sub_(mean).div_(scale)  # in place: the features may be most of the memory
        weight = values.new_zeros(len(classes), values.shape[1]).requires_grad_()
        bias = values.new_zeros(len(classes)).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_eval=4 * max_iterations, tolerance_change=0.0, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            squares = (weight[1] - weight[0]).square() if len(classes) == 2 else weight.square()
            penalty = squares.sum() / (2 * regularization * len(values))
            loss = functional.cross_entropy(functional.linear(standardised, weight, bias), targets) + penalty
            loss.backward()
            return loss

        converged = minimise(optimizer, closure, max_iterations)
    if not converged:
        warnings.warn(
            f"A linear probe of {len(values)} samples with C = {regularization:g} had not converged after "
            f"{max_iterations} steps: its figures are a little off; a smaller C converges sooner.",
            stacklevel=2,
        )
    return LinearProbe(mean, scale, classes, weight.detach(), bias.detach())


def divisors(scale: Tensor) -> Tensor:
    """Standard deviations (D,) of features, 1 where one is constant but for rounding.

    Divided by its own, a feature that an encoder no longer uses would be rounding as large as all others, and a head
    made of such a probe would answer by how a batch happens to be computed.
    """
    least = torch.maximum(LEAST_OF_LARGEST * scale.max().clamp(min=1e-12), LEAST_OF_MEDIAN * scale.median())
    return torch.where(scale <= least, 1.0, scale)


def minimise(optimizer: torch.optim.LBFGS, closure: Callable[[], Tensor], most: int) -> bool:
    """Run L-BFGS until the gradient is small beside the objective.

    Args:
        optimizer: Over all parameters, in one group.
        closure: Makes the gradients, and returns the objective, which is positive.
        most: Steps.

    Returns:
        Whether it came to the minimum, as far as the parameters' precision goes.
    """
    group, before = optimizer.param_groups[0], math.inf
    for _ in range(max(1, most // ROUND)):
        objective = float(closure().detach())
        # Where a whole round brings nothing, rounding is what is left of the gradient.
        if largest_gradient(group) <= GRADIENT_TOLERANCE * objective or objective >= before * (1.0 - 1e-6):
            return True
        group["max_iter"], group["tolerance_grad"] = min(ROUND, most), GRADIENT_TOLERANCE * objective
        before = objective
        optimizer.step(closure)
    objective = float(closure().detach())
    return largest_gradient(group) <= GRADIENT_TOLERANCE * objective


def largest_gradient(group: dict[str, Any]) -> float:
    """The largest entry of the gradients of a group's parameters, by its size."""
    return max(float(parameter.grad.abs().max()) for parameter in group["params"])


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
        fitted = folds != fold
        tested = ~fitted & torch.isin(labels, labels[fitted])  # the others' class is unknown to every candidate
        if not tested.any() or len(labels[fitted].unique()) < 2:
            continue
        for candidate in CANDIDATES:
            probe = fit_linear_probe(features[fitted], labels[fitted], candidate)
            targets = torch.searchsorted(probe.classes, labels[tested])
            losses[candidate] += float(
                functional.cross_entropy(probe.logits(features[tested]), targets, reduction="sum")
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


def check_regularization(value: Regularization, setting: str) -> None:
    """Refuse what is no strength.

    Args:
        value: The strength.
        setting: Begins the sentence that says what is wrong.

    Raises:
        UserError: In one sentence.
    """
    if value != "chosen" and not 0.0 < value < float("inf"):
        raise UserError(f"{setting}: give a number above 0, scikit-learn's C, or chosen, by cross-validation.")
