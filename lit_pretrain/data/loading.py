"""From data sets to batches: an order that is a function of (seed, epoch), loaders, the base of the data modules.

Lightning's plain loaders repeat samples when a run is resumed within an epoch, and its distributed sampler evaluates
some samples twice. Here a loader's state is the number of batches handed out, which is exact whatever its workers have
fetched ahead.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, ClassVar, Protocol, cast, overload

import numpy
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from lit_pretrain.class_paths import arguments_of
from lit_pretrain.data.disk_cache import chosen_cache_directory
from lit_pretrain.data.randomness import default_seed, sample_generator
from lit_pretrain.errors import UserError, check_number
from lit_pretrain.trainer_state import overfit_batches_of

Key = tuple[int, int]  # epoch, index within it
# What a batch has that is there for the number alone: all processes have as many batches, and whatever counts samples
# leaves these out. So evaluation has them, and fine-tuning at the end of an epoch.
SURPLUS = "surplus"
# What an evaluation batch has that is of the general corpus beside the own one.
REPLAYED = "replayed"
# What the first of the batches whose gradients are accumulated has of the others: a list of their fields.
FOLLOWING = "following"


class EpochDataset(Protocol):
    """What the loader asks of a data set."""

    def __len__(self) -> int:
        """Samples of an epoch, the same for every epoch."""

    def population(self, epoch: int) -> int:
        """Samples that an epoch is drawn from; may vary a little."""

    def __getitems__(self, keys: list[Key]) -> Any:
        """One batch."""


class EpochBatchSampler(Sampler):
    """Batches of (epoch, index) keys for this process.

    Args:
        dataset: Tells the number of samples.
        batch_size: Samples of a batch of one process.
        seed: Source of the order.
        shuffle: Whether an epoch has an order of its own, and drops what does not fill a batch of all processes
            (training), or keeps the data's order and every sample exactly once (evaluation). Evaluation batches are
            those of one process, dealt out whole, so that nothing that is drawn for a batch, or compares its samples,
            depends on the number of processes.

    Attributes:
        repeats: Whether every epoch is the first one again, as where a few batches are to be learned by heart.
    """

    def __init__(self, dataset: EpochDataset, batch_size: int, seed: int, shuffle: bool) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.first_batch = 0
        self.repeats = False
        self.sampler = self  # where Lightning looks for set_epoch

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is; one that repeats is the first for ever."""
        self.epoch = 0 if self.repeats else epoch

    def order(self, epoch: int) -> numpy.ndarray:
        """Indices of an epoch's samples in their order, the same in every process.

        An epoch that has a few samples more than the first loses some at random, one that has fewer repeats some, so
        that all epochs are equally long.
        """
        size = len(self.dataset)
        if not self.shuffle:
            return numpy.arange(size)
        return numpy.resize(
            sample_generator(self.seed, "order", epoch).permutation(self.dataset.population(epoch)), size
        )

    def batch(self, epoch: int, index: int, rank: int, world_size: int) -> list[Key]:
        """The keys of one batch of one process, in training."""
        first = (index * world_size + rank) * self.batch_size
        return [(epoch, int(index)) for index in self.order(epoch)[first : first + self.batch_size]]

    def __iter__(self) -> Iterator[list[Key]]:
        """This process's batches from `first_batch` on."""
        rank, world_size = place()
        order = self.order(self.epoch)
        if self.shuffle:
            order = order[: len(self) * world_size * self.batch_size].reshape(-1, world_size, self.batch_size)[:, rank]
            batches = iter(order[self.first_batch :])
        else:
            starts = [
                (index * world_size + rank) % self.evaluation_batches * self.batch_size
                for index in range(self.first_batch, len(self))
            ]
            batches = (order[start : start + self.batch_size] for start in starts)
        epoch = self.epoch
        for batch in batches:
            yield [(epoch, int(index)) for index in batch]

    def __len__(self) -> int:
        """Batches of this process in an epoch."""
        return self.batches_of(place()[1])

    def batches_of(self, world_size: int) -> int:
        """Batches of each of so many processes in an epoch."""
        if self.shuffle:
            return len(self.dataset) // (world_size * self.batch_size)
        return -(-self.evaluation_batches // world_size)

    @property
    def evaluation_batches(self) -> int:
        """Batches of all processes together in an evaluation, each counted once."""
        return -(-len(self.dataset) // self.batch_size)

    def surplus(self, index: int) -> bool:
        """Whether this process's evaluation batch of that index repeats another's, for want of more."""
        rank, world_size = place()
        return not self.shuffle and index * world_size + rank >= self.evaluation_batches


class ResumableDataLoader:
    """Batches whose state is the epoch and the number of batches handed out.

    It holds a PyTorch DataLoader rather than being one: Lightning takes the DataLoaders it knows apart to give them
    samplers of its own, which pad evaluation and repeat samples when a run is resumed.

    Args:
        dataset: Gives whole batches by `__getitems__`.
        sampler: Which batches.
        workers: Processes that make batches ahead; 0 makes them in this one.
        ahead: Tells how many batches make an optimiser step, and which fields of the later ones their first one brings
            with it as `FOLLOWING`; asked before every step.
    """

    def __init__(
        self,
        dataset: EpochDataset,
        sampler: EpochBatchSampler,
        workers: int = 0,
        ahead: Callable[[], tuple[int, Sequence[str]]] | None = None,
    ) -> None:
        guarded: Any = MistakesAsValues(dataset)  # no Dataset, but what DataLoader asks of one
        self.loader: DataLoader[Any] = DataLoader(
            guarded,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=as_it_is,
            pin_memory=torch.cuda.is_available(),
        )
        self.dataset = dataset
        # Not as `sampler`, which Lightning would put one of its own in the place of to overfit a few batches.
        self.batch_sampler = sampler
        self.ahead = ahead or (lambda: (1, ()))
        self._handed_out = 0
        self._epoch = 0
        self._resume: dict[str, int] | None = None

    def __len__(self) -> int:
        """Batches of this process in an epoch, whether some of them are done already or not."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        """Hand out batches; everything is decided at the first one, when Lightning has set the epoch."""
        self._epoch = self.batch_sampler.epoch
        resume, self._resume = self._resume, None
        self._handed_out = resume["batches"] if resume and resume["epoch"] == self._epoch else 0
        self.batch_sampler.first_batch = self._handed_out
        # Made before workers start, so that they inherit it instead of each making it again.
        self.dataset.population(self._epoch)
        for batch in self._with_following():
            self._handed_out += 1
            yield batch

    def _with_following(self) -> Iterator[Any]:
        batches = self._batches()
        for first in batches:
            number, fields = self.ahead()
            if number == 1 or not fields:
                yield first
                continue
            others = list(islice(batches, number - 1 - self._handed_out % number))
            names = (*fields, SURPLUS)
            yield {**first, FOLLOWING: [{name: other[name] for name in names if name in other} for other in others]}
            yield from others

    def _batches(self) -> Iterator[Any]:
        for index, batch in enumerate(self.loader, start=self._handed_out):
            if isinstance(batch, UserError):
                raise batch
            yield {**batch, SURPLUS: True} if self.batch_sampler.surplus(index) else batch

    def state_dict(self) -> dict[str, int]:
        """Where the next batch stands."""
        if self._resume is not None:
            return dict(self._resume)
        return {"epoch": self._epoch, "batches": self._handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there, if the next iteration is of the same epoch."""
        self._resume = dict(state)


class MistakesAsValues:
    """Hands a person's mistakes over instead of raising them: PyTorch would wrap a worker's into its traceback.

    Args:
        dataset: Gives whole batches.
    """

    def __init__(self, dataset: EpochDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Samples of an epoch."""
        return len(self.dataset)

    def __getitems__(self, keys: list[Key]) -> Any:
        """One batch, or what is wrong."""
        try:
            return self.dataset.__getitems__(keys)
        except UserError as error:
            return error


def as_it_is(batch: Any) -> Any:
    """Collate nothing: the data set gives whole batches."""
    return batch


def place() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


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
    # Whether an epoch's order is one of samples, which batches of any size cut into pieces.
    cut_anywhere: ClassVar[bool] = True

    def __init_subclass__(cls, **settings: Any) -> None:
        """Let `help` and notebooks show every argument."""
        super().__init_subclass__(**settings)
        cast(Any, cls).__signature__ = inspect.Signature(list(arguments_of(cls).values()))

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
        self.table_form: dict[str, Any] = {"delimiter": delimiter, "encoding": encoding}

    @property
    def _training_data(self) -> EpochDataset:
        """`train_dataset`, which some have as an attribute and others make when they are asked."""
        data: Any = self
        return data.train_dataset

    @property
    def train_batches_per_epoch(self) -> int:
        """Training batches of this process in an epoch."""
        return len(self._train_sampler())

    def train_dataloader(self) -> ResumableDataLoader:
        """Shuffled batches, an order of its own for every epoch."""
        sampler = self._train_sampler()
        if len(sampler) == 0:
            samples = f"The training {self.samples_name} ({len(self._training_data)} in all)"
            processes = place()[1]
            if len(self._training_data) < processes:
                raise UserError(
                    f"{samples} are fewer than the {processes} processes, each of which needs its own at every step: "
                    f"lower trainer.devices or trainer.num_nodes, or give more {self.contents_name}."
                )
            raise UserError(
                f"{samples} do not fill one batch of all devices: lower data.batch_size, or give more "
                f"{self.contents_name}."
            )
        sampler.repeats = overfits(self)
        return ResumableDataLoader(self._training_data, sampler, self.workers, self._ahead)

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
        return self._training_data.__getitems__(self._train_sampler().batch(epoch, batch_index, rank, world_size))

    def batches_per_epoch(self, world_size: int) -> int:
        """Training batches of each of so many processes in an epoch."""
        return self._train_sampler().batches_of(world_size)

    def _train_sampler(self) -> EpochBatchSampler:
        return EpochBatchSampler(self._training_data, self.batch_size, self.seed, shuffle=True)

    @overload
    def _in_order(self, dataset: EpochDataset) -> ResumableDataLoader: ...

    @overload
    def _in_order(self, dataset: EpochDataset | None) -> ResumableDataLoader | list: ...

    def _in_order(self, dataset: EpochDataset | None) -> ResumableDataLoader | list:
        """Every sample once, in the data's order; nothing where there is no such part."""
        if dataset is None:
            return []
        return ResumableDataLoader(dataset, EpochBatchSampler(dataset, self.batch_size, 0, shuffle=False), self.workers)


def overfits(data: LightningDataModule) -> bool:
    """Whether a data module's trainer is to overfit a few batches, which must be the same in every epoch."""
    return data.trainer is not None and overfit_batches_of(data.trainer) > 0
