"""A head that starts as a linear probe of what was pretrained (Kumar et al. 2022, arXiv:2202.10054).

While a new head is random, its gradients distort the pretrained features; a head that is fitted to the frozen features
first leaves them in place, and fine-tuning begins at the probe's accuracy. It costs one pass over the data.
"""

from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from lit_pretrain.data.loading import SURPLUS
from lit_pretrain.errors import UserError
from lit_pretrain.measures.linear_probe import fit_linear_probe
from lit_pretrain.trainer_state import data_module_of

# Enough for a head of a few thousand numbers, and soon read.
MOST_SAMPLES = 10_000


@torch.no_grad()
def fit_probe_head(module: Any) -> None:
    """Set the weights of a module's head to those of a linear probe on its training data.

    Args:
        module: A `FineTuning` with its trainer; several processes share the reading, and get the same head.

    Raises:
        UserError: If the task is another than one label each.
    """
    if module.facts.task != "single_label":
        raise UserError("model.linear_probe_first is for one label each: leave it out for other tasks.")
    training, processes = module.training, module.trainer.world_size
    module.eval()
    parts: list[tuple[int, Tensor, Tensor]] = []
    loader, data = data_module_of(module.trainer).evaluation_loader("train"), data_module_of(module.trainer)
    # At even distances, as files are often sorted by their labels.
    share = min(1.0, MOST_SAMPLES / (loader.batch_sampler.evaluation_batches * data.batch_size))
    for index, batch in enumerate(loader):
        # Among the batches of all processes, so that the same are taken however many share them.
        place = index * processes + module.trainer.global_rank
        if batch.pop(SURPLUS, False) or (place and int(place * share) == int((place - 1) * share)):
            continue
        moved = move_data_to_device(batch, module.device)
        # As the steps will be: no hook before the first of them is within the trainer's precision by itself.
        with module.trainer.precision_plugin.forward_context():
            features = module.features(moved)
        parts.append((place, features.float(), moved["label"]))
    module.train(training)
    if processes > 1:
        parts_of_processes: list[Any] = [None] * processes
        torch.distributed.all_gather_object(
            parts_of_processes, [(place, part.cpu(), labels.cpu()) for place, part, labels in parts]
        )
        # In the data's order, as one process has them: the fit is the same to its last digits, not to its tolerance.
        parts = sorted((pair for part in parts_of_processes for pair in part), key=lambda pair: pair[0])
    features, labels = (torch.cat(column).to(module.device) for column in list(zip(*parts, strict=True))[1:])
    probe = fit_linear_probe(features, labels, module.probe_regularization)
    # The probe's standardisation becomes part of the head: w (x - m) / s + b = (w / s) x + (b - w m / s).
    weight = probe.weight / probe.scale
    head = {
        "weight": torch.zeros_like(module.head.weight, dtype=torch.float32),
        # A class without samples is told by nothing.
        "bias": torch.full_like(module.head.bias, float(probe.bias.min()) - 1.0, dtype=torch.float32),
    }
    head["weight"][probe.classes] = weight
    head["bias"][probe.classes] = probe.bias - weight @ probe.mean
    head = module.trainer.strategy.broadcast(head)
    module.head.weight.copy_(head["weight"])
    module.head.bias.copy_(head["bias"])
