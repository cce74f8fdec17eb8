"""A linear probe on frozen features: multinomial logistic regression on standardised features.

Standardising (a batch norm without gain and shift: He et al. 2022, arXiv:2111.06377, appendix A.1) makes encoders with
features of different sizes comparable at one strength of regularisation.
"""

from dataclasses import dataclass

import numpy
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lit_pretrain.errors import UserError

# A feature that varies less than this share of the largest one is constant but for rounding.
LEAST_VARIATION = 1e-6


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe.

    Attributes:
        mean: (D,) of the training features.
        scale: (D,) their standard deviations; 1 where a feature is constant.
        classifier: The regression on standardised features.
    """

    mean: numpy.ndarray
    scale: numpy.ndarray
    classifier: LogisticRegression

    def predict(self, features: Tensor) -> Tensor:
        """Classes (M,) of features (M, D)."""
        standardised = (features.float().cpu().numpy() - self.mean) / self.scale
        return torch.from_numpy(self.classifier.predict(standardised)).long()

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Share of the features (M, D) that are named as the labels (M,) say."""
        return float((self.predict(features) == labels.cpu()).float().mean())


def fit_linear_probe(
    features: Tensor, labels: Tensor, regularization: float = 1.0, max_iterations: int = 300
) -> LinearProbe:
    """Fit a probe.

    Args:
        features: (N, D) float.
        labels: (N,) integers; classes that do not occur are never predicted.
        regularization: scikit-learn's C, the inverse of the strength of the L2 penalty.
        max_iterations: Steps of L-BFGS at most.

    Raises:
        UserError: If there are fewer than two classes.
    """
    values, names = features.float().cpu().numpy(), labels.cpu().numpy()
    if len(numpy.unique(names)) < 2:
        raise UserError("A linear probe needs labels of at least two classes: give more labelled samples.")
    mean, scale = values.mean(axis=0), values.std(axis=0)
    scale[scale <= LEAST_VARIATION * max(float(scale.max()), 1e-12)] = 1.0
    classifier = LogisticRegression(C=regularization, max_iter=max_iterations, tol=1e-3)
    return LinearProbe(mean, scale, classifier.fit((values - mean) / scale, names))
