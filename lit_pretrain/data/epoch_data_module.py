"""What data modules have in common: how their data sets become batches."""

from typing import ClassVar

from lightning import LightningDataModule
from torch import Tensor

from lit_pretrain.data.loading import EpochBatchSampler, EpochDataset, ResumableDataLoader
from lit_pretrain.errors import UserError


class EpochDataModule(LightningDataModule):
    """Training batches in an order of their own for every epoch, evaluation batches in the data's.

    Subclasses set `batch_size`, `workers`, `seed`, and `train_dataset` once they are set up.
    """

    # What a person calls the samples, and what there is more of with more data.
    samples_name: ClassVar[str] = "samples"
    contents_name: ClassVar[str] = "data"

    batch_size: int
    workers: int
    seed: int
    train_dataset: EpochDataset

    @property
    def train_batches_per_epoch(self) -> int:
        """Training batches of this process in an epoch."""
        return len(self._train_sampler())

    def train_dataloader(self) -> ResumableDataLoader:
        """Shuffled batches, an order of its own for every epoch."""
        sampler = self._train_sampler()
        if len(sampler) == 0:
            raise UserError(
                f"The {len(self.train_dataset)} training {self.samples_name} do not fill one batch of all devices: "
                f"lower data.batch_size, or give more {self.contents_name}."
            )
        sampler.repeats = overfits(self)
        return ResumableDataLoader(self.train_dataset, sampler, self.workers, self._ahead)

    def _ahead(self) -> tuple[int, tuple[str, ...]]:
        """Batches of an optimiser step, and what the module has to know of them at the first one."""
        if self.trainer is None:
            return 1, ()
        return self.trainer.accumulate_grad_batches, getattr(self.trainer.lightning_module, "fields_ahead", ())

    def batch_at(self, epoch: int, batch_index: int, rank: int = 0, world_size: int = 1) -> dict[str, Tensor]:
        """Make any training batch again.

        Args:
            epoch: Epoch, from 0.
            batch_index: Batch within the epoch, from 0.
            rank: Process that saw it.
            world_size: How many there were.
        """
        return self.train_dataset.__getitems__(self._train_sampler().batch(epoch, batch_index, rank, world_size))

    def _train_sampler(self) -> EpochBatchSampler:
        return EpochBatchSampler(self.train_dataset, self.batch_size, self.seed, shuffle=True)

    def _in_order(self, dataset: EpochDataset | None) -> ResumableDataLoader | list:
        """Every sample once, in the data's order; nothing where there is no such part."""
        if dataset is None:
            return []
        return ResumableDataLoader(dataset, EpochBatchSampler(dataset, self.batch_size, 0, shuffle=False), self.workers)


def overfits(data: LightningDataModule) -> bool:
    """Whether a data module's trainer is to overfit a few batches, which must be the same in every epoch."""
    return data.trainer is not None and data.trainer.overfit_batches > 0
