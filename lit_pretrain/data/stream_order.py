"""The order of a stream: shards in an order of each pass over the source, dealt out, and rows within a buffer's reach.

Every process and each of its loader's workers has a lane of its own: its shards, or every so many rows of all shards
where these are too few. A lane reads as many rows as the buffer holds, has them made into samples, hands these out in a
drawn order, and reads on. So what is handed out next depends on where the buffer's rows begin and on how many of its
samples are gone, and on nothing else: a training that goes on reads one buffer again, whatever lies before it.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy

from lit_pretrain.data.randomness import sample_generator
from lit_pretrain.data.stream_source import Row, StreamedRows
from lit_pretrain.errors import UserError

# Passes over a lane without any row after which there is none.
EMPTY_PASSES = 3


@dataclass(frozen=True)
class Place:
    """Where a lane's next buffer begins.

    Attributes:
        epoch: Pass over the source, from 0.
        index: Which of the lane's shards of that pass, from 0.
        row: Row within that shard, from 0.
    """

    epoch: int = 0
    index: int = 0
    row: int = 0


@dataclass(frozen=True)
class StreamedRow:
    """A row, and where it is from: `index` as in `Place`, `shard` and `row` as in `StreamedRows`."""

    index: int
    shard: int
    row: int
    values: Row


@dataclass(frozen=True)
class Buffer:
    """Some rows of a lane, one after the other, and where they begin."""

    place: Place
    rows: list[StreamedRow]


class Lane:
    """One of the parts that a stream is split into.

    Args:
        rows: The source.
        number: Which lane, from 0.
        lanes: How many there are.
        seed: Source of the order of shards.
        held_out: Shards and rows that are left out.
    """

    def __init__(
        self, rows: StreamedRows, number: int, lanes: int, seed: int, held_out: frozenset[tuple[int, int]] = frozenset()
    ) -> None:
        self.rows, self.number, self.lanes, self.seed, self.held_out = rows, number, lanes, seed, held_out
        self.shards = rows.shards

    def order(self, epoch: int) -> numpy.ndarray:
        """The lane's shards of a pass, in their order."""
        order = sample_generator(self.seed, "shards", epoch).permutation(self.shards)
        return order[self.number :: self.lanes] if self.shards >= self.lanes else order

    def is_own(self, shard: int, row: int) -> bool:
        """Whether a row of one of the lane's shards is of this lane and not held out."""
        own = self.shards >= self.lanes or (shard + row) % self.lanes == self.number
        return own and (shard, row) not in self.held_out

    def read(self, place: Place) -> Iterator[StreamedRow]:
        """The lane's rows of a pass from a place on."""
        for index, shard in enumerate(self.order(place.epoch)[place.index :].tolist(), place.index):
            for row, values in self.rows.read(shard, place.row if index == place.index else 0):
                if self.is_own(shard, row):
                    yield StreamedRow(index, shard, row, values)

    def buffers(self, place: Place, size: int, least: int = 1) -> Iterator[Buffer]:
        """The lane's rows from a place on for ever, some at a time, pass after pass.

        Args:
            place: Where to begin.
            size: Rows of a buffer; that at the end of a pass may have fewer.
            least: Fewer than these are left for no buffer, if the pass has more than one.

        Raises:
            UserError: If the lane has no rows.
        """
        empty = 0
        while True:
            reader, pending, epoch, found, ended = self.read(place), deque[StreamedRow](), place.epoch, False, False
            while not ended:
                pending += islice(reader, size + least - len(pending))
                ended = len(pending) < size + least
                # At the end all: either no more than the buffer holds, or too few would be left for another.
                rows = [pending.popleft() for _ in range(len(pending) if ended else size)]
                if rows:
                    found = True
                    yield Buffer(Place(epoch, rows[0].index, rows[0].row), rows)
            empty = 0 if found or place != Place(epoch) else empty + 1
            if empty == EMPTY_PASSES:
                raise UserError(
                    f"{self.rows.source} has fewer samples than there are processes and workers ({self.lanes}) to read "
                    "it: lower trainer.devices or data.workers, or set data.streaming to false."
                )
            place = Place(epoch + 1)


def find_head(rows: StreamedRows, size: int) -> list[StreamedRow]:
    """As many rows as a buffer holds, from the beginnings of shards at even distances, the same in every process.

    What must be known before the first step is found by them: columns, sizes, how frequent word pieces are.

    Args:
        rows: The source.
        size: How many.
    """
    some = min(16, rows.shards)
    each = -(-size // some)
    # At even distances first; the others follow where those have too few rows.
    firsts = [index * rows.shards // some for index in range(some)]
    rest = (shard for shard in range(rows.shards) if shard not in set(firsts))
    head: list[StreamedRow] = []
    for shard in [*firsts, *rest]:
        if len(head) >= size:
            break
        head += [StreamedRow(0, shard, row, values) for row, values in islice(rows.read(shard), each)]
    return head[:size]


def split_head(head: list[StreamedRow], share: float, least: int = 1) -> tuple[list[StreamedRow], list[StreamedRow]]:
    """The head's rows for training and for validation: every so many is held out, at least `least`, or none if 0.

    Args:
        head: As `find_head` gives it.
        share: Of those that are held out.
        least: How many at least.

    Raises:
        UserError: If the share leaves none for one of the two.
    """
    if share == 0:
        return head, []
    count = max(least, round(share * len(head)))
    places = {int(place) for place in (numpy.arange(count) + 0.5) * len(head) / count} if count < len(head) else None
    if places is None:
        raise UserError(
            f"data.validation_share of {share} leaves none of {len(head)} samples for training: change it, or give "
            "more."
        )
    return (
        [row for index, row in enumerate(head) if index not in places],
        [row for index, row in enumerate(head) if index in places],
    )
