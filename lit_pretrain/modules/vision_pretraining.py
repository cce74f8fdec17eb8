"""Pretraining on pictures: rotation, patch location, colorization, masked image modelling, any mix on one encoder."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_pretrain.backbone import VisionEncoder
from lit_pretrain.data.images.augmentation import ImageAugmentation
from lit_pretrain.modules.objective_mix import build_on_pictures, cost_on_pictures
from lit_pretrain.modules.pretraining import Pretraining
from lit_pretrain.objectives.objective import Batch
from lit_pretrain.objectives.outputs import check_examples
from lit_pretrain.objectives.vision_objective import Shortcut, VisionObjective
from lit_pretrain.trainer_state import data_module_of

if TYPE_CHECKING:
    from PIL.Image import Image


class VisionPretraining(Pretraining):
    """RotNet's, Doersch's, Zhang's or MAE's pretraining of a ViT, by the objectives it is given.

    Args:
        encoder: The vision encoder, to whose `image_size` pictures are cropped; null with `init_from`.
        objectives: Pretext tasks; their losses are added with their weights.
        augmentation: What is varied in training: crops, flips, colours.
        **settings: `init_from`, `pretrained`, `pooling`, `dropout`, `attention_dropout`, `stochastic_depth`, `freeze`,
            `layer_decay`, `head_factor`, `architecture` and `grow`; see `Pretraining`. `optimizer`, `schedule`,
            `gradient_clip_norm`, `compile_blocks`, `seed`, `gradient_checkpointing`, `average` and
            `non_finite`; see `BaseModule`.
    """

    encoder: VisionEncoder
    encoder_class = VisionEncoder
    counted_fields = ("images",)

    def __init__(
        self,
        encoder: VisionEncoder | None = None,
        objectives: Sequence[VisionObjective] = (),
        augmentation: ImageAugmentation = ImageAugmentation(),  # noqa: B008 (frozen)
        **settings: Any,
    ) -> None:
        super().__init__(encoder, objectives, **settings)
        self.augmentation = augmentation

    # -- before training

    def build(self) -> None:
        """Check that pictures, encoder and objectives fit, make the heads, and let objectives look at the data.

        Raises:
            UserError: If the pictures are too small or too grey, or an objective cannot work at the encoder's size.
        """
        data = data_module_of(self._trainer) if self._trainer is not None else None
        training = self._trainer is not None and self._trainer.training
        build_on_pictures(self.objectives, self.encoder, self.augmentation, data, training)

    # -- steps

    def prepare(self, batch: Batch, generator: torch.Generator | None) -> Batch:
        """Crop, flip and recolour a batch's uint8 pictures to floats in [0, 1] of the encoder's size."""
        if generator is None:
            return batch | {"images": self.encoder.frame(batch["images"]), "stored_images": batch["images"]}
        varied = self.augmentation.vary(batch["images"], self.encoder.image_size, generator)
        return batch | {"images": varied, "stored_images": batch["images"]}

    def predict_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """Pooled features of the pictures' middles: `sample_id` (B,) and `embedding` (B, D), float32."""
        images = self.prepare(batch, None)["images"]
        return {"sample_id": batch["sample_id"], "embedding": self.encoder(self.encoder.normalize(images)).float()}

    def step_cost(self, batch: Batch) -> dict[str, float]:
        """Pictures and floating-point operations of one training batch; see `cost_on_pictures`."""
        return cost_on_pictures(self.objectives, self.encoder, batch)

    # -- what callbacks ask for

    @torch.no_grad()
    def panels(self, count: int = 8) -> "dict[str, Image]":
        """A picture for each objective of what it asks and what the model answers; empty before any validation."""
        if self._example_batch is None:
            return {}
        training = self.training
        self.eval()
        drawn = {}
        for objective in self.objectives:
            generator = self.generator_for("panels")
            found = objective.examples(self.encoder, self._example_batch, None, generator, count)
            check_examples(objective, found, of_words=False)
            if found is not None:
                drawn[objective.name] = found
        self.train(training)
        return drawn

    @torch.no_grad()
    def shortcuts(self, batch: Batch, *parts: int | str, varied: bool = True) -> dict[str, Shortcut]:
        """What should carry no signal, by "objective/name", on a loader's batch.

        Args:
            batch: As the loader gives it.
            parts: Seed of the draws.
            varied: Whether the pictures are augmented as in training.
        """
        seed = ("shortcuts", *parts)
        batch = self.prepare(batch, self.generator_for("augmentation", *seed) if varied else None)
        answers = {}
        for objective in self.objectives:
            generator = self.generator_for("corruption", *seed)
            for name, shortcut in objective.shortcuts(self.encoder, batch, generator).items():
                answers[f"{objective.name}/{name}"] = shortcut
        return answers

    def describe(self) -> dict[str, Any]:
        """What this is made of, for the record of the run."""
        encoder = self.encoder
        return super().describe() | {
            "image_size": encoder.image_size,
            "patch_size": encoder.patch_size,
            "positions": encoder.positions,
            "pooling": encoder.pooling,
        }

    def checkpoint_record(self) -> dict[str, Any]:
        """As the base's, with the size of the data's pictures."""
        record = super().checkpoint_record()
        if "data_fingerprint" in record:
            # What `predict` reads other data by.
            record["inputs"] = {"stored_size": getattr(data_module_of(self.trainer), "stored_size", None)}
        return record
