"""Who caused the loss of a step: each sample's own loss, and the norm of the gradient that comes through it.

The gradient of a batch is the sum of what comes through the features of each of its samples, also where samples are
compared with each other: the batch's loss is differentiated by all features once, and each sample is encoded again to
carry its part on to the weights (GradCache, Gao et al. 2021, arXiv:2101.06983). A loss of its own a sample has where an
objective's loss is a mean over samples, which is checked: the sum of the samples' must be the batch's. Dropout is off,
whose draws are a batch's.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lit_pretrain.backbone.float32 import at_least_float32
from lit_pretrain.commands.inspection.step import SeenBatch, Shown, ids_of, pairs_of
from lit_pretrain.objectives.contrastive import Pairs
from lit_pretrain.objectives.objective import EncoderPass, clean_inputs, pass_read

# How far apart the sum of the samples' losses and the batch's may be for rounding.
TOLERANCE = 5e-3


@dataclass
class SampleFigures:
    """What is known of the samples of a batch.

    Attributes:
        ids: Their ids.
        losses: By objective, a loss each in nats or the objective's unit, before its weight.
        gradients: Norm each of the gradient of the encoders' weights that comes through the sample.
        without: Objectives of which a sample has no loss of its own.
    """

    ids: list[int]
    losses: dict[str, list[float]] = field(default_factory=dict)
    gradients: list[float] = field(default_factory=list)
    without: list[str] = field(default_factory=list)

    def order(self) -> list[int]:
        """Places of the samples, those of the largest gradient first; what is not a number comes before all."""
        known = self.gradients or next(iter(self.losses.values()), [0.0] * len(self.ids))
        return sorted(range(len(self.ids)), key=lambda place: (known[place] == known[place], -abs(known[place])))


def norm_of(gradients: Iterable[Tensor | None]) -> float:
    """Norm of several gradients together."""
    squares = [at_least_float32(one.to_dense()).square().sum() for one in gradients if one is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def trained(*modules: Any) -> list[Tensor]:
    """Parameters that ask for gradients, each once."""
    found = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
    return [*found.values()]


def figures_of(module: Any, seen: SeenBatch) -> list[SampleFigures]:
    """What is known of the samples of a batch, of each kind of data in it: one mix of objectives, or pairs, each.

    Args:
        module: With the weights at hand.
        seen: The batch.
    """
    module.eval()
    found = [of_objectives(shown, ids_of(seen.trained)) for shown in seen.shown]
    if seen.captions is not None and seen.views is not None:
        found.insert(0, of_pairs(module, seen))
    module.train()
    return found


def of_objectives(shown: Shown, ids: list[int]) -> SampleFigures:
    """Of a mix of objectives on one encoder."""
    encoder, batch, objectives = shown.encoder, shown.batch, shown.objectives
    samples = len(next(value for value in batch.values() if isinstance(value, Tensor)))
    found = SampleFigures(ids if len(ids) == samples else [*range(samples)])
    # What is encoded, by the name of the pass, with who made it and who reads it.
    passes: dict[str, tuple[Any, EncoderPass]] = {}
    read: dict[str, str] = {}
    source = pass_read(objectives)
    for objective in objectives:
        made, name = shown.passes[objective.name], objective.pass_name or objective.name
        if made is not None:
            passes.setdefault(name, (objective, made))
        elif source is None:
            name = "clean"
            passes.setdefault(name, (objective, EncoderPass(clean_inputs(batch, encoder))))
        else:
            name = source
        read[objective.name] = name
    with torch.no_grad():
        features = {name: encoder.forward_features(**made.inputs) for name, (_, made) in passes.items()}
    leaves = {name: value.detach().requires_grad_() for name, value in features.items()}
    total: Any = 0.0
    for objective in objectives:
        targets = {} if shown.passes[objective.name] is None else required_targets(shown, objective)
        with torch.enable_grad():
            output = objective.compute(leaves[read[objective.name]], targets, batch, encoder)
        total = total + objective.weight * output.loss
        own = own_losses(objective, features[read[objective.name]], targets, shown, samples, output)
        if own is None:
            found.without.append(objective.name)
        else:
            found.losses[objective.name] = own
    wanted = [leaves[name] for name in passes]
    carried = torch.autograd.grad(total, wanted, allow_unused=True)
    parameters = trained(encoder)
    if not parameters:
        return found
    for sample in range(samples):
        with torch.enable_grad():
            outputs, gradients = [], []
            for (maker, made), gradient in zip(passes.values(), carried, strict=True):
                if gradient is None:
                    continue
                rows = maker.rows_of_sample(sample, samples, len(gradient))
                inputs = {name: part_of_input(value, rows, len(gradient)) for name, value in made.inputs.items()}
                outputs.append(encoder.forward_features(**inputs))
                gradients.append(gradient[rows].to(outputs[-1].dtype))
            parts = torch.autograd.grad(outputs, parameters, gradients, allow_unused=True) if outputs else []
        found.gradients.append(norm_of(parts))
    return found


def required_targets(shown: Shown, objective: Any) -> dict[str, Tensor]:
    """The targets of the pass that an objective has made."""
    made = shown.passes[objective.name]
    assert made is not None
    return made.targets


def part_of_input(value: Any, rows: slice, count: int) -> Any:
    """Some rows of an encoder's argument that has a row for each of so many."""
    return value[rows] if isinstance(value, Tensor) and value.ndim and len(value) == count else value


@torch.no_grad()
def own_losses(
    objective: Any, features: Tensor, targets: dict[str, Tensor], shown: Shown, samples: int, output: Any
) -> list[float] | None:
    """Each sample's loss; null where their sum is not the batch's."""
    if objective.compares_batch or "loss" not in output.statistics:
        return None
    sums, counts = [], []
    for sample in range(samples):
        rows = objective.rows_of_sample(sample, samples, len(features))
        batch = {
            name: value[sample : sample + 1] if isinstance(value, Tensor) and value.ndim else value
            for name, value in shown.batch.items()
        }
        try:
            own = objective.compute(
                features[rows], objective.targets_of(targets, sample, samples), batch, shown.encoder
            )
        except (RuntimeError, IndexError):
            # Its targets are the batch's as a whole.
            return None
        total, count = own.statistics["loss"]
        sums.append(float(total))
        counts.append(float(count))
    total, count = (float(value) for value in output.statistics["loss"])
    close = abs(sum(sums) - total) <= TOLERANCE * max(1.0, abs(total)) and abs(sum(counts) - count) <= 0.5
    if total == total and not close:
        return None
    return [total / count if count else 0.0 for total, count in zip(sums, counts, strict=True)]


def of_pairs(module: Any, seen: SeenBatch) -> SampleFigures:
    """Of pairs: the loss of a pair's row and column among this process's batch."""
    pairs, objective = pairs_of(seen.trained), module.objective
    found = SampleFigures(ids_of(seen.trained))
    captions, views = seen.captions, seen.views
    assert captions is not None and views is not None
    with torch.no_grad():
        both = torch.cat([module.embed_texts(captions), module.embed_pictures(views)], dim=1)
    both = at_least_float32(both).requires_grad_()
    keys = torch.stack([pairs["caption_key"], pairs["picture_key"]], dim=1)
    with torch.enable_grad():
        texts, pictures = both.chunk(2, dim=1)
        loss = objective.compute(Pairs(texts, pictures, *keys.unbind(dim=1)), across_processes=False).loss
    (carried,) = torch.autograd.grad(loss, [both])
    with torch.no_grad():
        rows = both.detach()
        found.losses[objective.loss] = [
            float(objective.sums(rows[k : k + 1], keys[k : k + 1], rows, keys, k)[0]) for k in range(len(rows))
        ]
    parameters = trained(module.text_tower, module.vision_tower)
    for k in range(len(both)):
        one = slice(k, k + 1)
        with torch.enable_grad():
            caption = {name: value[one] for name, value in captions.items()}
            outputs = [module.embed_texts(caption), module.embed_pictures(views[one])]
            kept = [
                (output, gradient[one].to(output.dtype))
                for output, gradient in zip(outputs, carried.chunk(2, dim=1), strict=True)
                if output.requires_grad
            ]
            parts: Any = ()
            if kept and parameters:
                parts = torch.autograd.grad(
                    [output for output, _ in kept], parameters, [gradient for _, gradient in kept], allow_unused=True
                )
        found.gradients.append(norm_of(parts))
    return found
