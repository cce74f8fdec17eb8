"""What data modules have in common: settings of batches, caches and tables, and how data sets become batches."""

import inspect
from typing import Any, ClassVar

from lightning import LightningDataModule
from torch import Tensor

from lit_pretrain.class_paths import arguments_of
from lit_pretrain.data.disk_cache import chosen_cache_directory
from lit_pretrain.data.loading import EpochBatchSampler, EpochDataset, ResumableDataLoader
from lit_pretrain.data.randomness import default_seed
from lit_pretrain.errors import UserError, check_number


class EpochDataModule(LightningDataModule):
    """Training batches in an order of their own for every epoch, evaluation batches in the data's.

    Subclasses take these arguments by `**settings`, which jsonargparse follows to here, so that a config has them
    beside their own; and they set `train_dataset` once they are set up.

    Args:
        batch_size: Samples of a batch of one device.
        workers: Processes that make batches ahead; worth it only for pictures that are not kept decoded.
        validation_share: Share of the data for validation where it has none of its own, at least one sample, the same
            ones for every seed and budget; in fine-tuning with a class each, classes keep their shares.
        cache_directory: Where decoded pictures and tokenised texts are kept; null is caches/ under the runs directory.
        seed: Source of the order and of every draw; null takes seed_everything's.
        delimiter: Character between the cells of a csv; null is a comma, or a tab in .tsv.
        encoding: What csv, json and text files are written in (cp1252, utf-16); null is utf-8.
    """

    # What a person calls the samples, and what there is more of with more data.
    samples_name: ClassVar[str] = "samples"
    contents_name: ClassVar[str] = "data"

    train_dataset: EpochDataset

    def __init_subclass__(cls, **settings: Any) -> None:
        """Let `help` and notebooks show every argument."""
        super().__init_subclass__(**settings)
        cls.__signature__ = inspect.Signature(list(arguments_of(cls).values()))

    def __init__(
        self,
        batch_size: int,
        workers: int = 0,
        validation_share: float = 0.05,
        cache_directory: str | None = None,
        seed: int | None = None,
        delimiter: str | None = None,
        encoding: str | None = None,
    ) -> None:
        super().__init__()
        check_number("data.batch_size", batch_size, least=1)
        check_number("data.workers", workers, least=0)
        if not 0.0 <= validation_share < 1.0:
            raise UserError(f"data.validation_share is {validation_share}: give a share from 0 to below 1.")
        self.batch_size = batch_size
        self.workers = workers
        self.validation_share = validation_share
        self.cache_directory = chosen_cache_directory(cache_directory)
        self.seed = default_seed() if seed is None else seed
        # How tables are written, for every source.
        self.table_form = {"delimiter": delimiter, "encoding": encoding}

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
