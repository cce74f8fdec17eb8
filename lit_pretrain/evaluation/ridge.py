"""A linear probe for numbers instead of classes: ridge regression on standardised features, and correlations."""

import torch
from torch import Tensor

from lit_pretrain.errors import UserError
from lit_pretrain.evaluation.linear_probe import LEAST_VARIATION


def ridge_predict(
    train_features: Tensor, train_values: Tensor, test_features: Tensor, regularization: float = 1.0
) -> Tensor:
    """Fit in closed form and predict.

    Args:
        train_features: (N, D) float.
        train_values: (N,) float, on the same device.
        test_features: (M, D) float.
        regularization: Strength of the L2 penalty, scikit-learn's alpha.

    Returns:
        (M,) float32 values.

    Raises:
        UserError: If there is nothing to learn from.
    """
    if not len(train_features):
        raise UserError("A linear probe needs labelled samples: give at least one.")
    features, values = train_features.double(), train_values.double()
    mean, scale = features.mean(dim=0), features.std(dim=0, correction=0)
    scale = torch.where(scale <= LEAST_VARIATION * scale.max().clamp(min=1e-12), 1.0, scale)
    standardised, offset = (features - mean) / scale, values.mean()
    penalty = regularization * torch.eye(standardised.shape[1], dtype=torch.float64, device=features.device)
    weight = torch.linalg.solve(standardised.T @ standardised + penalty, standardised.T @ (values - offset))
    return ((test_features.double() - mean) / scale @ weight + offset).float()


def correlations(predicted: Tensor, values: Tensor) -> dict[str, float]:
    """Pearson's and Spearman's correlation of predictions (M,) with the truth; not a number if either is constant."""
    ranks = [average_ranks(one) for one in (predicted, values)]
    return {"pearson": pearson(predicted, values), "spearman": pearson(*ranks)}


def pearson(one: Tensor, other: Tensor) -> float:
    """Correlation of two sequences (M,)."""
    return float(torch.corrcoef(torch.stack([one.double(), other.double()]))[0, 1])


def average_ranks(values: Tensor) -> Tensor:
    """(M,) ranks from 0; equal values share the mean of theirs."""
    _, places, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(dim=0).double()
    return (last - (counts + 1) / 2)[places]
