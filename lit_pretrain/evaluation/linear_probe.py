"""A linear probe on frozen features: multinomial logistic regression on standardised features.

Standardising (a batch norm without gain and shift: He et al. 2022, arXiv:2111.06377, appendix A.1) makes encoders with
features of different sizes comparable at one strength of regularisation.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from lit_pretrain.errors import UserError

# A feature that varies less than this share of the largest one is constant but for rounding.
LEAST_VARIATION = 1e-6
# Largest entry of the mean loss's gradient at which L-BFGS stops.
GRADIENT_TOLERANCE = 2e-4


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

    def predict(self, features: Tensor) -> Tensor:
        """Classes (M,) of features (M, D)."""
        standardised = (features.float() - self.mean) / self.scale
        return self.classes[functional.linear(standardised, self.weight, self.bias).argmax(dim=1)]

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Share of the features (M, D) that are named as the labels (M,) say."""
        return float((self.predict(features) == labels).float().mean())


def fit_linear_probe(
    features: Tensor, labels: Tensor, regularization: float = 1.0, max_iterations: int = 300
) -> LinearProbe:
    """Fit a probe by L-BFGS, several times faster than scikit-learn's and on any device.

    Args:
        features: (N, D) float.
        labels: (N,) integers, on the same device; classes that do not occur are never predicted.
        regularization: The inverse of the strength of the L2 penalty, scikit-learn's C.
        max_iterations: Steps of L-BFGS at most.

    Raises:
        UserError: If there are fewer than two classes.
    """
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
