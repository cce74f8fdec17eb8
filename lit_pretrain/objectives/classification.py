"""Loss and statistics of the pretext tasks that choose one of a few classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_pretrain.backbone.float32 import at_least_float32
from lit_pretrain.objectives.objective import ObjectiveOutput, global_mean


def classification_output(logits: Tensor, labels: Tensor, names: Sequence[str], training: bool) -> ObjectiveOutput:
    """Mean cross-entropy, and the accuracy over all samples and over those of each class.

    Args:
        logits: (M, K).
        labels: (M,) integers below K.
        names: Of the K classes; the accuracy of "left" is named "accuracy_left".
        training: See `global_mean`.
    """
    logits = at_least_float32(logits)
    total = nn.functional.cross_entropy(logits, labels, reduction="sum")
    count = torch.full((), len(labels), device=labels.device)
    correct = logits.argmax(dim=-1) == labels
    statistics = {"loss": (total.detach(), count), "accuracy": (correct.sum(), count)}
    for number, name in enumerate(names):
        is_class = labels == number
        statistics[f"accuracy_{name}"] = ((correct & is_class).sum(), is_class.sum())
    return ObjectiveOutput(global_mean(total, count, training), statistics)
