"""Fine-tuning a vision encoder to name pictures, from pretrained weights or from none.

The whole encoder is trained with a new linear classifier on its pooled features (He et al. 2022, arXiv:2111.06377,
appendix A); layer-wise learning-rate decay (Clark et al. 2020, arXiv:2003.10555) lets the first blocks move less.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from lit_pretrain.backbone import VisionEncoder
from lit_pretrain.data.augmentation import ImageAugmentation, middle
from lit_pretrain.errors import UserError
from lit_pretrain.modules.base import BaseModule
from lit_pretrain.modules.checkpoints import CHECKPOINT_FORMAT, load_encoder, read_checkpoint
from lit_pretrain.modules.optimization import AdamWConfig, ScheduleConfig, make_layerwise_optimizer, make_optimizer
from lit_pretrain.objectives.objective import Batch


class FineTuning(BaseModule):
    """Single-label classification of pictures.

    Args:
        encoder: An encoder to train from scratch; null with `init_from`, whose encoder is taken.
        init_from: A checkpoint of ours to start from: "last", a run's name or id, or a file.
        augmentation: What is varied in training.
        optimizer: AdamW's settings.
        schedule: Learning rate over the training.
        layer_decay: Factor of the learning rate from one block to the one before it; 1 for the same everywhere.
        head_factor: Factor of the learning rate of the new classifier.
        label_smoothing: Share of a label that is spread over all classes.
        freeze_encoder: Whether only the classifier is trained (a linear probe with augmentation).
        gradient_clip_norm: Largest norm of all gradients together; null for no clipping.
        compile_blocks: Whether torch.compile is applied to the Transformer's blocks.
        seed: Source of every draw in training; null takes seed_everything's.
    """

    def __init__(
        self,
        encoder: VisionEncoder | None = None,
        init_from: str | None = None,
        augmentation: ImageAugmentation = ImageAugmentation(),  # noqa: B008 (frozen)
        optimizer: AdamWConfig = AdamWConfig(),  # noqa: B008 (frozen)
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008 (frozen)
        layer_decay: float = 1.0,
        head_factor: float = 1.0,
        label_smoothing: float = 0.0,
        freeze_encoder: bool = False,
        gradient_clip_norm: float | None = 1.0,
        compile_blocks: bool = False,
        seed: int | None = None,
    ) -> None:
        if (encoder is None) == (init_from is None):
            raise UserError(
                "FineTuning takes either model.encoder, to train from scratch, or model.init_from, a checkpoint whose "
                "encoder is trained on: give one of the two."
            )
        for name, value in (("layer_decay", layer_decay), ("head_factor", head_factor)):
            if value <= 0:
                raise UserError(f"model.{name} is {value}: give a number above 0.")
        if not 0.0 <= label_smoothing < 1.0:
            raise UserError(f"model.label_smoothing is {label_smoothing}: give a share from 0 to below 1.")
        lineage: dict[str, str] = {}
        if init_from is not None:
            encoder, lineage = load_encoder(init_from, VisionEncoder)
        super().__init__(encoder, optimizer, schedule, gradient_clip_norm, seed)
        self.lineage = lineage
        self.augmentation = augmentation
        self.layer_decay = layer_decay
        self.head_factor = head_factor
        self.label_smoothing = label_smoothing
        self.freeze_encoder = freeze_encoder
        self.compile_blocks = compile_blocks
        self.classes: list[str] = []
        self.head: nn.Linear | None = None

    # -- before training

    def configure_model(self) -> None:
        """Make the classifier once the classes are known.

        Raises:
            UserError: If the data has no labels, or its pictures are too small.
        """
        if self.head is not None:
            return
        data = self._trainer.datamodule if self._trainer is not None else None
        if data is not None:
            self.classes = list(getattr(data, "classes", None) or [])
        if len(self.classes) < 2:
            raise UserError("FineTuning needs labels of at least two classes: set data.label_column.")
        if data is not None:
            self.augmentation.check(data.facts.stored_size, self.encoder.image_size)
        self.head = nn.Linear(self.encoder.width, len(self.classes))
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        if self.freeze_encoder:
            self.encoder.requires_grad_(False)
        if self.compile_blocks:
            self.encoder.compile_blocks()

    def trained_modules(self) -> list[nn.Module]:
        """Encoder and classifier."""
        return [self.encoder, self.head]

    def make_optimizer(self, fused: bool) -> torch.optim.Optimizer:
        """AdamW, with a learning rate for each block if they differ."""
        if self.layer_decay == 1.0 and self.head_factor == 1.0:
            return make_optimizer(self.trained_modules(), self.optimizer_config, fused)
        return make_layerwise_optimizer(
            self.encoder, [self.head], self.optimizer_config, self.layer_decay, self.head_factor, fused
        )

    # -- steps

    def logits(self, images: Tensor) -> Tensor:
        """Unnormalised log probabilities (B, classes) of pictures (B, 3, S, S) in [0, 1]."""
        return self.head(self.encoder(self.encoder.normalize(images)))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Cross-entropy of one batch, every draw from (seed, global step, batch, rank)."""
        parts = self.step_parts(batch_index)
        images = self.augmentation.vary(
            batch["images"], self.encoder.image_size, self.generator_for("augmentation", *parts)
        )
        logits = self.logits(images).float()
        loss = functional.cross_entropy(logits, batch["label"], label_smoothing=self.label_smoothing)
        self.watch_losses(loss, {"classification": loss}, batch)
        self.count("train", logits.detach(), batch["label"], loss.detach())
        self.note_learning_rate()
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Loss and accuracy on the pictures' middles."""
        self.evaluation_step("validation", batch)

    def test_step(self, batch: Batch, batch_index: int) -> None:
        """As `validation_step`, on the test data."""
        self.evaluation_step("test", batch)

    def evaluation_step(self, stage: str, batch: Batch) -> None:
        """Count one batch."""
        logits = self.logits(middle(batch["images"], self.encoder.image_size)).float()
        self.count(stage, logits, batch["label"], functional.cross_entropy(logits, batch["label"]))

    def count(self, stage: str, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Add a batch to a stage's loss and accuracy."""
        samples = torch.tensor(float(len(labels)), device=loss.device)
        right = (logits.argmax(dim=-1) == labels).sum()
        statistics = {"loss": (loss * samples, samples), "accuracy": (right, samples)}
        self.statistics_for(stage, statistics).update(statistics)

    def predict_step(self, batch: Batch, batch_index: int) -> dict[str, Any]:
        """Names and probabilities of pictures: `sample_id`, `label` (B,) and `probability` (B, classes)."""
        probabilities = self.logits(middle(batch["images"], self.encoder.image_size)).float().softmax(dim=-1)
        names = [self.classes[index] for index in probabilities.argmax(dim=-1).tolist()]
        return {"sample_id": batch["sample_id"], "label": names, "probability": probabilities}

    def step_cost(self, batch: Batch) -> dict[str, float]:
        """Pictures and floating-point operations (three times the forward's) of one training batch."""
        encoder, samples = self.encoder, len(batch["images"])
        tokens = encoder.patches + encoder.prefix_tokens
        patch = encoder.channels * encoder.patch_size**2
        per_token = encoder.config.forward_flops_per_token(tokens) + 2.0 * patch * encoder.width
        return {"samples": samples, "flops": 3.0 * samples * tokens * per_token}

    # -- telling

    def describe(self) -> dict[str, Any]:
        """What this is made of, for the record of the run."""
        encoder = self.encoder
        return {
            "parameters": sum(parameter.numel() for parameter in self.parameters()),
            "encoder": type(encoder).__name__,
            "depth": encoder.config.depth,
            "width": encoder.config.width,
            "image_size": encoder.image_size,
            "patch_size": encoder.patch_size,
            "classes": len(self.classes),
            **(self.lineage or {"init_from": "scratch"}),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to build this again without any config."""
        self.stop_if_not_finite()
        checkpoint["lit_pretrain"] = {
            "format": CHECKPOINT_FORMAT,
            "module": type(self).__name__,
            "encoder_class": type(self.encoder).__name__,
            "encoder": self.encoder.settings(),
            "classes": list(self.classes),
            "lineage": dict(self.lineage),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another kind, shape or other classes."""
        theirs = checkpoint.get("lit_pretrain") or {}
        if theirs.get("module") != type(self).__name__:
            raise UserError(
                f"The checkpoint is of {theirs.get('module', 'another program')}, not of FineTuning: give it to "
                "model.init_from to start from its encoder."
            )
        if theirs["encoder"] != self.encoder.settings():
            raise UserError(
                "The checkpoint's encoder has other settings than this config's: resume with its own config.yaml."
            )
        if self.classes and theirs["classes"] != self.classes:
            raise UserError(
                f"The checkpoint knows the classes {', '.join(theirs['classes'][:8])}, the data has "
                f"{', '.join(self.classes[:8])}: give the data that it was trained on."
            )
        self.classes = list(theirs["classes"])
        self.configure_model()

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> "FineTuning":
        """Build a module with a checkpoint's encoder, classes and weights; no data or config is needed."""
        checkpoint = read_checkpoint(path)
        record = checkpoint["lit_pretrain"]
        if record["module"] != cls.__name__:
            raise UserError(f"{path} is a checkpoint of {record['module']}, not of {cls.__name__}.")
        module = cls(VisionEncoder.from_settings(record["encoder"]))
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
        return module.eval()
