"""A linear probe for numbers instead of classes: ridge regression on standardised features, and correlations."""

import torch
from torch import Tensor

from lit_pretrain.errors import UserError
from lit_pretrain.measures.finite import check_finite
from lit_pretrain.measures.linear_probe import divisors

# Samples that are brought to double precision at a time.
CHUNK = 65_536


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
        UserError: If there is nothing to learn from, or features are not finite.
    """
    if not len(train_features):
        raise UserError("A linear probe needs labelled samples: give at least one.")
    for features in (train_features, test_features):
        check_finite(features)
    values = train_values.double()
    mean, scale = moments(train_features)
    scale = divisors(scale)
    offset = values.mean()
    # Sums over chunks: features in double precision, several times over, would be most of the memory.
    gram, projected = torch.zeros(2, 1, 1, dtype=torch.float64, device=train_features.device)
    for features, targets in zip(train_features.split(CHUNK), (values - offset).split(CHUNK), strict=True):
        standardised = (features.double() - mean) / scale
        gram, projected = gram + standardised.T @ standardised, projected + standardised.T @ targets[:, None]
    penalty = regularization * torch.eye(len(mean), dtype=torch.float64, device=mean.device)
    weight = torch.linalg.solve(gram + penalty, projected)[:, 0]
    return torch.cat(
        [((part.double() - mean) / scale @ weight + offset).float() for part in test_features.split(CHUNK)]
    )


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations (D,) of features (N, D), in double precision, chunk by chunk."""
    mean = sum(part.double().sum(dim=0) for part in features.split(CHUNK)) / len(features)
    squares = sum((part.double() - mean).square().sum(dim=0) for part in features.split(CHUNK))
    return mean, (squares / len(features)).sqrt()


def correlations(predicted: Tensor, values: Tensor) -> dict[str, float]:
    """Pearson's and Spearman's correlation of predictions (M,) with the truth; not a number if either is constant."""
    ranks = [average_ranks(numbers) for numbers in (predicted, values)]
    return {"pearson": pearson(predicted, values), "spearman": pearson(*ranks)}


def pearson(first: Tensor, second: Tensor) -> float:
    """Correlation of two sequences (M,)."""
    return float(torch.corrcoef(torch.stack([first.double(), second.double()]))[0, 1])


def average_ranks(values: Tensor) -> Tensor:
    """(M,) ranks from 0; equal values share the mean of theirs."""
    _, places, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(dim=0).double()
    return (last - (counts + 1) / 2)[places]
