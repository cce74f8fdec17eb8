"""What pretraining on text and on pictures have in common: objectives, steps, metrics, checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor

from lit_pretrain.backbone.transformer import prepare_transformers
from lit_pretrain.class_paths import class_path_of, short_name
from lit_pretrain.errors import UserError
from lit_pretrain.modules.accumulation import Shares
from lit_pretrain.modules.base import BaseModule
from lit_pretrain.modules.checkpoints import (
    checkpoint_of,
    common_record,
    difference,
    encoder_class_named,
    objective_names,
    take_framing,
)
from lit_pretrain.modules.objective_mix import (
    any_objectives,
    check_encoder,
    check_objectives,
    count_terms,
    flatten,
    mix,
    perplexities,
    sum_losses,
    total_loss,
    weights_of,
)
from lit_pretrain.modules.optimization import count_elements
from lit_pretrain.objectives.objective import Batch, Objective, ObjectiveOutput, compute_objectives, objective_from
from lit_pretrain.trainer_state import data_module_of


class Pretraining(BaseModule):
    """Any mix of objectives on one encoder.

    Args:
        encoder: Module with `forward_features`, `forward_head` and `settings`.
        objectives: Pretext tasks; their losses are added with their weights.
        **settings: `optimizer`, `schedule`, `gradient_clip_norm`, `compile_blocks`, `seed` and
            `gradient_checkpointing`; see `BaseModule`.
    """

    # Builds the encoder that a checkpoint describes.
    encoder_class: ClassVar[type]
    # A ModuleList of them.
    objectives: Sequence[Any]
    # Fields of a batch that tell how many terms the losses' means have.
    counted_fields: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        encoder: torch.nn.Module,
        objectives: Sequence[Objective],
        **settings: Any,
    ) -> None:
        super().__init__(encoder, **settings)
        check_objectives(objectives)
        check_encoder(objectives, encoder)
        self.objectives = cast(Sequence[Objective], torch.nn.ModuleList(objectives))
        self.built = False
        self._example_batch: Batch | None = None

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Self:
        """Build a module with a checkpoint's encoder, objectives and weights; no data or config is needed.

        Args:
            path: The checkpoint; or a run's name or id, "RUN:best", "last".

        Raises:
            UserError: If there is no such file or run, or it is not a checkpoint of this kind of pretraining.
        """
        checkpoint, record = checkpoint_of(cls, path)
        encoder = encoder_class_named(record["encoder_class"]).from_settings(record["encoder"])
        with any_objectives(encoder):
            module = cls(encoder, [objective_from(settings) for settings in record["objectives"]])
        module.on_load_checkpoint(checkpoint)
        module.configure_model()
        module.load_state_dict(checkpoint["state_dict"])
        return module.eval()

    # -- before training

    def configure_model(self) -> None:
        """Make whatever waits for the data (vocabulary, heads), once; Lightning calls this before every run."""
        if not self.built:
            self.build()
            self.built = True
            prepare_transformers(self, self.compile_blocks, self.gradient_checkpointing)
        if self._trainer is not None and self._trainer.training:
            # Gradients that never come would keep processes that train together waiting.
            for parameter in self.idle_parameters().values():
                parameter.requires_grad_(False)
            self.accumulation.tell_what_is_compared(self.trainer.accumulate_grad_batches, self.objectives)
        super().configure_model()

    def idle_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The encoder's parameters that no objective uses, by name: its pooling, or its positions."""
        prefixes: tuple[str, ...] = ()
        if not any(objective.uses_pooling for objective in self.objectives):
            prefixes += ("pooler.", "pooled_norm.")
        if not any(objective.uses_positions for objective in self.objectives):
            # Class token and registers keep theirs, which lie in the same table.
            prefixes += () if self.encoder.embeddings.positioned_prefix else ("embeddings.position",)
        return {
            name: parameter
            for name, parameter in self.encoder.named_parameters()
            if prefixes and name.startswith(prefixes)
        }

    def on_fit_end(self) -> None:
        """Leave an encoder that can be trained on as a whole."""
        for parameter in self.idle_parameters().values():
            parameter.requires_grad_(True)

    def trained_modules(self) -> list[torch.nn.Module]:
        """Encoder and heads."""
        return [self.encoder, *self.objectives]

    def build(self) -> None:
        """Build the objectives' heads; subclasses give them what their modality knows."""
        for objective in self.objectives:
            objective.build(self.encoder)

    # -- steps

    def prepare(self, batch: Batch, generator: torch.Generator | None) -> Batch:
        """Make what the objectives read of a loader's batch, on the device.

        Args:
            batch: As the loader gives it.
            generator: Source of what varies in training; null for evaluation, where nothing does.
        """
        return batch

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Loss of one batch; every draw comes from (seed, global step, batch, rank), so any step can be replayed."""
        parts, shares = self.step_parts(batch_index), self.accumulation.shares(self, batch, batch_index)
        batch = self.prepare(batch, self.generator_for("augmentation", *parts))
        outputs = compute_objectives(self.encoder, self.objectives, batch, self.generator_for("corruption", *parts))
        loss = self.sum_losses(outputs, shares)
        self.watch_losses(loss, {name: output.loss for name, output in outputs.items()}, batch)
        statistics = flatten(outputs, self.objectives)
        self.statistics_for("train", statistics).update(statistics)
        self.note_learning_rate()
        return loss

    @property
    def fields_ahead(self) -> tuple[str, ...]:
        """What must be known of accumulated batches ahead: what the loss is a mean over, if that varies."""
        if not any(objective.uneven for objective in self.objectives):
            return ()
        further = (name for objective in self.objectives for name in objective.fields_ahead)
        return tuple(dict.fromkeys((*self.counted_fields, *further)))

    def count_terms(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """How many terms the means of a training batch's losses have, with the draws of its step."""
        parts = self.draw_parts(batch_index)
        batch = self.prepare(batch, self.generator_for("augmentation", *parts))
        return count_terms(self.objectives, self.encoder, batch, self.generator_for("corruption", *parts))

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Statistics of one batch, with the same draws in every run and at every step."""
        self.evaluation_step("validation", batch, batch_index)

    def test_step(self, batch: Batch, batch_index: int) -> None:
        """As `validation_step`, on the test data."""
        self.evaluation_step("test", batch, batch_index)

    def evaluation_step(self, stage: str, batch: Batch, batch_index: int) -> None:
        """Update a stage's statistics; the seed of its draws is the batch's place, not the run's seed or the rank."""
        batch = self.prepare(batch, None)
        if batch_index == 0 and stage == "validation":
            self._example_batch = {name: value for name, value in batch.items()}
        outputs = compute_objectives(self.encoder, self.objectives, batch, self.evaluation_generator(batch_index))
        self.count(stage, batch, flatten(outputs, self.objectives))

    # -- losses and metrics

    @property
    def weights(self) -> dict[str, float]:
        """Factor of each objective's loss."""
        return weights_of(self.objectives)

    def sum_losses(self, outputs: dict[str, ObjectiveOutput], shares: Shares = Shares()) -> Tensor:  # noqa: B008 (frozen)
        """Weighted sum of the objectives' losses; see `objective_mix.sum_losses`."""
        return sum_losses(outputs, self.weights, shares)

    def derived(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sum of the losses, and perplexities of those over tokens."""
        return total_loss(self.objectives, means) | perplexities(self.objectives, means)

    # -- what others ask of a module

    def describe(self) -> dict[str, str | int | float]:
        """What this is made of, for the record of the run."""
        idle = count_elements(self.idle_parameters().values())
        return ({"untrained_encoder_parameters": idle} if idle else {}) | {
            "parameters": count_elements(self.parameters()),
            "encoder_parameters": count_elements(self.encoder.parameters()),
            "objectives": mix(self.objectives),
            "encoder": type(self.encoder).__name__,
            "depth": self.encoder.config.depth,
            "width": self.encoder.config.width,
        }

    # -- checkpoints

    def checkpoint_record(self) -> dict[str, Any]:
        """What a checkpoint tells of itself: enough to build the encoder again without any config."""
        return common_record(self, data_module_of(self._trainer) if self._trainer is not None else None) | {
            "encoder_class": class_path_of(type(self.encoder)),
            "encoder": self.encoder.settings(),
            "objectives": [objective.settings() for objective in self.objectives],
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the record; weights that a loss has spoilt are not saved over good ones."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lit_pretrain"] = self.checkpoint_record()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another kind or shape, naming what differs."""
        super().on_load_checkpoint(checkpoint)
        saved, own = checkpoint.get("lit_pretrain"), self.checkpoint_record()
        if saved is None:
            raise UserError("The checkpoint was not written by lit_pretrain: give one from a run's checkpoints folder.")
        for name in ("module", "encoder_class"):
            # Earlier versions kept short names of a user's own classes too.
            if short_name(saved[name]) != short_name(own[name]):
                raise UserError(f"The checkpoint is of a {saved[name]}, this config builds a {own[name]}.")
        differences = difference("encoder", saved["encoder"], own["encoder"])
        kinds = [objective_names(record) for record in (saved, own)]
        if kinds[0] != kinds[1]:
            differences.append(f"objectives ({', '.join(kinds[0])} there, {', '.join(kinds[1])} here)")
        if differences:
            raise UserError(
                f"The checkpoint does not fit this config: {'; '.join(differences)}; resume with the config.yaml of "
                "its own run."
            )
        if self._trainer is None or not self._trainer.training:
            take_framing(self.encoder, saved)
