"""What a data module knows of its pictures, for models to check before training."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PictureFacts:
    """What a data module knows of its pictures.

    Attributes:
        stored_size: Pixels of a side of the pictures in its batches.
        grey_share: Share of the pictures without any colour.
    """

    stored_size: int
    grey_share: float = 0.0
