"""Which rows are for training and which for validation, the same whatever a run's seed."""

import numpy

from lit_pretrain.data.randomness import sample_generator


def split_rows(
    count: int, validation_share: float, contents: str, least: int = 1
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Share rows out, always in the same way.

    Args:
        count: How many rows there are.
        validation_share: Share for validation; 0 for none.
        contents: What the rows are, part of the draw's seed.
        least: Rows that either part needs; if there are not enough for both, validation has none.

    Returns:
        Two sorted arrays: training and validation.
    """
    validation = max(least, round(count * validation_share)) if validation_share > 0 else 0
    if count - validation < least:
        validation = 0
    order = sample_generator(f"validation {contents}", count).permutation(count)
    return numpy.sort(order[validation:]), numpy.sort(order[:validation])
