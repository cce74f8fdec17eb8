"""What is had of a public checkpoint: an encoder, a head if it is of a known kind, and what was left out."""

import sys
from collections import Counter
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


@dataclass(frozen=True)
class PublicWeights:
    """An encoder with the weights of a public checkpoint.

    Attributes:
        encoder: In evaluation mode.
        head: What tells classes or a number from its pooled features; null if there is none.
        left_out: Names of tensors that have no place here.
    """

    encoder: Any
    head: LinearHead | None = None
    left_out: list[str] = field(default_factory=list)

    def alone(self, source: object) -> Any:
        """The encoder; says on stderr what of the source is not in it."""
        names = sorted([*self.left_out, *(self.head.names if self.head is not None else ())])
        if names:
            print(f"Of {source} is left out: {shortened(names)}.", file=sys.stderr, flush=True)
        return self.encoder


def shortened(names: list[str]) -> str:
    """Names of tensors, of many only their beginnings with how many there are."""
    if len(names) <= MOST_NAMES:
        return ", ".join(names)
    counts = Counter(name.partition(".")[0] for name in names)
    return ", ".join(name if count == 1 else f"{name}.* ({count} tensors)" for name, count in counts.items())
