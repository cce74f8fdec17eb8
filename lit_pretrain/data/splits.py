"""Which rows are for training and which for validation, the same whatever a run's seed."""

import numpy

from lit_pretrain.data.randomness import sample_generator
from lit_pretrain.errors import UserError, is_share


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


def budgeted_rows(
    rows: numpy.ndarray, budget: int | float, seed: int, setting: str, contents: str, least: int = 1
) -> numpy.ndarray:
    """Draw some of the training rows; with one seed a smaller budget's rows are among a larger one's.

    Args:
        rows: All of them, sorted.
        budget: How many, or a share of them; see `errors.is_share`.
        seed: Of the draw.
        setting: The budget's name, for messages.
        contents: What the rows are.
        least: Rows that are needed.

    Returns:
        The rows drawn, sorted.

    Raises:
        UserError: If the budget is more than there are, or too few.
    """
    share = is_share(budget)
    if not share and budget != int(budget):
        raise UserError(f"data.{setting} is {budget}: give a whole number of {contents}, or a share below 1.")
    count = round(budget * len(rows)) if share else int(budget)
    if not least <= count <= len(rows):
        raise UserError(
            f"data.{setting} of {budget} is {count} of the {len(rows)} training {contents}: give from {least} to all."
        )
    return numpy.sort(sample_generator(seed, setting).permutation(rows)[:count])
