"""What pretraining on text and on pictures have in common: objectives, draws, metrics, optimiser, checkpoints."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor

from lit_pretrain.data.randomness import default_seed, derive_seed
from lit_pretrain.errors import UserError
from lit_pretrain.modules.clipping import clip_gradients
from lit_pretrain.modules.optimization import AdamWConfig, ScheduleConfig, make_optimizer, make_scheduler
from lit_pretrain.modules.statistics import MeanStatistics
from lit_pretrain.modules.steps import total_steps
from lit_pretrain.objectives.objective import Batch, Objective, ObjectiveOutput, compute_objectives

CHECKPOINT_FORMAT = 1


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the sentence says at which step and where its batch is written down."""


class Pretraining(LightningModule):
    """Any mix of objectives on one encoder.

    Args:
        encoder: Module with `forward_features`, `forward_head` and `settings`.
        objectives: Pretext tasks; their losses are added with their weights.
        optimizer: AdamW's settings.
        schedule: Learning rate over the training.
        gradient_clip_norm: Largest norm of all gradients together; null for no clipping.
        compile_blocks: Whether torch.compile is applied to the Transformer's blocks.
        seed: Source of every draw in training; null takes seed_everything's.
    """

    def __init__(
        self,
        encoder: torch.nn.Module,
        objectives: Sequence[Objective],
        optimizer: AdamWConfig = AdamWConfig(),  # noqa: B008 (frozen)
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008 (frozen)
        gradient_clip_norm: float | None = 1.0,
        compile_blocks: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_objectives(objectives)
        self.encoder = encoder
        self.objectives = torch.nn.ModuleList(objectives)
        self.optimizer_config = optimizer
        self.schedule_config = schedule
        self.gradient_clip_norm = gradient_clip_norm
        self.compile_blocks = compile_blocks
        self.seed = default_seed() if seed is None else seed
        self.built = False
        self._generators: dict[torch.device, torch.Generator] = {}
        self._statistics: dict[str, MeanStatistics] = {}
        self._reported_step = 0
        self._used_learning_rate = 0.0
        self._unchecked: tuple[Tensor, dict[str, Tensor], list[int] | Tensor, int] | None = None

    # -- before training

    def configure_model(self) -> None:
        """Make whatever waits for the data (vocabulary, heads); Lightning calls this once the data is set up."""
        if self.built:
            return
        self.build()
        self.built = True
        if self.compile_blocks:
            self.encoder.compile_blocks()
            for objective in self.objectives:
                if hasattr(objective, "compile_blocks"):
                    objective.compile_blocks()

    def build(self) -> None:
        """Build the objectives' heads; subclasses give them what their modality knows."""
        for objective in self.objectives:
            objective.build(self.encoder)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW over encoder and heads, and its schedule over the trainer's steps."""
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        optimizer = make_optimizer([self.encoder, *self.objectives], self.optimizer_config, fused=not scaled)
        scheduler = make_scheduler(optimizer, self.schedule_config, total_steps(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the trainer's setting if it has one, else by this module's."""
        if gradient_clip_val is None and self.gradient_clip_norm is not None:
            gradient_clip_val, gradient_clip_algorithm = self.gradient_clip_norm, "norm"
        clip_gradients(self.trainer, optimizer, gradient_clip_val or 0.0, gradient_clip_algorithm or "norm")

    # -- steps

    def generator_for(self, *parts: int | str) -> torch.Generator:
        """A generator on this device, seeded from `parts` alone."""
        if self.device not in self._generators:
            self._generators[self.device] = torch.Generator(device=self.device)
        return self._generators[self.device].manual_seed(derive_seed(*parts))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Loss of one batch; every draw comes from (seed, global step, batch, rank), so any step can be replayed."""
        parts = (self.seed, self.trainer.global_step, batch_index, self.trainer.global_rank)
        torch.manual_seed(derive_seed("dropout", *parts))
        outputs = compute_objectives(self.encoder, self.objectives, batch, self.generator_for("corruption", *parts))
        loss = self.sum_losses(outputs)
        self.watch_losses(loss, outputs, batch)
        self.statistics_for("train", outputs).update(flatten(outputs, self.weights))
        self._used_learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_index: int) -> None:
        """Report the means since the last report, at the optimiser steps at which the trainer writes its logs."""
        step = self.trainer.global_step
        if step % self.trainer.log_every_n_steps == 0 and step != self._reported_step:
            self._reported_step = step
            self.report("train")
            self.log("learning_rate", self._used_learning_rate)

    def on_train_end(self) -> None:
        """Look at the last step's loss too."""
        self.stop_if_not_finite()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Statistics of one batch, with the same draws in every run and at every step."""
        self.evaluation_step("validation", batch, batch_index)

    def test_step(self, batch: Batch, batch_index: int) -> None:
        """As `validation_step`, on the test data."""
        self.evaluation_step("test", batch, batch_index)

    def evaluation_step(self, stage: str, batch: Batch, batch_index: int) -> None:
        """Update a stage's statistics; the seed of its draws is the batch's place, not the run's seed."""
        if batch_index == 0 and stage == "validation":
            self._example_batch = {name: value for name, value in batch.items()}
        generator = self.generator_for("evaluation", batch_index, self.trainer.global_rank)
        outputs = compute_objectives(self.encoder, self.objectives, batch, generator)
        self.statistics_for(stage, outputs).update(flatten(outputs, self.weights))

    def on_validation_epoch_end(self) -> None:
        """Report the means over the whole validation set."""
        self.report("validation")

    def on_test_epoch_end(self) -> None:
        """Report the means over the whole test set."""
        self.report("test")

    # -- losses and metrics

    @property
    def weights(self) -> dict[str, float]:
        """Factor of each objective's loss."""
        return {objective.name: objective.weight for objective in self.objectives}

    def sum_losses(self, outputs: dict[str, ObjectiveOutput]) -> Tensor:
        """Weighted sum of the objectives' losses."""
        return torch.stack([self.weights[name] * output.loss for name, output in outputs.items()]).sum()

    def statistics_for(self, stage: str, outputs: dict[str, ObjectiveOutput]) -> MeanStatistics:
        """The running means of a stage, made at its first batch."""
        if stage not in self._statistics:
            names = list(flatten(outputs, self.weights))
            self._statistics[stage] = MeanStatistics(names).to(self.device)
        return self._statistics[stage]

    def report(self, stage: str) -> None:
        """Log a stage's means (and the perplexities of its losses over tokens) and start them anew."""
        if stage not in self._statistics:
            return
        metric = self._statistics[stage]
        means = metric.compute()
        metric.reset()
        for objective in self.objectives:
            for name in objective.perplexities:
                if (key := f"{objective.name}/{name}") in means:
                    means[f"{objective.name}/{name.replace('loss', 'perplexity')}"] = means[key].exp()
        self.log_dict({f"{stage}/{name}": value.float() for name, value in means.items()})

    def watch_losses(self, loss: Tensor, outputs: dict[str, ObjectiveOutput], batch: Batch) -> None:
        """Stop at a loss that is not finite: at once on a CPU, one step later elsewhere, so as not to wait for it."""
        self.stop_if_not_finite()
        losses = {name: output.loss.detach() for name, output in outputs.items()}
        self._unchecked = (loss.detach(), losses, batch.get("sample_id", []), self.trainer.global_step)
        if loss.device.type == "cpu":
            self.stop_if_not_finite()

    def stop_if_not_finite(self) -> None:
        """Raise `NonFiniteLossError`, with the sample ids of its batch saved, if the watched loss is not finite."""
        if self._unchecked is None:
            return
        (loss, losses, sample_ids, step), self._unchecked = self._unchecked, None
        if bool(torch.isfinite(loss)):
            return
        broken = [name for name, value in losses.items() if not bool(torch.isfinite(value))]
        directory = Path(getattr(self.logger, "run_directory", None) or self.trainer.default_root_dir)
        path = directory / f"non-finite-loss-step-{step}-rank-{self.trainer.global_rank}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        ids = torch.as_tensor(sample_ids).tolist()
        record = {"step": step, "epoch": self.trainer.current_epoch, "objectives": broken, "sample_ids": ids}
        path.write_text(json.dumps(record) + "\n")
        raise NonFiniteLossError(
            f"The loss of {' and '.join(broken) or 'the sum'} is {float(loss)} at step {step}; the sample ids of its "
            f"batch are in {path}: lower optimizer.learning_rate, lengthen schedule.warm_up, or go on from the last "
            "checkpoint in fp32."
        )

    # -- what others ask of a module

    def describe(self) -> dict[str, str | int | float]:
        """What this is made of, for the record of the run."""
        return {
            "parameters": sum(parameter.numel() for parameter in self.parameters()),
            "encoder_parameters": sum(parameter.numel() for parameter in self.encoder.parameters()),
            "objectives": " + ".join(
                f"{weight:g} x {name}" if weight != 1 else name for name, weight in self.weights.items()
            ),
            "encoder": type(self.encoder).__name__,
            "depth": self.encoder.config.depth,
            "width": self.encoder.config.width,
        }

    # -- checkpoints

    def checkpoint_record(self) -> dict[str, Any]:
        """What a checkpoint tells of itself: enough to build the encoder again without any config."""
        return {
            "format": CHECKPOINT_FORMAT,
            "module": type(self).__name__,
            "encoder_class": type(self.encoder).__name__,
            "encoder": self.encoder.settings(),
            "objectives": [objective.settings() for objective in self.objectives],
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the record; weights that a loss has spoilt are not saved over good ones."""
        self.stop_if_not_finite()
        checkpoint["lit_pretrain"] = self.checkpoint_record()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another kind or shape, naming what differs."""
        theirs, ours = checkpoint.get("lit_pretrain"), self.checkpoint_record()
        if theirs is None:
            raise UserError("The checkpoint was not written by lit_pretrain: give one from a run's checkpoints folder.")
        for name in ("module", "encoder_class"):
            if theirs[name] != ours[name]:
                raise UserError(f"The checkpoint is of a {theirs[name]}, this config builds a {ours[name]}.")
        differences = difference("encoder", theirs["encoder"], ours["encoder"])
        kinds = [[one["class_path"] for one in record["objectives"]] for record in (theirs, ours)]
        if kinds[0] != kinds[1]:
            differences.append(f"objectives ({', '.join(kinds[0])} there, {', '.join(kinds[1])} here)")
        if differences:
            raise UserError(
                f"The checkpoint does not fit this config: {'; '.join(differences)}; resume with the config.yaml of "
                "its own run."
            )


def check_objectives(objectives: Sequence[Objective]) -> None:
    """At least one objective, each once."""
    names = [objective.name for objective in objectives]
    if not names:
        raise UserError("model.objectives is empty: name at least one objective to train on.")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"model.objectives names {name} twice: keep one, and set its weight.")


def flatten(outputs: dict[str, ObjectiveOutput], weights: dict[str, float]) -> dict[str, tuple[Tensor, Tensor]]:
    """All statistics by "objective/statistic", and the weighted sum of losses as "loss"."""
    flat = {f"{name}/{key}": pair for name, output in outputs.items() for key, pair in output.statistics.items()}
    total = torch.stack([weights[name] * output.loss.detach().float() for name, output in outputs.items()]).sum()
    return {"loss": (total, torch.ones_like(total))} | flat


def difference(name: str, theirs: Any, ours: Any) -> list[str]:
    """Where two nested settings differ, as "encoder.transformer.width (256 there, 128 here)"."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = sorted(theirs.keys() | ours.keys())
        return [line for key in keys for line in difference(f"{name}.{key}", theirs.get(key), ours.get(key))]
    return [] if theirs == ours else [f"{name} ({theirs} there, {ours} here)"]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of ours, mapped and read without running any pickled code; anything else is a `UserError`."""
    if not Path(path).is_file():
        raise UserError(f"There is no checkpoint at {path}: give a .ckpt file from a run's checkpoints folder.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged or foreign file fails in many ways
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read as a checkpoint ({reason}): give an undamaged one.") from error
    if "lit_pretrain" not in checkpoint:
        raise UserError(f"{path} was not written by lit_pretrain: give one from a run's checkpoints folder.")
    return checkpoint


def subclasses(kind: type) -> list[type]:
    """All classes below a class, at any depth."""
    return [one for child in kind.__subclasses__() for one in (child, *subclasses(child))]
