"""Which texts share a row, so that little of it is padding: best fit, the longest first, on the histogram of lengths.

With all texts of a length alike, the time depends on how many lengths there are and hardly on the texts (Krell et al.
2021, arXiv:2107.02027, whose rows are filled the other way round, the emptiest first).
"""

from dataclasses import dataclass

import numpy

# Texts of a length in each row of some rows: (length, number), longest first.
Content = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class PackedRows:
    """The rows of an epoch.

    Attributes:
        pieces: (P, 2) start and end of each text within the corpus's tokens, those of a row one after the other.
        offsets: (R + 1,) where each row's begin among them.
        longest: Tokens that a row can hold, special tokens included.
        special: Of each text how many of them are special.
    """

    pieces: numpy.ndarray
    offsets: numpy.ndarray
    longest: int
    special: int

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.offsets) - 1

    @property
    def filled(self) -> float:
        """Share of the rows' tokens that are no padding."""
        used = (self.pieces[:, 1] - self.pieces[:, 0]).sum() + self.special * len(self.pieces)
        return float(used) / max(1, self.longest * len(self))

    def row(self, index: int) -> numpy.ndarray:
        """(texts, 2) start and end of each of a row's texts."""
        return self.pieces[self.offsets[index] : self.offsets[index + 1]]


def pack(pieces: numpy.ndarray, longest: int, special: int, generator: numpy.random.Generator) -> PackedRows:
    """Put texts into rows.

    Args:
        pieces: (P, 2) start and end of each, none longer than a row.
        longest: Tokens of a row, special tokens included.
        special: Special tokens that each text is given.
        generator: Draws which of the texts of a length go where, and the order of the rows.

    Returns:
        Rows that hold every text once.
    """
    lengths = pieces[:, 1] - pieces[:, 0] + special
    by_length = generator.permutation(len(pieces))
    by_length = by_length[numpy.argsort(lengths[by_length], kind="stable")]
    next_of_length = numpy.searchsorted(lengths[by_length], numpy.arange(longest + 1))
    texts, counts = [numpy.zeros(0, numpy.int64)], [numpy.zeros(0, numpy.int64)]
    for number, content in contents(numpy.bincount(lengths, minlength=longest + 1)):
        columns = []
        for length, times in content:
            first = next_of_length[length]
            next_of_length[length] = first + number * times
            columns.append(by_length[first : first + number * times].reshape(number, times))
        rows = numpy.concatenate(columns, axis=1)
        texts.append(rows.ravel())
        counts.append(numpy.full(number, rows.shape[1]))
    order, count = numpy.concatenate(texts), numpy.concatenate(counts)
    # The rows in any order: else the first ones hold the longest texts, which a part of a validation would be about.
    shuffled = generator.permutation(len(count))
    starts = (numpy.cumsum(count) - count)[shuffled]
    offsets = numpy.concatenate([[0], numpy.cumsum(count[shuffled])]).astype(numpy.int64)
    places = numpy.arange(offsets[-1]) + numpy.repeat(starts - offsets[:-1], count[shuffled])
    return PackedRows(pieces[order[places]], offsets, longest, special)


def contents(histogram: numpy.ndarray) -> list[tuple[int, Content]]:
    """What rows hold: each text, from the longest on, goes into the fullest row that has room for it.

    Args:
        histogram: (longest + 1,) how many texts there are of each length.

    Returns:
        Numbers of rows with their content.
    """
    longest = len(histogram) - 1
    # Rows by their free tokens.
    free: list[list[tuple[int, Content]]] = [[] for _ in range(longest + 1)]
    for length in range(longest, 0, -1):
        left, room = int(histogram[length]), length
        while left:
            while room < longest and not free[room]:
                room += 1
            # A new row is as good as any where none has room.
            number, content = free[room].pop() if free[room] else (left, ())
            times = min(room // length, left)
            filled = min(number, left // times)
            if filled < number and content:
                free[room].append((number - filled, content))
            free[room - times * length].append((filled, (*content, (length, times))))
            left -= filled * times
    return [row for rows in free for row in rows]
