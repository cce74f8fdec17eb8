"""What a task is to whoever learns it: its kind, its classes, and how often each occurs in training."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Task = Literal["single_label", "multi_label", "regression"]
TASKS: tuple[Task, ...] = ("single_label", "multi_label", "regression")


@dataclass(frozen=True)
class LabelFacts:
    """What a head and its metrics need to know of the labels.

    Attributes:
        task: `single_label` (one class each, targets int64 (B,)), `multi_label` (any number of classes each, targets
            float32 (B, C) of zeros and ones), or `regression` (a number each, targets float32 (B,)).
        classes: Names of the classes by number; empty for regression.
        counts: Training examples of each class, within the label budget; empty for regression or where unknown.
        samples: Training samples within the label budget; 0 where unknown.
        mean: Of the training labels, for regression.
        std: Standard deviation of the training labels, for regression; 1 if they are all the same.
    """

    task: Task
    classes: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    samples: int = 0
    mean: float = 0.0
    std: float = 1.0

    @property
    def outputs(self) -> int:
        """Numbers that a head gives for one sample: one of each class, or the one predicted."""
        return 1 if self.task == "regression" else len(self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "LabelFacts":
        """Of `to_dict`'s plain values."""
        return cls(**values)
