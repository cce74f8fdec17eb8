"""Order, sharing out and resuming, with the loader alone."""

import numpy
import pytest
import torch

from lit_pretrain.data import loading
from lit_pretrain.data.loading import FOLLOWING, SURPLUS, EpochBatchSampler, ResumableDataLoader


class Numbers:
    """Samples that are their own (epoch, index); epochs differ a little in how many they have."""

    def __init__(self, size, drift=0):
        self.size, self.drift = size, drift

    def __len__(self):
        return self.size

    def population(self, epoch):
        return self.size + self.drift * epoch

    def __getitems__(self, keys):
        return torch.tensor(keys)


def loader(workers=0, size=23, batch_size=4, shuffle=True, seed=0, drift=0):
    data = Numbers(size, drift)
    return ResumableDataLoader(data, EpochBatchSampler(data, batch_size, seed, shuffle), workers)


def epoch_of(one, epoch):
    one.batch_sampler.set_epoch(epoch)
    return [batch.tolist() for batch in one]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_epoch_goes_on_where_it_was(workers):
    straight = loader(workers)
    epochs = [epoch_of(straight, epoch) for epoch in range(3)]
    assert [len(one) for one in epochs] == [5, 5, 5] and len({str(one) for one in epochs}) == 3
    for stop in range(1, 6):
        first = loader(workers)
        first.batch_sampler.set_epoch(1)
        iterator = iter(first)
        seen = [next(iterator).tolist() for _ in range(stop)]
        state = first.state_dict()
        assert state == {"epoch": 1, "batches": stop}
        second = loader(workers)
        second.load_state_dict(state)
        assert second.state_dict() == state
        seen += epoch_of(second, 1)
        assert seen == epochs[1]
        # The next epoch is whole again.
        assert epoch_of(second, 2) == epochs[2]


def test_a_state_of_an_epoch_that_is_over_does_not_shorten_the_next():
    one = loader()
    one.load_state_dict({"epoch": 0, "batches": 3})
    assert len(epoch_of(one, 1)) == 5


def test_epochs_that_have_more_or_fewer_samples_are_equally_long():
    growing, shrinking = loader(drift=2), loader(drift=-2)
    for epoch in range(4):
        for one, size in ((growing, 23 + 2 * epoch), (shrinking, 23 - 2 * epoch)):
            indices = [index for batch in epoch_of(one, epoch) for _, index in batch]
            assert len(indices) == 20 and max(indices) < size
            # None twice before all were there once.
            assert len(set(indices)) == min(20, size)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_an_epoch_out(world_size, monkeypatch):
    taken = []
    for rank in range(world_size):
        monkeypatch.setattr(loading, "place", lambda rank=rank: (rank, world_size))
        one = loader(size=50)
        taken.append(epoch_of(one, 2))
        assert len(taken[-1]) == len(one) == 50 // (4 * world_size)
        for index, batch in enumerate(taken[-1]):
            assert [tuple(key) for key in batch] == one.batch_sampler.batch(2, index, rank, world_size)
    indices = [index for batches in taken for batch in batches for _, index in batch]
    assert len(set(indices)) == len(indices)
    # Together they see the same samples at a step as one process with as many times the batch.
    monkeypatch.setattr(loading, "place", lambda: (0, 1))
    alone = epoch_of(loader(size=50, batch_size=4 * world_size), 2)
    for step, batch in enumerate(alone[: len(taken[0])]):
        assert sorted(map(tuple, batch)) == sorted(tuple(key) for one in taken for key in one[step])


class Named(Numbers):
    """Batches as all real data has them."""

    def __getitems__(self, keys):
        return {"key": super().__getitems__(keys)}


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 9])
def test_evaluation_batches_are_those_of_one_process_each_counted_once(world_size, monkeypatch):
    counted = {}
    for rank in range(world_size):
        monkeypatch.setattr(loading, "place", lambda rank=rank: (rank, world_size))
        data = Named(22)
        one = ResumableDataLoader(data, EpochBatchSampler(data, 4, 0, shuffle=False))
        batches = list(one)
        # As many in every process, so that none waits for another: six in all.
        assert len(batches) == len(one) == -(-6 // world_size)
        for index, batch in enumerate(batches):
            assert len(batch["key"]) > 0
            if not batch.get(SURPLUS):
                counted[index * world_size + rank] = batch["key"][:, 1].tolist()
        one.load_state_dict({"epoch": 0, "batches": 1})
        assert [SURPLUS in batch for batch in one] == [SURPLUS in batch for batch in batches[1:]]
    assert [counted[place] for place in range(6)] == [list(range(22))[start : start + 4] for start in range(0, 22, 4)]
    assert len(counted) == 6


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_the_first_of_a_step_brings_what_follows(stop):
    data = Named(23)
    plain = [one["key"] for one in ResumableDataLoader(data, EpochBatchSampler(data, 4, 0, shuffle=True))]
    one = ResumableDataLoader(data, EpochBatchSampler(data, 4, 0, shuffle=True), ahead=lambda: (3, ["key"]))
    # Gone on with after some batches, also in the middle of a step.
    one.load_state_dict({"epoch": 0, "batches": stop})
    seen = []
    for index, batch in enumerate(one, start=stop):
        assert torch.equal(batch["key"], plain[index]) and one.state_dict() == {"epoch": 0, "batches": index + 1}
        if index % 3 == 0:
            seen.append([following["key"].tolist() for following in batch[FOLLOWING]])
    expected = {0: plain[1:3], 3: plain[4:5]}
    assert seen == [[key.tolist() for key in keys] for start, keys in expected.items() if start >= stop]


def test_the_order_is_no_shift_of_another():
    order = EpochBatchSampler(Numbers(100), 4, 0, True).order
    assert not numpy.array_equal(order(0), order(1))
    assert numpy.array_equal(order(1), EpochBatchSampler(Numbers(100), 8, 0, True).order(1))
    assert not numpy.array_equal(order(1), EpochBatchSampler(Numbers(100), 4, 1, True).order(1))
