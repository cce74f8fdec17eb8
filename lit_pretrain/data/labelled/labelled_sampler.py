"""Training batches of samples of like length, so that little of them is padding.

An epoch is drawn in an order of its own and cut into pools of many batches; a pool is sorted by length and cut into
batches, whose order is drawn again (as transformers' and fairseq's loaders do). All processes' batches of a step are of
like length too. Every sample of an epoch comes once; a last, smaller batch takes what is left.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy

from lit_pretrain.data.loading import EpochBatchSampler, EpochDataset, Key, place
from lit_pretrain.data.randomness import sample_generator
from lit_pretrain.required import required

# Batches of all processes that are sorted together: more save hardly any padding and make batches more alike.
POOL = 50
# Lengths that batches are padded to: few enough for compiled kernels, and little for texts of one short sentence.
MULTIPLE = 4


class SizedDataset(EpochDataset, Protocol):
    """What the sampler asks of a data set.

    Attributes:
        lengths: (N,) tokens of each sample, or null where all samples are of one size.
    """

    lengths: numpy.ndarray | None


class LengthBatchSampler(EpochBatchSampler):
    """Batches of (epoch, index) keys for this process, in training.

    Args:
        dataset: Tells the samples and their lengths.
        batch_size: Samples of a batch of one process.
        seed: Source of the order.
    """

    dataset: SizedDataset

    def __init__(self, dataset: SizedDataset, batch_size: int, seed: int) -> None:
        super().__init__(dataset, batch_size, seed, shuffle=True)

    def steps(self, epoch: int, world_size: int) -> tuple[numpy.ndarray, numpy.ndarray]:
        """What all processes see together.

        Args:
            epoch: Epoch, from 0.
            world_size: How many processes there are.

        Returns:
            (S, batch_size * world_size) indices of the samples of each whole step, and those of the last, smaller step.
            Both are those of one process with such batches. Of pictures the last has an even number too, because mixing
            pairs them: one comes once more.
        """
        size, step = len(self.dataset), self.batch_size * world_size
        generator = sample_generator(self.seed, "order", epoch)
        order = generator.permutation(size)
        whole, last = order[: size // step * step], order[size // step * step :]
        if self.dataset.lengths is not None:
            for start in range(0, len(whole), POOL * step):
                pool = whole[start : start + POOL * step]
                pool[:] = pool[numpy.argsort(self.dataset.lengths[pool], kind="stable")]
            last = last[numpy.argsort(self.dataset.lengths[last], kind="stable")]
        last = numpy.concatenate([last, numpy.resize(order, -len(last) % self._together)])
        steps = whole.reshape(-1, step)
        return steps[generator.permutation(len(steps))], last

    @property
    def _together(self) -> int:
        """Samples that go to one process: pictures in pairs, if there are pairs."""
        return 2 if self.dataset.lengths is None and self.batch_size % 2 == 0 else 1

    def _dealt(self, step: numpy.ndarray, rank: int, world_size: int) -> numpy.ndarray:
        """A process's samples of a step, of which a last one gives some processes fewer; where nothing is left, some
        that another has.
        """
        hands = step.reshape(-1, self._together)
        own = hands[rank::world_size]
        return (own if len(own) else hands[:1]).ravel()

    def surplus(self, index: int) -> bool:
        """Whether this process's batch of that index repeats another's, for want of more."""
        rank, world_size = place()
        left = len(self.dataset) % (self.batch_size * world_size)
        return index == len(self) - 1 and 0 < left <= rank * self._together

    def batch(self, epoch: int, index: int, rank: int, world_size: int) -> list[Key]:
        """The keys of one batch of one process."""
        return next(self._from(epoch, index, rank, world_size))

    def __iter__(self) -> Iterator[list[Key]]:
        """This process's batches from `first_batch` on."""
        return self._from(self.epoch, self.first_batch, *place())

    def _from(self, epoch: int, first: int, rank: int, world_size: int) -> Iterator[list[Key]]:
        steps, last = self.steps(epoch, world_size)
        for step in [*steps[first:], *([last] if len(last) and first <= len(steps) else [])]:
            yield [(epoch, int(index)) for index in self._dealt(step, rank, world_size)]

    def batches_of(self, world_size: int) -> int:
        """Batches of each of so many processes in an epoch, the same in every process."""
        return -(-len(self.dataset) // (self.batch_size * world_size))

    def padding_share(self, maximum_length: int) -> float:
        """Share of an epoch's tokens that are padding, over all processes.

        Args:
            maximum_length: That no batch exceeds.
        """
        rank_count = place()[1]
        steps, last = self.steps(0, rank_count)
        lengths = required(self.dataset.lengths)
        real = padded = 0
        for step in [*steps, *([last] if len(last) else [])]:
            for rank in range(rank_count):
                batch = lengths[self._dealt(step, rank, rank_count)]
                real += int(batch.sum())
                padded += len(batch) * padded_length(int(batch.max()), maximum_length)
        return 1.0 - real / padded


def padded_length(longest: int, maximum_length: int) -> int:
    """Tokens of a batch whose longest sample has so many: up to the next multiple of 4."""
    return min(maximum_length, -(-longest // MULTIPLE) * MULTIPLE)
