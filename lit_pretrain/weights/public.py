"""What the readers of public checkpoints return: settings and tensors, which the encoders build themselves from.

Nothing here or beside it knows the encoders: they stand above, ask for a checkpoint, and copy its tensors.
"""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

# Of more tensors than these only the beginnings of their names are shown.
MOST_NAMES = 6


@dataclass(frozen=True)
class LinearHead:
    """A linear layer on pooled features that tells classes, or a number.

    Attributes:
        weight: (C, D).
        bias: (C,).
        classes: Names by number; empty where the checkpoint does not tell them, and for a number.
        task: `single_label`, `multi_label`, `regression` (in the labels' own unit), or null where it does not tell.
        names: What its tensors are called in the checkpoint.
    """

    weight: Tensor
    bias: Tensor
    classes: tuple[str, ...] = ()
    task: str | None = None
    names: tuple[str, ...] = ()


def same_name(name: str) -> str:
    """The name of a tensor where the reader has given it ours."""
    return name


@dataclass(frozen=True)
class PublicWeights:
    """A public checkpoint in our terms.

    Attributes:
        source: Where it comes from, for messages.
        settings: Of the encoder that computes the same, primitives only: what its `from_settings` takes.
        tensors: The encoder's, by the names of their format.
        format_name: The format's name of a tensor of ours.
        head: What tells classes or a number from its pooled features; null if there is none.
        left_out: Names of tensors that have no place in the encoder.
        pretraining_heads: Of these, the tensors of pretraining heads, for objectives that have such.
    """

    source: str
    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    format_name: Callable[[str], str] = same_name
    head: LinearHead | None = None
    left_out: list[str] = field(default_factory=list)
    pretraining_heads: dict[str, Tensor] = field(default_factory=dict)

    def report_left_out(self) -> None:
        """Say on stderr what of the source is not in the encoder, if anything."""
        names = sorted([*self.left_out, *(self.head.names if self.head is not None else ())])
        if names:
            print(f"Of {self.source} is left out: {shortened(names)}.", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class PublicTower(PublicWeights):
    """One tower of a CLIP, with what both towers share.

    Attributes:
        projection: (E, D), from its pooled features to where texts and pictures meet; null where there is none.
        log_scale: Logarithm of what cosines are multiplied by; null where it is not told.
        logit_bias: What is added to them then, in models that were trained with SigLIP's loss; else null.
        config: The checkpoint's config, empty if there is none.
    """

    projection: Tensor | None = None
    log_scale: float | None = None
    logit_bias: float | None = None
    config: dict[str, Any] = field(default_factory=dict)


def shortened(names: list[str]) -> str:
    """Names of tensors, of many only their beginnings with how many there are."""
    if len(names) <= MOST_NAMES:
        return ", ".join(names)
    counts = Counter(name.partition(".")[0] for name in names)
    return ", ".join(name if count == 1 else f"{name}.* ({count} tensors)" for name, count in counts.items())
