"""Means of the objectives' statistics over batches and processes, as one torchmetrics metric.

One metric for all of them costs one small update a step and one synchronisation a report, whatever the number of
objectives; sums and counts, not means of means, so unequal batches and processes weigh as they should.
"""

import torch
from torch import Tensor
from torchmetrics import Metric

# Sum and count by name.
Statistics = dict[str, tuple[Tensor, Tensor]]


def without_any(statistics: Statistics) -> Statistics:
    """Those of no sample, under the same names."""
    return {name: (torch.zeros_like(total), torch.zeros_like(count)) for name, (total, count) in statistics.items()}


class MeanStatistics(Metric):
    """Sum / count by name.

    Args:
        names: Statistics in a fixed order.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = list(names)
        # The type is named: within a step the default is that of the trainer's precision.
        for state in ("sums", "counts"):
            self.add_state(state, torch.zeros(len(self.names), dtype=torch.float32), dist_reduce_fx="sum")

    def update(self, statistics: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Add one batch's (sum, count) by name; every name each time."""
        dtype = self.sums.dtype
        # Not in place: inference mode, as of a validation before a training, makes sums that nothing else may change.
        self.sums = self.sums + torch.stack([statistics[name][0].to(dtype) for name in self.names])
        self.counts = self.counts + torch.stack([statistics[name][1].to(dtype) for name in self.names])

    def total_sums(self) -> dict[str, list]:
        """Names, sums and counts over all processes, primitives only; collective."""
        with self.sync_context():
            return {"names": list(self.names), "sums": self.sums.tolist(), "counts": self.counts.tolist()}

    def add_sums(self, earlier: dict[str, list]) -> None:
        """Add what `total_sums` gave, in one process alone; nothing if it is of other statistics."""
        if earlier["names"] == self.names:
            self.sums += torch.as_tensor(earlier["sums"]).to(self.sums)
            self.counts += torch.as_tensor(earlier["counts"]).to(self.counts)

    def compute(self) -> dict[str, Tensor]:
        """Means by name; a statistic that never had a term is left out."""
        counted = (self.counts > 0).tolist()
        # Counts may be weights, and as small as those are.
        means = self.sums / torch.where(self.counts > 0, self.counts, 1.0)
        return {name: mean for name, mean, seen in zip(self.names, means, counted, strict=True) if seen}
