"""Loss and statistics of the pretext tasks that choose one of a few classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_pretrain.backbone.float32 import at_least_float32
from lit_pretrain.objectives.objective import ObjectiveOutput, global_mean


def classification_output(
    logits: Tensor, labels: Tensor, names: Sequence[str], training: bool, counted: Tensor | None = None
) -> ObjectiveOutput:
    """Mean cross-entropy, and the accuracy over all samples, or tokens, and over those of each class.

    Args:
        logits: (..., K), such as (B, K) of samples or (B, N, K) of tokens.
        labels: (...) integers below K, or booleans where K is 2.
        names: Of the K classes; the accuracy of "left" is named "accuracy_left".
        training: See `global_mean`.
        counted: (...) booleans, true where a token counts; null for all. Batches then have unequally many: the
            objective is `uneven`, and its `terms` are `{"loss": counted.sum()}`.
    """
    logits = at_least_float32(logits).flatten(0, -2)
    labels = labels.flatten().long()
    correct = logits.argmax(dim=-1) == labels
    if counted is None:
        total = nn.functional.cross_entropy(logits, labels, reduction="sum")
        count = torch.full((), len(labels), device=labels.device)
    else:
        counted = counted.flatten().bool()
        losses = nn.functional.cross_entropy(logits, torch.where(counted, labels, 0), reduction="none")
        total, count = torch.where(counted, losses, 0.0).sum(), counted.sum()
        correct = correct & counted
    statistics = {"loss": (total.detach(), count), "accuracy": (correct.sum(), count)}
    for number, name in enumerate(names):
        is_class = labels == number if counted is None else (labels == number) & counted
        statistics[f"accuracy_{name}"] = ((correct & is_class).sum(), is_class.sum())
    return ObjectiveOutput(global_mean(total, count, training), statistics)
