"""Whether a space of texts and pictures is used: the gap between the two, and how many directions each takes.

The gap is that of Liang et al. 2022 (arXiv:2203.02053); the effective rank that of Roy and Vetterli 2007, which RankMe
(Garrido et al. 2023, arXiv:2210.02885) found to tell how good embeddings are without labels.
"""

import torch
from torch import Tensor


def modality_gap(texts: Tensor, pictures: Tensor) -> Tensor:
    """Distance between the means of embeddings (T, E) and (P, E) of length 1: 0 to 2, CLIP's is 0.8."""
    return (texts.mean(dim=0) - pictures.mean(dim=0)).norm()


def effective_rank(embeddings: Tensor) -> Tensor:
    """The exponential of the entropy of the normalised singular values of (N, E): 1 to min(N, E), or NaN."""
    # Their squares are the eigenvalues of a matrix that is small however many embeddings there are.
    double = embeddings.double()
    if not bool(double.sum().isfinite()):  # it has no singular values
        return double.new_tensor(torch.nan)
    squares = torch.linalg.eigvalsh(double.T @ double if len(double) >= double.shape[1] else double @ double.T)
    values = squares.clamp(min=0.0).sqrt()
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(shares).sum().exp()
