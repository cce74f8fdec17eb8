"""Which positions are hidden and what is put there: counts by hand, shares, and what may never be touched."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_pretrain.objectives.masking import (
    choose_positions,
    choose_whole_words,
    corrupt,
    masked_counts,
    seen_length,
    take_while_it_fits,
    visible_tokens,
)


def generator(seed: int = 0) -> torch.Generator:
    """A fixed source of draws."""
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    # round(0.15 x length) as the authors' Python does it: halves go to the even number, and never below one.
    ("length", "count"),
    [(3, 1), (5, 1), (10, 2), (20, 3), (30, 4), (50, 8), (70, 10), (128, 19)],
)
def test_counts_by_hand(length: int, count: int) -> None:
    assert count == max(1, round(0.15 * length))
    real = torch.arange(128)[None] < length
    candidates = real.clone()
    candidates[:, 0] = False
    counts, largest = masked_counts(real, candidates, 0.15, None)
    assert counts.tolist() == [count] and largest == 19
    assert masked_counts(real, candidates, 0.15, 7)[0].tolist() == [min(count, 7)]


def test_a_row_hides_no_more_than_it_has() -> None:
    real = torch.tensor([[True, True, False], [False, False, False]])
    counts, _ = masked_counts(real, torch.zeros_like(real), 0.15, None)
    assert counts.tolist() == [0, 0]


def test_positions_are_uniform_and_without_replacement() -> None:
    candidates = torch.zeros(4000, 12, dtype=torch.bool)
    candidates[:, 2:10] = True
    chosen = choose_positions(candidates, torch.full((4000,), 3), 5, generator())
    assert chosen.valid.sum(dim=1).unique().tolist() == [3]
    hits = torch.zeros(4000, 12).scatter_add_(1, chosen.indices, chosen.valid.float())
    assert hits.max() == 1 and not hits[:, :2].any() and not hits[:, 10:].any()
    torch.testing.assert_close(hits.mean(dim=0)[2:10], torch.full((8,), 3 / 8), atol=0.03, rtol=0)


def test_whole_words_by_hand() -> None:
    # [CLS] un ##break ##able car ##s [SEP] ##x y [SEP]; "##x" right after [SEP] begins a word of its own.
    candidates = torch.tensor([[False, True, True, True, True, True, False, True, True, False]])
    continues = torch.tensor([[False, False, True, True, False, True, False, True, False, False]])
    words = [{1, 2, 3}, {4, 5}, {7}, {8}]
    rows = 3000
    counts = torch.full((rows,), 3)
    chosen = choose_whole_words(candidates.expand(rows, -1), continues.expand(rows, -1), counts, 4, generator())
    seen = set()
    for indices, valid in zip(chosen.indices, chosen.valid, strict=True):
        positions = {int(index) for index in indices[valid]}
        assert all(word <= positions or not word & positions for word in words)
        seen.add(frozenset(positions))
    # After both single pieces no other word fits into the one position that is left.
    assert seen == {frozenset({1, 2, 3}), frozenset({4, 5, 7}), frozenset({4, 5, 8}), frozenset({7, 8})}


def test_a_word_that_would_exceed_the_count_is_passed_over() -> None:
    candidates = torch.ones(200, 4, dtype=torch.bool)
    continues = torch.tensor([[False, True, True, False]]).expand(200, -1)
    chosen = choose_whole_words(candidates, continues, torch.full((200,), 2), 2, generator())
    assert chosen.valid.sum(dim=1).tolist() == [1] * 200
    assert chosen.indices[chosen.valid].unique().tolist() == [3]


def test_what_fits_is_taken_as_one_after_the_other_would_take_it() -> None:
    source = generator()
    for trial in range(60):
        places, longest, largest = (
            int(torch.randint(1, most, (), generator=source)) for most in (80, 40 if trial % 2 else 5, 70)
        )
        sizes = torch.randint(longest + 1, (50, places), generator=source)
        room = torch.randint(largest + 1, (50,), generator=source)
        expected, left = torch.zeros_like(sizes, dtype=torch.bool), room.clone()
        for place in range(places):
            expected[:, place] = (sizes[:, place] > 0) & (sizes[:, place] <= left)
            left -= sizes[:, place] * expected[:, place]
        assert torch.equal(take_while_it_fits(sizes, room, largest), expected)


class Operations(TorchDispatchMode):
    """Counts what would be a kernel each, or none."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        """Count one and run it."""
        self.count += 1
        return function(*arguments, **settings or {})


def test_whole_words_of_longer_sequences_take_a_few_operations_more() -> None:
    # Going from place to place took 2,020 for 128 of them, and 7,780 for 512.
    for length, most in ((128, 170), (512, 220)):
        candidates, continues = torch.ones(2, length, dtype=torch.bool), torch.rand(2, length) < 0.3
        largest = round(0.15 * length)
        with Operations() as operations:
            choose_whole_words(candidates, continues, torch.full((2,), largest), largest, generator())
        assert operations.count <= most


def test_eighty_ten_ten() -> None:
    rows, length = 2000, 20
    ids = torch.full((rows, length), 9)
    positions = choose_positions(torch.ones(rows, length, dtype=torch.bool), torch.full((rows,), 10), 12, generator())
    ordinary = torch.arange(5, 50)
    out = corrupt(ids, positions, 4, ordinary, (0.8, 0.1), generator(1))
    touched = positions.gather(out)[positions.valid]
    share = lambda chosen: float(chosen.float().mean())  # noqa: E731
    assert abs(share(touched == 4) - 0.8) < 0.01
    # A random token is 9 itself in one of 45 draws.
    assert abs(share(touched == 9) - (0.1 + 0.1 / 45)) < 0.01
    others = touched[(touched != 4) & (touched != 9)]
    assert set(others.tolist()) == set(range(5, 50)) - {9}
    untouched = torch.ones(rows, length, dtype=torch.bool).scatter_(1, positions.indices, ~positions.valid)
    assert (out[untouched] == 9).all() and (ids == 9).all()


@pytest.mark.parametrize("kind", [torch.bool, torch.int64])
def test_a_share_of_the_real_tokens_is_hidden_anew_each_time_but_never_the_first(kind):
    mask = (torch.arange(401) < torch.tensor([[401], [251], [1]])).to(kind)
    generator = torch.Generator().manual_seed(0)
    first, second = visible_tokens(mask, 0.3, generator), visible_tokens(mask, 0.3, generator)
    assert not torch.equal(first.indices, second.indices)
    # Of 401, 251 and 1 tokens 30 % are 120, 75 and none.
    assert first.valid.sum(dim=1).tolist() == [281, 176, 1] and first.indices.shape == (3, seen_length(401, 0.3))
    for row, kept in zip(first.indices, first.valid, strict=True):
        seen = row[kept].tolist()
        assert seen == sorted(set(seen)) and seen[0] == 0
    assert first.indices[1][first.valid[1]].max() < 251
    # Any other token is as likely to be seen as the next: a standard deviation is 0.014.
    seen = torch.zeros(401)
    for _ in range(1000):
        seen[visible_tokens(mask[:1], 0.3, generator).indices[0]] += 1e-3
    assert (seen[1:] - 0.7).abs().max() < 0.08 and seen[0] == pytest.approx(1.0, abs=1e-3)
    again = visible_tokens(mask, 0.3, torch.Generator().manual_seed(0))
    assert torch.equal(first.indices, again.indices) and torch.equal(first.valid, again.valid)
