"""What the pixels of many pictures are like: colour or grey, mean and spread of each channel, in whole numbers."""

from dataclasses import dataclass, field

import numpy

# Levels by which the channels of a grey picture may differ: JPEG keeps them apart by as much.
GREY_LEVELS = 2


@dataclass
class PictureStatistics:
    """Sums over pictures; exact, so that their order does not matter.

    Attributes:
        pictures: How many were counted.
        grey: How many of them have no colour.
        pixels: Pixels of all of them.
        sums: (3,) sums of the levels of each channel.
        squares: (3,) sums of their squares.
    """

    pictures: int = 0
    grey: int = 0
    pixels: int = 0
    sums: numpy.ndarray = field(default_factory=lambda: numpy.zeros(3, dtype=numpy.uint64))
    squares: numpy.ndarray = field(default_factory=lambda: numpy.zeros(3, dtype=numpy.uint64))

    @classmethod
    def of(cls, images: numpy.ndarray) -> "PictureStatistics":
        """Those of (N, 3, S, S) uint8."""
        spread = images.max(axis=1) - images.min(axis=1)
        squares = numpy.square(images, dtype=numpy.uint16)
        return cls(
            pictures=len(images),
            grey=int((spread <= GREY_LEVELS).all(axis=(1, 2)).sum()),
            pixels=len(images) * images.shape[2] * images.shape[3],
            sums=images.sum(axis=(0, 2, 3), dtype=numpy.uint64),
            squares=squares.sum(axis=(0, 2, 3), dtype=numpy.uint64),
        )

    def add(self, other: "PictureStatistics") -> None:
        """Count other pictures too."""
        self.pictures += other.pictures
        self.grey += other.grey
        self.pixels += other.pixels
        self.sums += other.sums
        self.squares += other.squares

    def facts(self) -> dict[str, float | list[float]]:
        """Share of grey pictures; mean and standard deviation of each channel, 255 being 1."""
        mean = self.sums / (255.0 * self.pixels)
        # In Python's integers: the squares' difference would lose its digits in floats.
        variance = [
            (int(squares) * self.pixels - int(total) ** 2) / (255 * self.pixels) ** 2
            for total, squares in zip(self.sums, self.squares, strict=True)
        ]
        return {
            "grey_share": self.grey / self.pictures,
            "mean": [float(value) for value in mean],
            "std": [value**0.5 for value in variance],
        }
