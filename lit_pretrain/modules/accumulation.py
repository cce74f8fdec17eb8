"""Accumulated batches as the one batch that they stand for: what each of them counts in the means of its step.

Lightning adds up the gradients of so many batches, each divided by their number. That is a mean of means: a batch of
few hidden positions weighs as much as one of many, and where an epoch ends with fewer batches its last gradient is too
small. One batch of all of them divides each sum by the number of terms of all, which has to be known before the first
gradient is made. So the loader hands a step's later batches out with its first one (`FOLLOWING`), and their terms are
counted with the draws that they will have. transformers' Trainer does the same (`num_items_in_batch`).

What compares the samples of a batch with each other (contrastive spans, bags of n-grams) compares those of each
accumulated batch alone, which is told.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lit_pretrain.data.loading import FOLLOWING
from lit_pretrain.objectives.objective import Batch, Objective


@dataclass(frozen=True)
class Shares:
    """Factors of the means of a batch, before Lightning divides by the number of accumulated batches.

    Attributes:
        others: Of means over the batch's samples, of which all batches have as many.
        counted: Of the others, by name.
    """

    others: float = 1.0
    counted: dict[str, Tensor] = field(default_factory=dict)

    def of(self, name: str) -> float | Tensor:
        """The factor of a mean."""
        return self.counted.get(name, self.others)


class Accumulation:
    """The shares of the batches of an optimiser step, found at its first one."""

    def __init__(self) -> None:
        self._step: tuple[int, int] | None = None
        self._shares: list[Shares] = []

    def shares(self, module: Any, batch: Batch, batch_index: int) -> Shares:
        """What a training batch counts; collective where a step begins.

        Args:
            module: With its trainer, `fields_ahead` and `count_terms`.
            batch: As the loader gave it; what it has of the batches that follow is taken out.
            batch_index: Within the epoch.
        """
        following = batch.pop(FOLLOWING, None)
        every = module.trainer.accumulate_grad_batches
        if every == 1:
            return Shares()
        place = batch_index % every
        step = (module.trainer.global_step, batch_index - place)
        if place == 0:
            # An epoch's last step may have fewer.
            number = int(min(every, module.trainer.num_training_batches - batch_index))
            ahead = None if following is None else [batch, *following[: number - 1]]
            self._step, self._shares = step, self._begin(module, ahead, number, batch_index)
        # A training that is resumed within a step has lost the gradients of its first batches anyway.
        return self._shares[place] if step == self._step else Shares()

    @staticmethod
    def tell_what_is_compared(every: int, objectives: Iterable[Objective]) -> None:
        """Say which losses of accumulated batches are not those of one batch.

        Args:
            every: Batches of an optimiser step.
            objectives: What is trained on.
        """
        names = [type(objective).__name__ for objective in objectives if objective.compares_batch]
        if every > 1 and names:
            rank_zero_warn(
                f"{' and '.join(names)} compares the samples of a batch with each other: with "
                f"trainer.accumulate_grad_batches {every} these are those of one of {every} batches, not of the whole "
                "step; raise data.batch_size instead where the memory allows it."
            )

    def _begin(self, module: Any, ahead: list[Batch] | None, number: int, batch_index: int) -> list[Shares]:
        every = module.trainer.accumulate_grad_batches
        if not module.fields_ahead:
            return [Shares(every / number)] * number
        if ahead is None:
            rank_zero_warn(
                "The training loader does not hand out the batches of a step ahead, as those of lit_pretrain.data do, "
                "so that the losses of accumulated batches are averaged, however many terms each of them has: take a "
                "data module of lit_pretrain, or set trainer.accumulate_grad_batches to 1 and raise the batch size."
            )
            return [Shares(every / number)] * number
        with torch.no_grad():
            terms = [module.count_terms(later_batch, batch_index + place) for place, later_batch in enumerate(ahead)]
        counts = torch.stack([torch.stack([count.float() for count in batch_terms.values()]) for batch_terms in terms])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
        totals = counts.sum(dim=0)
        counts = every * counts / torch.where(totals > 0, totals, 1.0)
        return [Shares(every / len(ahead), dict(zip(terms[0], row.unbind(), strict=True))) for row in counts]
