"""Pretext tasks of one modality that stay on beside the contrastive loss, so that what they taught is not forgotten.

Continuing to train on what was learned before is the oldest remedy against forgetting (Robins 1995, "Catastrophic
forgetting, rehearsal and pseudorehearsal"). FLAVA (Singh et al. 2022, arXiv:2112.04482) trains on texts alone, on
pictures alone and on pairs in one run, each with its own losses, and SLIP (Mu et al. 2021, arXiv:2112.12750) adds a
self-supervised loss of pictures to CLIP's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lit_pretrain.data.images.augmentation import ImageAugmentation
from lit_pretrain.errors import check_number
from lit_pretrain.modules.objective_mix import (
    build_on_pictures,
    build_on_texts,
    chance_of_mix,
    check_objectives,
    cost_on_pictures,
    cost_on_texts,
    flatten,
    mix,
    perplexities,
    sum_losses,
    total_loss,
    weights_of,
)
from lit_pretrain.objectives.objective import Batch, Objective, compute_objectives
from lit_pretrain.objectives.vision_objective import VisionObjective

# A generator on the device, seeded from a word and from where the training stands.
Draws = Callable[[str], torch.Generator]
Statistics = dict[str, tuple[Tensor, Tensor]]


class Replay(nn.Module):
    """Objectives on the encoder of one tower, with batches of their own.

    Args:
        objectives: Pretext tasks; their losses are added with their weights.
        weight: Factor of their sum beside the contrastive loss.
    """

    def __init__(self, objectives: Sequence[Objective], weight: float = 1.0) -> None:
        super().__init__()
        check_objectives(objectives, self.setting)
        check_number(f"{self.setting}.weight", weight, above=0)
        self.objectives: Sequence[Any] = cast(Sequence[Any], nn.ModuleList(objectives))
        self.weight = weight

    # Where a config has it.
    setting = "model.replay"

    def build(self, encoder: Any, tokenizer: Any, data: Any) -> None:
        """Check that data, encoder and objectives fit, and make the heads.

        Args:
            encoder: The tower's.
            tokenizer: Of the texts.
            data: The data module of this modality; null where there is none, and nothing to check.

        Raises:
            UserError: If they do not fit.
        """
        raise NotImplementedError

    def prepare(self, batch: Batch, encoder: Any, generator: torch.Generator | None) -> Batch:
        """Make what the objectives read of a loader's batch; without a generator nothing is varied."""
        return batch

    def cost(self, encoder: Any, batch: Batch) -> dict[str, float]:
        """Samples, tokens and floating-point operations of one training batch."""
        raise NotImplementedError

    def train_on(self, encoder: Any, batch: Batch, draws: Draws) -> tuple[Tensor, Statistics]:
        """The weighted loss of a training batch, and its statistics by "objective/statistic"."""
        batch = self.prepare(batch, encoder, draws("augmentation"))
        outputs = compute_objectives(encoder, self.objectives, batch, draws("corruption"))
        weights = weights_of(self.objectives)
        return self.weight * sum_losses(outputs, weights), flatten(outputs, self.objectives)

    def evaluate(self, encoder: Any, batch: Batch, generator: torch.Generator) -> Statistics:
        """The statistics of a batch, nothing varied."""
        outputs = compute_objectives(encoder, self.objectives, self.prepare(batch, encoder, None), generator)
        return flatten(outputs, self.objectives)

    def derived(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sum of the losses, and perplexities of those over tokens."""
        return total_loss(self.objectives, means) | perplexities(self.objectives, means)

    def chance(self, data: Any, measured: Mapping[str, float]) -> dict[str, float]:
        """Statistics without learning; see `chance_of_mix`.

        Args:
            data: The data module of this modality.
            measured: Means of the latest evaluation of all, by name without the stage.
        """
        names = {objective.name for objective in self.objectives}
        tails = {name.partition("/")[2]: value for name, value in measured.items()}
        return chance_of_mix(
            self.objectives, data, {name: value for name, value in tails.items() if name.partition("/")[0] in names}
        )

    def settings(self) -> dict[str, Any]:
        """What builds this again but for how pictures are varied, primitives only."""
        return {"objectives": [objective.settings() for objective in self.objectives], "weight": self.weight}

    def describe(self) -> str:
        """As a person would write it."""
        return f"{self.weight:g} x ({mix(self.objectives)})"


class TextReplay(Replay):
    """Objectives on texts, for the tower of texts.

    Args:
        objectives: Pretext tasks on texts; their losses are added with their weights.
        weight: Factor of their sum beside the contrastive loss.
    """

    setting = "model.text_replay"

    def __init__(self, objectives: list[Objective], weight: float = 1.0) -> None:
        super().__init__(objectives, weight)

    def build(self, encoder: Any, tokenizer: Any, data: Any) -> None:
        """As the base's."""
        build_on_texts(self.objectives, encoder, tokenizer, data)

    def cost(self, encoder: Any, batch: Batch) -> dict[str, float]:
        """As the base's."""
        return cost_on_texts(self.objectives, encoder, batch)


class VisionReplay(Replay):
    """Objectives on pictures, for the tower of pictures.

    Args:
        objectives: Pretext tasks on pictures; their losses are added with their weights.
        weight: Factor of their sum beside the contrastive loss.
        augmentation: What is varied in training.
    """

    setting = "model.vision_replay"

    def __init__(
        self,
        objectives: list[VisionObjective],
        weight: float = 1.0,
        augmentation: ImageAugmentation = ImageAugmentation(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(objectives, weight)
        self.augmentation = augmentation

    def build(self, encoder: Any, tokenizer: Any, data: Any) -> None:
        """As the base's."""
        build_on_pictures(self.objectives, encoder, self.augmentation, data, training=False)

    def prepare(self, batch: Batch, encoder: Any, generator: torch.Generator | None) -> Batch:
        """Crop, flip and recolour uint8 pictures to floats in [0, 1] of the encoder's size."""
        size = encoder.image_size
        images = batch["images"]
        return batch | {
            "images": encoder.frame(images) if generator is None else self.augmentation.vary(images, size, generator)
        }

    def cost(self, encoder: Any, batch: Batch) -> dict[str, float]:
        """As the base's."""
        return cost_on_pictures(self.objectives, encoder, batch)
