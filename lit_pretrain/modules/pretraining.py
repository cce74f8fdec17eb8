"""What pretraining on text and on pictures have in common: objectives, steps, metrics, checkpoints.

A pretraining may begin with random weights, or go on from weights that are there with the data at hand (Gururangan et
al. 2020, arXiv:2004.10964).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_pretrain.backbone import TextEncoder, VisionEncoder
from lit_pretrain.backbone.transformer import prepare_transformers
from lit_pretrain.class_paths import class_path_of, short_name
from lit_pretrain.data.loading import REPLAYED
from lit_pretrain.errors import UserError, check_number
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
from lit_pretrain.modules.export_format import export_facts
from lit_pretrain.modules.freezing import FreezingConfig, check_blocks, freeze, unfreezing_steps
from lit_pretrain.modules.growth import GrowthConfig, check_growth, start_from
from lit_pretrain.modules.objective_heads import VocabularyGrowth, take_heads
from lit_pretrain.modules.objective_mix import (
    any_objectives,
    chance_of_mix,
    check_encoder,
    check_objectives,
    count_terms,
    flatten,
    latest_evaluation,
    mix,
    perplexities,
    sum_losses,
    total_loss,
    weights_of,
)
from lit_pretrain.modules.optimization import TrainedPart, count_elements, layer_parts, make_optimizer
from lit_pretrain.modules.starting_points import StartingPoint, check_start_given, with_settings
from lit_pretrain.modules.steps import total_steps
from lit_pretrain.objectives.objective import Batch, Objective, ObjectiveOutput, compute_objectives, objective_from
from lit_pretrain.trainer_state import data_module_of

# Under a stage's name, the metrics of a general corpus beside the own one.
REPLAY = "replay"


class Pretraining(BaseModule):
    """Any mix of objectives on one encoder.

    Subclasses take all but the encoder and the objectives by `**settings`, which jsonargparse follows to here.

    Args:
        encoder: Module with `forward_features`, `forward_head` and `settings`, to train from scratch; null with
            `init_from`, whose encoder is taken.
        objectives: Pretext tasks; their losses are added with their weights.
        init_from: Where the encoder comes from, with its tokenizer and the heads that serve again: "last", a run's name
            or id, a checkpoint of ours, a directory of BERT weights (transformers), ViT weights (timm) or a CLIP of
            open_clip's, or a name of these; one tower of two is "...:text" or "...:vision".
        pretrained: Whether `init_from`'s weights are taken; false takes its architecture and tokenizer only, with new
            weights: the training from scratch that going on is compared with.
        pooling: `cls`, `mean` or `map` in the place of `init_from`'s own.
        dropout: On the branches of the blocks, in the place of the encoder's own.
        attention_dropout: On the weights of the attention, in the place of the encoder's own; public BERTs have 0.1,
            which takes a quarter of a step's time on a CPU.
        stochastic_depth: Probability of skipping the last block's branches, in the place of the encoder's own.
        freeze: Which parts of the encoder are not trained, or not from the start.
        layer_decay: Factor of the learning rate from one block to the one before it; 1 for the same everywhere.
        head_factor: Factor of the learning rate of the objectives' heads, and of what of the encoder is new.
        architecture: timm's name for the ViT whose weights a file holds, where `init_from` is one without a config.json
            beside it.
        grow: How large the encoder of `init_from` becomes: more blocks, positions or pixels.
        **settings: `optimizer`, `schedule`, `gradient_clip_norm`, `compile_blocks`, `seed`,
            `gradient_checkpointing`, `average` and `non_finite`; see `BaseModule`.
    """

    # Builds the encoder that a checkpoint describes; what is started from has to hold one.
    encoder_class: ClassVar[type[TextEncoder] | type[VisionEncoder]]
    # A ModuleList of them.
    objectives: Sequence[Any]
    # Fields of a batch that tell how many terms the losses' means have.
    counted_fields: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        encoder: torch.nn.Module | None,
        objectives: Sequence[Objective],
        /,
        init_from: str | None = None,
        pretrained: bool = True,
        pooling: Literal["cls", "mean", "map"] | None = None,
        dropout: float | None = None,
        attention_dropout: float | None = None,
        stochastic_depth: float | None = None,
        freeze: FreezingConfig = FreezingConfig(),  # noqa: B008 (frozen)
        layer_decay: float = 1.0,
        head_factor: float = 1.0,
        architecture: str | None = None,
        grow: GrowthConfig = GrowthConfig(),  # noqa: B008 (frozen)
        **settings: Any,
    ) -> None:
        check_start_given(type(self).__name__, encoder, init_from, architecture)
        check_growth(init_from, grow)
        for name, value in (("layer_decay", layer_decay), ("head_factor", head_factor)):
            check_number(f"model.{name}", value, above=0)
        check_objectives(objectives)
        changes = {
            "pooling": pooling,
            "transformer.dropout": dropout,
            "transformer.attention_dropout": attention_dropout,
            "transformer.stochastic_depth": stochastic_depth,
        }
        start = self.starting_point(encoder, init_from, pretrained, architecture, grow, changes)
        super().__init__(start.encoder, **settings)
        check_encoder(objectives, start.encoder)
        check_blocks(start.encoder, freeze)
        # Of what the source was fine-tuned for, nothing serves here.
        self.start = start = start.without_head()
        # Of a training that begins with random weights there is nothing to tell.
        self.lineage = dict(start.lineage) if init_from is not None else {}
        # Parameters of the encoder that the source does not have: they are trained as the heads are.
        self.fresh = list(start.fresh)
        self.freezing = freeze
        self.layer_decay = layer_decay
        self.head_factor = head_factor
        self._frozen: list[torch.nn.Module] = []
        self.objectives = cast(Sequence[Objective], torch.nn.ModuleList(objectives))
        self.built = False
        # Here, or before in a checkpoint that was loaded.
        self.has_learned = False
        # Of the vocabulary, since the weights that are started from.
        self.vocabulary_growth: VocabularyGrowth | None = None
        self._example_batch: Batch | None = None

    def starting_point(
        self,
        encoder: Any,
        init_from: str | None,
        pretrained: bool,
        architecture: str | None,
        grow: GrowthConfig,
        changes: dict[str, Any],
    ) -> StartingPoint:
        """The encoder that is trained, and where it comes from.

        Raises:
            UserError: If there is none, or it is of the other modality.
        """
        if init_from is None:
            changed = ", ".join(
                f"model.{name.rpartition('.')[2]}" for name, value in changes.items() if value is not None
            )
            if changed:
                raise UserError(f"{changed} changes the encoder of model.init_from: set it in model.encoder instead.")
            return StartingPoint(encoder, None, {"init_from": "scratch"})
        start = start_from(init_from, pretrained, architecture, grow)
        if not isinstance(start.encoder, self.encoder_class):
            other = "vision" if isinstance(start.encoder, VisionEncoder) else "text"
            own = "vision" if other == "text" else "text"
            raise UserError(
                f"model.init_from is {init_from}, which holds a {type(start.encoder).__name__}, and "
                f"{type(self).__name__} trains a {self.encoder_class.__name__}: name another, or one tower of two as "
                f"'...:{own}'."
            )
        return with_settings(start, changes)

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
            self.start = take_heads(self.objectives, self.start, self.vocabulary_growth)
            self.built = True
            self.freeze_parts()
            prepare_transformers(self, self.compile_blocks, self.gradient_checkpointing)
        if self._trainer is not None and self._trainer.training:
            self.freeze_idle()
            self.accumulation.tell_what_is_compared(self.trainer.accumulate_grad_batches, self.objectives)
        super().configure_model()

    def check_measured(self) -> None:
        """Refuse to measure new heads on weights that are only started from, and say what else of them is new.

        Raises:
            UserError: If `validate` or `test` is asked for without a checkpoint.
        """
        if self.has_learned or self.trainer.state.fn == TrainerFn.FITTING:
            return
        if self.lineage.get("init_from") in (None, "scratch"):
            return
        fresh = [name.partition(" ")[0] for name in self.start.fresh_heads]
        if fresh and self.trainer.state.fn != TrainerFn.PREDICTING:
            raise UserError(
                f"What is measured would be heads that have learned nothing ({', '.join(fresh)}): name a run by "
                f"--ckpt_path, or leave out the objectives whose heads {self.lineage['init_from']} does not have."
            )
        if self.trainer.is_global_zero:
            print(self.start.told(), flush=True)

    def freeze_idle(self) -> None:
        """Stop the gradients of what no objective uses, for which processes that train together would wait."""
        for parameter in self.idle_parameters().values():
            parameter.requires_grad_(False)

    def freeze_parts(self) -> None:
        """Stop the gradients of what is not trained."""
        self._frozen = freeze(self.encoder, self.freezing, self.fresh)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As nn.Module's, but what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in getattr(self, "_frozen", []):
            module.eval()
        return self

    def on_validation_start(self) -> None:
        """As the base's, unless new heads would be measured."""
        self.check_measured()
        super().on_validation_start()

    def on_test_start(self) -> None:
        """As `on_validation_start`."""
        self.check_measured()
        super().on_test_start()

    def on_predict_start(self) -> None:
        """As the base's; it says what of the features is new."""
        self.check_measured()
        super().on_predict_start()

    def on_fit_start(self) -> None:
        """Say what is started from, with what is new and what was left out."""
        self.has_learned = True
        if self.lineage and self.trainer.ckpt_path is None and self.trainer.is_global_zero:
            print(self.start.told(), flush=True)

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
        """Leave an encoder that can be trained on as a whole, but for what the config froze."""
        for parameter in self.idle_parameters().values():
            parameter.requires_grad_(True)
        self.freeze_parts()

    def trained_modules(self) -> list[torch.nn.Module]:
        """Encoder and heads."""
        return [self.encoder, *self.objectives]

    def make_optimizer(self, fused: bool) -> torch.optim.Optimizer:
        """AdamW, with a learning rate for each block where there are several rates."""
        if self.layer_decay == 1.0 and self.head_factor == 1.0 and self.freezing.unfreeze_every is None:
            return super().make_optimizer(fused)
        starts = unfreezing_steps(self.encoder, self.freezing, total_steps(self.trainer))
        heads = torch.nn.ModuleList(self.trained_modules()[1:])
        parts = [TrainedPart(heads, self.head_factor, label="heads")]
        parts.append(TrainedPart(self.encoder, self.head_factor, names=frozenset(self.fresh), label="heads"))
        return make_optimizer(
            [*parts, *layer_parts(self.encoder, self.layer_decay, starts)], self.optimizer_config, fused
        )

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
        self.count_training("train", statistics)
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

    def validation_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> None:
        """Statistics of one batch, with the same draws in every run and at every step."""
        self.evaluation_step("validation", batch, batch_index)

    def test_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> None:
        """As `validation_step`, on the test data."""
        self.evaluation_step("test", batch, batch_index)

    def evaluation_step(self, stage: str, batch: Batch, batch_index: int) -> None:
        """Update a stage's statistics; the seed of its draws is the batch's place, not the run's seed or the rank."""
        batch = self.prepare(batch, None)
        if batch.get(REPLAYED):
            stage = f"{stage}/{REPLAY}"
        if batch_index == 0 and stage == "validation":
            self._example_batch = {name: value for name, value in batch.items()}
        outputs = compute_objectives(self.encoder, self.objectives, batch, self.evaluation_generator(batch_index))
        self.count(stage, batch, flatten(outputs, self.objectives))

    def report(self, stage: str) -> None:
        """As the base's, and of a general corpus beside the own one."""
        super().report(stage)
        # Another evaluation may have had such a corpus, and this one none.
        replayed = self._statistics.get(f"{stage}/{REPLAY}")
        if replayed is not None and replayed.update_called:
            super().report(f"{stage}/{REPLAY}")

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

    def chance(self) -> dict[str, float]:
        """As the base's, of the objectives on this data."""
        if self._trainer is None:
            return chance_of_mix(self.objectives, None)
        return chance_of_mix(self.objectives, data_module_of(self._trainer), latest_evaluation(self._trainer))

    # -- what others ask of a module

    def describe(self) -> dict[str, str | int | float]:
        """What this is made of, for the record of the run."""
        idle = count_elements(self.idle_parameters().values())
        description: dict[str, str | int | float] = {"untrained_encoder_parameters": idle} if idle else {}
        names_of_start = (
            ("fresh_parameters", self.start.fresh),
            ("left_out_parameters", self.start.left_out),
            ("taken_heads", self.start.taken_heads),
        )
        description |= {name: " ".join(names) for name, names in names_of_start if names}
        return (
            description
            | self.lineage
            | {
                "parameters": count_elements(self.parameters()),
                "encoder_parameters": count_elements(self.encoder.parameters()),
                "objectives": mix(self.objectives),
                "encoder": type(self.encoder).__name__,
                "depth": self.encoder.config.depth,
                "width": self.encoder.config.width,
                **export_facts(self.encoder),
            }
        )

    # -- checkpoints

    def checkpoint_record(self) -> dict[str, Any]:
        """What a checkpoint tells of itself: enough to build the encoder again without any config."""
        record = common_record(self, data_module_of(self._trainer) if self._trainer is not None else None)
        if self.lineage:
            record |= {"lineage": dict(self.lineage), "fresh": list(self.fresh)}
        return record | {
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
        # A training that goes on starts from its own checkpoint, to which nothing is new.
        self.lineage, self.fresh = dict(saved.get("lineage") or {}), list(saved.get("fresh") or [])
        self.start = replace(self.start, taken_heads=(), fresh_heads=(), left_out=[])
        self.has_learned = True
        if self.built:
            self.freeze_parts()
            if self._trainer is not None and self._trainer.training:
                # New ones are trained in any case, but for those.
                self.freeze_idle()
