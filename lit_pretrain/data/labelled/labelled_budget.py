"""Which labelled rows are for validation, and which of the others a label budget allows.

Budgets are nested: for one seed, the rows of a smaller budget are among those of a larger one, so that a curve over
budgets shows what more labels add and not what another draw does.
"""

import numpy

from lit_pretrain.data.labelled.labels import Labels, budget_size, stratified_choice
from lit_pretrain.data.randomness import sample_generator
from lit_pretrain.data.splits import split_rows
from lit_pretrain.errors import UserError
from lit_pretrain.required import required


def split_labelled(labels: Labels, validation_share: float) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Share a source's rows out, the same whatever a run's seed and label budget.

    Args:
        labels: Of all rows. With one class each, classes keep their shares, and training has every class.
        validation_share: Share for validation, at least one; 0 for none.

    Returns:
        Two sorted arrays: training and validation.

    Raises:
        UserError: If there are not enough rows for both.
    """
    total = len(labels)
    if validation_share == 0.0 or labels.task != "single_label":
        train, validation = split_rows(total, validation_share, "labelled rows")
    else:
        training = total - max(1, round(total * validation_share))
        classes = len(numpy.unique(labels.values))
        if training < classes:
            raise UserError(
                f"data.validation_share of {validation_share} leaves {training} rows of {labels.source} for the "
                f"training of {classes} classes: lower it, give more rows, or set data.validation_path."
            )
        train = stratified_choice(labels.values, training, sample_generator("validation labelled rows", total))
        validation = numpy.setdiff1d(numpy.arange(total), train)
    if validation_share > 0.0 and not (len(train) and len(validation)):
        raise UserError(
            f"data.validation_share of {validation_share} leaves {len(train)} rows of {labels.source} for training and "
            f"{len(validation)} for validation: change it, give more rows, or set data.validation_path."
        )
    return train, validation


def rows_within_budget(labels: Labels, rows: numpy.ndarray, budget: int | float, seed: int) -> numpy.ndarray:
    """The training rows that a label budget allows.

    Args:
        labels: Of all rows of the source.
        rows: (N,) rows for training.
        budget: So many of them, or such a share of them below 1.
        seed: Another one draws other rows.

    Returns:
        Sorted rows: with one class each, each class with its share and at least once; with several classes each, every
        class at least once; else at random.

    Raises:
        UserError: If the budget is more than there is, or too small to have every class.
    """
    among = labels.take(rows)
    generator = sample_generator(seed, "label budget")
    if labels.task == "single_label":
        count = budget_size(budget, len(rows), len(numpy.unique(among.values)), "samples")
        return rows[stratified_choice(among.values, count, generator)]
    count = budget_size(budget, len(rows), 1, "samples")
    if labels.task == "multi_label":
        order, covering = covering_order(among, generator)
        if count < covering:
            raise UserError(
                f"data.label_budget of {budget} is {count} samples, too few to have all {len(labels.classes)} classes "
                f"of '{labels.column}': give at least {covering}."
            )
    else:
        order = generator.permutation(len(rows))
    return numpy.sort(rows[order[:count]])


def covering_order(labels: Labels, generator: numpy.random.Generator) -> tuple[numpy.ndarray, int]:
    """A random order in which rows that have a class which no row before them has come first.

    Args:
        labels: With several classes each.
        generator: Source of the draw.

    Returns:
        (N,) indices, and how many of the first it takes to have every class.
    """
    order = generator.permutation(len(labels))
    shuffled = labels.take(order)
    rows = numpy.repeat(numpy.arange(len(order)), numpy.diff(required(shuffled.ends), prepend=0))
    _, first = numpy.unique(shuffled.values, return_index=True)
    new = numpy.unique(rows[first])
    return numpy.concatenate([order[new], numpy.delete(order, new)]), len(new)
