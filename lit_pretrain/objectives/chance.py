"""What figures are without learning: of guesses that know how often each answer occurs, and look at no sample."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class AnswerFrequencies:
    """How often what objectives ask for occurs in the data, as far as it is known without any model.

    Attributes:
        pieces: (V,) share of each word piece of the training texts; null of pictures.
        random_pairs: Share of the sentence pairs whose second passage is random.
        batch_size: Samples of a process's batch, among which objectives that compare them choose; null if unknown.
        statistics: The objective's own means of the latest evaluation, by name, for what only those tell: how many
            tokens were replaced, how grey pictures are.
    """

    pieces: Tensor | None = None
    random_pairs: float = 0.5
    batch_size: int | None = None
    statistics: Mapping[str, float] = field(default_factory=dict)


def chance_of_classes(shares: Sequence[float] | Tensor, names: Sequence[str] = ()) -> dict[str, float]:
    """Loss of telling always how often each class occurs, in nats, and accuracy of telling the most frequent one.

    Args:
        shares: Of each class; their sum is 1.
        names: Of classes that are equally frequent, for the accuracy of each.
    """
    values = [float(share) for share in shares]
    entropy = -sum(share * math.log(share) for share in values if share > 0)
    return {"loss": entropy, "accuracy": max(values)} | {f"accuracy_{name}": 1 / len(values) for name in names}


def chance_of_pieces(frequencies: AnswerFrequencies) -> dict[str, float]:
    """As `chance_of_classes`, of predicting word pieces; empty if their frequencies are not known."""
    pieces = frequencies.pieces
    if pieces is None:
        return {}
    pieces = pieces.double()
    return {"loss": float(-pieces.xlogy(pieces).sum()), "accuracy": float(pieces.max())}


def chance_in_batch(frequencies: AnswerFrequencies) -> dict[str, float]:
    """As `chance_of_classes`, of choosing one of a batch; empty if its size is not known."""
    size = frequencies.batch_size
    return {"loss": math.log(size), "accuracy": 1 / size} if size else {}
