"""Batches of samples of like length: who gets what, and in which order."""

import numpy
import pytest
import torch

from lit_pretrain.data import loading
from lit_pretrain.data.labelled import labelled_sampler
from lit_pretrain.data.labelled.labelled_sampler import LengthBatchSampler, padded_length
from lit_pretrain.data.loading import ResumableDataLoader


class Lengths:
    """Samples that are their own keys."""

    def __init__(self, lengths):
        self.lengths = lengths
        self.size = 0 if lengths is None else len(lengths)

    def __len__(self):
        return self.size

    def population(self, epoch):
        return self.size

    def __getitems__(self, keys):
        return torch.tensor(keys)


def data_of(size=203, sized=True):
    data = Lengths(numpy.random.default_rng(0).integers(3, 100, size) if sized else None)
    data.size = size
    return data


def batches_of(sampler, epoch=0, first=0):
    sampler.set_epoch(epoch)
    sampler.first_batch = first
    return [[index for _, index in keys] for keys in sampler]


def at(monkeypatch, rank, world_size):
    for module in (loading, labelled_sampler):
        monkeypatch.setattr(module, "place", lambda: (rank, world_size))


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("size", [203, 200, 2, 1])
def test_every_sample_comes_once_over_all_processes(world_size, sized, size, monkeypatch):
    data, taken = data_of(size, sized), []
    for rank in range(world_size):
        at(monkeypatch, rank, world_size)
        sampler = LengthBatchSampler(data, 8, seed=1)
        batches = batches_of(sampler, 3)
        assert len(batches) == len(sampler) == -(-size // (8 * world_size))
        assert [len(one) for one in batches[:-1]] == [8] * (len(batches) - 1)
        assert [[index for _, index in sampler.batch(3, one, rank, world_size)] for one in range(len(batches))] == (
            batches
        )
        pairs = 1 if sized else 2
        assert batches[-1] and len(batches[-1]) % pairs == 0
        # Where nothing is left for a process, it has what counts nothing.
        taken.append([batch for index, batch in enumerate(batches) if not sampler.surplus(index)])
    everything = sorted(index for batches in taken for batch in batches for index in batch)
    assert set(everything) == set(range(size)) and len(everything) - size == -size % pairs
    # Together they see what one process with a larger batch sees.
    at(monkeypatch, 0, 1)
    for step, batch in enumerate(batches_of(LengthBatchSampler(data, 8 * world_size, seed=1), 3)):
        assert sorted(batch) == sorted(index for batches in taken for one in batches[step : step + 1] for index in one)


def test_batches_are_of_like_length_in_an_order_of_their_own():
    data = data_of(2000)
    sampler = LengthBatchSampler(data, 8, seed=1)
    batches = [data.lengths[batch] for batch in batches_of(sampler)]
    assert max(one.max() - one.min() for one in batches) <= 6
    longest = [one.max() for one in batches]
    assert abs(numpy.corrcoef(longest, numpy.arange(len(longest)))[0, 1]) < 0.2
    padded = sum(8 * padded_length(int(one.max()), 100) for one in batches)
    share = 1 - data.lengths.sum() / padded
    assert sampler.padding_share(100) == pytest.approx(share) and share < 0.06
    unsorted = LengthBatchSampler(data_of(2000, sized=False), 8, seed=1)
    shuffled = [data.lengths[batch] for batch in batches_of(unsorted)]
    assert 1 - data.lengths.sum() / sum(8 * one.max() for one in shuffled) > 0.35


def test_the_order_is_a_function_of_seed_and_epoch():
    data = data_of()
    first = batches_of(LengthBatchSampler(data, 8, seed=1), 2)
    assert batches_of(LengthBatchSampler(data, 8, seed=1), 2) == first
    assert batches_of(LengthBatchSampler(data, 8, seed=1), 1) != first
    assert batches_of(LengthBatchSampler(data, 8, seed=2), 2) != first


@pytest.mark.parametrize("size", [203, 200])
def test_an_interrupted_epoch_goes_on_where_it_was(size):
    data = data_of(size)
    straight = ResumableDataLoader(data, LengthBatchSampler(data, 8, seed=1))
    straight.batch_sampler.set_epoch(1)
    expected = [batch.tolist() for batch in straight]
    for stop in range(1, len(expected) + 1):
        first = ResumableDataLoader(data, LengthBatchSampler(data, 8, seed=1))
        first.batch_sampler.set_epoch(1)
        iterator = iter(first)
        seen = [next(iterator).tolist() for _ in range(stop)]
        second = ResumableDataLoader(data, LengthBatchSampler(data, 8, seed=1))
        second.load_state_dict(first.state_dict())
        second.batch_sampler.set_epoch(1)
        seen += [batch.tolist() for batch in second]
        assert seen == expected


def test_padding_goes_to_the_next_multiple_of_four():
    assert [padded_length(longest, 30) for longest in (1, 4, 5, 28, 29, 30)] == [4, 4, 8, 28, 30, 30]
